"""Tools that the model may call, where its template shows them to it, and the calls that it writes.

They are written as Qwen2.5 and the Hermes models do: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

from llamafn.api.body import BOOLEAN, OBJECT, TEXT, Field, Schema, either, list_of, one_of, quote, record
from llamafn.errors import InvalidFields

OPEN, CLOSE = "<tool_call>", "</tool_call>"

_NAME = Field("name", TEXT, required=True)

TOOLS = Field(
    "tools",
    list_of(
        record(
            Field("type", one_of("function"), required=True),
            Field(
                "function",
                record(_NAME, Field("description", TEXT), Field("parameters", OBJECT, "A JSON Schema.")),
                required=True,
            ),
        ),
        "tools",
        most=128,
    ),
    "Functions that the model may call, if its chat template has a place for them.",
)
TOOL_CHOICE = Field(
    "tool_choice",
    either(
        one_of("none", "auto", "required"),
        record(
            Field("type", one_of("function"), required=True),
            Field("function", record(_NAME, what="an object with a name"), required=True),
            what="an object that names a function",
        ),
    ),
    "Whether the model may call a tool, or must, or must call this one.",
)
PARALLEL = Field("parallel_tool_calls", BOOLEAN, "Whether the model may call several at once.")


def call_schema(tools: Sequence[dict[str, Any]], choice: Any) -> Schema | None:
    """The schema of the one call that the model must make; None if it need not.

    Raises:
        InvalidFields: the tool that is named is not there, or there is none.
    """
    if choice in (None, "none", "auto"):
        return None
    name = None if choice == "required" else choice["function"]["name"]
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool["function"]["name"]},
                "arguments": tool["function"].get("parameters") or {"type": "object", "properties": {}},
            },
            "required": ["name", "arguments"],
        }
        for tool in tools
        if name in (None, tool["function"]["name"])
    ]
    if not calls:
        raise InvalidFields({"tool_choice": f"found {quote(choice)}; tools has none of that name"})
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


class CallReader:
    """Parts an answer's text into what is said and what is called.

    Text that may be the beginning of a call is held back. What stands between the marks and is no call of a tool that
    was offered stays text.
    """

    __slots__ = ("_held", "_names", "calls")

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._held = ""
        self.calls: list[dict[str, Any]] = []  # OpenAI's `tool_calls`, as they become whole

    def push(self, text: str) -> str:
        """Take more of the answer; return what is certainly said."""
        if not self._names:
            return text
        self._held += text
        said = ""
        while True:
            before, opened, rest = self._held.partition(OPEN)
            if not opened:
                cut = len(before) - _beginning_of(OPEN, before)
                self._held = before[cut:]
                return said + self._trim(before[:cut])
            said += self._trim(before)
            inner, closed, after = rest.partition(CLOSE)
            if not closed:
                self._held = opened + rest
                return said
            if not self._read(inner):
                said += opened + inner + closed
            self._held = after

    def finish(self) -> str:
        """The rest of what is said. A call whose closing mark is missing counts, if it is whole but for that."""
        held, self._held = self._held, ""
        if held.startswith(OPEN) and self._read(held[len(OPEN) :]):
            return ""
        return self._trim(held)

    def _trim(self, said: str) -> str:
        """The line breaks between calls are nothing that is said."""
        return "" if self.calls and not said.strip() else said

    def _read(self, text: str) -> bool:
        try:
            call = json.loads(text)
        except (ValueError, RecursionError):
            return False
        if not isinstance(call, dict) or call.get("name") not in self._names:
            return False
        arguments = call.get("arguments", {})
        if not isinstance(arguments, dict):
            return False
        self.calls.append(
            {
                "id": f"call_{os.urandom(12).hex()}",
                "type": "function",
                "function": {"name": call["name"], "arguments": json.dumps(arguments, ensure_ascii=False)},
            }
        )
        return True


def _beginning_of(mark: str, text: str) -> int:
    """How many characters at the end of a text may be the beginning of a mark."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)
