"""One client fetches one file, in a process of its own: `python -m benchmarks.fetch_clients CLIENT URL TARGET`.

Prints moments on the monotonic clock, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

_kept: list[Any] = []  # callbacks that llama.cpp goes on calling


def llamafn_hf(url: str, target: str) -> dict[str, float]:
    return _llamafn({"MODEL": "hf://owner/repo/model.gguf", "HF_ENDPOINT": url}, target)


def llamafn_s3(url: str, target: str) -> dict[str, float]:
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    return _llamafn({"MODEL": "s3://bucket/model.gguf", "S3_ENDPOINT_URL": url, **keys}, target)


def _llamafn(environ: dict[str, str], target: str) -> dict[str, float]:
    from llamafn.deadline import Deadline
    from llamafn.fetch import open_model
    from llamafn.settings import Settings

    model = open_model(Settings.from_env(environ | {"LOCAL_MODEL_PATH": target}), Deadline.never())
    model.wait_loadable(Deadline.never())
    moments = {"loadable": time.monotonic()}
    model.wait_whole(Deadline.never())
    moments["whole"] = time.monotonic()
    model.wait_kept(Deadline.never())
    model.close()
    return moments


def huggingface_hub(url: str, target: str) -> dict[str, float]:
    os.environ.update(HF_ENDPOINT=url, HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
    from huggingface_hub import hf_hub_download

    hf_hub_download("owner/repo", "model.gguf", local_dir=os.path.dirname(target))
    return {"whole": time.monotonic()}


def boto3_download_file(url: str, target: str) -> dict[str, float]:
    import boto3
    from boto3.s3.transfer import TransferConfig

    client = boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    client.download_file("bucket", "model.gguf", target, Config=TransferConfig(max_concurrency=8))
    return {"whole": time.monotonic()}


def first_token(url: str, target: str) -> dict[str, float]:
    """Fetch, load beside it, decode: as a cold function does. An empty URL takes `target` as a local model."""
    from llamafn.deadline import Deadline
    from llamafn.fetch import open_model
    from llamafn.settings import Settings

    environ = {"MODEL": "hf://owner/repo/model.gguf", "HF_ENDPOINT": url or "http://localhost"}
    opened = open_model(Settings.from_env(environ | {"LOCAL_MODEL_PATH": target}), Deadline.never())
    engine = _bindings()
    opened.wait_loadable(Deadline.never())
    moments = {"loadable": time.monotonic()}
    model_parameters = engine.llama_model_default_params()
    model_parameters.load_mode = 1  # map
    model_parameters.use_extra_bufts = False
    model = engine.llama_model_load_from_file(opened.paths[0].encode(), model_parameters)
    parameters = engine.llama_context_default_params()
    parameters.n_ctx, parameters.n_threads, parameters.n_threads_batch = 2048, 2, 2
    context = engine.llama_init_from_model(model, parameters)
    text = b"You are a farm adviser. When should maize be watered, and how much? " * 4
    tokens = (engine.llama_token * 512)()
    vocabulary = engine.llama_model_get_vocab(model)
    count = engine.llama_tokenize(vocabulary, text, len(text), tokens, 512, True, True)
    moments["loaded"] = time.monotonic()
    opened.wait_whole(Deadline.never())
    moments["whole"] = time.monotonic()
    engine.llama_decode(context, engine.llama_batch_get_one(tokens, count))
    engine.llama_sampler_sample(engine.llama_sampler_init_greedy(), context, -1)
    moments["token"] = time.monotonic()
    opened.close()
    return moments


def _bindings() -> Any:
    """llama_cpp.llama_cpp without the package's front door."""
    import ctypes
    import importlib.util
    import types

    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None
    package = types.ModuleType("llama_cpp")
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules["llama_cpp"] = package
    from llama_cpp import llama_cpp as engine

    quiet = engine.llama_log_callback(lambda level, text, data: None)
    _kept.append(quiet)
    engine.llama_log_set(quiet, ctypes.c_void_p(0))
    return engine


CLIENTS: dict[str, Callable[[str, str], dict[str, float]]] = {
    client.__name__: client for client in (llamafn_hf, llamafn_s3, huggingface_hub, boto3_download_file, first_token)
}

if __name__ == "__main__":
    print(json.dumps(CLIENTS[sys.argv[1]](sys.argv[2], sys.argv[3])))
