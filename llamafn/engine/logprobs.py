"""How likely the model found its tokens: log-probabilities over the whole vocabulary, computed by llama.cpp.

They are the model's own, before bias, penalties and temperature.
"""

from __future__ import annotations

import ctypes
import math
from array import array
from typing import NamedTuple

from llamafn.engine.bindings import llama
from llamafn.engine.context import Context
from llamafn.engine.model import Model


class TokenScore(NamedTuple):
    """A chosen token with its log-probability, and the likeliest tokens with theirs, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Scorer:
    """Scores the tokens of one answer.

    The softmax of a vocabulary of 150,000 takes 15 ms in plain Python. Here the logits are copied in one strided
    assignment, llama.cpp's sampler for the softmax goes over them, and the one for the best k: under 2 ms.
    """

    __slots__ = ("_candidates", "_dist", "_ids", "_n_top", "_n_vocab", "_top_k")

    def __init__(self, n_vocab: int, n_top: int) -> None:
        self._n_vocab = n_vocab
        self._n_top = n_top
        self._candidates = (llama.llama_token_data * n_vocab)()
        self._ids = memoryview(array("i", range(n_vocab)))
        self._dist = llama.llama_sampler_init_dist(0)
        self._top_k = llama.llama_sampler_init_top_k(max(1, n_top))

    def score(self, context: Context, row: int, token: int) -> TokenScore:
        """The score of `token` in a row of the last batch."""
        logits = context.logits(row, self._n_vocab)
        flat = memoryview(self._candidates).cast("B")
        # llama_token_data is {int32 id, float logit, float p}; the last call left it in another order.
        flat.cast("i")[0::3] = self._ids
        flat.cast("f")[1::3] = logits
        candidates = llama.llama_token_data_array(self._candidates, self._n_vocab, -1, False)
        llama.llama_sampler_apply(self._dist, ctypes.byref(candidates))
        llama.llama_sampler_apply(self._top_k, ctypes.byref(candidates))
        best = self._candidates[0]
        # From the best one's, as a small probability does not fit into a float.
        log_sum = best.logit - math.log(best.p)
        top = tuple((one.id, one.logit - log_sum) for one in self._candidates[: self._n_top])
        return TokenScore(token, logits[token] - log_sum, top)

    def close(self) -> None:
        if self._dist is not None:
            llama.llama_sampler_free(self._dist)
            llama.llama_sampler_free(self._top_k)
            self._dist = None


class ScoresOfText:
    """Gives a token's score out once its text is: text may be held back, and a stop string's is dropped."""

    __slots__ = ("_given", "_held", "_model", "_out", "_text_bytes")

    def __init__(self, out: list[TokenScore], model: Model) -> None:
        self._out = out
        self._model = model
        self._held: list[TokenScore] = []
        self._given = 0  # bytes of the tokens that were given out
        self._text_bytes = 0  # of the text that was

    def push(self, score: TokenScore, text: str) -> None:
        self._held.append(score)
        self._text_bytes += len(text.encode())
        while self._held and self._given < self._text_bytes:
            self._give()

    def finish(self) -> None:
        while self._held:
            self._give()

    def _give(self) -> None:
        score = self._held.pop(0)
        self._given += len(self._model.vocabulary.piece(score.token))
        self._out.append(score)
