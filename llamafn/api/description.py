"""GET /openapi.json: what there is, in OpenAPI 3.1, made from the route table and from the fields that check bodies.

https://spec.openapis.org/oas/v3.1.1.html
"""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

import llamafn
from llamafn import errors
from llamafn.api.body import Schema, object_schema
from llamafn.routes import ROUTES, Route
from llamafn.settings import Settings
from llamafn.web import Request, Response, json_response

JSON = "application/json"
EVENTS = "text/event-stream"


def openapi(request: Request, settings: Settings) -> Response:
    """This description."""
    return json_response(describe(settings))


def describe(settings: Settings) -> dict[str, Any]:
    """The document, under these settings: a limit such as N_CTX is part of it."""
    paths = {
        path: {method.lower(): _operation(path, method, route, settings) for method, route in routes.items()}
        for path, routes in ROUTES.items()
        if not _is_off(path, settings)
    }
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "llamafn",
            "version": llamafn.__version__,
            "description": "A language model behind an HTTP function: a chat of its own, and OpenAI's API.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"key": []}] if settings.api_keys else [],
        "paths": paths,
        "components": {
            "schemas": {"Error": ERROR, **COMPONENTS},
            "responses": _error_responses(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _is_off(path: str, settings: Settings) -> bool:
    return (path == "/" and not settings.playground) or (path == "/metrics" and not settings.metrics)


def _operation(path: str, method: str, route: Route, settings: Settings) -> dict[str, Any]:
    module = importlib.import_module(route.module)
    summary = inspect.getdoc(getattr(module, route.name)) or ""
    said = {
        "operationId": re.sub(r"\W+", "_", f"{method.lower()}{path}").rstrip("_"),
        "summary": summary.partition("\n")[0],
        "responses": {"200": _answer(path), **{str(e.status): _reference(e) for e in _errors_of(route, settings)}},
    }
    if route.has_body:
        # /chat ignores what it does not know and says so; the others refuse it.
        schema = object_schema(route.fields(settings), closed=path.startswith("/v1/"))
        said["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    if route.is_open:
        said["security"] = []
    return said


def _errors_of(route: Route, settings: Settings) -> list[type[errors.HTTPError]]:
    found: list[type[errors.HTTPError]] = []
    if route.has_body:
        found += [errors.BadRequest, errors.BodyTooLarge]
    if settings.api_keys and not route.is_open:
        found.append(errors.InvalidKey)
    if route.needs_model:
        found += [errors.QueueFull, errors.EngineError, errors.Unavailable]
    return found


def _error_responses() -> dict[str, Any]:
    said = {
        errors.BadRequest: "The body is not JSON, or a field breaks its rule; one error names every such field.",
        errors.InvalidKey: "No key, or none that is known.",
        errors.BodyTooLarge: "The body is larger than MAX_BODY_BYTES.",
        errors.QueueFull: "Too many wait already.",
        errors.EngineError: "Something went wrong here.",
        errors.Unavailable: "The model cannot be had now, or not in time: try again.",
    }
    return {
        kind.__name__: {
            "description": text,
            "content": {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
        for kind, text in said.items()
    }


def _reference(kind: type[errors.HTTPError]) -> dict[str, str]:
    return {"$ref": f"#/components/responses/{kind.__name__}"}


def _answer(path: str) -> dict[str, Any]:
    description, content = ANSWERS[path]
    return {"description": description, "content": content}


def _record(**properties: Schema) -> Schema:
    """An object that has these properties; others may follow in a later version."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def _optional(schema: Schema, **properties: Schema) -> Schema:
    return {**schema, "properties": {**schema["properties"], **properties}}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _component(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


STRING: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
MILLISECONDS: Schema = {"type": ["number", "null"]}
OBJECT: Schema = {"type": "object"}

ERROR = _record(
    error=_optional(
        _record(message=STRING, type=STRING, code=STRING),
        param={**STRING, "description": "The field, where it is one."},
        hint={**STRING, "description": "What to do next."},
        fields={"type": "object", "additionalProperties": STRING, "description": "What is wrong with each field."},
    )
)
_FINISH: Schema = {"enum": ["stop", "length", "tool_calls"]}
_CHOICE: dict[str, Schema] = {"deadline": {"const": True, "description": "The time ran out: the answer is cut."}}
_LOGPROB = _record(token=STRING, logprob={"type": "number"}, bytes=_list(COUNT))
_CALL = _record(id=STRING, type={"const": "function"}, function=_record(name=STRING, arguments=STRING))
_MESSAGE = _record(role={"const": "assistant"}, content={"type": ["string", "null"]})

COMPONENTS: dict[str, Schema] = {
    "Usage": _record(
        prompt_tokens=COUNT,
        completion_tokens=COUNT,
        total_tokens=COUNT,
        prompt_tokens_details=_record(cached_tokens=COUNT),
    ),
    "Timings": _record(queue_ms=MILLISECONDS, prefill_ms=MILLISECONDS, decode_ms=MILLISECONDS),
    "Chat": _optional(
        _record(
            content=STRING,
            finish_reason={"enum": ["stop", "length", "deadline"]},
            usage=_component("Usage"),
            timings=_component("Timings"),
        ),
        warnings=_list(STRING),
    ),
    "ChatCompletion": _record(
        id=STRING,
        object={"const": "chat.completion"},
        created=COUNT,
        model=STRING,
        system_fingerprint=STRING,
        choices=_list(
            _optional(
                _record(
                    index=COUNT,
                    message=_optional(_MESSAGE, tool_calls=_list(_CALL)),
                    finish_reason=_FINISH,
                    logprobs={
                        "anyOf": [
                            {"type": "null"},
                            _record(content=_list(_optional(_LOGPROB, top_logprobs=_list(_LOGPROB)))),
                        ]
                    },
                ),
                **_CHOICE,
            )
        ),
        usage=_component("Usage"),
        timings=_component("Timings"),
    ),
    "Completion": _record(
        id=STRING,
        object={"const": "text_completion"},
        created=COUNT,
        model=STRING,
        system_fingerprint=STRING,
        choices=_list(
            _optional(
                _record(index=COUNT, text=STRING, finish_reason=_FINISH, logprobs={"type": ["object", "null"]}),
                **_CHOICE,
            )
        ),
        usage=_component("Usage"),
        timings=_component("Timings"),
    ),
    "Models": _record(
        object={"const": "list"},
        data=_list(_record(id=STRING, object={"const": "model"}, created=COUNT, owned_by=STRING)),
    ),
    "Health": _record(status={"const": "ok"}, model=_record(uri=STRING, state=STRING), cold_start=_list(OBJECT)),
    "Warm": _record(warm={"const": True}, model=STRING, system_tokens=COUNT, cold_start=_list(OBJECT)),
    "Probe": _record(status={"const": "ok"}),
}

# OpenAPI 3.1 has no word for the events of a stream: this is one of them.
_EVENT = {
    **_record(data={**STRING, "description": "A piece of the answer as JSON, or an error; at the end `[DONE]`."}),
    "description": "With `stream`: an event for each piece, and comments while there is none.",
}
_EVENTS: dict[str, Any] = {EVENTS: {"schema": _EVENT}}


def _json(name: str) -> dict[str, Any]:
    return {JSON: {"schema": _component(name)}}


_PROBED = ("Alive.", _json("Probe"))
# What each path answers with, if all is well: how it is described, and its content by media type.
ANSWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "/chat": ("The model's text, why it ended, and what it cost.", {**_json("Chat"), **_EVENTS}),
    "/v1/chat/completions": ("The assistant's message.", {**_json("ChatCompletion"), **_EVENTS}),
    "/v1/completions": ("The text's continuation.", {**_json("Completion"), **_EVENTS}),
    "/v1/models": ("The model.", _json("Models")),
    "/health": ("Alive, and how far the model is.", _json("Health")),
    "/warmup": ("The model is ready.", _json("Warm")),
    "/metrics": ("Prometheus' text format.", {"text/plain": {"schema": STRING}}),
    "/openapi.json": ("This description.", {JSON: {"schema": OBJECT}}),
    "/": ("The page.", {"text/html": {"schema": STRING}}),
    "/kaithhealth": _PROBED,
    "/kaithhealthcheck": _PROBED,
    "/kaithheathcheck": _PROBED,
}
