"""A request's JSON body, checked field by field: one error names every bad one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llamafn.errors import InvalidFields, InvalidJSON

MAX_DEPTH = 64
# How much of a value an error message quotes.
_QUOTED_CHARACTERS = 60


class Field(NamedTuple):
    """A field of a body. `accepts` says whether a value follows the `rule`."""

    name: str
    accepts: Callable[[Any], bool]
    rule: str
    required: bool = False


def anything(name: str, *, required: bool = False) -> Field:
    return Field(name, lambda value: True, "any JSON value", required)


def text(name: str) -> Field:
    return Field(name, lambda value: isinstance(value, str), "a string")


def boolean(name: str) -> Field:
    return Field(name, lambda value: isinstance(value, bool), "true or false")


def mapping(name: str) -> Field:
    return Field(name, lambda value: isinstance(value, dict), "an object")


def number(name: str, lowest: float, highest: float) -> Field:
    def accepts(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and lowest <= value <= highest

    return Field(name, accepts, f"a number from {lowest:g} to {highest:g}")


def texts(name: str, most: int) -> Field:
    """A string, or a list of them; none empty."""

    def accepts(value: Any) -> bool:
        values = value if isinstance(value, list) else [value]
        return len(values) <= most and all(isinstance(one, str) and one for one in values)

    return Field(name, accepts, f"a string, or a list of up to {most}, none of them empty")


def integer(name: str, lowest: int, highest: int) -> Field:
    def accepts(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest

    return Field(name, accepts, f"an integer from {lowest:,} to {highest:,}")


def parse(body: bytes, fields: Sequence[Field]) -> tuple[dict[str, Any], list[str]]:
    """The values of the fields that are there, and the names of keys that no field has.

    A null counts as absent where a field is not required.

    Raises:
        InvalidJSON: not a JSON object in UTF-8.
        InvalidFields: naming every field that is missing or breaks its rule.
    """
    document = _load_object(body)
    problems = _malformed_values(document)
    values = {}
    for field in fields:
        value = document.get(field.name)
        if field.name not in document or (value is None and not field.required):
            if field.required:
                problems[field.name] = f"missing; expected {field.rule}"
        elif not field.accepts(value):
            problems[field.name] = f"found {quote(value)}; expected {field.rule}"
        else:
            values[field.name] = value
    if problems:
        raise InvalidFields(problems)
    known = {field.name for field in fields}
    return values, [key for key in document if key not in known]


def quote(value: Any) -> str:
    """The beginning of a value, as JSON, for an error message."""
    said = json.dumps(value, ensure_ascii=False)
    return said if len(said) <= _QUOTED_CHARACTERS else said[:_QUOTED_CHARACTERS] + "…"


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


def _malformed_values(document: dict[str, Any]) -> dict[str, str]:
    """Top-level keys under which something is nested too deeply, or a string is not text."""
    problems: dict[str, str] = {}
    waiting = [(key, value, 2) for key, value in document.items()] + [("body", key, 1) for key in document]
    while waiting:
        key, value, depth = waiting.pop()
        if isinstance(value, str):
            if not value.isascii() and not _is_text(value):
                problems[_printable(key)] = "found half of a surrogate pair (\\ud800 to \\udfff); expected Unicode text"
        elif isinstance(value, dict | list):
            if depth > MAX_DEPTH:
                problems[_printable(key)] = f"nested too deeply; {MAX_DEPTH} levels are allowed"
                continue
            parts = [*value.values(), *value] if isinstance(value, dict) else value
            waiting.extend((key, part, depth + 1) for part in parts)
    return problems


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(key: str) -> str:
    return key.encode(errors="replace").decode()
