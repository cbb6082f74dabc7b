"""A JSON Schema as a grammar. What it asks for is enforced, or refused by name.

The answer is written in one way only, `{"a": 1, "b": [2, 3]}`: properties in the schema's order, one space after a
colon or a comma, no other. So no model can lose itself in white space, and most of an object's text is known
beforehand.
docs/schema.md says what each keyword does.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llamafn.engine.constraint.grammar import Alternative, Literals, Rule, State, settle
from llamafn.engine.constraint.keywords import check_keywords, is_of, quote, resolve, types_of
from llamafn.engine.constraint.number import Number, lower_bound, upper_bound
from llamafn.engine.constraint.overlap import apart
from llamafn.engine.constraint.string import String
from llamafn.engine.constraint.symbol import Position, Symbol
from llamafn.errors import InvalidSchema

MAX_BYTES = 32_768
MAX_DEPTH = 64  # schemas within schemas, references followed
MAX_SCHEMAS = 2_000
MAX_ALTERNATIVES = 32  # of one anyOf or oneOf
MAX_SHORTEST_BYTES = 16_384
MAX_PATTERN_NODES = 20_000  # of all patterns and formats, with repetitions written out


class Constraint:
    """A compiled schema. Immutable; one serves any number of answers at the same time."""

    __slots__ = ("_root", "shortest")

    def __init__(self, root: Symbol) -> None:
        self._root = root
        self.shortest = self.start().closing()

    def start(self) -> State:
        """The state before the first byte, of one answer: it remembers what was tried from there."""
        return State.before(self._root)


def compile_schema(schema: Any) -> Constraint:
    """The constraint of a schema, given as parsed JSON. The last few are kept.

    Raises:
        InvalidSchema: it is not a schema, asks for what is not enforced, or is too large.
    """
    try:
        text = json.dumps(schema, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        size = len(text.encode())
    except RecursionError as error:
        raise InvalidSchema(f"The schema is nested too deeply; {MAX_DEPTH} levels are allowed.") from error
    except ValueError as error:
        raise InvalidSchema(f"The schema is not JSON: {error}.") from error
    if size > MAX_BYTES:
        raise InvalidSchema(f"The schema has {size:,} bytes; {MAX_BYTES:,} are allowed.")
    return _compile(text)


@functools.lru_cache(maxsize=16)
def _compile(text: str) -> Constraint:
    return _Compiler(json.loads(text)).compile()


class _Items(NamedTuple):
    """What follows the first `written` items of an array."""

    item: Symbol
    written: int
    least: int
    most: float

    @property
    def cost(self) -> float:
        missing = max(0, self.least - self.written)
        return 1 + (missing * (2 + self.item.cost) if missing else 0)

    def start(self, *, shortest: bool) -> Position:
        alternatives = []
        if self.written >= self.least:
            alternatives.append(Alternative(b"]", ()))
        if self.written < self.least or (self.written < self.most and not shortest and self.item.cost < math.inf):
            alternatives.append(Alternative(b", ", (self.item, self._replace(written=self.written + 1))))
        return Literals(tuple(alternatives))


class _Compiler:
    def __init__(self, document: Any) -> None:
        self._document = document
        self._rules: list[Rule] = []
        self._referenced: dict[str, Rule] = {}
        self._any: Rule | None = None
        self._schemas = 0
        self._pattern_nodes = 0

    def compile(self) -> Constraint:
        root = self._symbol(self._document, "#", 0)
        settle(self._rules)
        if root.cost == math.inf:
            raise InvalidSchema(
                "No document can satisfy the schema: it contains itself, and there is no way out.",
                hint="Make a recursive property optional, or let it be null.",
            )
        if root.cost > MAX_SHORTEST_BYTES:
            raise InvalidSchema(
                f"The shortest document under the schema has more than {MAX_SHORTEST_BYTES:,} bytes.",
                hint="Lower minLength or minItems, or require fewer properties.",
            )
        self._refuse_idle_loops()
        return Constraint(root)

    def _rule(self, *alternatives: Alternative) -> Rule:
        rule = Rule(*alternatives)
        self._rules.append(rule)
        return rule

    def _symbol(self, schema: Any, path: str, depth: int) -> Symbol:
        self._schemas += 1
        if self._schemas > MAX_SCHEMAS:
            raise InvalidSchema(f"The schema has more than {MAX_SCHEMAS:,} schemas in it.")
        if depth > MAX_DEPTH:
            raise InvalidSchema(f"{path}: nested too deeply; {MAX_DEPTH} levels are allowed, references followed.")
        if schema is True or schema == {}:
            return self._anything()
        if not isinstance(schema, dict):
            raise InvalidSchema(f"{path}: found {quote(schema)}; expected an object or true.")
        check_keywords(schema, path)
        if "$ref" in schema:
            return self._reference(schema["$ref"], path, depth)
        if "enum" in schema or "const" in schema:
            return self._literals(schema, path)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                return self._alternatives(keyword, schema[keyword], path, depth)
        if "allOf" in schema:
            return self._symbol(_only_one(schema["allOf"], path), f"{path}/allOf/0", depth + 1)
        types = types_of(schema, path)
        if types is None:
            return self._anything()
        symbols = [self._type(name, schema, path, depth) for name in types]
        return symbols[0] if len(symbols) == 1 else self._rule(*(Alternative(b"", (symbol,)) for symbol in symbols))

    def _reference(self, reference: Any, path: str, depth: int) -> Symbol:
        if not isinstance(reference, str):
            raise InvalidSchema(f"{path}/$ref: found {quote(reference)}; expected a string.")
        if reference not in self._referenced:
            # Known before it is compiled: what it refers to may refer to itself.
            rule = self._referenced[reference] = self._rule()
            rule.alternatives = (
                Alternative(b"", (self._symbol(resolve(self._document, reference, path), reference, depth + 1),)),
            )
        return self._referenced[reference]

    def _literals(self, schema: Mapping[str, Any], path: str) -> Symbol:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        if not isinstance(values, list) or not values:
            raise InvalidSchema(f"{path}/enum: found {quote(values)}; expected a list that is not empty.")
        if "enum" in schema and "const" in schema:
            raise InvalidSchema(f"{path}: `const` beside `enum` is not supported.")
        if "type" in schema:
            types = types_of(schema, path) or ()
            values = [value for value in values if any(is_of(value, name) for name in types)]
            if not values:
                raise InvalidSchema(f"{path}: no value of `{'enum' if 'enum' in schema else 'const'}` has the `type`.")
        return self._rule(*(Alternative(literal, ()) for literal in dict.fromkeys(map(_literal, values))))

    def _alternatives(self, keyword: str, schemas: Any, path: str, depth: int) -> Symbol:
        if not isinstance(schemas, list) or not schemas:
            raise InvalidSchema(f"{path}/{keyword}: found {quote(schemas)}; expected a list that is not empty.")
        if len(schemas) > MAX_ALTERNATIVES:
            raise InvalidSchema(
                f"{path}/{keyword}: found {len(schemas):,} alternatives; {MAX_ALTERNATIVES} are allowed.",
                hint="Many constants are better said by one `enum`.",
            )
        symbols = [self._symbol(schema, f"{path}/{keyword}/{index}", depth + 1) for index, schema in enumerate(schemas)]
        if keyword == "oneOf":
            self._refuse_overlap(schemas, path)
        return self._rule(*(Alternative(b"", (symbol,)) for symbol in symbols))

    def _refuse_overlap(self, schemas: Sequence[Any], path: str) -> None:
        for later, schema in enumerate(schemas):
            for earlier in range(later):
                if not apart(self._document, schemas[earlier], schema):
                    raise InvalidSchema(
                        f"{path}/oneOf: a value may match the alternatives {earlier} and {later}, which oneOf forbids.",
                        hint="Use anyOf; or give both a required property with a `const` of its own.",
                    )

    def _type(self, name: str, schema: Mapping[str, Any], path: str, depth: int) -> Symbol:
        if name == "object":
            return self._object(schema, path, depth)
        if name == "array":
            return self._array(schema, path, depth)
        if name == "string":
            return self._rule(Alternative(b'"', (self._string(schema, path),)))
        if name == "boolean":
            return self._rule(Alternative(b"true", ()), Alternative(b"false", ()))
        if name == "null":
            return self._rule(Alternative(b"null", ()))
        return _number(name == "integer", schema, path)

    def _string(self, schema: Mapping[str, Any], path: str) -> Symbol:
        least, most = _limits(schema, "minLength", "maxLength", path)
        keyword = "pattern" if "pattern" in schema else "format"
        if keyword not in schema:
            return String(least, most)
        # 5 ms that schemas without them do not need.
        from llamafn.engine.constraint.expression import Refused
        from llamafn.engine.constraint.formats import FORMATS
        from llamafn.engine.constraint.pattern import Pattern

        value = schema[keyword]
        if not isinstance(value, str):
            raise InvalidSchema(f"{path}/{keyword}: found {quote(value)}; expected a string.")
        if "pattern" in schema and "format" in schema:
            raise InvalidSchema(f"{path}: `format` beside `pattern` is not enforced here.")
        if keyword == "format" and value not in FORMATS:
            raise InvalidSchema(
                f"{path}/format: {quote(value)} is not enforced here, and would be broken.",
                hint=f"Leave it out. Enforced are {', '.join(FORMATS)}.",
            )
        try:
            pattern = Pattern(FORMATS[value] if keyword == "format" else value, least, most)
        except Refused as error:
            raise InvalidSchema(f"{path}/{keyword}: found {quote(value)}: {error}.") from error
        if pattern.cost == math.inf:
            raise InvalidSchema(f"{path}/{keyword}: no string of {least} to {most} characters matches {quote(value)}.")
        self._pattern_nodes += pattern.size
        if self._pattern_nodes > MAX_PATTERN_NODES:
            raise InvalidSchema(f"The schema's patterns have more than {MAX_PATTERN_NODES:,} parts together.")
        return pattern

    def _array(self, schema: Mapping[str, Any], path: str, depth: int) -> Symbol:
        least, most = _limits(schema, "minItems", "maxItems", path)
        items = schema.get("items", True)
        if items is False:
            most = 0
        if most < least:
            raise InvalidSchema(f"{path}: `minItems` is {least}, and `items` allows none.")
        alternatives = [Alternative(b"[]", ())] if least == 0 else []
        rule = self._rule()
        if most > 0:
            item = self._symbol(items, f"{path}/items", depth + 1)
            alternatives.append(Alternative(b"[", (item, _Items(item, 1, least, most))))
        rule.alternatives = tuple(alternatives)
        return rule

    def _object(self, schema: Mapping[str, Any], path: str, depth: int) -> Symbol:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        others = schema.get("additionalProperties", True)
        if not isinstance(properties, dict):
            raise InvalidSchema(f"{path}/properties: found {quote(properties)}; expected an object.")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise InvalidSchema(f"{path}/required: found {quote(required)}; expected a list of strings.")
        rule = self._rule()
        if not properties and not required:
            rule.alternatives = (Alternative(b"{}", ()),)
            if others is not False:
                value = self._symbol(others, f"{path}/additionalProperties", depth + 1)
                rule.alternatives += (Alternative(b'{"', (String(), self._entry(value))),)
            return rule
        members = {name: (f"{path}/properties/{name}", member) for name, member in properties.items()}
        for name in required:
            if name not in members:
                if others is False:
                    raise InvalidSchema(
                        f"{path}/required: {quote(name)} is not among `properties`, and others are not allowed."
                    )
                members[name] = (f"{path}/additionalProperties", others)
        rule.alternatives = (Alternative(b"{", (self._members(members, set(required), depth),)),)
        return rule

    def _members(self, members: Mapping[str, tuple[str, Any]], required: set[str], depth: int) -> Symbol:
        """An object's inside: its members in order, each with or without one before it, and the closing brace."""
        first = [self._rule() for _ in range(len(members) + 1)]
        later = [self._rule() for _ in range(len(members) + 1)]
        first[-1].alternatives = later[-1].alternatives = (Alternative(b"}", ()),)
        for index, (name, (path, schema)) in enumerate(members.items()):
            value = self._symbol(schema, path, depth + 1)
            key = _literal(name) + b": "
            for rules, comma in ((first, b""), (later, b", ")):
                written = Alternative(comma + key, (value, later[index + 1]))
                left_out = Alternative(b"", (rules[index + 1],))
                rules[index].alternatives = (written,) if name in required else (written, left_out)
        return first[0]

    def _entry(self, value: Symbol) -> Symbol:
        """What follows a key of an object whose keys are free."""
        entry, rest = self._rule(), self._rule()
        entry.alternatives = (Alternative(b": ", (value, rest)),)
        rest.alternatives = (Alternative(b"}", ()), Alternative(b', "', (String(), entry)))
        return entry

    def _anything(self) -> Symbol:
        if self._any is None:
            self._any = self._rule()
            one = self._any
            self._any.alternatives = (
                Alternative(b'"', (String(),)),
                Alternative(b"", (Number(is_integer=False),)),
                *(Alternative(literal, ()) for literal in (b"true", b"false", b"null", b"{}", b"[]")),
                Alternative(b'{"', (String(), self._entry(one))),
                Alternative(b"[", (one, _Items(one, 1, 0, math.inf))),
            )
        return self._any

    def _refuse_idle_loops(self) -> None:
        """A schema that is its own alternative, with not a byte between, would be entered for ever."""
        done: set[int] = set()
        for rule in self._rules:
            path: dict[int, Rule] = {}
            waiting: list[tuple[Symbol, bool]] = [(rule, False)]
            while waiting:
                symbol, left = waiting.pop()
                if left:
                    del path[id(symbol)]
                    done.add(id(symbol))
                elif id(symbol) in path:
                    raise InvalidSchema("$ref: a schema is an alternative of itself, with nothing between.")
                elif isinstance(symbol, Rule) and id(symbol) not in done:
                    path[id(symbol)] = symbol
                    waiting.append((symbol, True))
                    waiting.extend((one.symbols[0], False) for one in symbol.alternatives if not one.literal)


