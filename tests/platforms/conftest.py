"""A Runtime API, and each of the two clients that a function can have."""

from __future__ import annotations

import pytest

from tests.platforms.functions import STOCK, WRAPPED
from tests.platforms.runtime_api_server import RuntimeAPIServer


@pytest.fixture
def api() -> RuntimeAPIServer:
    return RuntimeAPIServer(snapshot=False)


@pytest.fixture
def snapshot_api() -> RuntimeAPIServer:
    return RuntimeAPIServer(snapshot=True)


@pytest.fixture(params=[STOCK, WRAPPED], ids=["awslambdaric", "ours"])
def command(request: pytest.FixtureRequest) -> tuple[str, ...]:
    chosen: tuple[str, ...] = request.param
    return chosen
