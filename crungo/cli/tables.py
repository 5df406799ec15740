"""Lists as docker prints them: aligned tables, one JSON object per line, or a template per row.

``--format`` is ``table``, ``table TEMPLATE``, ``json``, or a template; ``\\t`` and ``\\n`` are a tab and a new line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crungo.cli.output import emit, to_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["aligned", "show"]

_LEAST, _GAP = 10, 3
"""docker's: no column is narrower, and this much is between two."""


def show(
    rows: Sequence[Mapping[str, str]], columns: Sequence[str], titles: Mapping[str, str], form: str | None = None
) -> None:
    """Print rows on stdout. ``columns`` are the fields of the plain table, ``titles`` the header of every field.

    Raises:
        UsageError: the format is malformed, or names a field that there is not.
    """
    emit("".join(f"{line}\n" for line in lines(rows, columns, titles, form)))


def lines(
    rows: Sequence[Mapping[str, str]], columns: Sequence[str], titles: Mapping[str, str], form: str | None = None
) -> list[str]:
    """What :func:`show` prints."""
    form = (form or "table").strip()
    if form == "json":
        return [to_json(dict(sorted(row.items()))) for row in rows]
    if form == "table":
        cells = [[titles[name] for name in columns], *([row[name] for name in columns] for row in rows)]
        return aligned(cells)
    from crungo.cli.templates import Record, Template

    table = form.startswith(("table ", "table\\t"))
    template = Template((form[5:].lstrip() if table else form).replace("\\t", "\t").replace("\\n", "\n"))
    texts = [template.render(Record(row)) for row in rows]
    if not table:
        template.header(titles)  # an unknown field is an error also where there are no rows
        return texts
    return aligned([text.split("\t") for text in (template.header(titles), *texts)])


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines whose columns begin at the same places; the last cell of each line is not padded."""
    count = max((len(row) for row in cells), default=0)
    widths = [max((len(row[n]) for row in cells if n + 1 < len(row)), default=0) + _GAP for n in range(count)]
    return [
        "".join(cell.ljust(max(_LEAST, width)) for cell, width in zip(row[:-1], widths, strict=False)) + row[-1]
        for row in cells
    ]
