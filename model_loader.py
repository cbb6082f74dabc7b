"""The model: fetched and loaded once per process, on first need.

`get_model` is all that a request needs. Loading runs in a thread of its own, so that a request whose time runs out can
say so while the loading goes on for the next one; a load that failed is tried again by the next request.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from llamafn import fetch
from llamafn.deadline import Deadline
from llamafn.errors import HTTPError, ModelUnavailable
from llamafn.settings import SNAPSHOT_DIRECTORY, Settings
from llamafn.timeline import COLD_START

if TYPE_CHECKING:
    from llamafn.engine.engine import Engine
    from llamafn.engine.model import Model
    from llamafn.fetch import ModelFile
    from llamafn.fetch.bucket import Bucket

# Those that a zip, a package or an image brings along.
SHIPPED_SNAPSHOTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "snapshots")

log = logging.getLogger("llamafn")

_IMPORTS_NAME = "llamafn-imports"


class _Load:
    """One attempt: under way until `done` is set, then with an engine or an error."""

    __slots__ = ("done", "engine", "error", "model_file")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.engine: Engine | None = None
        self.error: HTTPError | None = None
        self.model_file: ModelFile | None = None


_lock = threading.Lock()
_load: _Load | None = None
# Weights that a master process mapped before it forked. They may go through a fork; contexts and threads may not.
_inherited: Model | None = None


def get_model(settings: Settings, deadline: Deadline) -> Engine:
    """The engine, loaded if it is not yet.

    Raises:
        ModelUnavailable: the model cannot be had; the next call tries again.
        DeadlinePassed: not in time; the loading goes on.
    """
    load = _start(settings)
    if not load.done.is_set():
        load.done.wait(min(max(0.0, deadline.remaining()), threading.TIMEOUT_MAX))
    if load.error is not None:
        # A new exception for each caller: one that is raised in several threads collects all their tracebacks.
        raise type(load.error)(load.error.message, hint=load.error.hint, retry_after=load.error.retry_after)
    if load.engine is None:
        deadline.check("the model was loading")
        raise ModelUnavailable("The model is loading.", hint="Try again in a moment.", retry_after=1)
    return load.engine


def wait(settings: Settings, seconds: float) -> bool:
    """Begin to load if need be, and wait for at most so long. Whether `get_model` has its answer ready."""
    return _start(settings).done.wait(max(0.0, seconds))


def start_loading(settings: Settings) -> None:
    """Begin to load in the background, unless that is under way or done. Only where the CPU runs between requests."""
    _start(settings)


def preload(settings: Settings) -> None:
    """Map the weights, for the processes that will be forked from this one. Leaves no thread behind.

    Only if the model is on this machine: a download would keep the forked ones from answering the platform's probes.

    Raises:
        ModelUnavailable: the model cannot be had.
    """
    global _inherited
    if not fetch.is_here(settings):
        return
    _inherited, model_file = _map_weights(settings)
    model_file.wait_whole(Deadline.never())
    from llamafn.engine.pages import READER_NAME

    _ = _inherited.vocabulary  # waits for it
    for thread in threading.enumerate():
        if thread.name in (READER_NAME, _IMPORTS_NAME):
            thread.join()


def loaded() -> Engine | None:
    """The engine if it is ready; never waits, never loads."""
    load = _load
    return None if load is None else load.engine


def state() -> dict[str, Any]:
    """`state`: "cold", "loading", "ready" or "failed"; then what the model is, or why it failed."""
    load = _load
    if load is None:
        return {"state": "cold"}
    if load.error is not None:
        return {"state": "failed", **load.error.to_json()}
    engine = load.engine
    if engine is None:
        return _progress(load)
    return {
        "state": "ready",
        "description": engine.model.description,
        "answering": engine.answering,
        "queued": engine.queued,
    }


def fetched_bytes() -> int:
    """Of the model, that this process had to fetch."""
    load = _load
    progress = None if load is None or load.model_file is None else load.model_file.progress()
    return 0 if progress is None or progress.rate is None else progress.done


def _start(settings: Settings) -> _Load:
    global _load
    load = _load
    if load is not None and load.error is None:
        return load
    with _lock:
        if _load is None or _load.error is not None:
            _load = _Load()
            threading.Thread(target=_run, args=(_load, settings), name="llamafn-load", daemon=True).start()
        return _load


def _run(load: _Load, settings: Settings) -> None:
    try:
        load.engine = _make_engine(load, settings)
    except HTTPError as error:
        load.error = error
        log.error("The model cannot be loaded: %s %s", error.message, error.hint or "")
    except Exception as error:
        load.error = ModelUnavailable("The model cannot be loaded; the log says why.")
        log.error("The model cannot be loaded.", exc_info=error)
    finally:
        load.done.set()


def _progress(load: _Load) -> dict[str, Any]:
    """How far the fetching is; the seconds after it count as loading."""
    progress = None if load.model_file is None else load.model_file.progress()
    if progress is None or progress.is_complete:
        return {"state": "loading"}
    return {
        "state": "fetching",
        "bytes": progress.done,
        "total": progress.total,
        "bytes_per_second": None if progress.rate is None else round(progress.rate),
        "seconds_left": None if progress.seconds_left is None else round(progress.seconds_left, 1),
    }


def _make_engine(load: _Load, settings: Settings) -> Engine:
    if _inherited is None:
        model, load.model_file = _map_weights(settings, load)
    else:
        model = _inherited
    engine: Engine | None = None
    try:
        try:
            engine = _engine_on(model, settings)
        except ModelUnavailable:
            if load.model_file is not None:
                load.model_file.wait_whole(Deadline.never())  # knows better what is wrong with what it fetched
            raise
        if load.model_file is not None:
            # Nothing may be decoded before the last byte is there and is right.
            load.model_file.wait_whole(Deadline.never())
            COLD_START.end("fetch")
        return engine
    except BaseException:
        if engine is not None:
            engine.close()
        if model is not _inherited:
            model.close()
        raise


def _engine_on(model: Model, settings: Settings) -> Engine:
    with COLD_START.phase("context"):
        from llamafn.engine.decoder import Decoder
        from llamafn.engine.snapshot import SnapshotStore

        decoder = Decoder(
            model,
            n_ctx=settings.n_ctx,
            n_threads=settings.n_threads,
            parallel=settings.parallel,
            max_queue=settings.max_queue,
            snapshots=SnapshotStore(
                model.paths,
                settings.n_ctx,
                _snapshot_directories(settings),
                settings.parallel,
                _snapshot_bucket(settings),
            ),
        )
    try:
        with COLD_START.phase("template"):
            from llamafn.engine.engine import Engine
            from llamafn.engine.template import ChatTemplate

            source, vocabulary = model.metadata("tokenizer.chat_template"), model.vocabulary
            return Engine(model, decoder, ChatTemplate(source, bos=vocabulary.bos, eos=vocabulary.eos))
    except BaseException:
        decoder.close()
        raise


def _map_weights(settings: Settings, load: _Load | None = None) -> tuple[Model, ModelFile]:
    """The weights, as soon as they can be mapped: the rest of the file may still be on its way."""
    began = time.monotonic()
    model_file = fetch.open_model(settings, Deadline.never())
    if load is not None:
        load.model_file = model_file  # for /health
    with COLD_START.phase("bindings"):
        from llamafn.engine.model import Model
        from llamafn.engine.pages import read_ahead
    COLD_START.record("fetch", began, None)
    model_file.wait_loadable(Deadline.never())
    if model_file.progress().is_complete:
        COLD_START.end("fetch")
        for path in model_file.paths:
            read_ahead(path)
    # What else is needed, Jinja2 above all, is imported while llama.cpp maps the weights and leaves the GIL alone.
    threading.Thread(target=_import_engine, name=_IMPORTS_NAME).start()
    try:
        with COLD_START.phase("load"):
            return Model(*model_file.paths), model_file
    except ModelUnavailable:
        model_file.wait_whole(Deadline.never())  # knows better what is wrong with a file that it fetched
        raise


def _import_engine() -> None:
    for module in ("llamafn.engine.template", "llamafn.engine.engine"):
        importlib.import_module(module)


def _snapshot_directories(settings: Settings) -> list[str]:
    """Where snapshots are looked for; the first that can be written to is where they are kept."""
    beside = os.path.dirname(os.path.abspath(fetch.place_of(settings)))
    if settings.snapshot_dir is not None:
        return [settings.snapshot_dir, beside, SHIPPED_SNAPSHOTS]
    temporary = [] if _belongs_to_another_user(SNAPSHOT_DIRECTORY) else [SNAPSHOT_DIRECTORY]
    # A Python package's directory is not ours to write to.
    kept = [*temporary, beside] if settings.model.startswith("package://") else [beside, *temporary]
    return [*kept, SHIPPED_SNAPSHOTS]


def _snapshot_bucket(settings: Settings) -> Bucket | None:
    if settings.snapshot_uri is None:
        return None
    from llamafn.fetch.bucket import Bucket

    return Bucket(settings.snapshot_uri, settings)


def _belongs_to_another_user(path: str) -> bool:
    """Anybody may make a directory in /tmp; what lies in somebody else's is not to be trusted."""
    try:
        return os.stat(path).st_uid != os.geteuid()
    except FileNotFoundError:
        return False


def _after_fork() -> None:
    """In the child: threads of the parent are not here, and nobody will finish what they began."""
    global _lock, _load
    _lock = threading.Lock()
    _load = None


os.register_at_fork(after_in_child=_after_fork)
