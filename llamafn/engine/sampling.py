"""How the next token is chosen, by llama.cpp's own samplers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from llamafn.engine.bindings import llama
from llamafn.engine.context import Context

# How many of the answer's last tokens the penalties look at; llama.cpp's own default.
PENALTY_LAST_TOKENS = 64


# Logits divided by less are past what a float holds.
_LEAST_TEMPERATURE = 1e-4


class Sampling(NamedTuple):
    """The choices of one request. The defaults of top_k, top_p and min_p are llama.cpp's."""

    temperature: float = 0.8  # 0 is greedy: the likeliest token, always
    top_k: int = 40  # 0: no limit
    top_p: float = 0.95  # 1: off
    min_p: float = 0.05  # 0: off
    repeat_penalty: float = 1.0  # 1: off
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # added to the logits of these tokens
    seed: int | None = None  # 32 bits; None: a new one for each answer, also after a snapshot was restored

    @property
    def is_greedy(self) -> bool:
        return self.temperature < _LEAST_TEMPERATURE


class Sampler:
    """A chain of native samplers, with the state of one answer."""

    __slots__ = ("_chain",)

    def __init__(self, sampling: Sampling, n_vocab: int) -> None:
        self._chain = chain([*weighing(sampling, n_vocab), *choosing(sampling)])

    def sample(self, context: Context, row: int) -> int:
        """Choose and accept a token from a row of the last batch."""
        return llama.llama_sampler_sample(self._chain, context.handle, row)  # type: ignore[no-any-return]

    def close(self) -> None:
        if self._chain is not None:
            llama.llama_sampler_free(self._chain)
            self._chain = None


def chain(samplers: Iterable[Any]) -> Any:
    """Native samplers one after the other. Freeing it frees them."""
    parameters = llama.llama_sampler_chain_default_params()
    parameters.no_perf = True
    links = llama.llama_sampler_chain_init(parameters)
    for sampler in samplers:
        llama.llama_sampler_chain_add(links, sampler)
    return links


def weighing(sampling: Sampling, n_vocab: int) -> Iterator[Any]:
    """The samplers that change the weights of tokens: by their number, and by what was written before."""
    if sampling.logit_bias:
        biases = (llama.llama_logit_bias * len(sampling.logit_bias))(*sampling.logit_bias)
        yield llama.llama_sampler_init_logit_bias(n_vocab, len(biases), biases)
    penalties = sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty
    if penalties != (1.0, 0.0, 0.0):
        yield llama.llama_sampler_init_penalties(n_vocab, PENALTY_LAST_TOKENS, *penalties)


def choosing(sampling: Sampling) -> Iterator[Any]:
    """The samplers that choose among weighed tokens."""
    if sampling.is_greedy:
        yield llama.llama_sampler_init_greedy()
        return
    if sampling.top_k > 0:
        yield llama.llama_sampler_init_top_k(sampling.top_k)
    if sampling.top_p < 1:
        yield llama.llama_sampler_init_top_p(sampling.top_p, 1)
    if sampling.min_p > 0:
        yield llama.llama_sampler_init_min_p(sampling.min_p, 1)
    yield llama.llama_sampler_init_temp(sampling.temperature)
    seed = int.from_bytes(os.urandom(4), "little") if sampling.seed is None else sampling.seed & 0xFFFFFFFF
    # The last one, LLAMA_DEFAULT_SEED, means a random seed to llama.cpp.
    yield llama.llama_sampler_init_dist(seed if seed != 0xFFFFFFFF else 0)
