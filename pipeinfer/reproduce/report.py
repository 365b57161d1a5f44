"""The report: one list of blocks, written as Markdown and as a self-contained HTML page."""

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec


class Heading(msgspec.Struct, frozen=True):
    text: str
    level: int = 2


class Paragraph(msgspec.Struct, frozen=True):
    text: str


class Code(msgspec.Struct, frozen=True):
    text: str


class Table(msgspec.Struct, frozen=True):
    """`head` and every row have the same number of cells; `numbers`: columns that are set flush right. The `title` is
    for where nothing else says what it is."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()
    title: str = ""


class Picture(msgspec.Struct, frozen=True):
    """`figures/name.svg` of the results folder."""

    name: str
    title: str


Block: TypeAlias = Heading | Paragraph | Code | Table | Picture


def write(folder: Path, title: str, blocks: Sequence[Block]) -> None:
    """report.md and report.html in `folder`; the figures must lie there already."""
    markdown = "\n\n".join([f"# {title}", *map(_markdown, blocks)])
    (folder / "report.md").write_text(markdown + "\n", encoding="utf-8")
    body = "\n".join([f"<h1>{html.escape(title)}</h1>", *(_html(block, folder) for block in blocks)])
    (folder / "report.html").write_text(_PAGE.format(title=html.escape(title), body=body), encoding="utf-8")


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {block.text}"
    if isinstance(block, Paragraph):
        return block.text
    if isinstance(block, Code):
        return f"```\n{block.text}\n```"
    if isinstance(block, Picture):
        return f"![{block.title}](figures/{block.name}.svg)"
    rule = ["---:" if column in block.numbers else "---" for column in range(len(block.head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in _escaped([block.head, rule, *block.rows]))


def _escaped(rows: Iterable[Sequence[str]]) -> list[list[str]]:
    return [[cell.replace("|", "\\|") for cell in row] for row in rows]


def _html(block: Block, folder: Path) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Code):
        return f"<pre>{html.escape(block.text)}</pre>"
    if isinstance(block, Picture):
        drawing = (folder / "figures" / f"{block.name}.svg").read_text(encoding="utf-8")
        return f'<figure aria-label="{html.escape(block.title)}">{drawing[drawing.index("<svg") :]}</figure>'
    head = "".join(_cell("th", text, column in block.numbers) for column, text in enumerate(block.head))
    rows = "".join(
        "<tr>" + "".join(_cell("td", text, column in block.numbers) for column, text in enumerate(row)) + "</tr>"
        for row in block.rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _cell(tag: str, text: str, number: bool) -> str:
    return f"<{tag}{' class=number' if number else ''}>{html.escape(text)}</{tag}>"


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222; }}
table {{ border-collapse: collapse; margin: 1em 0; font-size: 14px; }}
th, td {{ border-bottom: 1px solid #ddd; padding: .3em .7em; text-align: left; vertical-align: top; }}
th {{ border-bottom: 2px solid #888; }}
.number {{ text-align: right; font-variant-numeric: tabular-nums; }}
figure {{ margin: 1.5em 0; }}
svg {{ max-width: 100%; height: auto; }}
pre {{ background: #f5f5f5; padding: .8em; overflow-x: auto; }}
</style>
<body>
{body}
</body>
</html>
"""
