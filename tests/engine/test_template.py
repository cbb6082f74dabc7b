from __future__ import annotations

import time

import pytest

from llamafn.engine.template import ChatTemplate
from llamafn.errors import BadRequest, ModelUnavailable

MESSAGES = [{"role": "system", "content": "Eres <agrónomo>."}, {"role": "user", "content": "¿Qué?"}]


def render(source: str | None) -> str:
    return ChatTemplate(source, bos="<s>", eos="</s>").render(MESSAGES)


def test_a_model_without_a_template_speaks_chatml() -> None:
    assert render(None) == (
        "<|im_start|>system\nEres <agrónomo>.<|im_end|>\n<|im_start|>user\n¿Qué?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}{{ messages[1].content }}{{ eos_token }}", "<s>¿Qué?</s>"),
        ("{{ messages[0] | tojson }}", '{"role": "system", "content": "Eres <agrónomo>."}'),
        ("{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.role }}{% endfor %}", "user"),
        ("{% generation %}{{ messages[1]['content'] }}{% endgeneration %}", "¿Qué?"),
        ("{% if add_generation_prompt %}\n  yes\n{% endif %}", "  yes\n"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "2"),
    ],
)
def test_the_environment_is_the_one_templates_are_written_for(source: str, text: str) -> None:
    assert render(source) == text


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ 'a' * 10000000000 }}", "it repeats something more than 16777216 long"),
        ("{{ 10 ** 10 ** 10 }}", "**"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recurses"),
        ("{% for i in range(1000000000) %}{% endfor %}", "Range too big"),
        ("{{ messages[7].content.x }}", "no element 7"),
    ],
)
def test_what_a_template_may_not_do_is_a_bad_request(source: str, said: str) -> None:
    with pytest.raises(BadRequest) as caught:
        render(source)
    assert said in caught.value.message


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% set all = range(99999) | list %}{% for i in all %}{% for j in all %}{{ j }}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    ],
)
def test_a_template_that_never_ends_is_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamafn.engine.template.TIME_LIMIT_SECONDS", 0.2)
    began = time.monotonic()
    with pytest.raises(BadRequest, match=r"it ran for more than 0\.2 s"):
        render(source)
    assert time.monotonic() - began < 10  # and not for hours


def test_a_damaged_template_is_the_models_fault() -> None:
    with pytest.raises(ModelUnavailable, match="cannot be compiled"):
        render("{% for %}")
