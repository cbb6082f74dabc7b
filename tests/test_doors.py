"""The doors, under the real servers."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import FUNCTIONS_FRAMEWORK, GUNICORN, ROOT, Answer, Server, poll, serving

# A short answer at temperature 0.2 is not always the same; that there is one is what the doors have to show.
QUESTION = {"system": "Eres un asistente agrónomo.", "context": {"mensaje": "¿Cuándo debo regar?"}, "max_tokens": 8}


@pytest.fixture(scope="module", params=["gunicorn", "functions-framework"])
def server(
    request: pytest.FixtureRequest, model_path: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    command = {"gunicorn": GUNICORN, "functions-framework": FUNCTIONS_FRAMEWORK}[request.param]
    with serving(command, tmp_path_factory.mktemp("door"), MODEL=model_path, N_CTX="512") as running:
        yield running


def test_health_never_loads(server: Server) -> None:
    answer = server.get("/health")
    assert answer.status == 200
    assert answer.json()["status"] == "ok"
    assert answer.json()["model"]["state"] == "cold"


def test_chat_keeps_the_contract(server: Server) -> None:
    answer = server.chat(**QUESTION)
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"].startswith("application/json")
    body = answer.json()
    assert isinstance(body["content"], str)
    assert body["content"]
    assert body["usage"]["completion_tokens"] <= 8
    assert server.get("/health").json()["model"]["state"] == "ready"


def test_chat_streams(server: Server) -> None:
    answer = server.chat(**QUESTION, stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.body.startswith(b": ping\n\n")  # before there was anything to say
    *pieces, summary = answer.events()
    assert "".join(piece["content"] for piece in pieces)
    assert summary["finish_reason"] in ("stop", "length")


def test_warmup_loads(server: Server) -> None:
    answer = server.get("/warmup")
    assert answer.status == 200
    assert answer.json()["warm"] is True
    assert {"load", "context"} <= {phase["phase"] for phase in answer.json()["cold_start"]}


@pytest.mark.parametrize("path", ["/kaithhealth", "/kaithhealthcheck", "/kaithheathcheck"])
def test_probes_answer(server: Server, path: str) -> None:
    assert server.get(path).status == 200


def test_errors_have_one_shape(server: Server) -> None:
    answer = server.request("POST", "/chat", b"{")
    assert answer.status == 400
    assert set(answer.json()["error"]) >= {"message", "type", "code"}
    assert server.get("/nothing").status == 404
    wrong_method = server.get("/chat")
    assert wrong_method.status == 405
    assert wrong_method.headers["allow"] == "POST"
    assert server.request("OPTIONS", "/chat").status == 405
    head = server.request("HEAD", "/health")
    assert (head.status, head.body) == (200, b"")


def test_a_client_that_leaves_gives_its_turn_back(server: Server) -> None:
    """The next answer must not wait until the abandoned one has its 400 tokens."""
    import socket

    body = json.dumps({"context": "Write a very long story.", "max_tokens": 400, "stream": True}).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        assert client.recv(64).startswith(b"HTTP/1.1 200")
    answer = server.chat(**{**QUESTION, "max_tokens": 1})
    assert answer.status == 200
    # An abandoned answer of 400 tokens would take longer than this one's whole life.
    assert answer.json()["timings"]["queue_ms"] < 2000


def test_past_the_queue_is_429(model_path: str, tmp_path: Path) -> None:
    with serving(GUNICORN, tmp_path, MODEL=model_path, MAX_QUEUE="1", PRELOAD="1") as server:
        server.get("/warmup")
        answers: list[Answer] = []
        body = {"context": "Write a very long story.", "max_tokens": 150}
        threads = [threading.Thread(target=lambda: answers.append(server.chat(**body))) for _ in range(5)]
        for thread in threads:
            thread.start()
        # While all of them wait or are answered, /health is.
        assert server.get("/health").status == 200
        for thread in threads:
            thread.join()
        assert sorted(answer.status for answer in answers) == [200, 200, 429, 429, 429]
        refused = next(answer for answer in answers if answer.status == 429)
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"


def test_preload_has_the_model_before_the_first_request(model_path: str, tmp_path: Path) -> None:
    with serving(GUNICORN, tmp_path, MODEL=model_path, PRELOAD="1") as server:
        poll("the model is ready", lambda: server.get("/health").json()["model"]["state"] == "ready")
        assert server.chat(**QUESTION).status == 200


def test_recycling_loses_no_request(model_path: str, tmp_path: Path) -> None:
    """450 requests, four clients: the worker is replaced at least once on the way."""
    with serving(GUNICORN, tmp_path, MODEL=model_path) as server:
        statuses: list[int] = []

        def client() -> None:
            statuses.extend(server.get("/health").status for _ in range(112))

        threads = [threading.Thread(target=client) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert statuses == [200] * 448
        assert server.said().count("Booting worker") >= 2


def test_sigterm_refuses_what_would_begin_now(model_path: str, tmp_path: Path) -> None:
    """Connections that are open stay so for a moment: what arrives on them is told to go elsewhere."""
    with serving(GUNICORN, tmp_path, MODEL=model_path) as server:
        server.get("/warmup")
        kept = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=60) for _ in range(12)]
        connections = list(kept)
        for connection in connections:
            connection.request("GET", "/v1/models")
            connection.getresponse().read()
        body = {"context": "Write a very long story.", "max_tokens": 100}
        answers: list[Answer] = []
        asking = threading.Thread(target=lambda: answers.append(server.chat(**body)))
        asking.start()
        poll("the answer is under way", lambda: server.get("/health").json()["model"]["answering"])
        server.process.send_signal(signal.SIGTERM)

        def refused() -> http.client.HTTPResponse | None:
            connection = kept.pop()
            connection.request("GET", "/v1/models")
            answer = connection.getresponse()
            return answer if answer.status == 503 else None

        answer = poll("the worker knows that it ends", refused)
        assert json.loads(answer.read())["error"]["code"] == "draining"
        assert answer.headers["Retry-After"] == "1"
        assert answer.headers["Connection"] == "close"
        for connection in connections:
            connection.close()
        asking.join()
        assert answers[0].status == 200


def test_a_client_that_leaves_ends_an_answer_that_is_not_streamed(model_path: str, tmp_path: Path) -> None:
    with serving(GUNICORN, tmp_path, MODEL=model_path, N_CTX="8192") as server:
        server.get("/warmup")
        leaving = http.client.HTTPConnection("127.0.0.1", server.port)
        leaving.request("POST", "/chat", json.dumps({"context": "Write a very long story.", "max_tokens": 8000}))
        poll("the answer is under way", lambda: server.get("/health").json()["model"]["answering"])
        leaving.close()
        poll("it has ended", lambda: not server.get("/health").json()["model"]["answering"], 30)
        assert '"finish_reason": "cancelled"' in server.said()


def test_the_first_answer_says_where_the_time_went_also_in_a_stream(model_path: str, tmp_path: Path) -> None:
    with serving(GUNICORN, tmp_path, MODEL=model_path) as server:
        server.get("/warmup")
        first = server.chat(**QUESTION, stream=True).headers["server-timing"]
        assert {"interpreter", "load", "context"} <= {entry.partition(";")[0] for entry in first.split(", ")}
        assert "server-timing" not in server.chat(**QUESTION, stream=True).headers
        assert "idle" in {phase["phase"] for phase in server.get("/health").json()["cold_start"]}


def test_gunicorn_keeps_its_heartbeat_on_disk_where_shared_memory_cannot_be_written(tmp_path: Path) -> None:
    """Leapcell's /dev/shm is read-only; root may write everywhere, so the question is answered for it."""
    question = "import os, runpy; os.access = lambda path, mode: path != '/dev/shm'"
    script = f"{question}; print(runpy.run_path('gunicorn.conf.py')['worker_tmp_dir'])"
    environ = {**os.environ, "MODEL": str(tmp_path / "none.gguf")}
    said = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert said.stdout.strip() == "None", said.stderr


