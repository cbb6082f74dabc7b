from __future__ import annotations

from xml.etree import ElementTree

from commands.trace import svg, waterfall

PHASES = [
    {"phase": "interpreter", "start_ms": 0.0, "ms": 100.0},
    {"phase": "load", "start_ms": 150.0, "ms": 250.0},
    {"phase": "prefill", "start_ms": 400.0, "ms": 200.0},
]


def test_the_waterfall_has_a_bar_for_each_phase() -> None:
    assert waterfall(PHASES).splitlines() == [
        "interpreter  " + ("█" * 10).ljust(60) + "   100.0 ms",
        "load         " + (" " * 15 + "█" * 25).ljust(60) + "   250.0 ms",
        "prefill      " + (" " * 40 + "█" * 20).ljust(60) + "   200.0 ms",
    ]


def test_the_drawing_is_xml_with_every_phase_in_it() -> None:
    texts = [element.text for element in ElementTree.fromstring(svg(PHASES)).iter() if element.tag.endswith("text")]
    assert texts == ["interpreter", "100 ms", "load", "250 ms", "prefill", "200 ms"]
