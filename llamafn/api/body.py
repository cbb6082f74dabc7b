"""A request's JSON body, checked field by field: one error names every bad one.

What a field accepts is said once, as a `Kind`: it checks values, says its rule in an error message, and says itself as
JSON Schema for /openapi.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from llamafn.errors import InvalidFields, InvalidJSON

MAX_DEPTH = 64
# How many bad fields one error names.
MAX_PROBLEMS = 32
# How much of a value an error message quotes.
_QUOTED_CHARACTERS = 60

Schema = dict[str, Any]
Problems = dict[str, str]


class Kind(NamedTuple):
    """What a value may be."""

    accepts: Callable[[Any], bool]
    rule: str
    schema: Schema
    # What is wrong inside of a value that is accepted, by the path of each part.
    inside: Callable[[Any, str], Problems] | None = None

    def problems(self, value: Any, path: str) -> Problems:
        if not self.accepts(value):
            return {path: f"found {quote(value)}; expected {self.rule}"}
        return self.inside(value, path) if self.inside is not None else {}


class Field(NamedTuple):
    """A field of a body. A null counts as absent where it is not required."""

    name: str
    kind: Kind
    meaning: str = ""
    required: bool = False


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


ANYTHING = Kind(lambda value: True, "any JSON value", {})
TEXT = Kind(_is_text, "a string", {"type": "string"})
BOOLEAN = Kind(lambda value: isinstance(value, bool), "true or false", {"type": "boolean"})
FALSE = Kind(lambda value: value is False, "false", {"type": "boolean", "enum": [False]})
OBJECT = Kind(lambda value: isinstance(value, dict), "an object", {"type": "object"})


def integer(lowest: int, highest: int) -> Kind:
    def accepts(value: Any) -> bool:
        # JSON knows no difference between 1 and 1.0, and some clients write the latter.
        return _is_number(value) and lowest <= value <= highest and value == int(value)

    return Kind(
        accepts,
        f"an integer from {lowest:,} to {highest:,}" if lowest < highest else f"{lowest}",
        {"type": "integer", "minimum": lowest, "maximum": highest},
    )


def number(lowest: float, highest: float) -> Kind:
    return Kind(
        lambda value: _is_number(value) and lowest <= value <= highest,
        f"a number from {lowest:g} to {highest:g}",
        {"type": "number", "minimum": lowest, "maximum": highest},
    )


def one_of(*values: str) -> Kind:
    """One of these strings."""
    said = [json.dumps(value) for value in values]
    rule = said[0] if len(said) == 1 else f"{', '.join(said[:-1])} or {said[-1]}"
    return Kind(lambda value: _is_text(value) and value in values, rule, {"type": "string", "enum": list(values)})


def list_of(kind: Kind, what: str, *, least: int = 0, most: int | None = None) -> Kind:
    """A list of `what`, each of which is of a kind. Without a `most`, only the body's size is its limit."""

    def accepts(value: Any) -> bool:
        return isinstance(value, list) and least <= len(value) and (most is None or len(value) <= most)

    def inside(values: list[Any], path: str) -> Problems:
        problems: Problems = {}
        for index, value in enumerate(values):
            problems.update(kind.problems(value, f"{path}[{index}]"))
        return problems

    rule = f"a list of {least} {what} or more" if most is None else f"a list of {least} to {most:,} {what}"
    schema = {"type": "array", "items": kind.schema, "minItems": least}
    return Kind(accepts, rule, schema if most is None else {**schema, "maxItems": most}, inside)


def map_of(kind: Kind, what: str, *, key: Kind, most: int) -> Kind:
    """An object whose keys are of one kind, and their values of another."""

    def inside(values: dict[str, Any], path: str) -> Problems:
        problems: Problems = {}
        for name, value in values.items():
            problems.update(key.problems(name, path) or kind.problems(value, f"{path}.{name}"))
        return problems

    return Kind(
        lambda value: isinstance(value, dict) and len(value) <= most,
        f"{what}, {most:,} at most",
        {
            "type": "object",
            "propertyNames": key.schema,
            "additionalProperties": kind.schema,
            "maxProperties": most,
        },
        inside,
    )


def either(*kinds: Kind) -> Kind:
    """Of several kinds, which are told apart by what they accept at the first look."""

    def inside(value: Any, path: str) -> Problems:
        return next(kind for kind in kinds if kind.accepts(value)).problems(value, path)

    return Kind(
        lambda value: any(kind.accepts(value) for kind in kinds),
        ", or ".join(kind.rule for kind in kinds),
        {"anyOf": [kind.schema for kind in kinds]},
        inside,
    )


def record(*fields: Field, what: str = "an object") -> Kind:
    """An object with these fields and no others."""

    def inside(value: dict[str, Any], path: str) -> Problems:
        problems, unknown = check(value, fields, f"{path}.")
        problems.update((f"{path}.{key}", _unknown(key, fields)) for key in unknown)
        return problems

    return Kind(lambda value: isinstance(value, dict), what, object_schema(fields, closed=True), inside)


