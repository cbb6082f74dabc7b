"""Tables as a drawing: a bar for each median, and a line from the least run to the greatest."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path

from benchmarks.measure import Table

# In pixels.
ROW, LEFT, WIDTH, RIGHT, HEADING = 22, 230, 460, 120, 34
OURS, PEER = "#e4572e", "#7a8ca3"


def draw(path: Path, tables: Sequence[Table]) -> None:
    """Write an SVG with its own background, so that it can be read on a light page and on a dark one."""
    y = 0
    parts: list[str] = []
    for table in tables:
        drawn = [(name, [values[name] for values in table.rounds if name in values]) for name in _names(table)]
        scale = WIDTH / max((max(values) for _, values in drawn), default=1.0)
        parts.append(f'<text x="12" y="{y + 23}" font-weight="bold">{escape(table.title)}, {table.unit}</text>')
        y += HEADING
        for name, values in drawn:
            parts.append(_row(y, name, values, scale))
            y += ROW
        y += 10
    width = LEFT + WIDTH + RIGHT
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" width="{width}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#222">\n'
        f'<rect width="{width}" height="{y}" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n",
        encoding="utf-8",
    )
    print(f"Drawn: {path}")


def _names(table: Table) -> list[str]:
    """In order of their medians, the least first."""
    medians = {
        name: statistics.median([values[name] for values in table.rounds if name in values])
        for name in _subjects(table)
    }
    return sorted(medians, key=lambda name: medians[name])


def _subjects(table: Table) -> list[str]:
    return list(dict.fromkeys(name for values in table.rounds for name in values))


def _row(y: int, name: str, values: Sequence[float], scale: float) -> str:
    middle = statistics.median(values)
    low, high = LEFT + min(values) * scale, LEFT + max(values) * scale
    centre = y + ROW / 2
    colour = OURS if name.startswith("ours") else PEER
    return (
        f'<text x="{LEFT - 8}" y="{centre + 4:.0f}" text-anchor="end">{escape(name)}</text>'
        f'<rect x="{LEFT}" y="{y + 3}" width="{middle * scale:.1f}" height="{ROW - 6}" fill="{colour}"/>'
        f'<path d="M{low:.1f} {centre:.0f}H{high:.1f}" stroke="#222" stroke-width="1.5"/>'
        f'<text x="{max(high, LEFT + middle * scale) + 8:.0f}" y="{centre + 4:.0f}">{middle:.2f}</text>'
    )
