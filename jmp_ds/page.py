"""One HTML page with tables and pictures in it; nothing outside the file is needed to read it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from jmp_ds.report import cell_text

_STYLE = """
body { font-family: sans-serif; margin: 2em auto; max-width: 70em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: 0.25em 0.8em; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; }
p.note { color: #666; }
"""


@dataclass(frozen=True)
class Table:
    """A table with a heading.

    Attributes:
        header: of the columns.
        rows: texts and numbers; numbers are shown with four digits.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: its heading.
        note: a sentence below it.
        content: tables, and files of pictures.
    """

    title: str
    note: str
    content: Sequence[Table | Path]


def html_page(title: str, sections: Sequence[Section]) -> str:
    """The page as text; sections without content are left out."""
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style></head>',
        f"<body><h1>{escape(title)}</h1>",
    ]
    for section in sections:
        if section.content:
            parts += [f"<h2>{escape(section.title)}</h2>", f'<p class="note">{escape(section.note)}</p>']
            parts += [_table(each) if isinstance(each, Table) else _picture(each) for each in section.content]
    return "\n".join([*parts, "</body></html>", ""])


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.header)
    rows = ["".join(f"<td>{escape(cell_text(value))}</td>" for value in row) for row in table.rows]
    return "\n".join(["<table>", f"<tr>{head}</tr>", *(f"<tr>{row}</tr>" for row in rows), "</table>"])


def _picture(file: Path) -> str:
    data = base64.b64encode(file.read_bytes()).decode("ascii")
    return f'<p><img alt="{escape(file.stem)}" src="data:image/png;base64,{data}"></p>'
