"""Figures of the page, drawn by matplotlib as SVG and PNG from the same numbers as the tables."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .analysis import Evidence
from .arms import ARMS
from .manifest import trial_id
from .plan import TEST_KINDS
from .statistics import limits

WIDTH, HEIGHT = 9.0, 3.6  # inches
FIGURES: dict[str, str] = {
    "heights": "Exact match by ink height at equal time, with 95% intervals.",
    "learning": "Training loss on words (pixel arms: the whole objective) by crops seen, first seed.",
    "rates": "Development nats a character by learning rate, after a fifth of a run.",
}


def draw_figures(evidence: Evidence, folder: Path) -> dict[str, str]:
    """Write every figure as SVG and PNG; returns the SVG texts by name."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    makers: dict[str, Callable[[Evidence, Any], None]] = {"heights": heights, "learning": learning, "rates": rates}
    folder.mkdir(parents=True, exist_ok=True)
    texts = dict[str, str]()
    with plt.rc_context({"svg.hashsalt": "evidence", "font.size": 9}):
        for name, draw in makers.items():
            figure, axes = plt.subplots(1, 2 if name == "heights" else 1, figsize=(WIDTH, HEIGHT), squeeze=False)
            draw(evidence, axes[0])
            figure.tight_layout(rect=(0, 0, 1, 1 - _legend(figure, axes[0, 0])))
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            figure.savefig(folder / f"{name}.png", dpi=110, metadata={"Software": None})
            plt.close(figure)
            texts[name] = (folder / f"{name}.svg").read_text(encoding="utf-8")
    return texts


def style(arm: str) -> dict[str, Any]:
    """Pixel arms are thick and solid, patch arms thin and dashed; one colour an arm."""
    number = list(ARMS).index(arm)
    pixel = ARMS[arm].is_pixel
    return {"color": f"C{number}", "linewidth": 2.2 if pixel else 1.2, "linestyle": "-" if pixel else "--"}


def heights(evidence: Evidence, axes: Any) -> None:
    for axis, kind in zip(axes, TEST_KINDS, strict=True):
        for arm in evidence.arms:
            x, point, drawn = evidence.accuracies[arm, kind]
            low, high = limits(drawn)
            axis.plot(x, 100 * point, label=f"{arm}: {ARMS[arm].title}", **style(arm))
            axis.fill_between(x, 100 * low, 100 * high, color=style(arm)["color"], alpha=0.15, linewidth=0)
        axis.axhline(75, color="gray", linewidth=0.6)
        axis.set(xscale="log", xlabel="ink height, px", ylabel="exact match, %", title=kind, ylim=(0, 100))
        ticks = [4, 5, 6, 8, 10, 12, 16, 24, 32]
        axis.set_xticks(ticks, [str(t) for t in ticks])
        axis.minorticks_off()


def learning(evidence: Evidence, axes: Any) -> None:
    for arm in evidence.arms:
        record = evidence.main_runs(arm)[min(evidence.main_runs(arm))]
        curve = np.array(record["curve"], float).reshape(-1, 2)
        axes[0].plot(curve[:, 0], curve[:, 1], label=f"{arm}: {ARMS[arm].title}", **style(arm))
    axes[0].set(xlabel="crops", ylabel="loss, nats")


def rates(evidence: Evidence, axes: Any) -> None:
    factors = sorted({record["spec"]["rate"] for record in evidence.records.values()
                      if record["spec"]["kind"] == "trial"})  # fmt: skip
    for arm in ARMS:
        found = [(f, evidence.known.nats.get(trial_id(arm, f), {}).get("trial")) for f in factors]
        line = np.array([(f, nats) for f, nats in found if nats is not None and np.isfinite(nats)]).reshape(-1, 2)
        if len(line):
            axes[0].plot(line[:, 0], line[:, 1], marker="o", markersize=3, label=f"{arm}: {ARMS[arm].title}",
                         **style(arm))  # fmt: skip
    axes[0].set(xlabel="learning rate, relative", ylabel="nats a character")
    if factors:
        axes[0].set_xscale("log")
        axes[0].set_xticks(factors, [f"{factor:g}" for factor in factors])
        axes[0].minorticks_off()


def _legend(figure: Any, axis: Any) -> float:
    """Name the lines above the plots, where none lies; returns the share of the height that it takes."""
    handles, labels = axis.get_legend_handles_labels()
    if not handles:
        return 0.0
    figure.legend(handles, labels, fontsize=7, frameon=False, loc="upper center", ncols=2)
    return 0.05 * -(-len(handles) // 2)
