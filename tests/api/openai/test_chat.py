"""/v1/chat/completions: what is taken, what is refused, and what is answered."""

from __future__ import annotations

import json
import math
from typing import Any

import jsonschema
import pytest

import model_loader
from llamafn.api.openai.tools import CallReader
from llamafn.deadline import Deadline
from llamafn.engine.engine import Engine
from llamafn.engine.template import ChatTemplate
from tests.api.asking import SETTINGS, Reply, ask

PATH = "/v1/chat/completions"
COUNT = [{"role": "user", "content": "Count from 1 to 5, separated by commas."}]


def chat(messages: Any = COUNT, **body: Any) -> Reply:
    return ask(PATH, {"messages": messages, "temperature": 0, "max_tokens": 8, **body})


def text(reply: Reply) -> str:
    assert reply.status == 200, reply.body
    return str(reply.json()["choices"][0]["message"]["content"])


@pytest.mark.parametrize(
    ("body", "path", "said"),
    [
        ({"messages": []}, "messages", "found []; expected a list of 1 messages or more"),
        ({"messages": "Hello"}, "messages", 'found "Hello"; expected a list of'),
        ({"messages": [{"content": "x"}]}, "messages[0].role", 'missing; expected "system", "developer", "user"'),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing; expected a string, or a list of"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "found null; expected a string"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            'found "image_url"; expected "text"',
        ),
        ({"messages": [{"role": "user", "content": "x", "audio": {}}]}, "messages[0].audio", "not supported"),
        ({"n": 2}, "n", "found 2; expected 1"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "not supported; expected one of messages, model,"),
        ({"functions": []}, "functions", "not supported"),
        ({"temperature": 2.1}, "temperature", "found 2.1; expected a number from 0 to 2"),
        ({"stop": ""}, "stop", 'found ""; expected a string that is not empty, or a list of'),
        ({"stop": ["a", ""]}, "stop[1]", 'found ""; expected a string that is not empty'),
        ({"logit_bias": {"x": 1}}, "logit_bias", 'found "x"; expected the number of a token, in quotes'),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", "found 101; expected a number from -100 to 100"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs to be true"),
        ({"tool_choice": "required"}, "tool_choice", 'found "required"; tools has none of that name'),
        (
            {"tool_choice": "always"},
            "tool_choice",
            'found "always"; expected "none", "auto" or "required", or an object',
        ),
        (
            {"response_format": {"type": "xml"}},
            "response_format.type",
            'found "xml"; expected "text", "json_object" or',
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing; expected an object"),
        ({"response_format": {"type": "json_object"}, "logprobs": True}, "logprobs", "there are none under a schema"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing; expected an object"),
        ({"max_tokens": 0}, "max_tokens", "found 0; expected an integer from 1 to 2,147,483,647"),
    ],
)
def test_what_is_not_supported_is_refused(body: dict[str, Any], path: str, said: str) -> None:
    reply = ask(PATH, {"messages": COUNT, **body})
    assert reply.status == 400
    error = reply.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["fields"][path].startswith(said)


def test_what_changes_nothing_is_accepted() -> None:
    inert = {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "unknown": None}
    reply = ask(PATH, {"messages": COUNT, "model": "gpt-4o", **inert})
    assert reply.json()["error"]["code"] == "model_unavailable"  # all was well but for the model


