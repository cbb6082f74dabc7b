"""Answers of the real model under a schema: they parse and validate, whatever they run out of."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from llamafn.deadline import Deadline
from llamafn.engine.constraint.guide import least_tokens
from llamafn.engine.constraint.schema import compile_schema
from llamafn.engine.engine import Engine
from llamafn.engine.generation import Generation
from llamafn.engine.sampling import Sampling
from llamafn.errors import BadRequest
from tests.engine.schemas import FARM, TREE, check, schemas

LOT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "fecha": {"type": "string", "format": "date"},
        "lote": {"type": "string", "pattern": r"^[A-Z]{2}-\d{3}$"},
        "nota": {"type": "string", "pattern": r"^[^\d]+\.$", "maxLength": 40},
    },
    "required": ["fecha", "lote", "nota"],
}
GREEDY = Sampling(temperature=0)
WILD = Sampling(temperature=2, top_k=0, top_p=1, min_p=0, seed=7)


def answer(
    engine: Engine, schema: Any, *, sampling: Sampling = GREEDY, max_tokens: int, deadline: Deadline | None = None
) -> tuple[str, Generation]:
    """The whole answer; it is valid, and no longer than it may be."""
    prompt = engine.prompt([{"role": "user", "content": "¿Cuándo debo regar el maíz? Answer in JSON."}])
    with engine.generate(
        prompt,
        sampling,
        max_tokens=max_tokens,
        deadline=deadline or Deadline.after(300),
        constraint=compile_schema(schema),
    ) as generation:
        text = "".join(generation)
    check(schema, text)
    assert generation.completion_tokens <= max_tokens
    return text, generation


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.2, seed=1), WILD], ids=["greedy", "cool", "wild"])
@pytest.mark.parametrize(
    "schema", [FARM, LOT, TREE, {"type": "object"}, {}], ids=["farm", "lot", "tree", "object", "anything"]
)
def test_an_answer_is_valid(engine: Engine, schema: Any, sampling: Sampling) -> None:
    answer(engine, schema, sampling=sampling, max_tokens=60)


def test_an_answer_that_has_room_ends_by_itself(engine: Engine) -> None:
    schema = {"type": "object", "properties": {"crop": {"enum": ["maize", "beans"]}, "week": {"type": "integer"}}}
    schema = {**schema, "required": ["crop", "week"]}
    text, generation = answer(engine, schema, max_tokens=60)
    assert generation.finish_reason == "stop"
    assert text.endswith("}")
    assert 0 < generation.forced_tokens < generation.completion_tokens


@settings(max_examples=12, phases=(Phase.explicit, Phase.reuse, Phase.generate))  # shrinking takes minutes
@example({"enum": ["", "\x800"]}, 5, GREEDY)
@example({"enum": ["", "\x94\U000b8686\U0003d984"]}, 2, GREEDY)
@example({"properties": {"80\U00096d0f]": {"type": "null"}}, "required": ["80\U00096d0f]"]}, 10, GREEDY)
@given(schemas, st.integers(0, 12), st.sampled_from([GREEDY, WILD]))
def test_any_schema_with_little_room(engine: Engine, schema: Any, room: int, sampling: Sampling) -> None:
    least = least_tokens(compile_schema(schema), engine.model)
    answer(engine, schema, sampling=sampling, max_tokens=least + room)


def test_with_the_least_room_it_is_the_shortest_document(engine: Engine) -> None:
    least = least_tokens(compile_schema(FARM), engine.model)
    text, generation = answer(engine, FARM, max_tokens=least)
    assert json.loads(text)["respuesta_chat"] == ""
    assert generation.finish_reason == "length"
    with pytest.raises(BadRequest) as caught:
        answer(engine, FARM, max_tokens=least - 1)
    assert f"The shortest document under the schema has {least} tokens, and max_tokens is {least - 1}" in str(
        caught.value
    )
    assert caught.value.param == "max_tokens"


def test_a_prompt_that_leaves_no_room(engine: Engine) -> None:
    prompt = engine.prompt([{"role": "user", "content": "rain " * 460}])
    with pytest.raises(BadRequest, match=r"the prompt leaves room for \d+\."):
        engine.generate(
            prompt, GREEDY, max_tokens=100, deadline=Deadline.after(60), constraint=compile_schema({"minItems": 200})
        )


@pytest.mark.parametrize("seconds", [0, 0.05, 0.5])
def test_time_that_runs_out_closes_the_answer(engine: Engine, seconds: float) -> None:
    """Also before the first token: at 0 not even the prompt is read."""
    schema = {"type": "array", "items": {"type": "string", "minLength": 3}, "minItems": 20}
    _, generation = answer(engine, schema, max_tokens=400, deadline=Deadline.after(seconds))
    assert generation.finish_reason == "deadline"


def test_side_by_side(model_path: str) -> None:
    """An answer under a schema beside a free one, in the same batches."""
    from tests.engines import ask, make_engine

    engine = make_engine(model_path, parallel=2)
    prompt = engine.prompt([{"role": "user", "content": "Answer in JSON."}])
    with engine.generate(
        prompt, GREEDY, max_tokens=40, deadline=Deadline.after(120), constraint=compile_schema(FARM)
    ) as generation:
        pieces = iter(generation)
        first = next(pieces)
        free, _ = ask(engine, "Count from 1 to 10, separated by commas.", max_tokens=12)
        check(FARM, first + "".join(pieces))
    assert free.startswith("1, 2, 3, 4")
    engine.close()


def test_penalties_and_seeds_hold_under_a_schema(engine: Engine) -> None:
    schema = {"type": "array", "items": {"type": "string"}, "minItems": 3}
    free = Sampling(temperature=1.2, seed=3, repeat_penalty=1.3)
    first, _ = answer(engine, schema, sampling=free, max_tokens=40)
    assert answer(engine, schema, sampling=free, max_tokens=40)[0] == first
    assert answer(engine, schema, sampling=free._replace(seed=4), max_tokens=40)[0] != first


def test_stop_strings_are_refused(engine: Engine) -> None:
    prompt = engine.prompt([{"role": "user", "content": "Hi"}])
    with pytest.raises(BadRequest, match="`stop` beside a schema would cut the document short") as caught:
        engine.generate(
            prompt, GREEDY, max_tokens=40, stop=("}",), deadline=Deadline.after(60), constraint=compile_schema(FARM)
        )
    assert caught.value.param == "stop"


def test_a_key_that_no_model_would_write(engine: Engine) -> None:
    """None of the likeliest tokens is legal: a byte at a time, it is written all the same."""
    schema = {"enum": ["\u2603\u2603qzx", "\u2603\u2604jvk", "\U0001f980"]}
    text, _ = answer(engine, schema, max_tokens=40)
    assert json.loads(text) in schema["enum"]
