"""Tokens' scores, in the two shapes in which OpenAI gives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

TYPE_CHECKING = False
if TYPE_CHECKING:
    from llamafn.engine.logprobs import TokenScore

Piece = Callable[[int], bytes]  # the bytes of a token


def of_chat(scores: Sequence[TokenScore], piece: Piece) -> dict[str, Any]:
    """`choices[].logprobs` of a chat completion."""
    return {
        "content": [
            {
                **_token(score.token, score.logprob, piece),
                "top_logprobs": [_token(token, logprob, piece) for token, logprob in score.top],
            }
            for score in scores
        ],
        "refusal": None,
    }


def of_text(scores: Sequence[TokenScore], piece: Piece, offset: int) -> dict[str, Any]:
    """`choices[].logprobs` of a text completion; `offset` is where its first token begins in the text."""
    offsets = []
    for score in scores:
        offsets.append(offset)
        offset += len(_text(score.token, piece))
    return {
        "tokens": [_text(score.token, piece) for score in scores],
        "token_logprobs": [score.logprob for score in scores],
        "top_logprobs": [{_text(token, piece): logprob for token, logprob in score.top} for score in scores],
        "text_offset": offsets,
    }


def _token(token: int, logprob: float, piece: Piece) -> dict[str, Any]:
    return {"token": _text(token, piece), "logprob": logprob, "bytes": list(piece(token))}


def _text(token: int, piece: Piece) -> str:
    return piece(token).decode(errors="replace")
