"""The models and prompts that every benchmark uses: the same text, the same context, the same number of tokens."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

from benchmarks.qwen_shape import qwen_shape, smollm2

N_CTX = 2048
THREADS = 2
MAX_TOKENS = 32

MODELS = {"smollm2": smollm2, "qwen": qwen_shape}

SHORT_SYSTEM = (
    "You are an adviser to small farms. Answer the farmer's question in one or two short and friendly sentences."
)
USER = "When should I water my tomatoes in a dry summer, and how much does each plant need in a week?"

# About 1,100 tokens once it is repeated, in either tokenizer.
_RULES = """You advise people who farm a few hectares. Be brief, be exact, and never guess.
Rule {n}. Ask for the crop, the soil and the region when they are missing, and say which of them changes the answer
most. When a farmer describes a sick plant, name the two likeliest causes, what tells them apart, and what can be done
today with what is found on a farm. Give amounts per plant and per hectare, temperatures in degrees Celsius and rain in
millimetres. A product that needs a licence is only named together with the licence. If the weather of the coming week
matters, say so, and say what to watch. Prices and dates that you do not know are left out.
"""
LONG_SYSTEM = "".join(_RULES.format(n=n) for n in range(1, 8))


class Workload(NamedTuple):
    name: str
    system: str
    user: str = USER

    def chatml(self) -> str:
        """The prompt as both models' own templates render it, for the peers that have no template."""
        return (
            f"<|im_start|>system\n{self.system}<|im_end|>\n<|im_start|>user\n{self.user}<|im_end|>\n"
            "<|im_start|>assistant\n"
        )


WORKLOADS = {"short": Workload("short", SHORT_SYSTEM), "long": Workload("long", LONG_SYSTEM)}


def add_model_argument(parser: argparse.ArgumentParser, default: str = "qwen") -> None:
    parser.add_argument(
        "--model", default=default, metavar="NAME", help=f"{' or '.join(MODELS)}, or a GGUF's path (default {default})"
    )


def model_path(name: str) -> Path:
    make = MODELS.get(name)
    path = Path(name) if make is None else make()
    if not path.is_file():
        raise SystemExit(f"--model {name}: expected {' or '.join(MODELS)}, or the path of a GGUF.")
    return path
