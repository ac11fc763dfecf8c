"""`bench train`: a step of GPT-2 or a Llama against the machine's GEMM rate and PyTorch.

Each side is a process of its own, and steps alternate (ours, theirs, ours, ...), so that whatever
else the machine does falls on both. The peers are met one after the other: eager PyTorch at
T = 1024 holds more than half of a small machine's memory. Losses must agree, or a speed would
compare different work.
"""

from __future__ import annotations

import importlib.util
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tenarai.errors import TenaraiError
from tenarai.models.gpt2 import GPT2, GPT2Config
from tenarai.models.llama import Llama, LlamaConfig
from tenarai.models.rope import Rope

from .limits import StepLimits, gpt2_products, llama_products
from .peer import Peer, PeerError, busy_seconds

OPTIMISER = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
LOSS_TOLERANCE = 1e-5  # relative; sums in another order differ by some 1e-7
ROUNDED_TOLERANCE = 1e-3  # with saved activations or PyTorch in bfloat16, or products in words
Say = Callable[[str], None]


@dataclass(frozen=True)
class TrainBenchmark:
    """What is measured: a model, its batch, and how often."""

    config: GPT2Config | LlamaConfig
    batch: int = 4  # B
    time: int = 64  # T
    threads: int = 2
    steps: int = 5  # measured, after `warmup` that are not
    warmup: int = 1
    peers: tuple[str, ...] = ()  # of "eager", "compile", "eager-bfloat16", "compile-bfloat16"
    recompute: bool = False
    saved_bfloat16: bool = False
    products: str = "fast"
    isa: str | None = None
    malloc: bool = True  # glibc's settings that PyTorch gains from

    def __post_init__(self) -> None:
        if not 1 <= self.time <= self.config.context:
            raise TenaraiError(
                f"-T {self.time}: the model's context is {self.config.context}: "
                f"take a T from 1 to {self.config.context}"
            )


@dataclass
class Side:
    """One side's measured steps."""

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    cores_of_others: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))


class _Others:
    """How many cores, on average, processes that are not measured keep busy meanwhile."""

    def __init__(self, processes: list[Peer]) -> None:
        self._processes = processes
        self._start, self._before = time.perf_counter(), self._total()

    def _total(self) -> float:
        return busy_seconds() - sum(process.cpu_seconds for process in self._processes)

    def cores(self) -> float:
        return (self._total() - self._before) / (time.perf_counter() - self._start)


def run(benchmark: TrainBenchmark, say: Say = lambda text: None) -> dict[str, Any]:
    """Measures, and returns what `bench train --json` prints. Raises TenaraiError."""
    try:
        with tempfile.TemporaryDirectory(prefix="tenarai-bench-") as folder:
            return _run(benchmark, Path(folder), say)
    except PeerError as error:
        raise TenaraiError(f"the benchmark cannot go on: {error}") from error


def _run(benchmark: TrainBenchmark, folder: Path, say: Say) -> dict[str, Any]:
    config = benchmark.config
    model = Llama(config) if isinstance(config, LlamaConfig) else GPT2(config)
    tokens = benchmark.batch * benchmark.time
    flops = tokens * model.flops_per_token(benchmark.time)
    _write_tokens(benchmark, folder)
    say("GEMM rate of NumPy's BLAS at the step's shapes, first half ...")
    if isinstance(config, LlamaConfig):
        products = llama_products(tokens, config)
    else:
        products = gpt2_products(tokens, config.layers, config.width, config.vocab_size)
    limits = StepLimits(products, benchmark.threads)
    limits.measure()
    ours, result_of_peers = Side(), {}
    if not benchmark.peers:
        _alternate(benchmark, folder, ours, None, say)
    for name in benchmark.peers:
        mine, theirs = Side(), Side()
        try:
            _alternate(benchmark, folder, mine, (name, theirs), say)
            rounded = benchmark.saved_bfloat16 or benchmark.products == "words"
            rounded |= name.endswith("bfloat16")
            tolerance = ROUNDED_TOLERANCE if rounded else LOSS_TOLERANCE
            result_of_peers[name] = _compared(mine, theirs, tokens, flops, tolerance)
        except PeerError as error:
            if not mine.seconds or error.peer == "ours":
                raise
            say(f"{name}: {error}")
            result_of_peers[name] = {"error": str(error)}
        ours.seconds += mine.seconds
        ours.losses = ours.losses or mine.losses
        ours.details = mine.details
        ours.cores_of_others = max(ours.cores_of_others, mine.cores_of_others)
        ours.peak_bytes = max(ours.peak_bytes, mine.peak_bytes)
    say("GEMM rate, second half ...")
    limits.measure()
    return _result(benchmark, model, ours, result_of_peers, limits, flops)


