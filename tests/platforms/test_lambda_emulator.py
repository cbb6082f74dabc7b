"""The function in AWS's own emulator, under AWS's own client and under our runtime loop."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.platforms.functions import STOCK, WRAPPED, Emulator, emulated, url_event
from tests.servers import poll

QUESTION = {"system": "Eres un asistente agrónomo.", "context": "¿Cuándo debo regar?", "max_tokens": 8}


@pytest.fixture(scope="module", params=[STOCK, WRAPPED], ids=["awslambdaric", "ours"])
def function(
    request: pytest.FixtureRequest, model_path: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Emulator]:
    with emulated(tmp_path_factory.mktemp("emulator"), request.param, MODEL=model_path, N_CTX="512") as emulator:
        yield emulator


def test_health(function: Emulator) -> None:
    answer = function.invoke(url_event("/health", method="GET"))
    assert answer["statusCode"] == 200
    assert json.loads(answer["body"])["status"] == "ok"


def test_chat(function: Emulator) -> None:
    answer = function.invoke(url_event("/chat", QUESTION))
    assert answer["statusCode"] == 200
    assert json.loads(answer["body"])["content"]


def test_a_stream_arrives_whole(function: Emulator) -> None:
    answer = function.invoke(url_event("/chat", {**QUESTION, "stream": True}))
    assert answer["body"].endswith("data: [DONE]\n\n")


def test_a_direct_invocation(function: Emulator) -> None:
    assert function.invoke(QUESTION)["content"]
    assert function.invoke({**QUESTION, "max_tokens": 0})["error"]["code"] == "invalid_fields"


def test_a_ping(function: Emulator) -> None:
    assert function.invoke({"source": "aws.events", "version": "0"})["warm"] is True


def test_an_unknown_event_is_an_error_and_the_next_is_answered(function: Emulator) -> None:
    failed = function.invoke({"Records": []})
    assert failed["errorType"] == "UnknownEvent"
    assert "found Records" in failed["errorMessage"]
    assert function.invoke(url_event("/health", method="GET"))["statusCode"] == 200


def test_a_runtime_that_is_killed_while_answering_is_started_again(model_path: str, tmp_path: Path) -> None:
    with emulated(tmp_path, WRAPPED, MODEL=model_path) as emulator:
        emulator.invoke({"warmup": True})
        (pid,) = emulator.function_pids()
        answers: list[Any] = []
        story = url_event("/chat", {"context": "Write a very long story.", "max_tokens": 900})
        asking = threading.Thread(target=lambda: answers.append(emulator.invoke(story)))
        began = _cpu_seconds(pid)
        asking.start()
        poll("it is answering", lambda: _cpu_seconds(pid) > began + 0.2)
        os.kill(pid, signal.SIGKILL)
        asking.join()
        assert answers[0]["errorType"] == "Runtime.ExitError"
        assert emulator.invoke(QUESTION)["content"]


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