def test_sigterm_lets_a_running_answer_finish(model_path: str, tmp_path: Path) -> None:
    with serving(GUNICORN, tmp_path, MODEL=model_path) as server:
        server.get("/warmup")
        answers: list[Answer] = []
        body = {"context": "Write a very long story.", "max_tokens": 60}
        asking = threading.Thread(target=lambda: answers.append(server.chat(**body)))
        asking.start()
        poll("the answer is under way", lambda: server.get("/health").json()["model"]["answering"])
        server.process.send_signal(signal.SIGTERM)
        asking.join()
        assert answers[0].status == 200
        assert answers[0].json()["usage"]["completion_tokens"] == 60


@pytest.mark.parametrize("command", [GUNICORN, FUNCTIONS_FRAMEWORK], ids=["gunicorn", "functions-framework"])
def test_a_bad_setting_stops_the_start(command: list[str]) -> None:
    environ = {**os.environ, "N_CTX": "many", "MAX_QUEUE": "-1"}
    result = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60)
    assert result.returncode != 0
    assert "N_CTX='many': expected 64 to 1,048,576 tokens" in result.stderr
    assert "MAX_QUEUE='-1': expected 0 to 1,024 requests" in result.stderr


def test_the_doors_import_nothing_heavy() -> None:
    """In a fresh interpreter: a test that ran before may have imported anything."""
    banned = {"llama_cpp", "jinja2", "boto3", "botocore", "requests", "urllib3", "flask", "numpy", "gunicorn", "ctypes"}
    code = f"import handler, sys; print(*sorted({banned!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_import_starts_no_thread() -> None:
    """functions-framework and gunicorn --preload import the doors before they fork, and threads do not survive that."""
    code = "import handler, threading; print(threading.active_count())"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "1"


