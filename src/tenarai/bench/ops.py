"""`bench ops`: each op of the kernels, forward and backward, at GPT-2 124M's shapes.

Beside it stand PyTorch's time for the same work and a limit: NumPy's GEMM rate for what
multiplies matrices, the bandwidth of reading memory for what only moves numbers (an op whose
arrays fit in the caches may exceed that one). The measured calls are in `ops_ours.py` and
`ops_torch.py`, each run in a process of its own; rounds alternate, and the best time counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from tenarai.errors import TenaraiError

from .limits import BANDWIDTH_BYTES, Product
from .peer import Peer, PeerError

C, H, D, V = 768, 12, 64, 50257
ROUNDS = 2
SECONDS = 0.25  # of calls, at least, per op, direction, side and round


@dataclass(frozen=True)
class Case:
    """One op at one shape. `work` counts floating-point operations where `unit` is GFLOP/s, and
    bytes that must move where it is GB/s; forward, then backward (0: it has none)."""

    op: str
    shape: dict[str, int]
    work: tuple[int, int]
    unit: str
    product: Product | None = None

    @property
    def name(self) -> str:
        return self.op + " " + " ".join(f"{k}={v}" for k, v in self.shape.items())


def linear(op: str, rows: int, inputs: int, outputs: int) -> Case:
    product = Product(op, 1, rows, inputs, outputs)
    shape = {"M": rows, "I": inputs, "O": outputs}
    return Case(op, shape, (product.flops, 2 * product.flops), "GFLOP/s", product)


def attention(batch: int, length: int, heads: int = H, size: int = D) -> Case:
    """Two products forward and five backward (one recomputes the scores), half of each masked."""
    one = batch * heads * length * length * size
    shape = {"B": batch, "T": length, "H": heads, "D": size}
    return Case("attention", shape, (2 * one, 5 * one), "GFLOP/s")


def linear_attention(op: str, batch: int, length: int) -> Case:
    """The products of chunks of 64 tokens, of pairs half masked: with the state (D, D) 2 forward
    and 4 backward, of pairs 2 and 6; the delta rule 3 and 7, and 4 and 12 (two of them solves)."""
    pair, state = batch * H * length * 64 * D, 2 * batch * H * length * D * D
    shape = {"B": batch, "T": length, "H": H, "D": D}
    a, b, c, d = (2, 2, 6, 4) if op == "gated_linear_attention" else (4, 3, 12, 7)
    return Case(op, shape, (a * pair + b * state, c * pair + d * state), "GFLOP/s")


def loss(rows: int) -> Case:
    """Output projection and cross-entropy with all gradients: three products, taken as one."""
    product = Product("loss", 1, rows, C, V)
    shape = {"M": rows, "I": C, "O": V}
    return Case("linear_cross_entropy", shape, (3 * product.flops, 0), "GFLOP/s", product)


def moving(op: str, shape: dict[str, int], forward: int, backward: int) -> Case:
    """An op that reads and writes so many float32 an element."""
    elements = shape["M"] * shape.get("C", 1)
    return Case(op, shape, (4 * forward * elements, 4 * backward * elements), "GB/s")


def cases() -> list[Case]:
    """GPT-2's ops over 256 and 4,096 rows (4 sequences of 64 and of 1,024); attention at
    longer texts and another head size."""
    found: list[Case] = []
    for batch, length in ((4, 64), (4, 1024)):
        rows = batch * length
        found += [
            linear("linear", rows, C, 3 * C),
            linear("linear", rows, C, C),
            linear("linear", rows, C, 4 * C),
            linear("gelu_linear", rows, 4 * C, C),
            attention(batch, length),
            moving("layer_norm", {"M": rows, "C": C}, 2, 3),
            moving("gelu", {"M": rows, "C": 4 * C}, 2, 3),
            loss(rows),
        ]
    found += [attention(1, length, 4, size) for length in (1024, 4096) for size in (64, 96)]
    found += [linear_attention(op, 4, 1024) for op in ("gated_linear_attention", "delta_rule")]
    found.append(moving("adamw", {"M": 1 << 25}, 7, 0))
    return found


def run(
    threads: int,
    only: str = "",
    *,
    torch: bool = False,
    products: str = "fast",
    isa: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measures the cases whose names contain `only`; returns what `bench ops --json` prints."""
    chosen = [case for case in cases() if only in case.name]
    if not chosen:
        names = ", ".join(sorted({case.op for case in cases()}))
        raise TenaraiError(f"--only {only}: no op's name contains it: there are {names}")
    try:
        with ExitStack() as stack:
            ours = {"threads": threads, "products": products, "isa": isa}
            sides: dict[str, tuple[str, dict[str, Any]]] = {"ours": ("ours", ours)}
            if torch:
                sides["torch"] = ("torch", {"threads": threads})
            peers = {
                name: stack.enter_context(Peer(f"tenarai.bench.ops_{module}", threads, settings))
                for name, (module, settings) in sides.items()
            }
            peers["limit"] = stack.enter_context(Peer("tenarai.bench.limits", threads, {}))
            bandwidth = peers["limit"].ask({"bandwidth": BANDWIDTH_BYTES})["bandwidth"]
            rows = []
            for case in chosen:
                say(case.name)
                rows.append(_measure(case, peers, bandwidth))
    except PeerError as error:
        raise TenaraiError(f"the benchmark cannot go on: {error}") from error
    from .train import machine

    return {
        "benchmark": "ops",
        "machine": machine(),
        "threads": threads,
        "products": products,
        "read_gb_per_s": bandwidth,
        "ops": rows,
    }