def variants(key: str, kinds: Mapping[str, Sequence[Field]], what: str) -> Kind:
    """An object whose `key` says which fields it has."""
    names = one_of(*kinds)
    whole = {name: (Field(key, one_of(name), required=True), *fields) for name, fields in kinds.items()}

    def inside(value: dict[str, Any], path: str) -> Problems:
        if key not in value:
            return {f"{path}.{key}": f"missing; expected {names.rule}"}
        return names.problems(value[key], f"{path}.{key}") or record(*whole[value[key]]).problems(value, path)

    schema = {"anyOf": [object_schema(fields, closed=True) for fields in whole.values()]}
    return Kind(lambda value: isinstance(value, dict), what, schema, inside)


def object_schema(fields: Sequence[Field], *, closed: bool) -> Schema:
    """The JSON Schema of an object with these fields; others are refused if it is `closed`."""
    properties = {}
    for field in fields:
        schema = field.kind.schema if field.required else _or_null(field.kind.schema)
        properties[field.name] = {**schema, "description": field.meaning} if field.meaning else schema
    schema = {"type": "object", "properties": properties, "additionalProperties": {"type": "null"} if closed else True}
    required = [field.name for field in fields if field.required]
    return {**schema, "required": required} if required else schema


def parse(body: bytes, fields: Sequence[Field]) -> tuple[dict[str, Any], list[str]]:
    """The values of the fields that are there, and the names of keys that no field has.

    Raises:
        InvalidJSON: not a JSON object in UTF-8.
        InvalidFields: naming every field that is missing or breaks its rule.
    """
    document = _load_object(body)
    problems = _malformed_values(document)
    unknown: list[str] = []
    if not problems:
        problems, unknown = check(document, fields)
    if problems:
        raise InvalidFields(dict(list(problems.items())[:MAX_PROBLEMS]))
    given = (field for field in fields if field.required or document.get(field.name) is not None)
    return {field.name: document[field.name] for field in given}, unknown


def check(document: Mapping[str, Any], fields: Sequence[Field], prefix: str = "") -> tuple[Problems, list[str]]:
    """What is wrong with an object's fields, by path, and the keys that no field has. A null counts as absent."""
    problems: Problems = {}
    for field in fields:
        value = document.get(field.name)
        path = prefix + field.name
        if field.name not in document:
            if field.required:
                problems[path] = f"missing; expected {field.kind.rule}"
        elif value is not None or field.required:
            problems.update(field.kind.problems(value, path))
    known = {field.name for field in fields}
    return problems, [key for key, value in document.items() if key not in known and value is not None]


def refuse_unknown(unknown: Sequence[str], fields: Sequence[Field]) -> None:
    """For a body in which an unknown key would mean an answer other than the one that was asked for.

    Raises:
        InvalidFields: naming every one.
    """
    if unknown:
        raise InvalidFields({key: _unknown(key, fields) for key in unknown})


def quote(value: Any) -> str:
    """The beginning of a value, as JSON, for an error message."""
    said = json.dumps(value, ensure_ascii=False)
    return said if len(said) <= _QUOTED_CHARACTERS else said[:_QUOTED_CHARACTERS] + "…"


def _unknown(key: str, fields: Sequence[Field]) -> str:
    return f"not supported; expected one of {', '.join(field.name for field in fields)}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _or_null(schema: Schema) -> Schema:
    if not schema:
        return schema
    if "type" not in schema:
        return {"anyOf": [*schema["anyOf"], {"type": "null"}]}
    nullable = {**schema, "type": [schema["type"], "null"]}
    return {**nullable, "enum": [*schema["enum"], None]} if "enum" in schema else nullable


def _load_object(body: bytes) -> dict[str, Any]:
    if not body.strip():
        raise InvalidJSON("The body is empty; expected a JSON object.", hint='Send, say, {"context": "Hola"}.')
    try:
        document = json.loads(body.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise InvalidJSON(f"The body is not UTF-8: byte {error.start} is 0x{body[error.start]:02x}.") from error
    except json.JSONDecodeError as error:
        raise InvalidJSON(
            f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.",
            hint="Send a JSON object with Content-Type: application/json.",
        ) from error
    except ValueError as error:  # NaN, or a number of thousands of digits
        raise InvalidJSON(f"The body is not JSON: {error}.") from error
    except RecursionError as error:
        raise InvalidJSON(f"The body is nested too deeply; {MAX_DEPTH} levels are allowed.") from error
    if not isinstance(document, dict):
        raise InvalidJSON(f"The body is {quote(document)}; expected a JSON object.")
    return document


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def _malformed_values(document: dict[str, Any]) -> Problems:
    """Top-level keys under which something is nested too deeply, or a string is not text."""
    problems: Problems = {}
    waiting = [(key, value, 2) for key, value in document.items()] + [("body", key, 1) for key in document]
    while waiting:
        key, value, depth = waiting.pop()
        if isinstance(value, str):
            if not value.isascii() and not _is_unicode(value):
                problems[_printable(key)] = "found half of a surrogate pair (\\ud800 to \\udfff); expected Unicode text"
        elif isinstance(value, dict | list):
            if depth > MAX_DEPTH:
                problems[_printable(key)] = f"nested too deeply; {MAX_DEPTH} levels are allowed"
                continue
            parts = [*value.values(), *value] if isinstance(value, dict) else value
            waiting.extend((key, part, depth + 1) for part in parts)
    return problems


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(key: str) -> str:
    return key.encode(errors="replace").decode()
