from pathlib import Path

import pytest

from benchmarks.qwen_shape import QWEN, SPECIAL_TOKENS, Shape, qwen_shape, vocabulary
from llamafn.engine.model import Model

TINY = Shape("tiny", layers=2, width=256, heads=4, kv_heads=2, feed_forward=512, vocabulary=1_536, merges=1_200)


def test_every_merge_makes_one_new_token_out_of_two_earlier_ones() -> None:
    tokens, merges = vocabulary(TINY)
    assert len(tokens) == 256 + TINY.merges == 256 + len(merges)
    assert len(set(tokens)) == len(tokens)
    rank = {token: index for index, token in enumerate(tokens)}
    for index, (left, right) in enumerate(merges, start=256):
        assert rank[left + right] == index
        assert max(rank[left], rank[right]) < index


def test_the_numbers_are_qwens() -> None:
    assert 256 + QWEN.merges + len(SPECIAL_TOKENS) <= QWEN.vocabulary
    parameters = QWEN.vocabulary * QWEN.width + QWEN.layers * (
        2 * QWEN.width * QWEN.width + 2 * QWEN.width * 128 + 3 * QWEN.width * QWEN.feed_forward
    )
    assert round(parameters / 1e6) == 494


def test_a_tiny_one_is_made_once_and_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = qwen_shape(TINY, tmp_path)
    made = path.stat()
    assert list(tmp_path.iterdir()) == [path]

    assert qwen_shape(TINY, tmp_path) == path
    assert path.stat() == made
    assert capsys.readouterr().out.count("Making") == 1

    model = Model(str(path))
    try:
        text = "When should I water my tomatoes?"
        tokens = model.vocabulary.tokenize(text, add_special=True, parse_special=True)
        assert "".join(model.vocabulary.piece(token).decode() for token in tokens) == text
        assert len(tokens) < len(text) / 2
        assert model.vocabulary.tokenize("<|im_end|>", add_special=False, parse_special=True) == [256 + TINY.merges + 2]
        assert model.vocabulary.eos == "<|im_end|>"
    finally:
        model.close()


def test_nothing_is_left_behind_when_it_cannot_be_quantised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.qwen_shape.Q4_K_M", 999)
    with pytest.raises(SystemExit, match="quantiser refused"):
        qwen_shape(TINY, tmp_path)
    assert list(tmp_path.iterdir()) == []
