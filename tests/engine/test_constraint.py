"""The grammar of a schema, without a model: whatever is written byte by byte, and wherever it is ended, is valid."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llamafn.engine.constraint.grammar import State
from llamafn.engine.constraint.schema import Constraint, compile_schema
from llamafn.engine.text import TextStream
from llamafn.errors import InvalidSchema
from tests.engine.schemas import FARM, TREE, check, schemas


def write(constraint: Constraint, seed: int, length: int) -> tuple[bytes, State]:
    """Up to `length` bytes, each any legal one; those that mean something come often enough."""
    chance = random.Random(seed)
    state = constraint.start()
    text = bytearray()
    while len(text) < length and not (state.is_complete and chance.random() < 0.3):
        legal = sorted(state.next_bytes())
        if not legal:
            break
        meaningful = [byte for byte in legal if byte in b'"{}[],0123456789\\']
        byte = chance.choice(meaningful if meaningful and chance.random() < 0.5 else legal)
        following = state.step(byte)
        assert following is not None
        state = following
        text.append(byte)
    return bytes(text), state


def whole(text: bytes, state: State) -> str:
    """The text with its end."""
    stream = TextStream()
    written = stream.push(text)
    closing = state.closing()
    return written + (stream.close(closing) if closing else stream.finish())


def allows(schema: Any, value: str) -> bool:
    state = compile_schema(schema).start().walk(value.encode())
    return state is not None and state.is_complete


@given(schemas, st.integers(0, 1000), st.integers(0, 150))
@example(FARM, 1, 80)
@example(TREE, 2, 150)
def test_what_is_written_is_valid_wherever_it_ends(schema: Any, seed: int, length: int) -> None:
    text, state = write(compile_schema(schema), seed, length)
    assert state.cost == len(state.closing())
    check(schema, whole(text, state))


@given(schemas)
def test_the_shortest_document_is_valid(schema: Any) -> None:
    check(schema, compile_schema(schema).shortest.decode())


@given(schemas, st.integers(0, 1000))
def test_a_piece_at_a_time_is_a_byte_at_a_time(schema: Any, seed: int) -> None:
    constraint = compile_schema(schema)
    text, state = write(constraint, seed, 60)
    chance = random.Random(seed)
    walked = constraint.start()
    while text:
        length = chance.randint(1, 8)
        following = walked.walk(text[:length])
        assert following is not None
        walked, text = following, text[length:]
    assert walked.next_bytes() == state.next_bytes()
    assert walked.cost == state.cost


def test_what_must_come_is_known() -> None:
    text, state = compile_schema(FARM).start().forced()
    assert text == b'{"role": "'
    after = state.walk(b"consu")
    assert after is not None
    assert after.forced()[0] == b'lta", "respuesta_chat": "'


def test_the_shortest_document_leaves_out_what_is_optional() -> None:
    assert compile_schema(FARM).shortest == b'{"role": "saludo", "respuesta_chat": "", "urgencia": 0}'


@pytest.mark.parametrize(
    ("schema", "legal", "illegal"),
    [
        ({"type": "integer"}, ["0", "-1", "12", "999999999999999"], ["01", "-0", "+1", "1.0", "1e3", "1" * 16, "-"]),
        ({"type": "number"}, ["0", "0.5", "-0.25", "10.0"], ["1.", ".5", "00.1", "1e5", "0." + "1" * 15, "NaN"]),
        ({"type": "integer", "minimum": 17, "maximum": 120}, ["17", "99", "120"], ["1", "16", "121", "-17", "1000"]),
        ({"type": "integer", "minimum": -12, "maximum": -3}, ["-12", "-3"], ["-2", "-13", "3", "0", "-1"]),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.1}, ["0.1", "0.05"], ["0", "0.0", "0.11", "-0.1", "1"]),
        ({"type": "string", "maxLength": 3}, ['"añ🌽"', r'"\n\"a"', r'"\u00f1"', '""'], ['"abcd"', '"a\nb"', r'"\x"']),
        ({"type": "string", "minLength": 2}, ['"ab"', r'"\n\n"'], ['""', '"a"', '"🌽"']),
        ({"type": "string"}, [r'"\ud7ff"', r'"\ue000"'], [r'"\ud800"', r'"\uDFFF"', '"\x00"', '"\x1f"', '"a']),
        ({"enum": ["a", "ab", 1, 12, None]}, ['"a"', '"ab"', "1", "12", "null"], ['"abc"', "2", "123", "nul"]),
        ({"type": "integer", "enum": [1, "1", 2]}, ["1", "2"], ['"1"']),
        ({"const": {"b": [1, 2], "a": None}}, ['{"b": [1, 2], "a": null}'], ["{}", '{"a": null, "b": [1, 2]}']),
        ({"minItems": 1, "maxItems": 2, "items": {"type": "null"}}, ["[null]", "[null, null]"], ["[]", "[0]"]),
        ({"type": "array", "items": False}, ["[]"], ["[1]", "[null]"]),
        ({"type": "object"}, ["{}", '{"a": [1, {"b": "c"}], "d": true}'], ["[]", '{"a":1}', "{ }", '{"a": 1,}']),
        ({"type": "object", "additionalProperties": False}, ["{}"], ['{"a": 1}']),
        ({"type": "object", "additionalProperties": {"type": "null"}}, ["{}", '{"a": null}'], ['{"a": 1}']),
        ({"properties": {"a": True}, "required": ["b"]}, ['{"b": 1}', '{"a": 2, "b": 1}'], ["{}", '{"b": 1, "a": 2}']),
        ({"type": ["string", "null"]}, ["null", '"a"'], ["1", "true"]),
        ({"allOf": [{"type": "boolean"}], "title": "a", "x-unit": "b"}, ["true", "false"], ["null"]),
        ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, ['"a"', "1"], ["1.5", "null"]),
        (FARM, ['{"role": "saludo", "respuesta_chat": "¡Hola!", "urgencia": 5, "temas": []}'], ['{"role": "saludo"}']),
    ],
)  # fmt: skip
def test_what_each_keyword_allows(schema: Any, legal: list[str], illegal: list[str]) -> None:
    assert [value for value in legal if not allows(schema, value)] == []
    assert [value for value in illegal if allows(schema, value)] == []


@pytest.mark.parametrize("invalid", [b'"\xff', b'"\xc0\x80', b'"\xe0\x80', b'"\xed\xa0', b'"\xf4\x90', b'"\xc3"'])
def test_only_utf8_is_written(invalid: bytes) -> None:
    assert compile_schema({"type": "string"}).start().walk(invalid) is None


def test_nesting_ends() -> None:
    """Deeper than a parser would follow: beyond the limit only the shortest value is legal."""
    for schema, opening in (({}, b"["), (TREE, b'{"value": 0, "children": [')):
        state = compile_schema(schema).start()
        depth = 0
        while (deeper := state.walk(opening)) is not None:
            state, depth = deeper, depth + 1
            assert depth < 100
        check(schema, whole(opening * depth, state))


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        *(
            ({"type": kind, keyword: value}, f"#: the keyword `{keyword}` is not enforced here")
            for kind, keyword, value in [
                ("string", "formatMinimum", "2026-01-01"),
                ("number", "multipleOf", 2),
                ("array", "uniqueItems", True),
                ("array", "contains", {}),
                ("array", "prefixItems", []),
                ("object", "minProperties", 1),
                ("object", "maxProperties", 1),
                ("object", "patternProperties", {}),
                ("object", "propertyNames", {}),
                ("object", "dependentRequired", {}),
                ("object", "unevaluatedProperties", False),
                ("object", "if", {}),
                ("object", "not", {}),
                ("object", "nullable", True),
                ("object", "requried", []),
            ]
        ),
        ({"properties": {"a": {"items": {"not": {}}}}}, "#/properties/a/items: the keyword `not` is not enforced here"),
        ({"type": "text"}, '#/type: found "text"; expected object, array, string, number, integer, boolean, null'),
        ({"type": []}, "#/type: found []"),
        ({"type": {}}, "#/type: found {}"),
        ({"type": [[]]}, "#/type: found [[]]"),
        ({"properties": []}, "#/properties: found []; expected an object"),
        ({"properties": {"a": 1}}, "#/properties/a: found 1; expected an object or true"),
        ({"properties": {"a": False}}, "#/properties/a: found false; expected an object or true"),
        ({"required": "a"}, '#/required: found "a"; expected a list of strings'),
        ({"required": ["a"], "additionalProperties": False}, '#/required: "a" is not among `properties`'),
        ({"minLength": -1}, "#/minLength: found -1; expected an integer from 0"),
        ({"minLength": 3, "maxLength": 2}, "#: `minLength` is 3, which is more than `maxLength`, 2"),
        ({"minItems": 1, "items": False}, "#: `minItems` is 1, and `items` allows none"),
        ({"minimum": "1"}, '#/minimum: found "1"; expected a number'),
        ({"exclusiveMinimum": True}, "#/exclusiveMinimum: found true; expected a number"),
        ({"minimum": 2, "maximum": 1}, "#: no number of 15 digits satisfies minimum 2, maximum 1"),
        ({"type": "integer", "minimum": 0.2, "maximum": 0.8}, "#: no integer of 15 digits satisfies"),
        ({"minimum": 1e300}, "#: no number of 15 digits satisfies minimum 1e+300"),
        ({"enum": []}, "#/enum: found []; expected a list that is not empty"),
        ({"enum": ["a"], "type": "integer"}, "#: no value of `enum` has the `type`"),
        ({"enum": ["a"], "minLength": 1}, "#: `minLength` beside `enum` is not enforced here"),
        ({"anyOf": []}, "#/anyOf: found []; expected a list that is not empty"),
        ({"anyOf": [{}], "type": "object"}, "#: `type` beside `anyOf` is not enforced here"),
        ({"allOf": [{}, {}]}, "#/allOf: only a list of one schema is enforced here"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "#/oneOf: a value may match the alternatives 0 and 1"),
        ({"oneOf": [{"const": 1}, {"const": 1.0}]}, "#/oneOf: a value may match the alternatives 0 and 1"),
        ({"oneOf": [{}, {"type": "null"}]}, "#/oneOf: a value may match the alternatives 0 and 1"),
        ({"$ref": "#/$defs/a"}, '#/$ref: found "#/$defs/a", which points at nothing'),
        ({"$ref": "https://example.com/a"}, '#/$ref: found "https://example.com/a"; only references within'),
        ({"$ref": 1}, "#/$ref: found 1; expected a string"),
        ({"$ref": "#"}, "No document can satisfy the schema"),
        ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "$ref: a schema is an alternative of itself"),
        ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "No document can satisfy the schema"),
        ({"const": "\ud800"}, "The schema is not JSON"),
    ],
)  # fmt: skip
def test_what_is_not_enforced_is_refused_by_name(schema: Any, said: str) -> None:
    with pytest.raises(InvalidSchema) as caught:
        compile_schema(schema)
    assert said in caught.value.message
    assert caught.value.status == 400


def doubling(levels: int) -> dict[str, Any]:
    """Each definition requires the next one twice: 2**levels values."""
    pair = [
        {
            "type": "object",
            "properties": {name: {"$ref": f"#/$defs/{level + 1}"} for name in "ab"},
            "required": ["a", "b"],
        }
        for level in range(levels)
    ]
    definitions = {str(level): schema for level, schema in enumerate([*pair, {"type": "null"}])}
    return {"$ref": "#/$defs/0", "$defs": definitions}


def forking(levels: int) -> dict[str, Any]:
    """Each definition is one of two alternatives, which are the next one: 2**levels ways to the same null."""
    both = {str(level): {"anyOf": [{"$ref": f"#/$defs/{level + 1}"}] * 2} for level in range(levels)}
    return {"$ref": "#/$defs/0", "$defs": {**both, str(levels): {"type": "null"}}}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def chain(links: int) -> dict[str, Any]:
    definitions = {str(link): {"$ref": f"#/$defs/{link + 1}"} for link in range(links)}
    return {"$ref": "#/$defs/0", "$defs": {**definitions, str(links): {"type": "null"}}}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"enum": [f"value {number}" for number in range(100_000)]}, "bytes; 32,768 are allowed"),
        ({"properties": {str(number): {"type": "string"} for number in range(20_000)}}, "bytes; 32,768 are allowed"),
        ({"type": "array", "items": [{}]}, "#/items: found [{}]; expected an object"),
        ({"properties": {f"{number}": True for number in range(2500)}}, "more than 2,000 schemas"),
        (nested(500), "nested too deeply; 64 levels are allowed"),
        (nested(5000), "nested too deeply; 64 levels are allowed"),
        (chain(300), "nested too deeply; 64 levels are allowed"),
        (doubling(30), "The shortest document under the schema has more than 16,384 bytes"),
        ({"minLength": 10**9}, "The shortest document under the schema has more than 16,384 bytes"),
        ({"minItems": 10**9}, "The shortest document under the schema has more than 16,384 bytes"),
        ({"anyOf": [{"const": number} for number in range(33)]}, "found 33 alternatives; 32 are allowed"),
        (
            {"properties": {**{f"n{n}": {"minimum": n + 0.1, "maximum": n + 0.9} for n in range(600)}, "z": 1}},
            "#/properties/z",
        ),
        ({"oneOf": [{"properties": {f"{n}": True for n in range(50)}} for _ in range(32)]}, "0 and 1"),
    ],
)
def test_a_pathological_schema_is_refused_at_once(schema: Any, said: str) -> None:
    took = []
    for _ in range(3):
        began = time.thread_time()
        with pytest.raises(InvalidSchema) as caught:
            compile_schema(schema)
        took.append(time.thread_time() - began)
        assert said in caught.value.message
    assert min(took) < 0.05


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {f"property {number}": {"type": "string"} for number in range(500)}},
        {"enum": [f"value {number:05}" for number in range(1900)]},
        nested(60),
        forking(25),
        {"anyOf": [nested(20) for _ in range(32)]},
        {"anyOf": [{"anyOf": [{"anyOf": [{} for _ in range(8)]} for _ in range(8)]} for _ in range(8)]},
    ],
    ids=["properties", "enum", "nested", "forking", "alternatives that are one", "alternatives of alternatives"],
)
def test_a_large_schema_is_compiled_and_followed_in_time(schema: Any) -> None:
    began = time.thread_time()
    constraint = compile_schema({**schema, "title": str(began)})  # so that it is not the one of the last run
    compiled = time.thread_time()
    text, state = write(constraint, 1, 200)
    followed = time.thread_time()
    check(schema, whole(text, state))
    assert compiled - began < 1
    assert followed - compiled < 2


def test_a_schema_is_compiled_once() -> None:
    assert compile_schema(FARM) is compile_schema(json.loads(json.dumps(FARM)))