@pytest.mark.parametrize(
    ("environ", "warned"),
    [({"HOST": "0.0.0.0"}, True), ({"HOST": "0.0.0.0", "API_KEYS": "k"}, False), ({"HOST": "127.0.0.1"}, False)],
)
def test_a_server_that_everybody_may_use_says_so(environ: dict[str, str], warned: bool) -> None:
    """The configuration's own hook, with a log of ours: a test binds to nothing but loopback."""
    code = (
        "import logging, runpy, types, sys\n"
        "logging.basicConfig(stream=sys.stdout)\n"
        "hooks = runpy.run_path('gunicorn.conf.py')\n"
        "hooks['when_ready'](types.SimpleNamespace(log=logging.getLogger(), LISTENERS=[]))\n"
    )
    environ = {**os.environ, **environ}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True, check=True
    )
    assert ("without API_KEYS: whoever reaches this address may use the model." in result.stdout) is warned


def test_a_client_that_takes_nothing_is_not_waited_for_long() -> None:
    """The configuration's own hook and a real connection, by the kernel's rule, with its 10 s made a tenth of one."""
    code = (
        "import logging, runpy, socket, struct, types\n"
        "hooks = runpy.run_path('gunicorn.conf.py')\n"
        "hooks['when_ready'].__globals__['_SEND_LIMIT'] = struct.pack('ll', 0, 100_000)\n"
        "listener = socket.create_server(('127.0.0.1', 0))\n"
        "server = types.SimpleNamespace(log=logging.getLogger(), LISTENERS=[types.SimpleNamespace(sock=listener)])\n"
        "hooks['when_ready'](server)\n"
        "client = socket.create_connection(listener.getsockname())\n"
        "accepted, _ = listener.accept()\n"
        "accepted.setblocking(True)\n"
        "try:\n"
        "    while True:\n"
        "        accepted.sendall(bytes(1 << 20))\n"
        "except OSError as error:\n"
        "    print(type(error).__name__)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.strip() == "BlockingIOError"