@pytest.mark.usefixtures("loaded")
class TestAnswers:
    def test_one(self) -> None:
        reply = chat(model="gpt-4o")
        answer = reply.json()
        assert answer["model"] == "model"  # the file's name, not what was asked for
        assert answer["id"] == f"chatcmpl-{reply.headers['X-Request-Id']}"
        choice = answer["choices"][0]
        assert choice["message"] == {"role": "assistant", "content": text(reply), "refusal": None}
        assert text(reply).startswith("1")
        assert (choice["finish_reason"], choice["logprobs"]) == ("length", None)
        assert answer["usage"]["completion_tokens"] == 8
        assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + 8

    def test_text_in_parts_is_the_same_text(self) -> None:
        parts = [{"type": "text", "text": "Count from 1 to 5, "}, {"type": "text", "text": "separated by commas."}]
        assert text(chat([{"role": "user", "content": parts}])) == text(chat())

    def test_a_developer_is_the_system(self) -> None:
        brief = {"content": "Be brief."}
        answers = [chat([{"role": role, **brief}, *COUNT]).json() for role in ("system", "developer")]
        assert answers[0]["usage"]["prompt_tokens"] == answers[1]["usage"]["prompt_tokens"]

    def test_the_newer_name_of_max_tokens_wins(self) -> None:
        assert chat(max_completion_tokens=3).json()["usage"]["completion_tokens"] == 3

    def test_a_stop_string_ends_it_and_is_left_out(self) -> None:
        whole = text(chat())
        reply = chat(stop=whole[3:5])
        assert text(reply) == whole[: whole.index(whole[3:5])]
        assert reply.json()["choices"][0]["finish_reason"] == "stop"

    def test_the_same_seed_gives_the_same_answer(self) -> None:
        free = {"temperature": 2, "top_k": 0, "top_p": 1, "min_p": 0, "max_tokens": 6}
        answers = [text(chat(seed=seed, **free)) for seed in (1, 1, 2)]
        assert answers[0] == answers[1] != answers[2]

    def test_a_bias_rules_a_token_out(self, loaded: Engine) -> None:
        (first, *_) = loaded.model.vocabulary.tokenize(text(chat()), add_special=False, parse_special=False)
        assert text(chat(logit_bias={str(first): -100})) != text(chat())

    def test_a_bias_beyond_the_vocabulary(self) -> None:
        reply = chat(logit_bias={"99999999": 1})
        assert reply.status == 400
        assert reply.json()["error"]["message"].startswith("logit_bias: found token 99999999; this model has 49,152")

    def test_penalties_change_the_answer(self) -> None:
        again = [{"role": "user", "content": "Repeat: rain rain rain rain rain rain rain"}]
        assert text(chat(again, frequency_penalty=2, max_tokens=16)) != text(chat(again, max_tokens=16))

    def test_scores_of_tokens(self, loaded: Engine) -> None:
        reply = chat(logprobs=True, top_logprobs=3)
        scores = reply.json()["choices"][0]["logprobs"]["content"]
        assert b"".join(bytes(score["bytes"]) for score in scores).decode() == text(reply)
        for score in scores:
            best = score["top_logprobs"]
            # At temperature 0 the chosen one is the likeliest.
            assert (best[0]["token"], best[0]["logprob"]) == (score["token"], score["logprob"])
            assert [one["logprob"] for one in best] == sorted((one["logprob"] for one in best), reverse=True)
            assert sum(math.exp(one["logprob"]) for one in best) <= 1.0001

    def test_scores_stream_with_their_text(self) -> None:
        whole = chat(logprobs=True).json()["choices"][0]["logprobs"]["content"]
        *events, _ = chat(logprobs=True, stream=True).events()
        streamed = [one for event in events for one in event["choices"][0]["logprobs"]["content"]]
        assert [one["token"] for one in streamed] == [one["token"] for one in whole]

    def test_a_stream(self) -> None:
        reply = chat(stream=True)
        assert reply.headers["Content-Type"].startswith("text/event-stream")
        assert reply.body.startswith(b": ping\n\n")
        *chunks, done = reply.events()
        assert done == "[DONE]"
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text(chat())
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
        assert all("role" not in chunk["choices"][0]["delta"] for chunk in chunks[1:])
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
        assert len({chunk["id"] for chunk in chunks}) == 1

    def test_a_stream_says_what_it_cost_if_it_is_asked_to(self) -> None:
        *chunks, last, _ = chat(stream=True, stream_options={"include_usage": True}).events()
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 8
        assert all(chunk["usage"] is None for chunk in chunks)

    def test_a_prompt_that_is_too_long_has_a_status_of_its_own_in_a_stream_too(self) -> None:
        reply = chat([{"role": "user", "content": "rain " * 600}], stream=True)
        assert reply.status == 400
        assert reply.json()["error"]["code"] == "context_length_exceeded"

    def test_a_deadline_is_a_length_and_says_so(self) -> None:
        story = {"messages": [{"role": "user", "content": "Write a very long story."}], "temperature": 0}
        reply = ask(PATH, story, deadline=Deadline.after(1.0))
        choice = reply.json()["choices"][0]
        assert (choice["finish_reason"], choice["deadline"]) == ("length", True)

    def test_no_time_for_a_single_token(self) -> None:
        reply = ask(PATH, {"messages": COUNT}, deadline=Deadline.after(0))
        assert reply.status == 503
        assert reply.json()["error"]["code"] == "deadline_passed"
        assert reply.headers["Retry-After"] == "1"
        (event,) = ask(PATH, {"messages": COUNT, "stream": True}, deadline=Deadline.after(0)).events()
        assert event["error"]["code"] == "deadline_passed"  # no [DONE]: it is not whole

    @pytest.mark.parametrize("stream", [False, True])
    def test_json_that_follows_a_schema(self, stream: bool) -> None:
        schema = {
            "type": "object",
            "properties": {"crop": {"type": "string", "maxLength": 20}, "litres": {"type": "integer", "maximum": 9}},
            "required": ["crop", "litres"],
            "additionalProperties": False,
        }
        wanted = {"type": "json_schema", "json_schema": {"name": "watering", "strict": True, "schema": schema}}
        reply = chat(response_format=wanted, max_tokens=40, stream=stream)
        if stream:
            said = "".join(event["choices"][0]["delta"].get("content", "") for event in reply.events()[:-1])
        else:
            said = text(reply)
        jsonschema.validate(json.loads(said), schema)

    def test_any_json_object(self) -> None:
        assert isinstance(json.loads(text(chat(response_format={"type": "json_object"}))), dict)

    def test_a_schema_that_is_not_enforced_is_refused(self) -> None:
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "minProperties": 2}}}
        error = chat(response_format=wanted).json()["error"]
        assert (error["code"], error["param"]) == ("invalid_schema", "response_format")
        assert "minProperties" in error["message"]

    def test_this_model_knows_no_tools(self) -> None:
        tool = {"type": "function", "function": {"name": "f"}}
        assert "chat template has no place for tools" in chat(tools=[tool]).json()["error"]["message"]
        assert chat(tools=[tool], tool_choice="none").status == 200
        result = chat([*COUNT, {"role": "tool", "content": "1", "tool_call_id": "1"}])
        assert "messages[1]" in result.json()["error"]["fields"]


