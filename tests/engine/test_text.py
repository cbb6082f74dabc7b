from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafn.engine.text import TextStream


def test_a_character_is_never_broken() -> None:
    stream = TextStream()
    said = [stream.push(bytes([byte])) for byte in "añ🌽".encode()]
    assert said == ["a", "", "ñ", "", "", "", "🌽"]
    assert stream.finish() == ""


def test_an_unfinished_character_is_dropped() -> None:
    stream = TextStream()
    assert stream.push("maíz 🌽".encode()[:-2]) == "maíz "
    assert stream.finish() == ""


def test_bytes_that_are_no_character_are_replaced() -> None:
    assert TextStream().push(b"a\xffb") == "a\ufffdb"


@pytest.mark.parametrize(
    ("pieces", "stop", "said"),
    [
        (["hello wor", "ld!"], ("world",), "hello "),
        (["hello wor", "k"], ("world",), "hello work"),
        (["aab", "aab", "c"], ("aabc",), "aab"),
        (["one two"], ("two", "one"), ""),
        (["abcd"], ("bcd", "c"), "ab"),
        (["abc"], (), "abc"),
        (["ab"], ("abc",), "ab"),
        (["\n", "\n"], ("\n\n",), ""),
    ],
)
def test_stop_strings(pieces: list[str], stop: tuple[str, ...], said: str) -> None:
    stream = TextStream(stop)
    text = "".join(stream.push(piece.encode()) for piece in pieces) + stream.finish()
    assert text == said


@given(
    st.text(alphabet="abñ🌽", max_size=30),
    st.lists(st.text(alphabet="abñ🌽", min_size=1, max_size=4), max_size=3),
    st.data(),
)
def test_however_the_bytes_are_cut_the_text_is_the_same(text: str, stop: list[str], data: st.DataObject) -> None:
    whole = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    stream = TextStream(stop)
    said = "".join([stream.push(piece) for piece in pieces]) + stream.finish()
    one_by_one = TextStream(stop)
    assert said == "".join(one_by_one.push(character.encode()) for character in text) + one_by_one.finish()
    assert not any(found in said for found in stop)
    assert text.startswith(said)
    if not any(found in text for found in stop):
        assert said == text