def _only_one(schemas: Any, path: str) -> Any:
    if not isinstance(schemas, list) or len(schemas) != 1:
        raise InvalidSchema(f"{path}/allOf: only a list of one schema is enforced here.")
    return schemas[0]


def _limits(schema: Mapping[str, Any], lowest: str, highest: str, path: str) -> tuple[int, float]:
    for keyword in (lowest, highest):
        value = schema.get(keyword, 0)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise InvalidSchema(f"{path}/{keyword}: found {quote(value)}; expected an integer from 0.")
    least, most = schema.get(lowest, 0), schema.get(highest, math.inf)
    if least > most:
        raise InvalidSchema(f"{path}: `{lowest}` is {least}, which is more than `{highest}`, {most}.")
    return least, most


def _number(is_integer: bool, schema: Mapping[str, Any], path: str) -> Symbol:
    bounds: dict[str, int] = {}
    for keyword in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        if keyword not in schema:
            continue
        value = schema[keyword]
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise InvalidSchema(f"{path}/{keyword}: found {quote(value)}; expected a number.")
        bound = lower_bound if keyword.lower().endswith("minimum") else upper_bound
        bounds[keyword] = bound(value, exclusive=keyword.startswith("exclusive"))
    lower = [bounds[keyword] for keyword in ("minimum", "exclusiveMinimum") if keyword in bounds]
    upper = [bounds[keyword] for keyword in ("maximum", "exclusiveMaximum") if keyword in bounds]
    limits = {**({"lowest": max(lower)} if lower else {}), **({"highest": min(upper)} if upper else {})}
    number = Number(is_integer=is_integer, **limits)
    if number.cost == math.inf:
        said = ", ".join(f"{keyword} {schema[keyword]}" for keyword in bounds)
        raise InvalidSchema(f"{path}: no {'integer' if is_integer else 'number'} of 15 digits satisfies {said}.")
    return number


def _literal(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
