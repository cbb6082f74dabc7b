"""Answers under a schema: tokens per second beside free ones, and what the choice of a token costs.

Speed on SmolLM2, whose tokens are cheap, so that the choice weighs most; the choice itself on a vocabulary of 151,936,
where a whole mask would cost most. One thread, whose CPU time is counted: neighbours do not change it much.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.measure import Table, add_round_arguments, interleaved, report
from benchmarks.qwen_shape import qwen_shape, smollm2
from llamafn.deadline import Deadline
from llamafn.engine.bindings import AbortFlag
from llamafn.engine.constraint.grammar import State
from llamafn.engine.constraint.guide import Guide
from llamafn.engine.constraint.schema import Constraint, compile_schema
from llamafn.engine.context import Chunk, Context
from llamafn.engine.decoder import Decoder
from llamafn.engine.engine import Engine
from llamafn.engine.model import Model
from llamafn.engine.sampling import Sampler, Sampling
from llamafn.engine.template import ChatTemplate

MAX_TOKENS = 128
TEMPERATURE = 0.2  # /chat's
CHOICES = 300


class Case(NamedTuple):
    prompt: str
    schema: dict[str, Any]


CASES = {
    "advice": Case(
        "¿Cuándo debo regar el maíz, y cuánta agua necesita cada planta? Responde en JSON.",
        {
            "type": "object",
            "properties": {
                "role": {"enum": ["consulta", "consejo", "saludo"]},
                "respuesta_chat": {"type": "string"},
                "urgencia": {"type": "integer", "minimum": 0, "maximum": 5},
            },
            "required": ["role", "respuesta_chat", "urgencia"],
        },
    ),
    "list of records": Case(
        "List vegetables with their planting month and days to harvest, as JSON.",
        {
            "type": "array",
            "minItems": 3,
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "minLength": 3, "maxLength": 20},
                    "month": {"type": "integer", "minimum": 1, "maximum": 12},
                    "days": {"type": "number", "minimum": 10, "maximum": 300},
                },
                "required": ["name", "month", "days"],
            },
        },
    ),
    "any object": Case("Describe a small farm as a JSON object with many keys.", {"type": "object"}),
}
FREE = "free text"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_round_arguments(parser, 5)


def run(arguments: argparse.Namespace) -> int:
    tables, notes = _speed(arguments)
    tables += _choices(arguments)
    report("schema", tables, notes)
    return 0


def _speed(arguments: argparse.Namespace) -> tuple[list[Table], list[str]]:
    model = Model(str(smollm2()))
    vocabulary = model.vocabulary
    template = ChatTemplate(model.metadata("tokenizer.chat_template"), bos=vocabulary.bos, eos=vocabulary.eos)
    engine = Engine(model, Decoder(model, n_ctx=1024, n_threads=1, parallel=1, max_queue=0), template)
    tables, notes = [], []
    for name, case in CASES.items():
        constraint = compile_schema(case.schema)
        tokens, forced, _ = _answer(engine, case.prompt, constraint, MAX_TOKENS)
        notes.append(f"{name}: {tokens} tokens, of which {forced} forced.")
        rounds = interleaved(
            {
                FREE: functools.partial(_rate, engine, "Write a very long story about a farm.", None, tokens, False),
                name: functools.partial(_rate, engine, case.prompt, constraint, tokens, False),
                f"{name}, sampled tokens alone": functools.partial(
                    _rate, engine, case.prompt, constraint, tokens, True
                ),
            },
            arguments,
        )
        tables.append(Table(f"{name}, SmolLM2", "tokens a second of CPU", rounds.values, FREE, rounds.notes()))
    engine.close()
    return tables, notes


def _rate(engine: Engine, prompt: str, constraint: Constraint | None, max_tokens: int, only_sampled: bool) -> float:
    """Tokens a second of CPU, from the first one on. With `only_sampled`, forced tokens cost time and do not count."""
    tokens, forced, seconds = _answer(engine, prompt, constraint, max_tokens)
    if tokens < max_tokens * 0.9:
        raise RuntimeError(f"the answer ended after {tokens} tokens")
    return (tokens - (forced if only_sampled else 0)) / seconds


def _answer(engine: Engine, prompt: str, constraint: Constraint | None, max_tokens: int) -> tuple[int, int, float]:
    """Tokens, forced ones, and the CPU seconds from the first token to the end."""
    with engine.generate(
        engine.prompt([{"role": "user", "content": prompt}]),
        Sampling(temperature=TEMPERATURE, seed=1),
        max_tokens=max_tokens,
        deadline=Deadline.never(),
        constraint=constraint,
    ) as generation:
        next(iter(generation))
        began = time.thread_time()
        for _ in generation:
            pass
        seconds = time.thread_time() - began
    return generation.completion_tokens, generation.forced_tokens, seconds


def _choices(arguments: argparse.Namespace) -> list[Table]:
    """CPU milliseconds of one choice; on random weights no likely token is legal but inside of a string."""
    model = Model(str(qwen_shape()))
    context = Context(model, n_ctx=64, n_sequences=1, n_threads=1, abort=AbortFlag())
    (row,) = context.decode([Chunk(0, range(100, 116), 0, wants_logits=True)])
    sampling = Sampling(temperature=TEMPERATURE, seed=1)
    places: dict[str, tuple[Any, bytes]] = {
        "in a string (the first choice is legal)": ({"type": "string"}, b'"ab'),
        "at an enum (the candidates are masked)": ({"enum": ["consulta", "consejo", "saludo"]}, b'"'),
        "at a number (the candidates are masked)": ({"type": "integer", "minimum": 0, "maximum": 500}, b""),
    }
    free = Sampler(sampling, model.vocabulary.n_tokens)
    subjects = {FREE: functools.partial(_milliseconds, lambda: free.sample(context, row))}
    for place, (schema, written) in places.items():
        subjects[place] = functools.partial(_milliseconds, _choice(model, context, row, sampling, schema, written))
    rounds = interleaved(subjects, arguments)
    title = f"one choice among {model.vocabulary.n_tokens:,} tokens, Qwen shape"
    return [Table(title, "ms of CPU", rounds.values, FREE, (f"Median of {CHOICES} choices a run.", *rounds.notes()))]


def _choice(
    model: Model, context: Context, row: int, sampling: Sampling, schema: Any, written: bytes
) -> Callable[[], Any]:
    guide = Guide(compile_schema(schema), sampling, model)
    place = guide._state.walk(written)
    assert place is not None

    def choose() -> None:
        guide._state = State(place.threads)  # which remembers nothing of the bytes that were tried
        guide.next_tokens(context, row, 64)

    return choose


def _milliseconds(choose: Callable[[], Any]) -> float:
    took = []
    for _ in range(CHOICES):
        began = time.thread_time()
        choose()
        took.append(time.thread_time() - began)
    return statistics.median(took) * 1000
