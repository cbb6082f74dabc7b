"""Deadlines, clients that leave, and turns: the engine stops in the middle, and goes on after."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamafn.deadline import Deadline
from llamafn.engine.context import BATCH_TOKENS, Context
from llamafn.engine.engine import Engine
from llamafn.engine.generation import Generation
from llamafn.engine.sampling import Sampler
from llamafn.engine.snapshot import SnapshotStore
from llamafn.engine.turn import Prompt
from llamafn.errors import ClientGone, DeadlinePassed, EngineError, QueueFull
from tests.engines import GREEDY, ask, make_engine
from tests.servers import poll

STORY = "Tell me a very long story."


@pytest.fixture
def wide_engine(model_path: str) -> Iterator[Engine]:
    """A context that takes seconds to fill."""
    engine = make_engine(model_path, n_ctx=4096, max_queue=2)
    yield engine
    engine.close()


def start(engine: Engine, *, deadline: Deadline, is_gone: threading.Event | None = None) -> Generation:
    prompt = engine.prompt([{"role": "user", "content": STORY}])
    return engine.generate(
        prompt, GREEDY, max_tokens=400, deadline=deadline, is_gone=is_gone.is_set if is_gone is not None else None
    )


def test_a_deadline_stops_a_decode_with_what_there_is(engine: Engine) -> None:
    ask(engine, STORY, max_tokens=1)  # so that the next prefill is short on the slowest machine
    text, generation = ask(engine, STORY, max_tokens=450, deadline=Deadline.after(2))
    assert generation.finish_reason == "deadline"
    assert text
    assert 0 < generation.completion_tokens < 450


def test_a_deadline_stops_a_prefill_in_the_middle_of_a_batch(wide_engine: Engine) -> None:
    """Within a part of the time that one batch takes."""
    prompt = wide_engine.prompt([{"role": "user", "content": "rain and sun " * 600}])
    assert len(prompt.tokens) > 3 * BATCH_TOKENS
    one_batch = Prompt(prompt.tokens[:BATCH_TOKENS])
    batch_seconds = _seconds_to_end(wide_engine, one_batch, Deadline.after(120))[0]
    seconds, generation = _seconds_to_end(wide_engine, prompt, Deadline.after(batch_seconds * 0.2))
    assert (generation.finish_reason, generation.completion_tokens) == ("deadline", 0)
    assert seconds < batch_seconds * 0.75
    # The next request works.
    assert ask(wide_engine, "Count from 1 to 10, separated by commas.", max_tokens=12)[0].startswith("1, 2, 3, 4")


def _seconds_to_end(engine: Engine, prompt: Prompt, deadline: Deadline) -> tuple[float, Generation]:
    began = time.monotonic()
    with engine.generate(prompt, GREEDY, max_tokens=1, deadline=deadline) as generation:
        "".join(generation)
    return time.monotonic() - began, generation


def test_what_goes_wrong_with_one_answer_is_no_others(model_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampler that breaks stands for any fault of ours: a real one cannot be had."""
    engine = make_engine(model_path, parallel=2)
    real = Sampler.sample

    def sample(sampler: Sampler, context: Context, row: int) -> int:
        if sampler in broken:
            raise ValueError("broken")
        return real(sampler, context, row)

    monkeypatch.setattr(Sampler, "sample", sample)
    broken: list[Sampler] = []
    with start(engine, deadline=Deadline.after(120)) as good, start(engine, deadline=Deadline.after(120)) as bad:
        pieces, other = iter(good), iter(bad)
        next(pieces)
        next(other)
        assert bad._turn is not None
        broken.append(bad._turn.sampler)
        with pytest.raises(EngineError, match="The engine failed on this request"):
            list(other)
        for _ in zip(pieces, range(5), strict=False):
            pass
    assert good.completion_tokens >= 5
    assert ask(engine, "Say yes.", max_tokens=2)[0]
    engine.close()


