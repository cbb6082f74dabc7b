"""What the engine answers, on the real model."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llamafn.engine.engine import Engine
from llamafn.engine.sampling import Sampling
from llamafn.errors import PromptTooLong
from tests.engines import ask
from tests.servers import ROOT


def test_golden_text_at_temperature_zero(engine: Engine) -> None:
    """Counting has a clear margin at each of its tokens, so other CPUs and batches round to the same text."""
    text, generation = ask(engine, "Count from 1 to 10, separated by commas.", max_tokens=12)
    assert text.startswith("1, 2, 3, 4")
    assert generation.finish_reason == "length"
    assert generation.completion_tokens == 12


def test_the_same_request_has_the_same_answer_at_temperature_zero(engine: Engine) -> None:
    first, fresh = ask(engine, "Tell me about rain.", max_tokens=40)
    ask(engine, "Tell me about rivers, and about the sea.", max_tokens=5)
    second, _ = ask(engine, "Tell me about rain.", max_tokens=40)
    third, again = ask(engine, "Tell me about rain.", max_tokens=40)
    assert first == second == third
    assert again.cached_tokens > 0
    assert again.prompt_tokens == fresh.prompt_tokens


def test_a_seed_repeats_and_another_does_not(engine: Engine) -> None:
    def story(seed: int | None) -> str:
        sampling = Sampling(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=seed)
        return ask(engine, "Write a poem.", sampling=sampling, max_tokens=24)[0]

    assert story(1) == story(1)
    assert story(-1) == story(-1)  # which is 2**32 - 1, llama.cpp's word for a random one
    assert len({story(1), story(2), story(3)}) == 3
    assert story(None) != story(None)


def test_a_temperature_of_next_to_nothing_is_greedy(engine: Engine) -> None:
    coldest = Sampling(temperature=1e-38, top_k=0, top_p=1.0, min_p=0.0)
    assert (
        ask(engine, "Name a colour.", sampling=coldest, max_tokens=8)[0]
        == ask(engine, "Name a colour.", max_tokens=8)[0]
    )


def test_top_k_of_one_is_greedy(engine: Engine) -> None:
    greedy, _ = ask(engine, "Name a colour.", max_tokens=8)
    assert ask(engine, "Name a colour.", sampling=Sampling(temperature=2, top_k=1, seed=5), max_tokens=8)[0] == greedy


def test_repeat_penalty_stops_a_loop(engine: Engine) -> None:
    def words(penalty: float) -> int:
        sampling = Sampling(temperature=0, repeat_penalty=penalty)
        return len(set(ask(engine, "Say la la la la la.", sampling=sampling, max_tokens=48)[0].split()))

    assert words(1.5) > words(1.0)


def test_a_stop_string_that_straddles_tokens_is_cut_off(engine: Engine) -> None:
    whole, _ = ask(engine, "Count from 1 to 10, separated by commas.", max_tokens=12)
    stop = ", 4, "
    assert stop in whole
    text, generation = ask(engine, "Count from 1 to 10, separated by commas.", max_tokens=12, stop=(stop, "never"))
    assert text == whole.partition(stop)[0]
    assert generation.finish_reason == "stop"


def test_the_end_of_the_answer_is_a_stop(engine: Engine) -> None:
    text, generation = ask(engine, "Say only: yes.", max_tokens=200)
    assert generation.finish_reason == "stop"
    assert generation.completion_tokens < 200
    assert "<|im_end|>" not in text


def test_max_tokens_is_cut_to_the_context(engine: Engine) -> None:
    _, generation = ask(engine, "Repeat the word rain a thousand times.", max_tokens=10_000)
    assert generation.finish_reason in ("length", "stop")
    assert generation.prompt_tokens + generation.completion_tokens <= engine.n_ctx


def test_a_prompt_over_the_context_says_by_how_much(engine: Engine) -> None:
    with pytest.raises(PromptTooLong) as caught:
        ask(engine, "rain " * 600)
    assert "the context is 512 tokens (N_CTX)" in caught.value.message
    assert "more than fit" in caught.value.message


def test_a_prompt_that_is_far_too_long_is_refused_for_its_beginning(engine: Engine) -> None:
    with pytest.raises(PromptTooLong, match=r"has at least \d+ tokens, \d+ more than fit"):
        engine.prompt([{"role": "user", "content": "rain and sun " * 80_000}])
    # White space becomes few tokens: what may fit is looked at whole.
    assert engine.prompt([{"role": "user", "content": " " * engine.n_ctx * 33}]).tokens


def test_a_long_conversation_reuses_what_is_known(engine: Engine) -> None:
    opening = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Tell me a long story about a farm, with many animals and a river. " * 6},
    ]
    from llamafn.deadline import Deadline

    prompt = engine.prompt(opening)
    with engine.generate(prompt, Sampling(temperature=0), max_tokens=8, deadline=Deadline.after(60)) as generation:
        answer = "".join(generation)
    longer = engine.prompt(
        [*opening, {"role": "assistant", "content": answer}, {"role": "user", "content": "And what then?"}]
    )
    with engine.generate(longer, Sampling(temperature=0), max_tokens=1, deadline=Deadline.after(60)) as generation:
        list(generation)
    assert generation.cached_tokens >= len(prompt.tokens)


def test_reading_a_system_prompt_ahead_leaves_the_user_part_to_read(engine: Engine) -> None:
    from llamafn.deadline import Deadline

    system = "You know all about irrigation, soil and weather, and answer in one sentence."
    read = len(engine.read(system, Deadline.after(60)))
    _, generation = ask(engine, "Hello", system=system, max_tokens=1)
    assert generation.cached_tokens == read > 10


def test_special_words_in_the_answer_are_not_text(engine: Engine) -> None:
    assert (
        engine.model.vocabulary.piece(
            engine.model.vocabulary.tokenize("<|im_end|>", add_special=False, parse_special=True)[0]
        )
        == b""
    )


def test_the_bindings_need_neither_numpy_nor_the_package_front_door() -> None:
    code = (
        "import llamafn.engine.engine, sys; "
        "print(sorted({'numpy', 'diskcache', 'llama_cpp.llama', 'typing_extensions'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_ordinary_import_still_works_after_ours() -> None:
    """Falling back: the bindings module, when the front door was opened before.

    The front door imports numpy and diskcache, which ./build does not install: stand-ins, since nothing of theirs runs.
    """
    code = (
        "import sys; from unittest.mock import MagicMock\n"
        "sys.modules.update((name, MagicMock()) for name in ('numpy', 'numpy.typing', 'diskcache'))\n"
        "import llama_cpp, llamafn.engine.bindings as b; assert b.llama is llama_cpp.llama_cpp; print(b.version())"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip()
