"""What this machine can do at best: GEMM rate of NumPy's BLAS and memory bandwidth.

A speed is only worth something next to the limit that the same run measured. Run as a program
(`python -m tenarai.bench.limits`), this file serves one measurement a line of stdin (see
`peer.py`), in a process of its own: BLAS has its own threads, and their number is fixed when
NumPy is imported.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tenarai.models.llama_config import LlamaConfig

from .peer import Peer, serve
from .timing import call_seconds

SECONDS = 0.05  # of calls, at least, a product
BANDWIDTH_BYTES = 1 << 30  # read to measure the memory: far beyond any cache


@dataclass(frozen=True)
class Product:
    """`count` linear layers of one shape in a training step: y (N, O) = x (N, I) wᵀ."""

    name: str
    count: int
    rows: int
    inputs: int
    outputs: int

    @property
    def flops(self) -> int:
        """Floating-point operations of one of the three products: forward, dX or dW."""
        return 2 * self.rows * self.inputs * self.outputs


def gpt2_products(rows: int, layers: int, channels: int, vocabulary: int) -> list[Product]:
    """Every matrix product of a GPT-2 step over `rows` = B·T rows, attention's own left out."""
    c = channels
    return [
        Product("qkv", layers, rows, c, 3 * c),
        Product("projection", layers, rows, c, c),
        Product("fc", layers, rows, c, 4 * c),
        Product("fc_projection", layers, rows, 4 * c, c),
        Product("vocabulary", 1, rows, c, vocabulary),
    ]


def llama_products(rows: int, config: LlamaConfig) -> list[Product]:
    """As gpt2_products, of a Llama without experts."""
    c, layers = config, config.layers
    q, kv = c.heads * c.head_size, c.kv_heads * c.head_size
    return [
        Product("q", layers, rows, c.width, q),
        Product("k, v", 2 * layers, rows, c.width, kv),
        Product("o", layers, rows, q, c.width),
        Product("gate, up", 2 * layers, rows, c.width, c.hidden),
        Product("down", layers, rows, c.hidden, c.width),
        Product("vocabulary", 1, rows, c.width, c.vocab_size),
    ]


class Operands:
    """The arrays of one product, and its three shapes as NumPy calls."""

    def __init__(self, product: Product) -> None:
        rng = np.random.default_rng(0)
        n, i, o = product.rows, product.inputs, product.outputs
        self.x = rng.random((n, i), dtype=np.float32)
        self.w = rng.random((o, i), dtype=np.float32)
        self.dy = rng.random((n, o), dtype=np.float32)
        self.y = np.zeros((n, o), np.float32)
        self.dx = np.zeros((n, i), np.float32)
        self.dw = np.zeros((o, i), np.float32)

    def forward(self) -> None:
        np.matmul(self.x, self.w.T, out=self.y)

    def input_gradient(self) -> None:
        np.matmul(self.dy, self.w, out=self.dx)

    def weight_gradient(self) -> None:
        np.matmul(self.dy.T, self.x, out=self.dw)


def measure_product(product: Product, repeats: int) -> dict[str, Any]:
    """Best and median GFLOP/s of the three products of one linear layer."""
    operands = Operands(product)
    answer: dict[str, Any] = {
        "name": product.name,
        "count": product.count,
        "shape": [product.rows, product.inputs, product.outputs],
        "flops": product.flops,
    }
    calls = {
        "forward": operands.forward,
        "dx": operands.input_gradient,
        "dw": operands.weight_gradient,
    }
    for name, call in calls.items():
        times = call_seconds(call, SECONDS, repeats)
        answer[name] = {"best": min(times), "median": float(np.median(times))}
    return answer


def total_rate(answers: list[dict[str, Any]], key: str) -> float:
    """GFLOP/s over a whole step's products: all operations over the sum of `key` times."""
    operations = sum(3 * a["count"] * a["flops"] for a in answers)
    seconds = sum(a["count"] * a[kind][key] for a in answers for kind in ("forward", "dx", "dw"))
    return operations / seconds / 1e9


def read_bandwidth(nbytes: int = 1 << 30, repeats: int = 5) -> float:
    """Best GB/s of reading two float32 arrays far larger than the caches (a dot product)."""
    a = np.ones(nbytes // 8, np.float32)
    b = np.ones(nbytes // 8, np.float32)
    return (a.nbytes + b.nbytes) / min(call_seconds(lambda: np.dot(a, b), SECONDS, repeats)) / 1e9


def read_bandwidth_alone(threads: int) -> float:
    """Best GB/s of reading memory on `threads` threads, by a process that ends before others
    are measured."""
    with Peer("tenarai.bench.limits", threads, {}) as peer:
        return peer.ask({"bandwidth": BANDWIDTH_BYTES})["bandwidth"]


class StepLimits:
    """The best GEMM times at a step's shapes, and the memory bandwidth, best of all rounds.

    A round is a process that ends before others are measured: BLAS's threads spin for a while.
    """

    def __init__(self, products: list[Product], threads: int) -> None:
        self.threads = threads
        self.products = products
        self.repeats = 10  # a round; of products that take longer than SECONDS one
        self.answers: list[dict[str, Any]] = []
        self.bandwidth = 0.0

    def measure(self) -> None:
        """One round."""
        with Peer("tenarai.bench.limits", self.threads, {}) as peer:
            answers = [
                peer.ask({"product": asdict(product), "repeats": self.repeats})
                for product in self.products
            ]
            found = peer.ask({"bandwidth": BANDWIDTH_BYTES})["bandwidth"]
        self.bandwidth = max(self.bandwidth, found)
        for answer, before in zip(answers, self.answers, strict=False):
            for kind in ("forward", "dx", "dw"):
                for key in ("best", "median"):
                    answer[kind][key] = min(answer[kind][key], before[kind][key])
        self.answers = answers

    def report(self) -> dict[str, Any]:
        return {
            "gemm_gflops": total_rate(self.answers, "best"),
            "gemm_gflops_median": total_rate(self.answers, "median"),
            "read_gb_per_s": self.bandwidth,
            "products": [
                {"name": a["name"], "shape": a["shape"]}
                | {kind: a["flops"] / a[kind]["best"] / 1e9 for kind in ("forward", "dx", "dw")}
                for a in self.answers
            ],
        }


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """One measurement: {"product": {...}, "repeats": n} or {"bandwidth": bytes}."""
    if "product" in request:
        return measure_product(Product(**request["product"]), request.get("repeats", 5))
    return {"bandwidth": read_bandwidth(request["bandwidth"])}


if __name__ == "__main__":
    sys.exit(serve(lambda request: answer, "limits"))