def test_a_snapshot_store_that_breaks_does_not_stop_the_engine(
    model_path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The model's file is gone after it was mapped, and its fingerprint can no more be taken."""
    copy = tmp_path / "model.gguf"
    shutil.copyfile(model_path, copy)
    engine = make_engine(str(copy), snapshots=SnapshotStore([str(copy)], 512, [str(tmp_path)]))
    copy.unlink()
    for _ in range(2):
        assert ask(engine, "Say yes.", system="You know all about soil and rain. " * 12, max_tokens=1)[0]
    assert engine.answering == 0
    assert list(tmp_path.iterdir()) == []
    assert "the model's file cannot be read any more" in caplog.text
    engine.close()


def test_a_socket_that_cannot_be_looked_at_is_no_reason_to_stop(engine: Engine) -> None:
    def is_gone() -> bool:
        raise ValueError("non-zero flags not allowed in calls to recv() on this socket")

    prompt = engine.prompt([{"role": "user", "content": "Say yes."}])
    deadline = Deadline.after(120)
    with engine.generate(prompt, GREEDY, max_tokens=2, deadline=deadline, is_gone=is_gone) as generation:
        assert "".join(generation)
    # The watch lives.
    assert ask(engine, STORY, max_tokens=450, deadline=Deadline.after(0.5))[1].finish_reason == "deadline"


def test_a_client_that_leaves_stops_a_prefill(wide_engine: Engine) -> None:
    gone = threading.Event()
    prompt = wide_engine.prompt([{"role": "user", "content": "rain and sun " * 1200}])
    with wide_engine.generate(
        prompt, GREEDY, max_tokens=8, deadline=Deadline.after(120), is_gone=gone.is_set
    ) as generation:
        threading.Timer(0.1, gone.set).start()
        assert "".join(generation) == ""
    assert generation.finish_reason == "cancelled"
    assert ask(wide_engine, "Say yes.", max_tokens=2)[0]


def test_a_client_that_leaves_stops_a_decode(engine: Engine) -> None:
    gone = threading.Event()
    with start(engine, deadline=Deadline.after(120), is_gone=gone) as generation:
        pieces = []
        for piece in generation:
            pieces.append(piece)
            gone.set()
    assert generation.finish_reason == "cancelled"
    assert generation.completion_tokens < 400


def test_an_answer_that_is_closed_gives_its_turn_back(engine: Engine) -> None:
    with start(engine, deadline=Deadline.after(120)) as generation:
        next(iter(generation))
    assert engine.answering == 0
    assert ask(engine, "Say yes.", max_tokens=2)[0]


def test_turns_are_in_order_of_arrival(model_path: str) -> None:
    engine = make_engine(model_path, max_queue=4)
    finished: list[int] = []

    def asking(number: int) -> None:
        ask(engine, STORY, max_tokens=3)
        finished.append(number)

    with start(engine, deadline=Deadline.after(120)) as first:
        next(iter(first))
        threads = []
        for number in range(4):
            threads.append(threading.Thread(target=asking, args=(number,)))
            threads[-1].start()
            poll("it waits in the queue", lambda number=number: engine.queued == number + 1)
    for thread in threads:
        thread.join()
    engine.close()
    assert finished == [0, 1, 2, 3]


def test_a_full_queue_refuses_at_once(engine: Engine) -> None:
    with start(engine, deadline=Deadline.after(120)) as first:
        next(iter(first))
        threads = [threading.Thread(target=ask, args=(engine, STORY), kwargs={"max_tokens": 1}) for _ in range(2)]
        for thread in threads:
            thread.start()
        poll("both wait", lambda: engine.queued == 2)
        with pytest.raises(QueueFull, match="2 requests wait already, and MAX_QUEUE is 2") as caught:
            ask(engine, STORY)
        assert caught.value.headers() == [("Retry-After", "3")]
    for thread in threads:
        thread.join()
    assert engine.queued == engine.answering == 0


def test_the_queue_keeps_to_the_deadline_and_watches_the_client(engine: Engine) -> None:
    with start(engine, deadline=Deadline.after(120)) as first:
        next(iter(first))
        with pytest.raises(DeadlinePassed, match="while the request waited for its turn"):
            ask(engine, STORY, deadline=Deadline.after(0.05))
        gone = threading.Event()
        gone.set()
        with pytest.raises(ClientGone), start(engine, deadline=Deadline.after(120), is_gone=gone) as second:
            next(iter(second))
        assert engine.queued == 0
    assert engine.answering == 0


def test_answers_side_by_side_are_those_of_one_after_the_other(model_path: str) -> None:
    questions = ["Count from 1 to 10, separated by commas.", "Count from 3 to 9, separated by commas."]
    alone = make_engine(model_path)
    expected = [ask(alone, question, max_tokens=10)[0] for question in questions]
    alone.close()
    engine = make_engine(model_path, parallel=2)
    answers: dict[str, str] = {}
    begun = threading.Barrier(2)

    def asking(question: str) -> None:
        begun.wait()
        answers[question] = ask(engine, question, max_tokens=10)[0]

    threads = [threading.Thread(target=asking, args=(question,)) for question in questions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.close()
    assert [answers[question] for question in questions] == expected


def test_side_by_side_a_deadline_ends_only_its_own_answer(model_path: str) -> None:
    engine = make_engine(model_path, parallel=2)
    with start(engine, deadline=Deadline.after(0.5)) as short, start(engine, deadline=Deadline.after(120)) as long:
        reading = threading.Thread(target=lambda: list(short))
        reading.start()
        for _ in zip(long, range(60), strict=False):
            pass
        reading.join()
    engine.close()
    assert short.finish_reason == "deadline"
    assert long.completion_tokens >= 60


def test_the_watch_costs_nothing_while_nobody_asks(engine: Engine) -> None:
    ask(engine, "Say yes.", max_tokens=1)
    before = time.process_time()
    threading.Event().wait(0.3)
    assert time.process_time() - before < 0.2