def _measure(case: Case, peers: dict[str, Peer], bandwidth: float) -> dict[str, Any]:
    """Best seconds over rounds in which the sides take turns, as rates and fractions."""
    best: dict[str, dict[str, float]] = {}
    request = {"op": case.op, "shape": case.shape, "seconds": SECONDS}
    limit_request = {"product": asdict(case.product), "repeats": 10} if case.product else None
    for _ in range(ROUNDS):
        for name, peer in peers.items():
            if name == "limit" and limit_request is None:
                continue
            time.sleep(0.15)  # BLAS's threads spin for a tenth of a second
            answer = peer.ask(limit_request if name == "limit" and limit_request else request)
            if name == "limit":
                answer = _limit_seconds(case, answer)
            known = best.setdefault(name, answer)
            best[name] = {kind: min(known[kind], answer[kind]) for kind in answer}
    row: dict[str, Any] = {"op": case.op, "shape": case.shape, "unit": case.unit}
    for kind, work in zip(("forward", "backward"), case.work, strict=True):
        if work:
            row[kind] = _direction(kind, work, best, None if case.unit != "GB/s" else bandwidth)
    return row


def _limit_seconds(case: Case, answer: dict[str, Any]) -> dict[str, float]:
    """NumPy's best times for the products that the op's two directions contain."""
    times = {kind: answer[kind]["best"] for kind in ("forward", "dx", "dw")}
    backward = times["dx"] + times["dw"]
    if case.op == "linear_cross_entropy":
        return {"forward": times["forward"] + backward, "backward": 0.0}
    return {"forward": times["forward"], "backward": backward}


def _direction(
    kind: str, work: int, best: dict[str, dict[str, float]], bandwidth: float | None
) -> dict[str, Any]:
    seconds = best["ours"][kind]
    rate = work / seconds / 1e9
    limit = bandwidth
    if limit is None and "limit" in best:
        limit = work / best["limit"][kind] / 1e9
    found: dict[str, Any] = {"seconds": seconds, "rate": rate, "limit": limit}
    found["fraction_of_limit"] = rate / limit if limit else None
    if "torch" in best:
        found["torch_seconds"] = best["torch"][kind]
        found["torch_rate"] = work / best["torch"][kind] / 1e9
        found["speedup"] = best["torch"][kind] / seconds
    return found


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [
        f"{result['threads']} threads; our products: {result['products']}; memory read at "
        f"{result['read_gb_per_s']:.1f} GB/s",
        "",
        f"{'op':46}{'':9}{'ms':>9}{'rate':>8} {'':8}{'of limit':>9}{'PyTorch':>9}{'ours is':>9}",
    ]
    for row in result["ops"]:
        shape = " ".join(f"{k}={v}" for k, v in row["shape"].items())
        for kind in ("forward", "backward"):
            if kind not in row:
                continue
            d = row[kind]
            part = f"{100 * d['fraction_of_limit']:.0f} %" if d["fraction_of_limit"] else ""
            theirs = f"{d['torch_rate']:.1f}" if "torch_rate" in d else ""
            speedup = f"{d['speedup']:.2f}x" if "speedup" in d else ""
            lines.append(
                f"{row['op'] + ' ' + shape:46}{kind:9}{1e3 * d['seconds']:9.3f}{d['rate']:8.1f} "
                f"{row['unit']:8}{part:>9}{theirs:>9}{speedup:>9}"
            )
    return "\n".join(lines)
