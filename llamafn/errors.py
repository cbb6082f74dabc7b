"""Every error that a caller or a deployer can meet.

LlamafnError
├── SettingsError                 the process does not start
└── HTTPError                     becomes an answer: status, type and code are on the class
    ├── BadRequest            400
    │   ├── InvalidJSON       400
    │   ├── InvalidFields     400  one error names every bad field
    │   ├── InvalidSchema     400  a JSON Schema that is none, or asks for what is not enforced
    │   ├── PromptTooLong     400
    │   ├── UnknownEvent      400  a Lambda event that nobody can answer
    │   └── BodyTooLarge      413
    ├── InvalidKey            401
    ├── NotFound              404
    ├── MethodNotAllowed      405
    ├── QueueFull             429
    ├── ClientGone            499  never sent: the client has left
    ├── AnswerTooLarge        500  the platform would not take it
    ├── EngineError           500  llama.cpp refused something that it should not
    └── Unavailable           503  try again
        ├── ModelUnavailable  503  the file: missing, not a GGUF, damaged, too large for the memory
        │   ├── FetchFailed   503  the source cannot be read now; what arrived is kept for the next try
        │   └── FetchRefused  503  a next try would end the same way: 401, 404, a wrong digest, no room
        ├── DeadlinePassed    503  no time left before the first token
        └── Draining          503
"""

from __future__ import annotations

from typing import Any, ClassVar


class LlamafnError(Exception):
    """The root; `message` says what was found and the rule, `hint` what to do next."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class SettingsError(LlamafnError):
    """One or more environment variables cannot be used; the message lists every one."""


class HTTPError(LlamafnError):
    """An error with an HTTP status, told to the caller in the one shape of `to_json`."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"
    retry_seconds: ClassVar[float | None] = None  # when to try again, where nobody knows better

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.param = param
        self.retry_after = self.retry_seconds if retry_after is None else retry_after

    def headers(self) -> list[tuple[str, str]]:
        if self.retry_after is None:
            return []
        return [("Retry-After", str(max(1, round(self.retry_after))))]

    def to_json(self) -> dict[str, Any]:
        """A superset of OpenAI's error object, so that its clients can read it."""
        error: dict[str, Any] = {"message": self.message, "type": self.type, "code": self.code}
        if self.param is not None:
            error["param"] = self.param
        if self.hint is not None:
            error["hint"] = self.hint
        return {"error": error}


class BadRequest(HTTPError):
    status = 400
    type = "invalid_request_error"
    code = "bad_request"


class InvalidJSON(BadRequest):
    code = "invalid_json"


class InvalidFields(BadRequest):
    """`fields` maps each bad field to what was found there and the rule."""

    code = "invalid_fields"

    def __init__(self, fields: dict[str, str], *, hint: str | None = None) -> None:
        said = "; ".join(f"{name}: {problem}" for name, problem in fields.items())
        super().__init__(said, hint=hint, param=next(iter(fields)) if len(fields) == 1 else None)
        self.fields = fields

    def to_json(self) -> dict[str, Any]:
        shape = super().to_json()
        shape["error"]["fields"] = self.fields
        return shape


class InvalidSchema(BadRequest):
    code = "invalid_schema"


class PromptTooLong(BadRequest):
    code = "context_length_exceeded"


class BodyTooLarge(BadRequest):
    status = 413
    code = "body_too_large"


class InvalidKey(HTTPError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"

    def headers(self) -> list[tuple[str, str]]:
        return [("WWW-Authenticate", "Bearer")]


class NotFound(HTTPError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class MethodNotAllowed(HTTPError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: tuple[str, ...]) -> None:
        super().__init__(message, hint=f"Use {' or '.join(allow)}.")
        self.allow = allow

    def headers(self) -> list[tuple[str, str]]:
        return [("Allow", ", ".join(self.allow))]


class QueueFull(HTTPError):
    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class ClientGone(HTTPError):
    """The client left before its answer; nobody reads this, but the log does."""

    status = 499
    code = "client_gone"


class UnknownEvent(BadRequest):
    code = "unknown_event"


class AnswerTooLarge(HTTPError):
    code = "answer_too_large"


class EngineError(HTTPError):
    code = "engine_error"


class Unavailable(HTTPError):
    status = 503
    code = "unavailable"
    retry_seconds = 10


class ModelUnavailable(Unavailable):
    code = "model_unavailable"


class FetchFailed(ModelUnavailable):
    code = "fetch_failed"


class FetchRefused(ModelUnavailable):
    code = "fetch_refused"


class DeadlinePassed(Unavailable):
    code = "deadline_passed"


class Draining(Unavailable):
    code = "draining"
