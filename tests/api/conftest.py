from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

import model_loader

if TYPE_CHECKING:
    from llamafn.engine.engine import Engine


@pytest.fixture
def loaded(engine: Engine) -> Iterator[Engine]:
    """The real engine, as `model_loader` has it once it is loaded."""
    load = model_loader._Load()
    load.engine = engine
    load.done.set()
    model_loader._load = load
    yield engine
    assert (engine.answering, engine.queued) == (0, 0), "a turn was not given back"
    model_loader._load = None
