from __future__ import annotations

import sys

import pytest

from llamafn import metrics
from tests.api.asking import SETTINGS, ask

ON = SETTINGS._replace(metrics=True)


@pytest.fixture(autouse=True)
def counted_afresh() -> None:
    metrics._metrics.cache_clear()


@pytest.mark.usefixtures("loaded")
def test_what_is_counted() -> None:
    ask("/v1/completions", {"prompt": "The rain", "max_tokens": 4, "temperature": 0}, settings=ON)
    ask("/v1/completions", {}, settings=ON)
    reply = ask("/metrics", settings=ON)
    assert reply.headers["Content-Type"].startswith("text/plain; version=")
    lines = reply.body.decode().splitlines()
    for line in (
        'llamafn_requests_total{route="/v1/completions",status="200"} 1.0',
        'llamafn_requests_total{route="/v1/completions",status="400"} 1.0',
        'llamafn_tokens_total{kind="completion"} 4.0',
        "llamafn_cold_starts_total 0.0",
        "llamafn_time_to_first_token_seconds_count 1.0",
        "llamafn_tokens_per_second_count 1.0",
        "llamafn_queue_length 0.0",
    ):
        assert line in lines


def test_off_unless_it_is_set() -> None:
    reply = ask("/metrics")
    assert reply.status == 404
    assert "METRICS=1" in reply.json()["error"]["hint"]


def test_the_package_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert ask("/metrics", settings=ON).status == 404
    assert ask("/health", settings=ON).status == 200
