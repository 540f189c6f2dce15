"""The page: results between two marks of docs/evidence.md, and one HTML file that needs nothing else."""

import html
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.files import replace_file

from .analysis import Evidence
from .figures import FIGURES, draw_figures
from .tables import Table, all_tables

BEGIN, END = "<!-- results: made by `python benchmarks/evidence report`, not by hand -->", "<!-- end of results -->"
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0;font-size:13px}td,th{border:1px solid #ccc;padding:.25rem .5rem;"
    "text-align:left;vertical-align:top}th{background:#f3f3f3}svg{max-width:100%;height:auto}"
)


def write_pages(results: Path, page: Path, figures: Path) -> None:
    """Replace the results of a Markdown page, and write the figures and the HTML page."""
    evidence = Evidence(results)
    tables = all_tables(evidence)
    drawn = draw_figures(evidence, figures)
    text = page.read_text(encoding="utf-8") if page.exists() else f"# Evidence\n\n{BEGIN}\n{END}\n"
    if BEGIN not in text or END not in text:
        raise PixWordError(f"{page} has no place for results: two lines, {BEGIN} and {END}")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    where = os.path.relpath(figures, page.parent)
    body = markdown(tables, where)
    replace_file(page, f"{before}{BEGIN}\n\n{body}\n{END}{after}".encode())
    replace_file(figures / "index.html", to_html(before, tables, drawn).encode())


def markdown(tables: Sequence[Table], where: str) -> str:
    """The results as Markdown, figures by their place."""
    parts = list[str]()
    for table in tables:
        parts += [f"### {table.title}", table.note, _table(table)]
        if (name := _figure_of(table)) is not None:
            parts.append(f"![{FIGURES[name]}]({where}/{name}.png)\n\n*{FIGURES[name]}*")
    return "\n\n".join(parts) + "\n"


def _figure_of(table: Table) -> str | None:
    """The figure that follows a table."""
    return {"Height that is read": "heights", "Arms": "learning", "Learning rates": "rates"}.get(table.title)


def _table(table: Table) -> str:
    lines = [table.header, tuple("---" for _ in table.header), *table.rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def to_html(protocol: str, tables: Sequence[Table], drawn: Mapping[str, str]) -> str:
    """One self-contained page: what comes before the results, the tables, and figures as SVG inside it."""
    parts = [_paragraphs(protocol)]
    for table in tables:
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.header)
        rows = "".join(f"<tr>{''.join(f'<td>{_inline(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
        parts.append(f"<h3>{html.escape(table.title)}</h3><p>{_inline(table.note)}</p>")
        parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>")
        if (name := _figure_of(table)) is not None:
            svg = drawn[name][drawn[name].index("<svg") :]
            parts.append(f"<figure>{_own_ids(svg, name)}<figcaption>{html.escape(FIGURES[name])}</figcaption></figure>")
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>mlx-pixword: evidence</title>'
        f"<style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _own_ids(svg: str, name: str) -> str:
    """Several drawings in one page must not share ids."""
    svg = re.sub(r'id="', f'id="{name}-', svg)
    return re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)


def _paragraphs(text: str) -> str:
    """The little Markdown that the page has: headings, lists, paragraphs."""
    parts = list[str]()
    for block in text.strip().split("\n\n"):
        if match := re.match(r"(#+) (.*)", block):
            level = len(match[1])
            parts.append(f"<h{level}>{_inline(match[2])}</h{level}>")
        elif block.startswith("- "):
            items = re.split(r"\n- ", block[2:])
            parts.append(f"<ul>{''.join(f'<li>{_inline(item)}</li>' for item in items)}</ul>")
        elif block.startswith("```"):
            parts.append(f"<pre>{html.escape(re.sub(r'^```.*$', '', block, flags=re.MULTILINE).strip())}</pre>")
        else:
            parts.append(f"<p>{_inline(block)}</p>")
    return "\n".join(parts)


def _inline(text: str) -> str:
    text = html.escape(text, quote=False)
    text = re.sub(r"\[([^\]]+)\]\((https?://[^)]+)\)", r'<a href="\2">\1</a>', text)
    text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text)
    text = re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", text)
    text = re.sub(r"(?<!\*)\*([^*]+)\*(?!\*)", r"<i>\1</i>", text)
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
