"""Import this before `Llama` is used: tensors are then not repacked, as with llama-server's `--no-repack`.

`Llama` has no parameter for it. Its load is sooner so, and on CPUs with AMX this llama.cpp dies of a segmentation fault
when it decodes with repacked tensors.
"""

from __future__ import annotations

from typing import Any

from llama_cpp import llama_cpp

_default_params = llama_cpp.llama_model_default_params


def _not_repacked() -> Any:
    parameters = _default_params()
    parameters.use_extra_bufts = False
    return parameters


llama_cpp.llama_model_default_params = _not_repacked
