"""The service that people run today: Flask, gunicorn and llama-cpp-python's `Llama`, made to stream.

The contract's own does not stream; the time to its first byte would be that of the whole answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from flask import Flask, Response, request
from llama_cpp import Llama

import benchmarks.peers.not_repacked  # noqa: F401 - before a model is made


def create_app(model: str, n_ctx: int, n_threads: int) -> Flask:
    app = Flask(__name__)
    llama = Llama(model, n_ctx=n_ctx, n_threads=n_threads, n_threads_batch=n_threads, verbose=False)

    @app.post("/v1/chat/completions")
    def complete() -> Response:
        body = request.get_json()
        chunks = llama.create_chat_completion(
            body["messages"], max_tokens=body["max_tokens"], temperature=body["temperature"], stream=True
        )

        def events() -> Iterator[str]:
            for chunk in chunks:
                yield f"data: {json.dumps(chunk)}\n\n"
            yield "data: [DONE]\n\n"

        return Response(events(), mimetype="text/event-stream")

    return app
