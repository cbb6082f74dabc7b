"""Small files that are GGUFs in all that fetching looks at. Their tensors hold noise."""

from __future__ import annotations

import random
import struct

F32 = 0


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def a_gguf(tensor_bytes: int = 3_000_000, *, tokens: int = 2_000, seed: int = 0, version: int = 3) -> bytes:
    """A GGUF with a vocabulary and two F32 tensors of `tensor_bytes` in all."""
    vocabulary = b"".join(text(b"token-%d" % number) for number in range(tokens))
    metadata = [
        text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama"),
        text(b"general.alignment") + struct.pack("<II", 4, 32),
        text(b"llama.rope.freq_base") + struct.pack("<If", 6, 10_000.0),
        text(b"tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, tokens) + vocabulary,
        text(b"tokenizer.ggml.token_type") + struct.pack("<IIQ", 9, 5, tokens) + bytes(4 * tokens),
    ]
    half = tensor_bytes // 2 // 32 * 32
    sizes = [half, (tensor_bytes - half) // 4 * 4]
    tensors = [
        text(b"token_embd.weight") + struct.pack("<IQIQ", 1, sizes[0] // 4, F32, 0),
        text(b"output.weight") + struct.pack("<IQQIQ", 2, sizes[1] // 4, 1, F32, half),
    ]
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata)) + b"".join(metadata + tensors)
    head += bytes(-len(head) % 32)
    return head + random.Random(seed).randbytes(sum(sizes))