def _write_tokens(benchmark: TrainBenchmark, folder: Path) -> None:
    shape = (benchmark.warmup + benchmark.steps, benchmark.batch, benchmark.time + 1)
    tokens = np.random.default_rng(0).integers(0, benchmark.config.vocab_size, shape)
    np.save(folder / "tokens.npy", tokens.astype(np.int32))


def _alternate(
    benchmark: TrainBenchmark,
    folder: Path,
    mine: Side,
    peer: tuple[str, Side] | None,
    say: Say,
) -> None:
    """Ours, theirs, ours, theirs, ...; the first `warmup` steps of each do not count."""
    common = {
        "threads": benchmark.threads,
        "tokens": str(folder / "tokens.npy"),
        "optimiser": OPTIMISER,
    }
    weights = str(folder / "weights.npz")
    ours = common | {
        "config": asdict(benchmark.config),
        "recompute": benchmark.recompute,
        "saved_bfloat16": benchmark.saved_bfloat16,
        "products": benchmark.products,
        "isa": benchmark.isa,
        "save_weights": weights if peer else None,
    }
    processes: list[tuple[str, Peer, Side]] = []
    try:
        process = Peer("tenarai.bench.ours", benchmark.threads, ours)
        processes.append(("ours", process, mine))
        if peer is not None:
            name, theirs = peer
            configuration = common | {
                "config": _torch_config(benchmark.config),
                "weights": weights,
                "compile": name.startswith("compile"),
                "bfloat16": name.endswith("bfloat16"),
            }
            process = Peer(
                "tenarai.bench.torch_peer",
                benchmark.threads,
                configuration,
                malloc=benchmark.malloc,
            )
            processes.append((name, process, theirs))
        busy = _Others([process for _, process, _ in processes])
        for index in range(benchmark.warmup + benchmark.steps):
            for name, process, side in processes:
                time.sleep(0.05)  # the other's threads fall asleep
                answer = process.ask({"step": index})
                if index >= benchmark.warmup:
                    side.seconds.append(answer["seconds"])
                side.losses.append(answer["loss"])
                side.peak_bytes = max(side.peak_bytes, process.peak_bytes)
                note = "" if index >= benchmark.warmup else " (warm-up)"
                say(f"{name:16} step {index}: {answer['seconds']:.3f} s{note}")
        mine.cores_of_others = busy.cores()
        mine.details = processes[0][1].ask({"step": 0, "where": True})
    finally:
        for _, process, _ in processes:
            process.close()


def _torch_config(config: GPT2Config | LlamaConfig) -> dict[str, Any]:
    if isinstance(config, LlamaConfig):
        if config != _plain_llama(config):
            raise TenaraiError("the PyTorch peer of the Llama family is a plain Llama: --vs none")
        return asdict(config)
    if config.dropout:
        raise TenaraiError("the PyTorch peer has no dropout")
    return {
        "layers": config.layers,
        "heads": config.heads,
        "channels": config.width,
        "bias": config.bias,
        "gelu": config.gelu,
        "context": config.context,
        "vocabulary": config.vocab_size,
    }


def _plain_llama(c: LlamaConfig) -> LlamaConfig:
    """What of c the PyTorch peer computes."""
    return LlamaConfig(
        c.vocab_size, c.context, c.layers, c.heads, c.kv_heads, c.head_size, c.width, c.hidden,
        Rope(c.head_size, c.rope.base), tied=c.tied, norm_eps=c.norm_eps,
    )  # fmt: skip


