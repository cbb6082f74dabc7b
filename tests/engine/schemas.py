"""Schemas of the supported kind, drawn at random, and the oracle that says whether an answer follows one."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
from hypothesis import strategies as st

FARM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "role": {"enum": ["consulta", "consejo", "saludo"]},
        "respuesta_chat": {"type": "string"},
        "urgencia": {"type": "integer", "minimum": 0, "maximum": 5},
        "temas": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 3},
    },
    "required": ["role", "respuesta_chat", "urgencia"],
}
TREE: dict[str, Any] = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "number"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["value", "children"],
        }
    },
    "$ref": "#/$defs/node",
}

names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=4)
scalars = st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(-1e6, 1e6) | names


@st.composite
def strings(draw: st.DrawFn) -> dict[str, Any]:
    least = draw(st.integers(0, 4))
    most = draw(st.none() | st.integers(least, 8))
    return {"type": "string", "minLength": least, **({} if most is None else {"maxLength": most})}


# In Python's dialect, which is that of `jsonschema`.
PATTERNS = (
    r"^[A-Z]{2,3}-\d+(a|bc)?$",
    "maíz|frijol",
    r"^(\w+\s)*\S$",
    r"^$|^[^\s\d]{2}\.?$",
    r"(^a|b$)",
    r'^\D"\\\n?$',
    r"[\u4e00-\u9fff]ñ",
    r"^(a*b?)*?c{2,}$",
    r"^\W.+[^\W]$",
    "",
)
FORMATS = ("date", "time", "date-time", "email", "hostname", "ipv4", "uri", "uuid")


@st.composite
def patterns(draw: st.DrawFn) -> dict[str, Any]:
    return {"type": "string", "pattern": draw(st.sampled_from(PATTERNS)), "maxLength": draw(st.integers(7, 12))}


@st.composite
def numbers(draw: st.DrawFn) -> dict[str, Any]:
    """With bounds that leave room for a number of few digits."""
    name = draw(st.sampled_from(["number", "integer"]))
    lowest = draw(st.integers(-1000, 1000) | st.floats(-1000, 1000).map(lambda value: round(value, 3)))
    span = draw(st.integers(2, 5000))
    low, high = draw(st.sampled_from([("minimum", "maximum"), ("exclusiveMinimum", "exclusiveMaximum")]))
    bounds = {low: lowest, high: lowest + span}
    return {"type": name, **{keyword: bounds[keyword] for keyword in draw(st.sets(st.sampled_from([low, high])))}}


@st.composite
def objects(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> dict[str, Any]:
    properties = draw(st.dictionaries(names, values, max_size=4))
    if not properties:
        return {"type": "object", "additionalProperties": draw(values)}
    required = draw(st.lists(st.sampled_from(sorted(properties)), unique=True))
    return {"type": "object", "properties": properties, "required": required}


@st.composite
def arrays(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> dict[str, Any]:
    least = draw(st.integers(0, 2))
    most = draw(st.none() | st.integers(least, 4))
    return {"type": "array", "items": draw(values), "minItems": least, **({} if most is None else {"maxItems": most})}


leaves = (
    st.sampled_from([{}, {"type": "object"}, {"type": ["null", "boolean"]}, True])
    | strings()
    | patterns()
    | st.sampled_from(FORMATS).map(lambda name: {"type": "string", "format": name})
    | numbers()
    | scalars.map(lambda value: {"const": value})
    | st.lists(scalars, min_size=1, max_size=5).map(lambda values: {"enum": values})
)
schemas = st.recursive(
    leaves,
    lambda values: (
        objects(values) | arrays(values) | st.lists(values, min_size=1, max_size=3).map(lambda some: {"anyOf": some})
    ),
    max_leaves=6,
)


def check(schema: Any, text: str) -> None:
    """Fail unless `text` is JSON and valid."""
    validator = jsonschema.Draft202012Validator
    validator(schema, format_checker=validator.FORMAT_CHECKER).validate(json.loads(text, parse_constant=_refuse))


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
