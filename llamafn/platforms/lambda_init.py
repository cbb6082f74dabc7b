"""Before Lambda's first event: the model is loaded where there is time for it, and a snapshot is prepared.

https://docs.aws.amazon.com/lambda/latest/dg/lambda-runtime-environment.html
https://docs.aws.amazon.com/lambda/latest/dg/snapstart-runtime-hooks.html
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from llamafn import fetch
from llamafn.api import status
from llamafn.deadline import Deadline
from llamafn.errors import HTTPError
from llamafn.settings import Settings
from llamafn.timeline import COLD_START, process_start
from llamafn.web import Request

log = logging.getLogger("llamafn")

# On demand, INIT that takes 10 s is killed and begins again inside the first invocation, on its time. So the wait for
# the model ends well before; the loading goes on, and the first request joins it.
ON_DEMAND_SECONDS = 8.0
# INIT before a snapshot, or of provisioned concurrency, has 15 minutes.
AHEAD_OF_TIME_SECONDS = 14 * 60.0


def initialize(settings: Settings, kind: str) -> None:
    """Prepare for what Lambda says that it is starting: `on-demand`, `provisioned-concurrency` or `snap-start`.

    Raises:
        HTTPError: the model cannot be had, and a snapshot without it would be restored for ever. Publishing fails.
    """
    if kind == "snap-start":
        _register_hooks()
        warm(settings, Deadline.after(AHEAD_OF_TIME_SECONDS))
        return
    if kind == "provisioned-concurrency":
        deadline = Deadline.after(AHEAD_OF_TIME_SECONDS)
    elif settings.preload and fetch.is_here(settings):
        deadline = Deadline.after(process_start() + ON_DEMAND_SECONDS - time.monotonic())
    else:
        return  # a download has no place in those seconds
    try:
        warm(settings, deadline)
    except HTTPError as error:
        # The first request tries again, or goes on.
        log.warning("INIT ends without the model: %s %s", error.message, error.hint or "")


def warm(settings: Settings, deadline: Deadline) -> Any:
    """Load the model and read the default system prompt, as GET /warmup does; what it answers.

    Raises:
        HTTPError: the model cannot be had, or not in time.
    """
    request = Request("GET", "/warmup", read_body=lambda limit: b"", deadline=deadline)
    answer = status.warmup(request, settings).body
    assert isinstance(answer, bytes)
    return json.loads(answer)


def _register_hooks() -> None:
    try:
        from snapshot_restore_py import register_after_restore
    except ImportError:
        return  # it comes with every managed Python that has SnapStart
    register_after_restore(after_restore)


def after_restore() -> None:
    """In each copy of the snapshot: nothing that should differ between copies, or that has aged, is kept.

    The sampler takes its seeds from the kernel for each answer, and deadlines are made for each request.
    """
    if "random" in sys.modules:
        sys.modules["random"].seed()
    COLD_START.restart()
