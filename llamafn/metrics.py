"""GET /metrics in Prometheus' text format, if METRICS is on and prometheus_client is installed."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import model_loader
from llamafn.errors import NotFound
from llamafn.record import Record
from llamafn.settings import Settings
from llamafn.web import Request, Response

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

# Seconds: a warm answer of a small model takes one to three, a cold one some more.
BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
SPEED_BUCKETS = (1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)


class _Metrics:
    """What is counted in this process."""

    def __init__(self) -> None:
        import prometheus_client as prometheus

        # A second series for each, that nobody asks for.
        prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry: CollectorRegistry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=self.registry)

        def make(kind: Any, name: str, said: str, labels: tuple[str, ...] = (), **more: Any) -> Any:
            return kind(f"llamafn_{name}", said, labels, registry=self.registry, **more)

        self.requests = make(prometheus.Counter, "requests", "Requests that were answered.", ("route", "status"))
        self.seconds = make(
            prometheus.Histogram, "request_seconds", "From a request's arrival to its end.", ("route",), buckets=BUCKETS
        )
        self.cold = make(prometheus.Counter, "cold_starts", "Requests that had to wait for the model.")
        self.tokens = make(prometheus.Counter, "tokens", "Tokens read, known already, and written.", ("kind",))
        self.first_token = make(
            prometheus.Histogram,
            "time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            buckets=BUCKETS,
        )
        self.speed = make(
            prometheus.Histogram, "tokens_per_second", "How fast each answer was written.", buckets=SPEED_BUCKETS
        )
        make(prometheus.Gauge, "queue_length", "Requests that wait for their turn.").set_function(_queued)
        make(prometheus.Gauge, "answering", "Answers that are being written.").set_function(_answering)
        make(prometheus.Gauge, "fetched_bytes", "Of the model, by this process.").set_function(
            model_loader.fetched_bytes
        )

    def observe(self, record: Record) -> None:
        route = record.route or "unknown"
        self.requests.labels(route, record.status).inc()
        generation = record.generation
        if record.cold:
            self.cold.inc()
        if generation is None:
            return
        self.seconds.labels(route).observe(record.seconds())
        self.tokens.labels("prompt").inc(generation.prompt_tokens)
        self.tokens.labels("cached").inc(generation.cached_tokens)
        self.tokens.labels("completion").inc(generation.completion_tokens)
        first_token, speed = record.first_token_seconds(), record.tokens_per_second()
        if first_token is not None:
            self.first_token.observe(first_token)
        if speed is not None:
            self.speed.observe(speed)


def observe(record: Record) -> None:
    """Count a request that is over."""
    metrics = _metrics()
    if metrics is not None:
        metrics.observe(record)


def exposition(request: Request, settings: Settings) -> Response:
    """All metrics. https://prometheus.io/docs/instrumenting/exposition_formats/"""
    metrics = _metrics() if settings.metrics else None
    if metrics is None:
        raise NotFound(
            "There are no metrics here.", hint="They need METRICS=1, and the package prometheus_client to be installed."
        )
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    return Response(200, [("Content-Type", CONTENT_TYPE_LATEST)], generate_latest(metrics.registry))


@cache
def _metrics() -> _Metrics | None:
    try:
        return _Metrics()
    except ImportError:
        return None


def _queued() -> int:
    engine = model_loader.loaded()
    return engine.queued if engine is not None else 0


def _answering() -> int:
    engine = model_loader.loaded()
    return engine.answering if engine is not None else 0
