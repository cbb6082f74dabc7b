"""The choice of tokens under a schema, for one answer.

The sampler chooses freely, and its token is looked at after: most are legal. Only if it is not, those of the likeliest
tokens that are legal are gone over, and it chooses again among them. What the schema leaves no choice about is written
without asking the model. And every token is taken only if the shortest way to the document's end still fits behind it.
"""

from __future__ import annotations

import ctypes
from typing import Any

from llamafn.engine.bindings import llama
from llamafn.engine.constraint.grammar import State
from llamafn.engine.constraint.schema import Constraint
from llamafn.engine.context import Context
from llamafn.engine.model import Model
from llamafn.engine.sampling import Sampler, Sampling, chain, choosing, weighing

# The choice is among so many of the likeliest tokens. llama.cpp finds them by a partial sort, which is fast up to here.
CANDIDATES = 128
_CANDIDATE_BYTES = ctypes.sizeof(llama.llama_token_data)
# No text has tokens of more bytes than this on average: what is longer does not fit, and is not counted.
_MOST_BYTES_A_TOKEN = 16


class Guide(Sampler):
    """A sampler that keeps to a constraint, and knows when the answer has to end, and how."""

    __slots__ = (
        "_callback",
        "_choice",
        "_context",
        "_copy",
        "_error",
        "_greedy",
        "_interface",
        "_model",
        "_row",
        "_state",
        "_tried",
        "ended_by",
        "forced_tokens",
    )

    def __init__(self, constraint: Constraint, sampling: Sampling, model: Model) -> None:
        self._model = model
        self._state = constraint.start()
        self._tried: dict[int, State | None] = {}  # tokens that were looked at since the last one was taken
        self._error: Exception | None = None
        self.forced_tokens = 0  # written without asking the model
        self.ended_by: str | None = None  # "stop": the document is whole; "length": there is just room to close it
        # llama.cpp weighs the vocabulary and finds the likeliest tokens; then it calls `_choose`.
        # Both are kept as attributes: a callback that was collected is a segmentation fault.
        self._callback: Any = llama.llama_sampler_i_apply(self._choose)
        self._interface: Any = llama.llama_sampler_i(apply=self._callback)
        likeliest = llama.llama_sampler_init_top_k(CANDIDATES)
        choose = llama.llama_sampler_init(ctypes.byref(self._interface), None)
        self._chain = chain([*weighing(sampling, model.vocabulary.n_tokens), likeliest, choose])
        self._choice = chain(choosing(sampling))
        self._greedy = sampling.is_greedy
        self._copy = (llama.llama_token_data * CANDIDATES)()

    def close(self) -> None:
        if self._chain is not None:
            llama.llama_sampler_free(self._choice)
        super().close()
        self._callback = self._interface = None  # it holds the guide, which holds it

    def next_tokens(self, context: Context, row: int, room: int) -> list[int]:
        """Up to `room` tokens to come next, chosen by a row of the last batch; none if it has `ended_by` without one.

        What `closing` gives fits into `room`, and into what these tokens leave of it.
        """
        tokens = self._forced(room)  # the document's opening; later ones were taken together with the choice before
        if not tokens:
            self._context, self._row = context, row
            token = self.sample(context, row)
            if self._error is not None:
                raise self._error
            state = self._tried[token]
            self._tried.clear()
            if state is None:  # the vocabulary has no token for the only bytes that are legal
                self.ended_by = "length"
                return []
            if self._model.vocabulary.ends_generation(token):
                self.ended_by = "stop"
                return []
            if not self._fits(state, room - 1):
                self.ended_by = "length"
                return []
            self._state = state
            tokens = [token]
            if not state.is_final:
                tokens += self._forced(room - 1)
        if self._state.is_final:
            self.ended_by = "stop"
        elif len(tokens) == room:
            self.ended_by = "length"
        return tokens

    def closing(self) -> tuple[bytes, int]:
        """The text that makes the answer a whole document, and the number of its tokens.

        It begins within a character only if it finishes one; else it takes the place of one that is not whole.
        """
        text = self._state.closing()
        return text, _count(self._model, text)

    def _fits(self, state: State, room: int) -> bool:
        """Whether the shortest way to the end has room for its tokens, each of which is a byte at least."""
        cost = state.cost
        if cost < room:
            return True
        if cost > room * _MOST_BYTES_A_TOKEN:
            return False
        return _count(self._model, state.closing()) <= room

    def _forced(self, room: int) -> list[int]:
        """Take the tokens of the text that must come now."""
        text, state = self._state.forced()
        text = _whole_characters(text)  # the first bytes of two characters may be the same
        tokens = _tokens(self._model, text)
        pieces = [self._model.vocabulary.piece(token) for token in tokens]
        if b"".join(pieces) != text:
            return []  # a vocabulary that puts a space before a text
        if not state.is_final and tokens:
            # The model may want a longer token here, with the beginning of what it is free to say.
            tokens.pop()
            state = self._state.walk(b"".join(pieces[:-1])) or state
        if not tokens or not self._fits(state, room - len(tokens)):
            return []
        self._state = state
        self.forced_tokens += len(tokens)
        for token in tokens:
            llama.llama_sampler_accept(self._chain, token)
        return tokens

    def _choose(self, _sampler: Any, candidates: Any) -> None:
        """The last link of the native chain: select one of the candidates, the likeliest first."""
        try:
            token = self._legal_token(candidates.contents.data, candidates.contents.size)
            candidates.contents.data[0].id = token
        except Exception as error:  # noqa: BLE001 - it cannot pass through C; `next_tokens` raises it
            self._error = error
        candidates.contents.selected = 0

    def _legal_token(self, candidates: Any, size: int) -> int:
        token = self._draw(candidates, size)
        if self._after(token) is not None:
            return token
        # An id is the first of a candidate's three words.
        tokens: list[int] = ctypes.cast(candidates, ctypes.POINTER(ctypes.c_int32))[0 : 3 * size : 3]
        if self._greedy:
            found = next((token for token in tokens if self._after(token) is not None), None)
            return self._beyond() if found is None else found
        legal = [index for index, token in enumerate(tokens) if self._after(token) is not None]
        for position, index in enumerate(legal):
            candidates[position] = candidates[index]
        return self._draw(candidates, len(legal)) if legal else self._beyond()

    def _draw(self, candidates: Any, size: int) -> int:
        """Choose among the candidates as if there were no constraint; they stay as they are."""
        ctypes.memmove(self._copy, candidates, size * _CANDIDATE_BYTES)
        array = llama.llama_token_data_array(self._copy, size, -1, True)
        llama.llama_sampler_apply(self._choice, ctypes.byref(array))
        return self._copy[array.selected].id  # type: ignore[no-any-return]

    def _after(self, token: int) -> State | None:
        """The state after a token; None if it is not legal."""
        if token in self._tried:
            return self._tried[token]
        piece = self._model.vocabulary.piece(token)
        state = self._state.walk(piece) if piece else self._state
        # A token that ends the answer mostly has no bytes; those that have some are not text all the same.
        if state is not None and not (piece and not self._model.vocabulary.ends_generation(token)):
            may_end = self._state.is_complete and self._model.vocabulary.ends_generation(token)
            state = self._state if may_end else None
        self._tried[token] = state
        return state

    def _beyond(self) -> int:
        """A legal token when none of the likeliest is: the likeliest that is one byte, or begins what is forced."""
        tokens = _tokens(self._model, _whole_characters(self._state.forced()[0]))[:1]
        if not tokens or self._after(tokens[0]) is None:
            tokens = self._byte_tokens(self._state.next_bytes())
        logits = llama.llama_get_logits_ith(self._context.handle, self._row)
        token = max(tokens, key=lambda token: logits[token], default=0)
        self._after(token)
        return token

    def _byte_tokens(self, wanted: set[int]) -> list[int]:
        """Tokens that are one of these bytes. Vocabularies have them in front."""
        found: dict[bytes, int] = {}
        for token in range(self._model.vocabulary.n_tokens):
            piece = self._model.vocabulary.piece(token)
            if len(piece) == 1 and piece[0] in wanted and not self._model.vocabulary.ends_generation(token):
                found.setdefault(piece, token)
                if len(found) == len(wanted):
                    break
        return list(found.values())


def least_tokens(constraint: Constraint, model: Model) -> int:
    """How many tokens the shortest document has."""
    return _count(model, constraint.shortest)


def _count(model: Model, text: bytes) -> int:
    """How many tokens a text has; the end of a character at its beginning may need one for each byte."""
    rest = text.lstrip(bytes(range(0x80, 0xC0)))
    return len(text) - len(rest) + len(_tokens(model, rest))


def _whole_characters(text: bytes) -> bytes:
    """As much of the text's beginning as is UTF-8."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return text[: error.start]
    return text


def _tokens(model: Model, text: bytes) -> list[int]:
    return model.vocabulary.tokenize(text.decode(), add_special=False, parse_special=False)
