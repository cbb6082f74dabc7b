from pathlib import Path
from xml.etree import ElementTree

from benchmarks.measure import Table
from benchmarks.plot import draw

SVG = "{http://www.w3.org/2000/svg}"


def test_a_bar_for_each_subject_the_quickest_first(tmp_path: Path) -> None:
    rounds = [{"slow <peer>": 4.0, "ours": 1.0}, {"slow <peer>": 2.0, "ours": 2.0}, {"ours": 3.0}]
    draw(tmp_path / "plot.svg", [Table("To the first token", "s", rounds)])
    drawing = ElementTree.parse(tmp_path / "plot.svg").getroot()
    texts = [element.text for element in drawing.iter(f"{SVG}text")]
    assert texts == ["To the first token, s", "ours", "2.00", "slow <peer>", "3.00"]
    background, *bars = [float(element.attrib["width"]) for element in drawing.iter(f"{SVG}rect")]
    assert background > max(bars)
    assert bars[1] / bars[0] == 1.5
