"""What a body's fields accept, and what they say of themselves in JSON Schema: the same."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafn.api.body import check, object_schema
from llamafn.routes import ROUTES
from tests.api.asking import SETTINGS

BODIES = [(path, route) for path, routes in ROUTES.items() for route in routes.values() if route.has_body]

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
# What is nearly right finds more than what is arbitrary.
values: st.SearchStrategy[Any] = st.sampled_from(
    [
        None, True, False, 0, 1, 1.0, 0.5, -1, 2, 2.01, 5, 6, 20, 21, 512, 513, 1e18, 2**63, -(2**63),
        "", "x", "auto", "none", "required", "text", "json_object", "user", "system", "assistant", "tool",
        [], ["x"], [""], ["x", 1], ["x"] * 17, [[]], {}, {"1": 1}, {"x": 1}, {"1": 101}, {"1": "x"}, {"1234567890": 1},
        {"type": "text"}, {"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "x"}},
        {"include_usage": True}, {"include_usage": 1}, {"include_usage": None, "other": None}, {"other": 1},
        [CALL], [TOOL], [{**TOOL, "x": 1}], [{**TOOL, "x": None}], [{"type": "function"}],
        {"role": "user", "content": "x"}, {"role": "user", "content": []}, {"role": "user"}, {"role": None},
        {"role": "user", "content": [{"type": "text", "text": "x"}]}, {"role": "user", "content": [{"type": "text"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "assistant", "tool_calls": [{}]},
        {"role": "tool", "content": "x"}, {"role": "tool", "content": "x", "tool_call_id": "1"},
        {"role": "user", "content": "x", "name": "n"}, {"role": "user", "content": "x", "audio": {}},
    ]
)  # fmt: skip
documents = st.one_of(values, st.lists(values, max_size=3))


@pytest.mark.parametrize(("path", "route"), BODIES, ids=[path for path, _ in BODIES])
@given(data=st.data())
def test_the_schema_says_what_is_accepted(path: str, route: Any, data: st.DataObject) -> None:
    fields = route.fields(SETTINGS)
    closed = path.startswith("/v1/")
    validator = jsonschema.Draft202012Validator(object_schema(fields, closed=closed))
    names = st.sampled_from([*(field.name for field in fields), "other"])
    body = {"context": "x", "prompt": "x", "messages": [{"role": "user", "content": "x"}]}
    required = {field.name: body[field.name] for field in fields if field.required}
    document = required | data.draw(st.dictionaries(names, documents, max_size=2))
    problems, unknown = check(document, fields)
    accepted = not problems and not (closed and unknown)
    assert accepted == validator.is_valid(document), (document, problems, unknown)


@pytest.mark.parametrize(("path", "route"), BODIES, ids=[path for path, _ in BODIES])
def test_every_field_says_what_it_means(path: str, route: Any) -> None:
    fields = route.fields(SETTINGS)
    assert len({field.name for field in fields}) == len(fields)
    assert [field.name for field in fields if not field.meaning] == []
    jsonschema.Draft202012Validator.check_schema(object_schema(fields, closed=True))
    json.dumps(object_schema(fields, closed=True))
