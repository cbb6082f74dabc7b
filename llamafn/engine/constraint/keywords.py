"""The keywords of JSON Schema that are known here: enforced, or annotations that say nothing about validity."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llamafn.errors import InvalidSchema

# fmt: off
ANNOTATIONS = frozenset((
    "title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "discriminator",
    "contentEncoding", "contentMediaType", "contentSchema", "$schema", "$id", "$comment", "$defs", "definitions",
))
# fmt: on
KEYWORDS: Mapping[str, frozenset[str]] = {
    "object": frozenset(("properties", "required", "additionalProperties")),
    "array": frozenset(("items", "minItems", "maxItems")),
    "string": frozenset(("minLength", "maxLength", "pattern", "format")),
    "number": frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")),
    "integer": frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")),
    "boolean": frozenset(),
    "null": frozenset(),
}
_OF_A_TYPE = frozenset().union(*KEYWORDS.values())
# Each says all there is to say: nothing but annotations may stand beside it, nor `type`, but for `enum` and `const`.
_WHOLE = ("$ref", "enum", "const", "anyOf", "oneOf", "allOf")


def types_of(schema: Mapping[str, Any], path: str) -> tuple[str, ...] | None:
    """The types that a schema without `enum` or alternatives allows; None for all of them.

    Where it names none, they are those that its keywords speak of: others would be legal, and are not wanted.
    """
    if "type" in schema:
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not types or not all(isinstance(name, str) and name in KEYWORDS for name in types):
            raise InvalidSchema(
                f"{path}/type: found {quote(schema['type'])}; expected {', '.join(KEYWORDS)}, or a list of them."
            )
        return tuple(dict.fromkeys(types))
    return tuple(name for name, known in KEYWORDS.items() if name != "integer" and known & schema.keys()) or None


def resolve(document: Any, reference: str, path: str) -> Any:
    """What a local reference, such as `#/$defs/farm`, points at. https://www.rfc-editor.org/rfc/rfc6901"""
    if reference != "#" and not reference.startswith("#/"):
        raise InvalidSchema(f"{path}/$ref: found {quote(reference)}; only references within the schema, from `#/`.")
    found = document
    for part in reference[2:].split("/") if len(reference) > 2 else ():
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and key in found:
            found = found[key]
        elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        else:
            raise InvalidSchema(f"{path}/$ref: found {quote(reference)}, which points at nothing.")
    return found


def check_keywords(schema: Mapping[str, Any], path: str) -> None:
    """Refuse a keyword that would be ignored."""
    meant = {key for key in schema if key not in ANNOTATIONS and not key.startswith("x-")}
    if schema.get("uniqueItems") is False:
        meant.discard("uniqueItems")
    for key in sorted(meant):
        if key not in _OF_A_TYPE and key not in _WHOLE and key != "type":
            raise InvalidSchema(
                f"{path}: the keyword `{key[:60]}` is not enforced here, and would be broken.",
                hint=f"Leave it out. Enforced are {', '.join(sorted(_OF_A_TYPE | {*_WHOLE, 'type'}))}.",
            )
    for whole in _WHOLE:
        if whole in meant:
            beside = meant - {whole} - ({"type", "enum", "const"} if whole in ("enum", "const") else set())
            if beside:
                raise InvalidSchema(f"{path}: `{min(beside)}` beside `{whole}` is not enforced here.")
            return


def is_of(value: Any, name: str) -> bool:
    """Whether a JSON value has a type. To JSON Schema 1.0 is an integer."""
    if name == "null" or name == "boolean":
        return value is None if name == "null" else isinstance(value, bool)
    if name in ("integer", "number"):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and (name == "number" or value == int(value))
    return isinstance(value, {"object": dict, "array": list, "string": str}[name])


def quote(value: Any) -> str:
    said = json.dumps(value, ensure_ascii=False)
    return said if len(said) <= 60 else said[:60] + "…"
