"""/v1/completions and /v1/models."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.asking import Reply, ask

PATH = "/v1/completions"


def complete(prompt: Any = "One, two, three,", **body: Any) -> Reply:
    return ask(PATH, {"prompt": prompt, "temperature": 0, "max_tokens": 4, **body})


@pytest.mark.parametrize(
    ("body", "path", "said"),
    [
        ({"prompt": ["a", "b"]}, "prompt", 'found ["a", "b"]; expected a string, or a list of 1 to 1 prompts'),
        ({"prompt": [1, 2]}, "prompt", "found [1, 2]; expected a string, or"),
        ({"echo": True}, "echo", "found true; expected false"),
        ({"best_of": 2}, "best_of", "found 2; expected 1"),
        ({"suffix": "x"}, "suffix", "not supported"),
        ({"logprobs": 6}, "logprobs", "found 6; expected an integer from 0 to 5"),
    ],
)
def test_what_is_not_supported_is_refused(body: dict[str, Any], path: str, said: str) -> None:
    reply = ask(PATH, {"prompt": "x", **body})
    assert reply.status == 400
    assert reply.json()["error"]["fields"][path].startswith(said)


@pytest.mark.usefixtures("loaded")
def test_the_text_goes_on_as_it_stands() -> None:
    answer = complete(["One, two, three,"], echo=False, best_of=1).json()
    assert answer["object"] == "text_completion"
    assert answer["choices"][0]["text"].startswith(" four")
    assert answer["usage"]["prompt_tokens"] < 10  # no template


@pytest.mark.usefixtures("loaded")
def test_it_has_sixteen_tokens_if_nothing_is_said() -> None:
    assert ask(PATH, {"prompt": "One, two,"}).json()["usage"]["completion_tokens"] <= 16


@pytest.mark.usefixtures("loaded")
def test_scores() -> None:
    choice = complete(logprobs=2).json()["choices"][0]
    scores = choice["logprobs"]
    assert "".join(scores["tokens"]) == choice["text"]
    assert scores["text_offset"][:2] == [0, len(scores["tokens"][0])]
    assert [len(best) for best in scores["top_logprobs"]] == [2] * 4
    assert all(
        best[token] == logprob
        for best, token, logprob in zip(scores["top_logprobs"], scores["tokens"], scores["token_logprobs"], strict=True)
    )


@pytest.mark.usefixtures("loaded")
def test_a_stream() -> None:
    *chunks, last, usage, done = complete(stream=True, stream_options={"include_usage": True}).events()
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == complete().json()["choices"][0]["text"]
    assert last["choices"][0]["finish_reason"] == "length"
    assert usage["usage"]["completion_tokens"] == 4
    assert done == "[DONE]"


@pytest.mark.usefixtures("loaded")
def test_an_empty_prompt_has_nothing_to_go_on_from() -> None:
    reply = complete("")
    assert reply.status == 400
    assert reply.json()["error"]["param"] == "prompt"


def test_the_models() -> None:
    reply = ask("/v1/models")
    assert [model["id"] for model in reply.json()["data"]] == ["model"]
