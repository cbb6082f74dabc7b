"""One line of JSON for each request, on standard output, where CloudWatch, Cloud Logging and containers collect it."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any, TextIO

from llamafn.record import Record
from llamafn.settings import Settings

log = logging.getLogger("llamafn.request")


def write(record: Record, settings: Settings) -> None:
    """Log a request that is over. Never a key, nor a prompt unless LOG_PROMPTS is on."""
    line: dict[str, Any] = {
        "severity": "ERROR" if record.status >= 500 else "INFO",
        "message": f"{record.method} {record.route or 'unknown path'} {record.status}",
        **record.to_json(with_prompt=settings.log_prompts),
    }
    if record.trace:
        # The key by which Cloud Logging shows a request's lines together.
        # https://cloud.google.com/run/docs/logging#correlate-logs
        project = settings.google_cloud_project
        line["logging.googleapis.com/trace"] = f"projects/{project}/traces/{record.trace}" if project else record.trace
    if settings.metrics and settings.aws_lambda_function_name:
        from llamafn import cloudwatch

        line.update(cloudwatch.embedded_metrics(record, settings.aws_lambda_function_name))
    log.info(json.dumps(line, ensure_ascii=False))


class _StandardOutput(logging.StreamHandler[TextIO]):
    """Whatever `sys.stdout` is at the time."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stdout


def configure() -> None:
    """Lines as they are: a platform's own handler would put something before each, and it would be JSON no more."""
    if not any(isinstance(handler, _StandardOutput) for handler in log.handlers):
        log.addHandler(_StandardOutput())
        log.setLevel(logging.INFO)
        log.propagate = False
