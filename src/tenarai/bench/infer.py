"""`bench infer`: reading a prompt and writing tokens, against the memory's bandwidth and llama.cpp.

Each side is a process of its own and they take turns. llama.cpp is met with both of its weight
layouts (repacked at load, or as they lie in the file), and the better one counts for each figure.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tenarai.errors import TenaraiError
from tenarai.io import gguf

from .limits import read_bandwidth_alone
from .peer import Peer, PeerError
from .train import machine

Say = Callable[[str], None]


@dataclass(frozen=True)
class InferBenchmark:
    path: str
    prompt: int = 512
    generate: int = 64
    sequences: int = 1
    threads: int = 2
    rounds: int = 3
    activations: str = "bytes"
    llama_cpp: bool = False


@dataclass
class Side:
    """Seconds of each round."""

    prompt: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    load: float = 0.0
    peak_bytes: int = 0
    tokens: list[int] = field(default_factory=list)

    def rates(self, benchmark: InferBenchmark) -> dict[str, Any]:
        n = benchmark.sequences
        return {
            "prompt_tokens_per_s": n * benchmark.prompt / float(np.median(self.prompt)),
            "decode_tokens_per_s": n * benchmark.generate / float(np.median(self.decode)),
            "load_s": self.load,
            "peak_bytes": self.peak_bytes,
        }


def run(benchmark: InferBenchmark, say: Say = lambda text: None) -> dict[str, Any]:
    """Measures, and returns what `bench infer --json` prints. Raises TenaraiError."""
    if benchmark.llama_cpp and importlib.util.find_spec("llama_cpp") is None:
        raise TenaraiError(
            "--vs llama-cpp: it is not installed here: pip install llama-cpp-python (it is "
            "compiled, some minutes), or --vs none"
        )
    try:
        return _run(benchmark, say)
    except PeerError as error:
        raise TenaraiError(f"the benchmark cannot go on: {error}") from error


def bytes_a_token(path: str) -> int:
    """Bytes of weights that are read for a token: all matrices, but of the embedding only where it
    is the output as well. The keys and values of past tokens are not counted."""
    tensors = gguf.read(Path(path)).tensors
    untied = "output.weight" in tensors
    return sum(
        t.nbytes for name, t in tensors.items() if not (untied and name == "token_embd.weight")
    )


def _run(benchmark: InferBenchmark, say: Say) -> dict[str, Any]:
    weight_bytes = bytes_a_token(benchmark.path)
    context = benchmark.prompt + benchmark.generate + 8
    common = {
        "path": benchmark.path,
        "threads": benchmark.threads,
        "context": context,
        "sequences": benchmark.sequences,
    }
    say("reading memory ...")
    bandwidth = [read_bandwidth_alone(benchmark.threads)]
    sides: dict[str, tuple[str, dict[str, Any]]] = {
        "tenarai": ("tenarai.bench.infer_ours", {"activations": benchmark.activations})
    }
    if benchmark.llama_cpp:
        peer = "tenarai.bench.llama_cpp_peer"
        sides["llama.cpp"] = (peer, {"repack": False})
        sides["llama.cpp repacked"] = (peer, {"repack": True})
    measured = {name: Side() for name in sides}
    _measure(benchmark, common, sides, measured, say)
    bandwidth.append(read_bandwidth_alone(benchmark.threads))
    return _result(benchmark, measured, weight_bytes, max(bandwidth))


def _measure(
    benchmark: InferBenchmark,
    common: dict[str, Any],
    sides: dict[str, tuple[str, dict[str, Any]]],
    measured: dict[str, Side],
    say: Say,
) -> None:
    random = np.random.default_rng(0)
    ask = {
        "prompt": random.integers(100, 20_000, benchmark.prompt).tolist(),
        "generate": benchmark.generate,
        "sequences": benchmark.sequences,
    }
    processes: dict[str, Peer] = {}
    try:
        for name, (module, settings) in sides.items():
            processes[name] = Peer(module, benchmark.threads, common | settings, malloc=False)
        for index in range(1 + benchmark.rounds):
            for name, process in processes.items():
                time.sleep(0.05)  # the other's threads fall asleep
                answer = process.ask(ask)
                side = measured[name]
                side.load, side.peak_bytes = answer["load"], process.peak_bytes
                side.tokens = answer["tokens"]
                if index:
                    side.prompt.append(answer["prompt"])
                    side.decode.append(answer["decode"])
                say(
                    f"{name:20} round {index}: prompt {answer['prompt']:.3f} s, "
                    f"decode {answer['decode']:.3f} s" + ("" if index else " (warm-up)")
                )
    finally:
        for process in processes.values():
            process.close()


def _result(
    benchmark: InferBenchmark, measured: dict[str, Side], weight_bytes: int, bandwidth: float
) -> dict[str, Any]:
    rates = {name: side.rates(benchmark) for name, side in measured.items()}
    ours = rates.pop("tenarai")
    limit = 1e9 * bandwidth / weight_bytes
    best = {
        key: max((r[key] for r in rates.values()), default=None)
        for key in ("prompt_tokens_per_s", "decode_tokens_per_s")
    }

    def speedup(key: str) -> float | None:
        return ours[key] / best[key] if best[key] else None

    return {
        "benchmark": "infer",
        "machine": machine(),
        "model": Path(benchmark.path).name,
        "prompt": benchmark.prompt,
        "generate": benchmark.generate,
        "sequences": benchmark.sequences,
        "threads": benchmark.threads,
        "activations": benchmark.activations,
        **ours,
        "weight_bytes": weight_bytes,
        "read_gb_per_s": bandwidth,
        "decode_limit_tokens_per_s": limit,
        "fraction_of_limit": ours["decode_tokens_per_s"] / limit / benchmark.sequences,
        "speedup_prompt": speedup("prompt_tokens_per_s"),
        "speedup_decode": speedup("decode_tokens_per_s"),
        "peers": rates,
    }


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [
        f"{result['model']}: prompt of {result['prompt']}, {result['generate']} tokens written, "
        f"{result['sequences']} sequence(s), {result['threads']} threads",
        "",
        f"{'tokens/s':20}{'prompt':>10}{'writing':>10}{'load s':>9}{'peak MB':>9}",
    ]
    for name, side in [("tenarai", result), *result["peers"].items()]:
        lines.append(
            f"{name:20}{side['prompt_tokens_per_s']:10.1f}{side['decode_tokens_per_s']:10.1f}"
            f"{side['load_s']:9.2f}{side['peak_bytes'] / 1e6:9.0f}"
        )
    lines += [
        "",
        f"limit of writing: {result['weight_bytes'] / 1e6:.0f} MB a token at "
        f"{result['read_gb_per_s']:.1f} GB/s: {result['decode_limit_tokens_per_s']:.1f} tokens/s a "
        f"sequence; we are at {100 * result['fraction_of_limit']:.0f} % of it",
    ]
    if result["speedup_prompt"]:
        lines.append(
            f"of the better llama.cpp: prompt {result['speedup_prompt']:.2f}x, writing "
            f"{result['speedup_decode']:.2f}x"
        )
    return "\n".join(lines)
