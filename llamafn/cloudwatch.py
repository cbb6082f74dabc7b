"""CloudWatch's embedded metric format: a log line on Lambda that is also metrics, at no cost in time.

https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
"""

from __future__ import annotations

import time
from typing import Any

import model_loader
from llamafn.record import Record

NAMESPACE = "llamafn"


def embedded_metrics(record: Record, function: str) -> dict[str, Any]:
    """The keys that make a request's log line the metrics of a Lambda function, too."""
    metrics: dict[str, tuple[str, float]] = {
        "Duration": ("Milliseconds", record.seconds() * 1000),
        "Errors": ("Count", int(record.status >= 500)),
    }
    if record.cold is not None:
        metrics["ColdStarts"] = ("Count", int(record.cold))
    if record.cold:
        metrics["FetchBytes"] = ("Bytes", model_loader.fetched_bytes())
    engine = model_loader.loaded()
    if engine is not None:
        metrics["QueueLength"] = ("Count", engine.queued)
    first_token, speed = record.first_token_seconds(), record.tokens_per_second()
    if first_token is not None:
        metrics["TimeToFirstToken"] = ("Milliseconds", first_token * 1000)
    if speed is not None:
        metrics["TokensPerSecond"] = ("Count/Second", speed)
    return {
        "_aws": {
            "Timestamp": int(time.time() * 1000),
            "CloudWatchMetrics": [
                {
                    "Namespace": NAMESPACE,
                    "Dimensions": [["function"]],
                    "Metrics": [{"Name": name, "Unit": unit} for name, (unit, _) in metrics.items()],
                }
            ],
        },
        "function": function,
        **{name: round(value, 3) for name, (_, value) in metrics.items()},
    }
