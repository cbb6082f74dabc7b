"""Engines on the real model."""

from __future__ import annotations

from llamafn.deadline import Deadline
from llamafn.engine.decoder import Decoder
from llamafn.engine.engine import Engine
from llamafn.engine.generation import Generation
from llamafn.engine.model import Model
from llamafn.engine.sampling import Sampling
from llamafn.engine.snapshot import SnapshotStore
from llamafn.engine.template import ChatTemplate

GREEDY = Sampling(temperature=0)


def make_engine(
    path: str, *, n_ctx: int = 512, parallel: int = 1, max_queue: int = 16, snapshots: SnapshotStore | None = None
) -> Engine:
    """One thread: two that wait for each other at every graph node crawl where other work has a core."""
    return engine_of(Model(path), n_ctx=n_ctx, parallel=parallel, max_queue=max_queue, snapshots=snapshots)


def engine_of(
    model: Model, *, n_ctx: int = 512, parallel: int = 1, max_queue: int = 16, snapshots: SnapshotStore | None = None
) -> Engine:
    vocabulary = model.vocabulary
    template = ChatTemplate(model.metadata("tokenizer.chat_template"), bos=vocabulary.bos, eos=vocabulary.eos)
    decoder = Decoder(model, n_ctx=n_ctx, n_threads=1, parallel=parallel, max_queue=max_queue, snapshots=snapshots)
    return Engine(model, decoder, template)


def ask(
    engine: Engine,
    user: str,
    *,
    system: str = "You are a helpful assistant.",
    sampling: Sampling = GREEDY,
    max_tokens: int = 16,
    stop: tuple[str, ...] = (),
    deadline: Deadline | None = None,
) -> tuple[str, Generation]:
    """The whole answer, and the generation with its figures."""
    prompt = engine.prompt([{"role": "system", "content": system}, {"role": "user", "content": user}])
    deadline = deadline or Deadline.after(120)
    with engine.generate(prompt, sampling, max_tokens=max_tokens, stop=stop, deadline=deadline) as generation:
        return "".join(generation), generation
