"""Good and bad requests, half of whose clients leave early: a short one of `./build bench soak`."""

from __future__ import annotations

from pathlib import Path

from benchmarks.process_memory import descendants
from benchmarks.soak import soak
from tests.servers import GUNICORN, serving


def test_no_turn_is_lost(model_path: str, tmp_path: Path) -> None:
    command = [*GUNICORN[:-1], "--max-requests", "0", GUNICORN[-1]]
    with serving(command, tmp_path, MODEL=model_path, N_CTX="512", PARALLEL="2", MAX_QUEUE="2") as server:
        result = soak(server.port, lambda: descendants(server.process.pid)[-1], 240, settled=120)
        assert result.wrong == []
        assert sum(result.statuses.values()) == 240
        assert {"200", "400", "404", "413"} <= set(result.statuses)
        assert result.statuses["left at once"] + result.statuses["left midway"] > 80
        # So few requests cannot show a slow leak, but one of a context or an answer's buffers.
        assert result.ended - result.settled < 30
        # It answers as before.
        answer = server.chat(context="Hello", max_tokens=2)
        assert answer.status == 200
        assert "Traceback" not in server.said()
