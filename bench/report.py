"""What a benchmark found: a table and bars on the screen, a plot and the figures in ``bench/out``.

Invariant: a ratio is always crungo's value divided by that of what it is compared with, and a goal is a bound on it: a
lower one where more is better, else an upper one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["OUT", "Row", "publish"]

OUT = Path(__file__).resolve().parent / "out"
BAR = 46  # characters
NOTHING = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One comparison. ``reference`` is the value that crungo's is divided by, and ``against`` says whose that is.

    ``limit`` is what the machine could do at all. ``enough``: a value of crungo's own that is good whatever the ratio.
    """

    work: str
    unit: str
    crungo: float
    peers: dict[str, float] = field(default_factory=dict)
    limit: float | None = None
    reference: float | None = None
    against: str = ""
    goal: float | None = None
    more_is_better: bool = False
    enough: float | None = None

    @property
    def ratio(self) -> float | None:
        return None if not self.reference else self.crungo / self.reference

    @property
    def holds(self) -> bool | None:
        """Whether the goal is reached; None where there is none, or nothing to compare with."""
        if self.enough is not None and self._reaches(self.crungo, self.enough):
            return True
        if self.ratio is None or self.goal is None:
            return None
        return self._reaches(self.ratio, self.goal)

    def _reaches(self, value: float, bound: float) -> bool:
        return value >= bound if self.more_is_better else value <= bound

    def document(self) -> dict[str, Any]:
        return {
            "work": self.work,
            "unit": self.unit,
            "crungo": self.crungo,
            "peers": self.peers,
            "limit": self.limit,
            "ratio": self.ratio,
            "goal": self.goal,
            "holds": self.holds,
        }

    def bars(self) -> list[tuple[str, float]]:
        """Names and values to draw, crungo's first."""
        limit = [("limit", self.limit)] if self.limit is not None else []
        return [("crungo", self.crungo), *self.peers.items(), *limit]

    def goal_text(self) -> str:
        if self.goal is None:
            return NOTHING
        sign = "≥" if self.more_is_better else "≤"
        own = "" if self.enough is None else f", or {sign} {figure(self.enough)} {self.unit}"
        return f"{sign} {self.goal:.2f} of {self.against}{own}"


def publish(name: str, title: str, rows: list[Row]) -> None:
    """Print the rows and write ``<name>.json``, ``.txt`` and ``.png`` into ``bench/out``."""
    OUT.mkdir(exist_ok=True)
    text = f"{title}\n\n{table(rows)}\n\n{chart(rows)}\n"
    print("\n" + text, flush=True)
    (OUT / f"{name}.json").write_text(json.dumps([row.document() for row in rows], indent=2) + "\n")
    (OUT / f"{name}.txt").write_text(text)
    plot(OUT / f"{name}.png", title, rows)
    print(f"written: bench/out/{name}.json, {name}.txt, {name}.png")


def figure(value: float | None) -> str:
    """Three digits that mean something."""
    if value is None:
        return NOTHING
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(rows: list[Row]) -> str:
    peers = list(dict.fromkeys(name for row in rows for name in row.peers))
    head = ["work", "unit", "crungo", *peers, "limit", "ratio", "goal", "holds"]
    words = {True: "yes", False: "NO", None: NOTHING}
    body = [
        [
            row.work,
            row.unit,
            figure(row.crungo),
            *(figure(row.peers.get(peer)) for peer in peers),
            figure(row.limit),
            NOTHING if row.ratio is None else f"{row.ratio:.2f}",
            row.goal_text(),
            words[row.holds],
        ]
        for row in rows
    ]
    widths = [max(len(line[column]) for line in [head, *body]) for column in range(len(head))]
    left = {0, 1, len(head) - 2, len(head) - 1}
    lines = [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in [head, ["─" * width for width in widths], *body]
    ]
    return "\n".join(lines)


def chart(rows: list[Row]) -> str:
    """Bars of characters, each row on its own scale."""
    lines = []
    for row in rows:
        lines.append(f"{row.work} ({row.unit}, {'more' if row.more_is_better else 'less'} is better)")
        bars = row.bars()
        most = max(value for _, value in bars) or 1.0
        for name, value in bars:
            filled = "█" if name == "crungo" else "░" if name == "limit" else "▒"
            lines.append(f"  {name:<16} {filled * max(1, round(BAR * value / most))} {figure(value)}")
    return "\n".join(lines)


def plot(path: Path, title: str, rows: list[Row]) -> None:
    """The same bars as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    heights = [len(row.bars()) + 1.5 for row in rows]
    drawing, panels = pyplot.subplots(
        len(rows), 1, figsize=(9, 0.27 * sum(heights) + 1), squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    colours = {"crungo": "#2563eb", "limit": "#d1d5db"}
    for axes, row in zip(panels[:, 0], rows, strict=True):
        names, values = zip(*row.bars(), strict=True)
        drawn = axes.barh(names, values, color=[colours.get(name, "#9ca3af") for name in names])
        axes.bar_label(drawn, [figure(value) for value in values], padding=3, fontsize=8)
        axes.invert_yaxis()
        axes.set_title(f"{row.work} ({row.unit})", loc="left", fontsize=9)
        axes.margins(x=0.1)
        axes.tick_params(labelsize=8, bottom=False, labelbottom=False)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    drawing.suptitle(title, fontsize=11)
    drawing.tight_layout(rect=(0, 0, 1, 0.99))
    drawing.savefig(path, dpi=130)
    pyplot.close(drawing)
