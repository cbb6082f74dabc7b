"""llama.cpp loads a real model while its tensors are still arriving, and then says what it says of a local file."""

from __future__ import annotations

import os

import pytest

from llamafn.engine.model import Model
from llamafn.fetch.gguf import check_whole_gguf
from tests.engines import ask, engine_of, make_engine
from tests.fetch.conftest import Open, soon
from tests.fetch.server import ScriptedServer


@pytest.mark.parametrize("in_memory", ["0", "1"])
def test_it_is_loaded_before_it_is_whole(in_memory: str, server: ScriptedServer, open_: Open, model_path: str) -> None:
    with open(model_path, "rb") as file:
        body = file.read()
    start = check_whole_gguf(model_path).data_start
    server.rate = 10e6
    fetched = open_(server.put("/model.gguf", body), MODEL_IN_MEMORY=in_memory)
    fetched.wait_loadable(soon())
    before = fetched.progress()

    early = engine_of(Model(*fetched.paths))

    assert start <= before.done < os.path.getsize(model_path)
    server.rate = None
    fetched.wait_whole(soon(60))
    local = make_engine(model_path)
    assert ask(early, "Say yes.", max_tokens=4)[0] == ask(local, "Say yes.", max_tokens=4)[0]
    early.close()
    local.close()
