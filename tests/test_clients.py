"""Clients that people use, unchanged, against the real servers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr

from tests.servers import FUNCTIONS_FRAMEWORK, GUNICORN, Server, poll, serving

KEY = "a-key"
COUNT: Any = [{"role": "user", "content": "Count from 1 to 5, separated by commas."}]
STORY: Any = [{"role": "user", "content": "Write a very long story."}]


@pytest.fixture(scope="module", params=["gunicorn", "functions-framework"])
def server(
    request: pytest.FixtureRequest, model_path: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    command = {"gunicorn": GUNICORN, "functions-framework": FUNCTIONS_FRAMEWORK}[request.param]
    environ = {"MODEL": model_path, "N_CTX": "1024", "API_KEYS": KEY, "MAX_QUEUE": "4"}
    with serving(command, tmp_path_factory.mktemp("clients"), **environ) as running:
        yield running
        assert KEY not in running.said()
        assert "Traceback" not in running.said()


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key=KEY, max_retries=0) as client:
        yield client
    # Whatever happened, nobody is left behind.
    state = server.get("/health").json()["model"]
    if state["state"] == "ready":
        poll("the turn is given back", lambda: not server.get("/health").json()["model"]["answering"], 10)


class Watering(BaseModel):
    """What an answer has to be."""

    crop: Literal["maize", "beans"]
    litres: int
    daily: bool


class TestOpenAI:
    def test_chat(self, client: openai.OpenAI) -> None:
        answer = client.chat.completions.create(model="gpt-4o", messages=COUNT, max_tokens=8, temperature=0)
        assert answer.model == "SmolLM2-135M-Instruct.Q4_1"
        assert answer.choices[0].message.content
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage
        assert answer.usage.completion_tokens == 8

    def test_stream(self, client: openai.OpenAI) -> None:
        whole = client.chat.completions.create(model="m", messages=COUNT, max_tokens=8, temperature=0)
        chunks = list(
            client.chat.completions.create(
                model="m",
                messages=COUNT,
                max_tokens=8,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage
        assert chunks[-1].usage.completion_tokens == 8

    def test_the_helper_that_collects_a_stream(self, client: openai.OpenAI) -> None:
        with client.chat.completions.stream(
            model="m", messages=COUNT, temperature=0, stop="3", logprobs=True
        ) as stream:
            answer = stream.get_final_completion()
        choice = answer.choices[0]
        assert choice.finish_reason == "stop"
        assert choice.logprobs
        assert choice.logprobs.content
        assert "".join(one.token for one in choice.logprobs.content) == choice.message.content

    def test_completions_and_models(self, client: openai.OpenAI) -> None:
        answer = client.completions.create(model="m", prompt="One, two,", max_tokens=2, logprobs=1)
        assert answer.choices[0].text
        assert [model.id for model in client.models.list()] == ["SmolLM2-135M-Instruct.Q4_1"]

    def test_an_answer_as_a_model_of_pydantic(self, client: openai.OpenAI) -> None:
        answer = client.chat.completions.parse(model="m", messages=COUNT, response_format=Watering, max_tokens=80)
        assert isinstance(answer.choices[0].message.parsed, Watering)

    def test_errors(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="n: found 2; expected 1") as bad:
            client.chat.completions.create(model="m", messages=COUNT, n=2)
        assert (bad.value.code, bad.value.param, bad.value.type) == ("invalid_fields", "n", "invalid_request_error")
        long: Any = [{"role": "user", "content": "rain " * 2000}]
        with pytest.raises(openai.BadRequestError, match=r"The prompt has .* more than fit"):
            client.chat.completions.create(model="m", messages=long, stream=True)
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="m", input="x")
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="another").models.list()

    def test_a_timeout_of_the_client_ends_the_generation(self, client: openai.OpenAI) -> None:
        client.chat.completions.create(model="m", messages=COUNT, max_tokens=1)  # warm from here on
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.5).chat.completions.create(model="m", messages=STORY, max_tokens=900)

    def test_leaving_a_stream_ends_the_generation(self, client: openai.OpenAI) -> None:
        stream = client.chat.completions.create(model="m", messages=STORY, max_tokens=900, stream=True)
        for _ in stream:
            break
        stream.close()


def test_langchain(server: Server) -> None:
    def model(most: int) -> ChatOpenAI:
        address = f"http://127.0.0.1:{server.port}/v1"
        return ChatOpenAI(
            base_url=address, api_key=SecretStr(KEY), model="m", temperature=0, max_completion_tokens=most
        )

    whole = model(8).invoke("Count from 1 to 5, separated by commas.")
    streamed = list(model(8).stream("Count from 1 to 5, separated by commas."))
    assert whole.text
    assert "".join(chunk.text for chunk in streamed) == whole.text
    assert whole.usage_metadata
    assert whole.usage_metadata["output_tokens"] == 8
    asked = model(80).with_structured_output(Watering, method="json_schema")
    assert isinstance(asked.invoke("When should I water maize?"), Watering)


def curl(server: Server, path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    address = f"http://127.0.0.1:{server.port}{path}"
    return subprocess.run(
        ["curl", "--silent", "--max-time", "60", *arguments, address], capture_output=True, text=True, check=False
    )


def test_curl(server: Server, tmp_path: Path) -> None:
    body = json.dumps({"messages": COUNT, "max_tokens": 3, "stream": True})
    # No Content-Type of ours: curl says it is a form.
    said = curl(server, "/v1/chat/completions", "-H", f"Authorization: Bearer {KEY}", "-d", body)
    assert said.returncode == 0
    assert said.stdout.startswith(": ping\n\ndata: {")
    assert said.stdout.endswith("data: [DONE]\n\n")
    refused = curl(server, "/v1/chat/completions", "-i", "-d", body)
    assert "HTTP/1.1 401" in refused.stdout
    assert "WWW-Authenticate: Bearer" in refused.stdout
    story = json.dumps({"context": "Write a very long story.", "max_tokens": 900})
    gone = curl(server, "/chat", "-H", f"x-api-key: {KEY}", "-d", story, "--max-time", "0.5")
    assert gone.returncode == 28  # its own time was up
    poll("the turn is given back", lambda: not server.get("/health").json()["model"]["answering"], 10)
