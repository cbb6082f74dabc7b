"""The messages of a conversation, as OpenAI writes them and as chat templates take them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llamafn.api.body import TEXT, Field, Kind, Schema, either, list_of, one_of, record, variants
from llamafn.errors import InvalidFields


def _is_object_text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        return isinstance(json.loads(value), dict)
    except (ValueError, RecursionError):
        return False


_ARGUMENTS_SCHEMA: Schema = {
    "type": "string",
    "contentMediaType": "application/json",
    "contentSchema": {"type": "object"},
}
ARGUMENTS = Kind(_is_object_text, "a JSON object as a string", _ARGUMENTS_SCHEMA)

_PARTS = list_of(
    variants("type", {"text": (Field("text", TEXT, required=True),)}, "an object with a type"),
    "parts",
    least=1,
)
_CONTENT = Field("content", either(TEXT, _PARTS), required=True)
_NAME = Field("name", TEXT)
_TOOL_CALL = record(
    Field("id", TEXT, required=True),
    Field("type", one_of("function"), required=True),
    Field(
        "function",
        record(Field("name", TEXT, required=True), Field("arguments", ARGUMENTS, required=True)),
        required=True,
    ),
)

MESSAGES = Field(
    "messages",
    list_of(
        variants(
            "role",
            {
                "system": (_CONTENT, _NAME),
                "developer": (_CONTENT, _NAME),
                "user": (_CONTENT, _NAME),
                "assistant": (
                    _CONTENT._replace(required=False),
                    _NAME,
                    Field("refusal", TEXT),
                    Field("tool_calls", list_of(_TOOL_CALL, "calls", most=128)),
                ),
                "tool": (_CONTENT, Field("tool_call_id", TEXT, required=True)),
            },
            "an object with a role",
        ),
        "messages",
        least=1,
    ),
    "The conversation so far.",
    required=True,
)


def for_template(messages: Sequence[dict[str, Any]], *, takes_tools: bool) -> list[dict[str, Any]]:
    """The messages as Hugging Face's templates take them: text as one string, arguments as objects.

    Raises:
        InvalidFields: calls and their results, for a template that has no place for them.
    """
    taken = []
    for index, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, list):
            content = "".join(part["text"] for part in content)
        role = "system" if message["role"] == "developer" else message["role"]
        calls = message.get("tool_calls") or ()
        if (calls or role == "tool") and not takes_tools:
            raise InvalidFields({f"messages[{index}]": NO_TOOLS})
        one = {"role": role, "content": content or message.get("refusal") or ""}
        if message.get("name"):
            one["name"] = message["name"]
        if calls:
            one["tool_calls"] = [
                {
                    "type": "function",
                    "function": {
                        "name": call["function"]["name"],
                        "arguments": json.loads(call["function"]["arguments"]),
                    },
                }
                for call in calls
            ]
        taken.append(one)
    return taken


NO_TOOLS = "this model's chat template has no place for tools, or writes their calls in a way that is not known here"
