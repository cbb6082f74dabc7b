"""Show where the time of a cold start goes: a waterfall here, and as an SVG with --svg."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any
from urllib.request import urlopen

BAR_COLUMNS = 60
# Of the drawing, in pixels.
ROW, LEFT, WIDTH = 22, 110, 560
COLOURS = ("#4c78a8", "#72b7b2", "#54a24b", "#eeca3b", "#f58518", "#e45756", "#b279a2", "#9d755d")

Phase = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="smollm2", metavar="NAME", help="smollm2, qwen (its shape), or a GGUF's path"
    )
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw it, too")


def run(arguments: argparse.Namespace) -> int:
    from benchmarks.servers import GUNICORN, Running, answer
    from benchmarks.workloads import WORKLOADS, model_path

    with Running(GUNICORN, model_path(arguments.model)) as running:
        answer(running, GUNICORN.body(WORKLOADS["short"], max_tokens=1))
        with urlopen(f"http://127.0.0.1:{running.port}/health") as response:
            phases = json.load(response)["cold_start"]
    print(waterfall(phases))
    if arguments.svg is not None:
        arguments.svg.write_text(svg(phases), encoding="utf-8")
        print(f"Drawn: {arguments.svg}")
    return 0


def waterfall(phases: list[Phase]) -> str:
    """A line for each phase: its name, a bar from its beginning to its end, milliseconds."""
    scale = BAR_COLUMNS / _end(phases)
    lines = []
    for phase in phases:
        start = round(phase["start_ms"] * scale)
        length = max(1, round(phase["ms"] * scale))
        bar = (" " * start + "█" * length).ljust(BAR_COLUMNS)
        lines.append(f"{phase['phase']:<12} {bar} {phase['ms']:7.1f} ms")
    return "\n".join(lines)


def svg(phases: list[Phase]) -> str:
    """The same as a drawing, readable on a light page and a dark one."""
    scale = WIDTH / _end(phases)
    height = ROW * len(phases) + 8
    rows = []
    for number, phase in enumerate(phases):
        y = 4 + ROW * number
        x, length = LEFT + phase["start_ms"] * scale, max(1.0, phase["ms"] * scale)
        colour = COLOURS[number % len(COLOURS)]
        # Its milliseconds go beside a bar where there is room, and into it where there is none.
        inside = x + length > LEFT + WIDTH - 60
        text_x, anchor = (x + length - 6, "end") if inside else (x + length + 6, "start")
        fill = "#ffffff" if inside else "#808080"
        rows.append(
            f'<text x="{LEFT - 8}" y="{y + 14}" text-anchor="end" fill="#808080">{phase["phase"]}</text>'
            f'<rect x="{x:.1f}" y="{y + 2}" width="{length:.1f}" height="{ROW - 6}" rx="2" fill="{colour}"/>'
            f'<text x="{text_x:.1f}" y="{y + 14}" text-anchor="{anchor}" fill="{fill}">{phase["ms"]:.0f} ms</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 10} {height}" '
        f'font-family="system-ui, sans-serif" font-size="12">\n' + "\n".join(rows) + "\n</svg>\n"
    )


def _end(phases: list[Phase]) -> float:
    return float(max(phase["start_ms"] + phase["ms"] for phase in phases))
