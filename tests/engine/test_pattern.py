"""Strings under `pattern` and `format`, without a model. That they validate, the property tests of schemas check."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema.exceptions
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llamafn.engine.constraint.formats import FORMATS
from llamafn.engine.constraint.schema import compile_schema
from llamafn.errors import InvalidSchema
from tests.engine.test_constraint import allows, whole, write

characters = st.sampled_from("ab-.0 ñ")
classes = st.sampled_from(["a", "b", "ñ", r"\.", "-", ".", r"\d", r"\w", r"\S", "[ab]", "[^a]", "[a-z0-9]", r"[^\d\s]"])
expressions = st.recursive(
    classes,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{2,}", "*?"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda ways: f"({'|'.join(ways)})"),
        inner.map(lambda one: f"^{one}"),
        inner.map(lambda one: f"{one}$"),
    ),
    max_leaves=6,
)


def compiled(expression: str, **limits: int) -> Any:
    return compile_schema({"type": "string", "pattern": expression, **limits})


@given(expressions, st.text(characters, max_size=6))
def test_it_allows_what_the_expression_matches(expression: str, text: str) -> None:
    try:
        state = compiled(expression).start().walk(json.dumps(text, ensure_ascii=False).encode())
    except InvalidSchema as error:
        assert "no string" in error.message  # noqa: PT017 - of expressions such as a^b
        assert re.search(expression, text) is None
        return
    # Where engines differ, the accents, it may allow less.
    matches = re.search(expression, text, re.ASCII) is not None and re.search(expression, text) is not None
    assert (state is not None and state.is_complete) == matches


@given(expressions, st.integers(0, 1000), st.integers(0, 40))
def test_what_is_written_matches_wherever_it_ends(expression: str, seed: int, length: int) -> None:
    try:
        constraint = compiled(expression)
    except InvalidSchema:
        assume(False)
    text, state = write(constraint, seed, length)
    assert state.cost == len(state.closing())
    assert re.search(expression, json.loads(whole(text, state)))


@given(expressions, st.integers(0, 4), st.integers(0, 4), st.text(characters, max_size=8))
def test_its_length_is_kept_to(expression: str, least: int, more: int, text: str) -> None:
    schema = {"type": "string", "pattern": expression, "minLength": least, "maxLength": least + more}
    try:
        allowed = allows(schema, json.dumps(text, ensure_ascii=False))
    except InvalidSchema:
        allowed = False
    unbounded = (
        allows({"type": "string", "pattern": expression}, json.dumps(text, ensure_ascii=False)) if allowed else None
    )
    assert not allowed or unbounded
    if not least <= len(text) <= least + more:
        assert not allowed


@pytest.mark.parametrize(
    ("pattern", "shortest"),
    [
        ("abc", "abc"),
        ("^[A-Z]{3}-[0-9]{4}$", "AAA-0000"),
        ("^$", ""),
        ("^(?:largo|no)$", "no"),
        (r"^\u00e9\x41\n\"$", 'éA\n"'),
    ],
)
def test_the_shortest_that_matches(pattern: str, shortest: str) -> None:
    assert json.loads(compiled(pattern).shortest) == shortest


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("date", ["2024-02-29", "2000-02-29", "2026-11-24"], ["2026-02-29", "1900-02-29", "2026-13-01", "24-11-2026"]),
        ("time", ["23:59:59Z", "08:00:00.5-05:00"], ["24:00:00Z", "08:00:00", "8:00:00Z"]),
        ("date-time", ["2026-11-24T08:00:00Z"], ["2026-11-24 08:00:00Z", "2026-11-24T08:00:00"]),
        ("email", ["ana.ruiz@finca.com.co"], ["ana", "@finca.co", "ana@finca.co."]),
        ("hostname", ["finca.example", "localhost"], ["-a.b", "a..b", "a_b"]),
        ("ipv4", ["127.0.0.1", "255.255.255.255"], ["256.0.0.1", "1.2.3", "01.2.3.4"]),
        ("uri", ["https://finca.example:8080/riego/maiz"], ["finca.example", "https://"]),
        ("uuid", ["123e4567-e89b-12d3-a456-426614174000"], ["123e4567-e89b-12d3-a456-42661417400"]),
    ],
)
def test_formats(name: str, right: list[str], wrong: list[str]) -> None:
    schema = {"type": "string", "format": name}
    assert [text for text in right if not allows(schema, json.dumps(text))] == []
    assert [text for text in wrong if allows(schema, json.dumps(text))] == []
    assert name in FORMATS


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"pattern": 3}, "#/pattern: found 3; expected a string"),
        ({"pattern": "a", "format": "date"}, "#: `format` beside `pattern` is not enforced here"),
        ({"format": "iri"}, '#/format: "iri" is not enforced here, and would be broken'),
        ({"pattern": "(?=a)b"}, "`(?=a` at 0: of groups, only `(…)` and `(?:…)` are enforced"),
        ({"pattern": "(?<year>a)"}, "`(?<y` at 0: of groups"),
        ({"pattern": r"a\b"}, r"`\b` at 1 is not enforced"),
        ({"pattern": r"(a)\1"}, r"`\1` at 3 is not enforced"),
        ({"pattern": r"\p{L}"}, r"`\p` at 0 is not enforced"),
        ({"pattern": "a)"}, "`)` at 1 closes nothing"),
        ({"pattern": "(a"}, "`(` at 0 is not closed"),
        ({"pattern": "[a"}, "`[` at 0 is not closed"),
        ({"pattern": "[]a]"}, "`[` at 0: engines do not agree on a class without characters"),
        ({"pattern": "[^\\d\\D]"}, "`[` at 0: no character is in this class"),
        ({"pattern": "[b-a]"}, "`b-a` at 1 is not a range of characters"),
        ({"pattern": "[\\d-z]"}, "`\\d-z` at 1 is not a range of characters"),
        ({"pattern": "a**"}, "`*` at 2 repeats nothing that can be repeated"),
        ({"pattern": "a{2,1}"}, "`{2,1}` at 1: the first is the larger one"),
        ({"pattern": "a{x}"}, "`{` at 1: expected {n}, {n,} or {n,m}, below 10,000"),
        ({"pattern": r"\x4"}, r"`\x` at 0: expected 2 hexadecimal digits"),
        ({"pattern": "\\"}, "`\\` at 0 is not enforced"),
        ({"pattern": "🌽"}, "only characters up to U+FFFF are enforced"),
        ({"pattern": "(" * 40 + ")" * 40}, "more than 32 groups within each other"),
        ({"pattern": "a$b"}, "no string of 0 to inf characters matches"),
        ({"pattern": "^[a-z]{5}$", "maxLength": 4}, "no string of 0 to 4 characters matches"),
        ({"pattern": r"^\x00$"}, "no string of 0 to inf characters matches"),
        ({"pattern": "((a{99}){99}){99}"}, "with its repetitions written out it has more than 2,000 parts"),
        ({"pattern": "[a-z]", "maxLength": 9000}, "with `minLength` and `maxLength` it has more than 8,000 parts"),
        (
            {"properties": {str(number): {"pattern": f"^(a?){{600}}{number}$"} for number in range(100)}},
            "The schema's patterns have more than 20,000 parts together",
        ),
    ],
)
def test_what_is_not_enforced_is_refused_by_name(schema: Any, said: str) -> None:
    with pytest.raises(InvalidSchema) as caught:
        compile_schema(schema)
    assert said in caught.value.message


def test_the_validator_agrees_about_every_format() -> None:
    """Or else the property tests would check nothing of them."""
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    assert {"date", "email", "ipv4", "uuid"} <= set(checker.checkers)
    with pytest.raises(jsonschema.exceptions.FormatError):
        checker.check("2026-02-30", "date")
