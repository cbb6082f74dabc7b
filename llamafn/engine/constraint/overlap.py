"""Whether two schemas share no value, as oneOf wants of its alternatives. Never wrong when it says yes."""

from __future__ import annotations

import json
from typing import Any

from llamafn.engine.constraint.keywords import is_of, resolve, types_of


def apart(document: Any, one: Any, other: Any, *, look_inside: bool = True) -> bool:
    """Whether no value matches both, judged by types, constants, and constants in properties that both require.

    Both were compiled before: their keywords are known to be well-formed.
    """
    one, other = _resolved(document, one), _resolved(document, other)
    if not isinstance(one, dict) or not isinstance(other, dict):
        return False
    values, other_values = _values(one), _values(other)
    if values is not None and other_values is not None:
        return not {_canonical(value) for value in values} & {_canonical(value) for value in other_values}
    if values is not None or other_values is not None:
        types = _types(other if values is not None else one)
        return types is not None and not any(
            is_of(value, name) for value in values or other_values or () for name in types
        )
    types, other_types = _types(one), _types(other)
    if types is None or other_types is None:
        return False
    shared = _with_numbers(types) & _with_numbers(other_types)
    return not shared or (look_inside and shared == {"object"} and _differ_in_a_property(document, one, other))


def _differ_in_a_property(document: Any, one: dict[str, Any], other: dict[str, Any]) -> bool:
    names = set(one.get("required", ())) & set(other.get("required", ()))
    return any(
        name in one.get("properties", {})
        and name in other.get("properties", {})
        and apart(document, one["properties"][name], other["properties"][name], look_inside=False)
        for name in names
    )


def _resolved(document: Any, schema: Any) -> Any:
    seen = 0
    while isinstance(schema, dict) and "$ref" in schema and seen < 64:
        schema = resolve(document, schema["$ref"], "#")
        seen += 1
    return schema


def _values(schema: dict[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    values: list[Any] | None = schema.get("enum")
    return values


def _types(schema: dict[str, Any]) -> tuple[str, ...] | None:
    """The types it allows; None where that cannot be said: without `type`, keywords only speak of their own type."""
    return types_of(schema, "#") if "type" in schema else None


def _with_numbers(types: tuple[str, ...]) -> set[str]:
    return {"number" if name == "integer" else name for name in types}


def _canonical(value: Any) -> str:
    """One text for values that JSON Schema holds equal: 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True) if not isinstance(value, dict | list) else "a container"
