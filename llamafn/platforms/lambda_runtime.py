"""Lambda's runtime loop: takes events from the Runtime API and sends answers, streamed ones in pieces.

AWS's own client, awslambdaric, cannot stream. `lambda-wrapper` starts this in its place on the managed Python
runtime; in an image it is `python -m llamafn.platforms.lambda_runtime handler.handler`. Where neither is done, the same
handler answers whole.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

from llamafn.platforms.runtime_api import Invocation, RuntimeAPI, RuntimeAPIError, describe

log = logging.getLogger("llamafn")

# The exit statuses of AWS's own client.
EXIT_INIT_FAILED = 1
EXIT_SNAPSHOT_FAILED = 64
EXIT_RESTORE_FAILED = 65


class Context:
    """What a handler is told of an invocation."""

    __slots__ = ("_deadline_ms", "aws_request_id")

    def __init__(self, invocation: Invocation) -> None:
        self.aws_request_id = invocation.request_id
        self._deadline_ms = invocation.deadline_ms

    def get_remaining_time_in_millis(self) -> int:
        return max(0, self._deadline_ms - int(time.time() * 1000))


def main(handler_name: str) -> int:
    """Serve until Lambda ends the process; an exit status if that has to be sooner."""
    logging.basicConfig(format="[%(levelname)s] %(message)s")
    api = RuntimeAPI(os.environ["AWS_LAMBDA_RUNTIME_API"])
    _add_layers()
    try:
        handler = _load(handler_name)
    except Exception as error:
        log.error("The handler %s cannot be loaded.", handler_name, exc_info=error)
        api.fail_init(error)
        return EXIT_INIT_FAILED
    if os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") == "snap-start":
        status = _pass_through_snapshot(api)
        if status:
            return status
    while True:
        _serve(api, handler, api.next())


def _add_layers() -> None:
    """Where AWS's client finds the packages of layers: after the function's own directory, before the runtime's."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    sys.path[1:1] = [f"/opt/python/lib/{version}/site-packages", "/opt/python"]


def _load(name: str) -> Callable[[Any, Context], Any]:
    module, _, attribute = name.rpartition(".")
    # Lambda allows a path: `src/handler.handler`.
    found: Callable[[Any, Context], Any] = getattr(importlib.import_module(module.replace("/", ".")), attribute)
    return found


def _pass_through_snapshot(api: RuntimeAPI) -> int:
    """Run the hooks before a snapshot, wait until a copy of it is started, and run the hooks after. 0 if all went well.

    https://docs.aws.amazon.com/lambda/latest/dg/snapstart-runtime-hooks.html
    """
    try:
        import snapshot_restore_py as hooks
    except ImportError:
        before: list[Any] = []
        after: list[Any] = []
    else:
        before, after = hooks.get_before_snapshot(), hooks.get_after_restore()
    try:
        while before:  # the last registered runs first
            function, arguments, keywords = before.pop()
            function(*arguments, **keywords)
        api.wait_for_restore()
    except Exception as error:
        log.error("A hook before the snapshot failed.", exc_info=error)
        api.fail_init(error)
        return EXIT_SNAPSHOT_FAILED
    try:
        for function, arguments, keywords in after:
            function(*arguments, **keywords)
    except Exception as error:
        log.error("A hook after the restore failed.", exc_info=error)
        api.fail_restore(error)
        return EXIT_RESTORE_FAILED
    return 0


def _serve(api: RuntimeAPI, handler: Callable[[Any, Context], Any], invocation: Invocation) -> None:
    """Answer one event; only what makes it pointless to go on is raised."""
    # For AWS's X-Ray SDK, which reads it from there.
    if invocation.trace_id is None:
        os.environ.pop("_X_AMZN_TRACE_ID", None)
    else:
        os.environ["_X_AMZN_TRACE_ID"] = invocation.trace_id
    try:
        _answer(api, handler, invocation)
    except (RuntimeAPIError, OSError) as error:
        if isinstance(error, RuntimeAPIError) and error.status >= 500:
            raise  # "Container error. Non-recoverable state. Runtime should exit promptly."
        # Lambda ended the invocation meanwhile, or nobody listens any more: the next event will do.
        log.warning("An answer was not taken: %s", error)


def _answer(api: RuntimeAPI, handler: Callable[[Any, Context], Any], invocation: Invocation) -> None:
    context = Context(invocation)
    try:
        event = json.loads(invocation.event)
        stream = getattr(handler, "stream", None)
        pieces = stream(event, context) if stream is not None else None
        answer = b"" if pieces is not None else json.dumps(handler(event, context), ensure_ascii=False).encode()
    except Exception as error:
        log.error("%s", describe(error)["errorMessage"], exc_info=error)
        api.fail(invocation.request_id, error)
        return
    if pieces is not None:
        with closing(pieces):
            api.stream(invocation.request_id, pieces)
        return
    try:
        api.respond(invocation.request_id, answer)
    except RuntimeAPIError as error:
        if error.status >= 500:
            raise
        api.fail(invocation.request_id, error)  # too large: AWS's own client would end here


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else os.environ["_HANDLER"]))