def _compared(
    mine: Side, theirs: Side, tokens: int, flops: int, tolerance: float
) -> dict[str, Any]:
    """The peer's figures, and ours over its in the same rounds."""
    difference = max(abs(a - b) / abs(b) for a, b in zip(mine.losses, theirs.losses, strict=True))
    if not difference < tolerance:
        raise TenaraiError(
            f"the losses differ by {difference:.1e} relative (ours {mine.losses}, PyTorch's "
            f"{theirs.losses}): the two sides did not do the same work, so no speed is told"
        )
    return {
        "seconds": theirs.median,
        "all_seconds": theirs.seconds,
        "tokens_per_s": tokens / theirs.median,
        "gflops": flops / theirs.median / 1e9,
        "peak_bytes": theirs.peak_bytes,
        "losses": theirs.losses,
        "loss_difference": difference,
        "speedup": theirs.median / mine.median,
        "speedup_of_best": min(theirs.seconds) / min(mine.seconds),
    }


def _result(
    benchmark: TrainBenchmark,
    model: GPT2 | Llama,
    ours: Side,
    peers: dict[str, dict[str, Any]],
    limits: StepLimits,
    flops: int,
) -> dict[str, Any]:
    limit = limits.report()
    gflops = flops / ours.median / 1e9
    return {
        "benchmark": "train",
        "machine": machine(),
        "model": "Llama" if isinstance(model, Llama) else "GPT-2",
        "config": asdict(benchmark.config),
        "parameters": sum(param.size for param in model.table()),
        "batch": benchmark.batch,
        "time": benchmark.time,
        "threads": benchmark.threads,
        "steps": benchmark.steps,
        "products": benchmark.products,
        "gflop_per_step": flops / 1e9,
        "seconds": ours.median,
        "all_seconds": ours.seconds,
        "tokens_per_s": benchmark.batch * benchmark.time / ours.median,
        "gflops": gflops,
        "fraction_of_limit": gflops / limit["gemm_gflops"],
        "peak_bytes": ours.peak_bytes,
        "losses": ours.losses,
        **ours.details,
        "cores_of_others": ours.cores_of_others,
        "speedup_vs_eager": peers.get("eager", {}).get("speedup"),
        "speedup_vs_compile": peers.get("compile", {}).get("speedup"),
        "limit": limit,
        "peers": peers,
    }


def machine() -> dict[str, str]:
    """What was measured on: the CPU's name, Python, NumPy, and PyTorch where it is installed."""
    name = platform.processor()
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
        name = next(
            line.split(":", 1)[1].strip()
            for line in text.splitlines()
            if line.startswith("model name")
        )
    except (OSError, StopIteration):
        pass
    versions = {"cpu": name, "python": platform.python_version(), "numpy": np.__version__}
    if torch_is_installed():
        from importlib.metadata import version

        versions["torch"] = version("torch")
    return versions


def torch_is_installed() -> bool:
    return importlib.util.find_spec("torch") is not None


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [
        f"{result['model']}, {result['parameters'] / 1e6:.1f} M parameters, B = {result['batch']}, "
        f"T = {result['time']}, {result['threads']} threads: {result['gflop_per_step']:.1f} GFLOP "
        f"a step; our products: {result['products']}, PyTorch's: float32 where not told",
        "",
        f"{'':16}{'s/step':>9}{'tokens/s':>11}{'GFLOP/s':>10}{'peak MB':>10}{'ours is':>10}",
    ]
    for name, side in [("tenarai", result), *result["peers"].items()]:
        if "error" in side:
            lines.append(f"{name:16}{side['error']}")
            continue
        times = f"{side['speedup']:.2f}x" if "speedup" in side else ""
        lines.append(
            f"{name:16}{side['seconds']:9.3f}{side['tokens_per_s']:11.1f}{side['gflops']:10.1f}"
            f"{side['peak_bytes'] / 1e6:10.0f}{times:>10}"
        )
    limit = result["limit"]
    lines += [
        "",
        f"limit: NumPy's BLAS at these shapes {limit['gemm_gflops']:.1f} GFLOP/s (best), reading "
        f"memory {limit['read_gb_per_s']:.1f} GB/s. The step is at "
        f"{100 * result['fraction_of_limit']:.1f} % of the GEMM rate.",
        f"{result['isa']}, {result['activation_bytes'] / 1e6:.0f} MB of activations. One step's "
        "milliseconds by op:",
    ]
    others = result["cores_of_others"]
    if others > 0.1:
        lines.insert(-1, f"Other processes kept {others:.1f} cores busy: measure again at rest.")
    parts = sorted(result["where"].items(), key=lambda item: -item[1])
    lines += [f"{1e3 * seconds:10.2f}  {name}" for name, seconds in parts]
    return "\n".join(lines)
