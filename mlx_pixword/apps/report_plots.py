"""The curves of a report, drawn by bokeh: they zoom, and hovering tells step and value."""

from collections.abc import Sequence
from typing import Any

from bokeh.embed import components
from bokeh.models import HoverTool, Range1d
from bokeh.palettes import Category10_10
from bokeh.plotting import figure
from bokeh.resources import Resources

from .run_files import RunFiles

PLOTS = (  # title, what the axis counts, curves; held-out curves get marks
    ("Loss", "nats a target", ("word_loss", "boundary_loss", "dense_loss", "heldout_word_loss",
                               "heldout_boundary_loss", "heldout_dense_loss")),
    ("Held-out loss, as trained for", "nats a target", ("heldout_loss",)),
    ("Held-out readings that are right", "share", ("heldout_exact_match",)),
    ("Speed", "elements a second", ("tokens_per_second",)),
    ("Memory", "GB", ("peak_gb", "active_gb")),
    ("Learning rate", "", ("learning_rate",)),
    ("Norm of the gradient", "", ("grad_norm",)),
)  # fmt: skip
UNPLOTTED = ("step", "epoch", "skipped", "nonfinite")  # told in words
DASHES = ("solid", "dashed", "dotted", "dotdash")


def scripts() -> str:
    """Bokeh itself, to stand in the page's head: about 1.3 MB, so that the page needs no network."""
    return str(Resources(mode="inline", components=["bokeh"]).render())


def plots(runs: Sequence[RunFiles]) -> tuple[str, list[str]]:
    """A script and a ``div`` for every plot that has any points."""
    known = {name for _, _, names in PLOTS for name in names}
    others = sorted({name for run in runs for name in run.curves} - known - set(UNPLOTTED))
    wanted = [*PLOTS, *((name, "", (name,)) for name in others)]
    figures = [_plot(runs, title, unit, names) for title, unit, names in wanted if _has_points(runs, names)]
    if not figures:
        return "", []
    for other in figures[1:]:
        other.x_range = figures[0].x_range  # zooming into steps zooms all
    script, divisions = components(figures)
    return script, list(divisions)


def _has_points(runs: Sequence[RunFiles], names: Sequence[str]) -> bool:
    return any(run.curves.get(name) for run in runs for name in names)


def _plot(runs: Sequence[RunFiles], title: str, unit: str, names: Sequence[str]) -> Any:
    plot = figure(
        title=title, x_axis_label="step", y_axis_label=unit, height=330, sizing_mode="stretch_width",
        tools="pan,box_zoom,wheel_zoom,reset,save", active_drag="box_zoom", output_backend="canvas",
    )  # fmt: skip
    plot.toolbar.logo = None
    for r, run in enumerate(runs):
        for n, name in enumerate(names):
            if points := run.curves.get(name):
                _line(plot, points, _label(runs, run, name), _color(r if len(runs) > 1 else n % 3), n)
    plot.add_tools(HoverTool(tooltips=[("", "@label"), ("step", "@x{0,0}"), (unit or "value", "@y{0,0.[000000]}")]))
    values = [value for run in runs for name in names for _, value in run.curves.get(name, [])]
    if min(values) >= 0 and title.startswith(("Loss", "Memory", "Speed", "Held-out readings")):
        plot.y_range = Range1d(start=0, end=1.05 * max(*values, 1e-9))
    if plot.legend:
        plot.legend.click_policy, plot.legend.label_text_font_size = "hide", "9pt"
        plot.legend.background_fill_alpha = 0.6
        plot.legend.location = "bottom_right" if "right" in title else "top_right"  # where the curve is not
    return plot


def _line(plot: Any, points: Sequence[tuple[float, float]], label: str, color: str, n: int) -> None:
    x, y = zip(*points, strict=True)
    data = {"x": x, "y": y, "label": [label] * len(x)}
    held = "held out" in label
    dash = DASHES[n % 3] if not held else "dashed"
    drawn = plot.line("x", "y", source=data, line_color=color, line_width=1.6, line_dash=dash, legend_label=label)
    if held or len(points) == 1:
        plot.scatter("x", "y", source=drawn.data_source, color=color, size=6, legend_label=label)


def _label(runs: Sequence[RunFiles], run: RunFiles, name: str) -> str:
    words = name.removeprefix("heldout_").replace("_", " ") + (", held out" if name.startswith("heldout_") else "")
    return f"{run.name}: {words}" if len(runs) > 1 else words


def _color(n: int) -> str:
    return str(Category10_10[n % 10])
