"""Excerpts of a vocabulary against llama.cpp's own, whole one: the same tokens, pieces and ends."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafn.engine import excerpt, vocabulary_file
from llamafn.engine.excerpt import ExcerptVocabulary, load_vocabulary
from llamafn.engine.model import Model
from llamafn.engine.vocabulary import NativeVocabulary
from llamafn.engine.vocabulary_file import Unsuitable, VocabularyFile

# What vocabularies are made of: words, accents, digits, white space of all kinds, other scripts, special tokens.
_TEXTS = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.sampled_from(
            [
                "<|im_start|>",
                "<|im_end|>\n",
                "<|endoftext|>",
                "<EOT>",
                " maíz",
                "¿Cuándo",
                "it's",
                "\n  \n",
                "\t\t",
                "  ",
            ]
        ),
        st.text(st.sampled_from("abAB12.,-'_\"[]{}:~`@/\\s"), max_size=12),
        st.text(st.sampled_from("abAB 12.,;'’\n\r\táñ¡😀日\u00a0\u3000\x1c\x85"), max_size=12),
    ),
    max_size=8,
).map("".join)


@pytest.fixture(scope="module")
def whole(model_path: str) -> Iterator[NativeVocabulary]:
    vocabulary = load_vocabulary(model_path)
    yield vocabulary
    vocabulary.close()


@pytest.fixture(scope="module")
def excerpted(model_path: str) -> Iterator[ExcerptVocabulary]:
    vocabulary = _excerpted(model_path)
    yield vocabulary
    vocabulary.close()


def _excerpted(path: str) -> ExcerptVocabulary:
    file = VocabularyFile(path)
    file.read()
    return ExcerptVocabulary(file, path)


@given(text=_TEXTS, add_special=st.booleans(), parse_special=st.booleans())
def test_a_text_has_the_same_tokens(
    excerpted: ExcerptVocabulary, whole: NativeVocabulary, text: str, add_special: bool, parse_special: bool
) -> None:
    tokens = excerpted.tokenize(text, add_special=add_special, parse_special=parse_special)
    assert tokens == whole.tokenize(text, add_special=add_special, parse_special=parse_special)


@given(tokens=st.lists(st.integers(0, 49_151), max_size=20))
def test_what_the_model_writes_has_the_same_tokens(
    excerpted: ExcerptVocabulary, whole: NativeVocabulary, tokens: list[int]
) -> None:
    text = b"".join(map(whole.piece, tokens)).decode(errors="ignore")
    assert excerpted.tokenize(text, add_special=False, parse_special=False) == whole.tokenize(
        text, add_special=False, parse_special=False
    )


def test_every_token_has_the_same_piece_and_the_same_end(excerpted: ExcerptVocabulary, whole: NativeVocabulary) -> None:
    assert excerpted.n_tokens == whole.n_tokens
    assert (excerpted.bos, excerpted.eos) == (whole.bos, whole.eos)
    every = range(whole.n_tokens)
    assert [excerpted.piece(token) for token in every] == [whole.piece(token) for token in every]
    ends = [token for token in every if whole.ends_generation(token)]
    assert [token for token in every if excerpted.ends_generation(token)] == ends
    assert ends


def test_only_what_a_text_needs_is_loaded(model_path: str) -> None:
    vocabulary = _excerpted(model_path)
    vocabulary.tokenize("When should I water my tomatoes?", add_special=False, parse_special=False)
    assert len(vocabulary.loaded) < 400
    before = vocabulary.loaded
    vocabulary.tokenize("I water my tomatoes", add_special=False, parse_special=False)
    assert vocabulary.loaded is before  # nothing new in it
    vocabulary.close()


def test_json_without_spaces_needs_no_whole_vocabulary(model_path: str, whole: NativeVocabulary) -> None:
    readings = ",".join(f'{{"sensor":"s{n}","v":[{n}.5,-3.25e{n}],"ok":true}}' for n in range(200))
    vocabulary = _excerpted(model_path)
    tokens = vocabulary.tokenize(readings, add_special=False, parse_special=False)
    assert tokens == whole.tokenize(readings, add_special=False, parse_special=False)
    assert len(vocabulary.loaded) < 2_000
    vocabulary.close()


def test_an_excerpt_does_not_grow_for_ever(
    model_path: str, whole: NativeVocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(excerpt, "_MOST_TOKENS", 500)
    vocabulary = _excerpted(model_path)
    for token in range(1000, 40_000, 100):
        text = whole.piece(token).decode(errors="ignore")
        vocabulary.tokenize(text, add_special=False, parse_special=False)
        assert len(vocabulary.loaded) <= 500
    vocabulary.close()


def test_a_text_with_too_many_parts_gets_the_whole_vocabulary(
    model_path: str, whole: NativeVocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(excerpt, "_MOST_CANDIDATES", 1000)
    vocabulary = _excerpted(model_path)
    for text in ("short", "x" * 2000, "short again"):
        tokens = vocabulary.tokenize(text, add_special=False, parse_special=False)
        assert tokens == whole.tokenize(text, add_special=False, parse_special=False)
    assert len(vocabulary.loaded) == whole.n_tokens
    vocabulary.close()


def test_threads_may_tokenize_together(excerpted: ExcerptVocabulary, whole: NativeVocabulary) -> None:
    texts = [f"field {n} has {n * 7} plants of número {n}é" for n in range(40)]
    found: dict[str, list[int]] = {}
    threads = [
        threading.Thread(
            target=lambda text=text: found.update(
                {text: excerpted.tokenize(text, add_special=False, parse_special=False)}
            )
        )
        for text in texts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {text: whole.tokenize(text, add_special=False, parse_special=False) for text in texts}


@pytest.mark.parametrize("lengthened", [1, 3])
def test_tokens_of_256_bytes_and_more_are_read(
    model_path: str, tmp_path: Path, whole: NativeVocabulary, lengthened: int
) -> None:
    """Qwen's own vocabulary has such. Here the longest of SmolLM2's are made so, with their merges."""
    data = Path(model_path).read_bytes()
    longest = sorted((whole.piece(token) for token in range(whole.n_tokens)), key=len)[-lengthened:]
    for piece in longest:
        spelled = piece.decode().translate(excerpt._SPELLING).encode()
        last = spelled.decode()[-1].encode()
        more = last * (320 // len(last))  # twice that is a multiple of what tensors are aligned to
        token = struct.pack("<Q", len(spelled)) + spelled
        assert data.count(token) == 1
        data = data.replace(token, struct.pack("<Q", len(spelled) + 320) + spelled + more)
        # Its merge is a byte longer; which of its bytes is the space, only the file knows.
        end = data.index(b"tokenizer.ggml.merges")
        for cut in range(1, len(spelled)):
            merge = struct.pack("<Q", len(spelled) + 1) + spelled[:cut] + b" " + spelled[cut:]
            if data.find(merge, end) >= 0:
                longer = struct.pack("<Q", len(spelled) + 321) + merge[8:] + more
                data = data[:end] + data[end:].replace(merge, longer, 1)
                break
        else:
            raise AssertionError(f"no merge makes {spelled!r}")
    path = tmp_path / "long.gguf"
    path.write_bytes(data)
    vocabulary, reference = _excerpted(str(path)), load_vocabulary(str(path))
    every = range(reference.n_tokens)
    assert [vocabulary.piece(token) for token in every] == [reference.piece(token) for token in every]
    for text in (longest[0].decode(), "¿Cuándo debo regar?" + longest[-1].decode() * 3):
        assert vocabulary.tokenize(text, add_special=True, parse_special=True) == reference.tokenize(
            text, add_special=True, parse_special=True
        )
    vocabulary.close()
    reference.close()


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (b"GGUF\x03", b"GGML\x03", "of another kind"),
        (b"\x06\0\0\0\0\0\0\0smollm", b"\x06\0\0\0\0\0\0\0tekken", "words may hold spaces"),
        (b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenz", "damaged"),
        (b"tokenizer.ggml.merges", b"tokenizer.ggml.mergez", "damaged"),
        (b"tokenizer.ggml.token_type", b"tokenizer.ggml.token_typo", "damaged"),
    ],
)
def test_other_vocabularies_are_left_to_llama_cpp(
    model_path: str, tmp_path: Path, old: bytes, new: bytes, why: str
) -> None:
    data = Path(model_path).read_bytes()[: 8 << 20]
    assert data.count(old) == 1
    path = tmp_path / "other.gguf"
    path.write_bytes(data.replace(old, new))
    with pytest.raises(Unsuitable, match=why):
        VocabularyFile(str(path)).read()


@pytest.mark.parametrize("key", [b"tokenizer.ggml.tokens", b"tokenizer.ggml.merges", b"tokenizer.ggml.token_type"])
@pytest.mark.parametrize("count", [0, 7, 60_000, 1 << 40, (1 << 64) - 1])
def test_a_wrong_count_is_left_to_llama_cpp(model_path: str, tmp_path: Path, key: bytes, count: int) -> None:
    data = bytearray(Path(model_path).read_bytes()[: 8 << 20])
    struct.pack_into("<Q", data, data.index(key) + len(key) + 8, count)
    path = tmp_path / "miscounted.gguf"
    path.write_bytes(data)
    with pytest.raises(Unsuitable):
        VocabularyFile(str(path)).read()


@pytest.mark.parametrize("size", [0, 3, 30, 5_000, 500_000, 1_500_000])
def test_a_cut_file_is_left_to_llama_cpp(model_path: str, tmp_path: Path, size: int) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(Path(model_path).read_bytes()[:size])
    with pytest.raises(Unsuitable):
        VocabularyFile(str(path)).read()


def test_a_merge_out_of_order_is_noticed_and_the_whole_vocabulary_used(model_path: str, tmp_path: Path) -> None:
    """Two merges of one length change places: every length is right, and only the merges themselves tell."""
    data = bytearray(Path(model_path).read_bytes())
    at = data.index(b"tokenizer.ggml.merges") + len(b"tokenizer.ggml.merges") + 16
    places = []
    for _ in range(200):
        (length,) = struct.unpack_from("<Q", data, at)
        places.append((at + 8, length))
        at += 8 + length
    (one, length), (other, _) = [place for place in places if place[1] == places[0][1]][:2]
    data[one : one + length], data[other : other + length] = data[other : other + length], data[one : one + length]
    path = tmp_path / "swapped.gguf"
    path.write_bytes(data)
    model = Model(str(path))
    reference = load_vocabulary(str(path))
    text = "the then there thin other another in on an at"
    assert model.vocabulary.tokenize(text, add_special=False, parse_special=False) == reference.tokenize(
        text, add_special=False, parse_special=False
    )
    model.close()
    reference.close()


def test_another_kind_of_vocabulary_is_loaded_with_the_weights(
    model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary_file, "_KINDS", ())
    model = Model(model_path)
    assert isinstance(model.vocabulary, NativeVocabulary)
    assert model.vocabulary.tokenize("Hello", add_special=False, parse_special=False)
    model.close()


def test_without_memory_files_the_whole_vocabulary_is_loaded(model_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake: no kernel that the tests run on lacks memfd_create, and a sandbox may."""

    def refuse(name: str) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("os.memfd_create", refuse)
    model = Model(model_path)
    assert isinstance(model.vocabulary, NativeVocabulary)
    model.close()