@pytest.mark.usefixtures("nothing_loaded")
def test_a_stream_begins_before_a_cold_model(model_path: str) -> None:
    settings = SETTINGS._replace(model=model_path, n_threads=1)
    reply = ask(PATH, {"messages": COUNT, "stream": True, "max_tokens": 2}, settings=settings)
    assert reply.body.startswith(b": ping\n\n")
    assert reply.events()[-1] == "[DONE]"


@pytest.mark.usefixtures("nothing_loaded")
def test_a_cold_start_that_fails_is_an_event() -> None:
    reply = ask(PATH, {"messages": COUNT, "stream": True})
    assert reply.status == 200
    (event,) = reply.events()
    assert event["error"]["code"] == "model_unavailable"


# As Qwen2.5's does it, in short.
TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\nCall with <tool_call>:{% for tool in tools %} {{ tool | tojson }}{% endfor %}"
    "<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


def test_a_template_is_shown_the_tools_and_earlier_calls(loaded: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate(TOOL_TEMPLATE, bos="", eos="")
    rendered: list[str] = []
    render = template.render

    def keep(*of: Any) -> str:
        rendered.append(render(*of))
        return rendered[-1]

    monkeypatch.setattr(template, "render", keep)
    monkeypatch.setattr(loaded, "_template", template)
    arguments = {"name": "water", "arguments": '{"litres": 3}'}
    messages = [
        *COUNT,
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": arguments}]},
        {"role": "tool", "content": "done", "tool_call_id": "1"},
    ]
    tool = {"type": "function", "function": {"name": "water", "parameters": {"type": "object"}}}
    assert chat(messages, tools=[tool]).status == 200
    assert json.dumps(tool) in rendered[0]
    assert '<tool_call>{"name": "water", "arguments": {"litres": 3}}</tool_call>' in rendered[0]
    assert "<|im_start|>tool\ndone<|im_end|>" in rendered[0]


@pytest.mark.parametrize(
    ("choice", "names"),
    [("required", {"water", "feed"}), ({"type": "function", "function": {"name": "feed"}}, {"feed"})],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_must_be_made_is_made(
    loaded: Engine, monkeypatch: pytest.MonkeyPatch, choice: Any, names: set[str], stream: bool
) -> None:
    monkeypatch.setattr(loaded, "_template", ChatTemplate(TOOL_TEMPLATE, bos="", eos=""))
    parameters = {
        "type": "object",
        "properties": {"litres": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["litres"],
    }
    tools = [{"type": "function", "function": {"name": name, "parameters": parameters}} for name in ("water", "feed")]
    reply = chat(tools=tools, tool_choice=choice, max_tokens=60, stream=stream)
    assert reply.status == 200, reply.body
    if stream:
        choices = [event["choices"][0] for event in reply.events()[:-1]]
        (call,) = (call for one in choices for call in one["delta"].get("tool_calls", ()))
        assert (call["index"], choices[-1]["finish_reason"]) == (0, "tool_calls")
    else:
        (call,) = reply.json()["choices"][0]["message"]["tool_calls"]
        assert reply.json()["choices"][0]["message"]["content"] is None
        assert reply.json()["choices"][0]["finish_reason"] == "tool_calls"
    assert call["function"]["name"] in names
    assert 1 <= json.loads(call["function"]["arguments"])["litres"] <= 9


CALL = '<tool_call>\n{"name": "water", "arguments": {"litres": 3}}\n</tool_call>'


@pytest.mark.parametrize(
    ("answer", "said", "called"),
    [
        ("Nothing to call.", "Nothing to call.", []),
        (CALL, "", [("water", '{"litres": 3}')]),
        (f"I will. {CALL}\n{CALL}", "I will. ", [("water", '{"litres": 3}')] * 2),
        (CALL.removesuffix("</tool_call>"), "", [("water", '{"litres": 3}')]),
        ('<tool_call>{"name": "burn"}</tool_call>', '<tool_call>{"name": "burn"}</tool_call>', []),
        ("<tool_call>{</tool_call> x", "<tool_call>{</tool_call> x", []),
        ("a < b <tool", "a < b <tool", []),
    ],
)
def test_calls_are_told_from_text(answer: str, said: str, called: list[tuple[str, str]]) -> None:
    for step in (len(answer), 1):  # all at once, and as a stream brings it
        reader = CallReader(["water"])
        text = "".join(reader.push(answer[at : at + step]) for at in range(0, len(answer), step)) + reader.finish()
        assert text == said
        assert [(call["function"]["name"], call["function"]["arguments"]) for call in reader.calls] == called
    assert model_loader.loaded() is None
