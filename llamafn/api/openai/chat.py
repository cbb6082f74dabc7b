"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from llamafn.api import generation as generations
from llamafn.api.body import BOOLEAN, OBJECT, TEXT, Field, Schema, integer, record, variants
from llamafn.api.openai import common, logprobs
from llamafn.api.openai.messages import MESSAGES, NO_TOOLS, for_template
from llamafn.api.openai.tools import CLOSE, OPEN, PARALLEL, TOOL_CHOICE, TOOLS, CallReader, call_schema
from llamafn.errors import InvalidFields
from llamafn.settings import Settings
from llamafn.web import PING, Request, Response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from llamafn.engine.engine import Engine
    from llamafn.engine.generation import Generation

_JSON_SCHEMA = record(
    Field("name", TEXT, required=True),
    Field("schema", OBJECT, required=True),
    Field("description", TEXT),
    Field("strict", BOOLEAN),
)

FIELDS = (
    MESSAGES,
    *common.FIELDS,
    Field("max_completion_tokens", integer(1, common.MOST_TOKENS), "The newer name of max_tokens."),
    Field("logprobs", BOOLEAN, "Whether to say how likely each token was."),
    Field("top_logprobs", integer(0, 20), "How many of the likeliest tokens to say that of; needs logprobs."),
    Field(
        "response_format",
        variants(
            "type",
            {
                "text": (),
                "json_object": (),
                "json_schema": (Field("json_schema", _JSON_SCHEMA, required=True),),
            },
            "an object with a type",
        ),
        "What the answer has to be. It follows a schema in any case, strict or not.",
    ),
    TOOLS,
    TOOL_CHOICE,
    PARALLEL,
)


def fields(settings: Settings) -> tuple[Field, ...]:
    return FIELDS


def complete(request: Request, settings: Settings) -> Response:
    """The assistant's next message."""
    completion = _Completion(request, settings)
    if completion.values.get("stream"):
        return generations.stream(request, settings, start=completion.start, events=completion.events)
    return generations.answer(request, settings, start=completion.start, whole=completion.whole)


class _Completion:
    """One request's values, and what depends on them."""

    def __init__(self, request: Request, settings: Settings) -> None:
        self.values = values = common.read(request, settings, FIELDS)
        if values.get("top_logprobs") and not values.get("logprobs"):
            raise InvalidFields({"top_logprobs": "needs logprobs to be true"})
        self._request = request
        self._settings = settings
        self._tools = values.get("tools", []) if values.get("tool_choice") != "none" else []
        call = call_schema(self._tools, values.get("tool_choice"))
        # A call that must be made begins in the prompt, and goes on under its schema.
        self._opening = f"{OPEN}\n" if call else ""
        if call:
            self._constraint = generations.constraint(call, "tools")
        else:
            self._constraint = generations.constraint(_schema(values.get("response_format")), "response_format")
        if self._constraint and values.get("logprobs"):
            raise InvalidFields({"logprobs": "there are none under a schema, whose tokens are not the model's choice"})
        request.record.prompt = values["messages"]

    def start(self, engine: Engine) -> Generation:
        values = self.values
        if self._tools and not engine.takes_tools:
            raise InvalidFields({"tools": NO_TOOLS})
        messages = for_template(values["messages"], takes_tools=engine.takes_tools)
        stop = generations.stops(values)
        if self._tools and values.get("parallel_tool_calls") is False and not self._opening:
            stop = (*stop, CLOSE)
        self._piece = engine.model.vocabulary.piece
        return engine.generate(
            engine.prompt(messages, self._tools or None, opening=self._opening),
            generations.sampling(values, engine.model.vocabulary.n_tokens, temperature=common.TEMPERATURE),
            max_tokens=int(values.get("max_completion_tokens", values.get("max_tokens", common.MOST_TOKENS))),
            stop=stop,
            deadline=self._request.deadline,
            is_gone=self._request.is_gone,
            top_logprobs=int(values.get("top_logprobs", 0)) if values.get("logprobs") else None,
            constraint=self._constraint,
        )

    def whole(self, generation: Generation, text: str) -> dict[str, Any]:
        reader = self._reader()
        content = reader.push(self._opening + text) + reader.finish()
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if reader.calls:
            message.update(content=content or None, tool_calls=reader.calls)
        choice = {"index": 0, "message": message, "logprobs": self._logprobs(generation), **_finish(generation, reader)}
        return {**self._envelope("chat.completion"), "choices": [choice], **common.bill(generation)}

    def events(self, generation: Generation) -> Generator[Any, None, None]:
        reader = self._reader()
        envelope = self._envelope("chat.completion.chunk")
        if common.wants_usage(self.values):
            envelope["usage"] = None
        sent = 0  # calls
        role = {"role": "assistant"}

        def chunk(delta: dict[str, Any], **end: Any) -> dict[str, Any]:
            choice = {
                "index": 0,
                "delta": {**role, **delta},
                "logprobs": self._logprobs(generation),
                "finish_reason": None,
            }
            role.clear()
            return {**envelope, "choices": [{**choice, **end}]}

        reader.push(self._opening)
        for piece in generations.pieces(generation, self._request):
            content = reader.push(piece) if piece else ""
            if content or generation.scores:
                yield chunk({"content": content})
            while sent < len(reader.calls):
                yield chunk({"tool_calls": [{"index": sent, **reader.calls[sent]}]})
                sent += 1
            if not piece:
                yield PING
        content = reader.finish()
        if content or generation.scores:
            yield chunk({"content": content})
        for index, call in enumerate(reader.calls[sent:], sent):
            yield chunk({"tool_calls": [{"index": index, **call}]})
        last = chunk({}, **_finish(generation, reader))
        bill = common.bill(generation)
        if common.wants_usage(self.values):
            yield last
            yield {**envelope, "choices": [], **bill}
        else:
            yield {**last, "timings": bill["timings"]}

    def _reader(self) -> CallReader:
        return CallReader(tool["function"]["name"] for tool in self._tools)

    def _envelope(self, kind: str) -> dict[str, Any]:
        return common.envelope(self._request, self._settings, "chatcmpl", kind)

    def _logprobs(self, generation: Generation) -> dict[str, Any] | None:
        """Those that were not given yet."""
        if not self.values.get("logprobs"):
            return None
        scores, generation.scores[:] = list(generation.scores), []
        return logprobs.of_chat(scores, self._piece)


def _schema(response_format: dict[str, Any] | None) -> Schema | None:
    kind = (response_format or {}).get("type")
    if response_format is not None and kind == "json_schema":
        return response_format["json_schema"]["schema"]  # type: ignore[no-any-return]
    return {"type": "object"} if kind == "json_object" else None


def _finish(generation: Generation, reader: CallReader) -> dict[str, Any]:
    finish = common.finish(generation)
    return {"finish_reason": "tool_calls"} if reader.calls and finish["finish_reason"] == "stop" else finish
