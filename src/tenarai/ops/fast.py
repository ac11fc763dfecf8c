"""The ops over the C++ kernels: the reference's names, arguments and order, in float32.

An op here shapes its arrays and calls one kernel; what a kernel computes stands in kernels/ops.h,
why it is so in the reference op of the same name.
"""

from __future__ import annotations

import os
from copy import copy
from typing import Any

import numpy as np

from ..errors import TenaraiError
from ..quant import ACTIVATIONS, Format, QuantTensor
from . import experts as expert_rows
from .arena import Arena
from .fast_attention import Attention
from .fast_linear_attention import LinearAttention
from .fast_loss import Loss
from .gradient import Unwritten, cleared, wanted
from .saved import Saved

try:
    from .. import _kernels
except ImportError as missing:  # e.g. run from a source tree that was never built
    _kernels = None
    _why_missing = str(missing)

Array = np.ndarray
PRODUCTS = ("plain", "fast", "words")
BFLOAT16 = np.dtype(np.uint16)  # NumPy has none: its bits


def available_isas() -> list[str]:
    """Instruction sets of this build that this CPU runs, the best last."""
    return _compiled().available_isas()


def default_threads() -> int:
    """The cores that this process may use."""
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except AttributeError:  # not on macOS or Windows
        return os.cpu_count() or 1


def _compiled() -> Any:
    if _kernels is None:
        raise TenaraiError(
            f"the compiled core of tenarai is missing ({_why_missing}). Install a wheel, or build "
            "it where a C++17 compiler is (g++ 12 or clang 15): pip install --force-reinstall "
            "--no-deps . in the source folder"
        )
    return _kernels


class Fast(Attention, LinearAttention, Loss):
    """Ops on `threads` threads with the instruction set `isa` (the CPU's best by default).

    Results are the same bits for the same thread count and instruction set. With an arena,
    activations come from it. In products with quantised weights activations are rounded to whole
    numbers of 12 bits and more ("words": 1e-4 of the product; 4e-4 with Q6_K and IQ4_XS, but not
    with AMX, which takes 16 bits of both factors in prompts), of 8 bits ("bytes": 5e-3, the
    fastest for many rows, on CPUs with AVX-512 VNNI; with AMX bfloat16, 2e-3; words elsewhere), or
    are not ("float32"). So are their gradients in the backward, on CPUs with AVX-512 VNNI (words:
    1e-4 of the product, bytes: 8e-3) or AMX (1e-4), and elsewhere they are not.
    Large products of float32 matrices are as usual ("plain"), as exact on the whole but made of
    fewer or cheaper multiplications ("fast"), or of 16-bit whole numbers ("words").
    Fast: seven multiplications for eight (4 to 9 % less time, rounding errors 1.4 times as large,
    and a row's result depends on the rows beside it); with AMX whole numbers of 24 bits (twice as
    fast, rounding errors as usual, but relative to the greatest of a row's or column's 512;
    attention's where many keys are seen, relative to a row's own or a tile's 64).
    Words: 1.6 times as fast with AVX-512 VNNI, 1.3 with AVX2, off by 3e-4 of the product's norm, as
    with TF32; with AMX 2.5 times, off by 7e-5. Attention's too with VNNI. All others are "fast".
    Not for two Python threads at once.
    """

    def __init__(
        self,
        threads: int | None = None,
        isa: str | None = None,
        arena: Arena | None = None,
        activations: str = "words",
        products: str = "plain",
    ):
        if activations not in ACTIVATIONS:
            raise ValueError(f"activations = {activations!r}, expected one of {ACTIVATIONS}")
        if products not in PRODUCTS:
            raise ValueError(f"products = {products!r}, expected one of {PRODUCTS}")
        machine = _compiled().Machine
        try:
            self.machine = machine(isa, threads or default_threads())
        except ValueError as error:  # too many threads, an instruction set that is not here
            raise TenaraiError(f"isa = {isa!r}, threads = {threads}: {error}") from error
        self.arena = arena or Arena()
        self.calls = 0  # of kernels so far
        self.products = products
        self.activations = activations

    def for_writing(self) -> Fast:
        """The same machine for the rows of tokens being written. Bytes are for prompts: few rows
        are as fast in words, and a guess must be checked as it would have been written."""
        if self.activations != "bytes":
            return self
        ops = copy(self)
        ops.activations = "words"
        return ops

    @property
    def isa(self) -> str:
        return self.machine.isa

    @property
    def threads(self) -> int:
        return self.machine.threads

    @property
    def how(self) -> str:
        """Threads, instruction set, and products where they are not of float32."""
        told = f"{self.threads} threads, {self.isa}"
        if self.products != "words":
            return told
        there = (
            "words" if self.has_words else "float32 (words need AVX2, AMX, or AVX-512 with VNNI)"
        )
        return f"{told}, products in {there}"

    @property
    def has_words(self) -> bool:
        """Can products="words" be had?"""
        return self.isa in ("avx2", "avx512vnni", "amx")

    def _run(self, kernel: str, *args: Any) -> float:
        if self.arena.dry:
            return 0.0
        self.calls += 1
        return getattr(self.machine, kernel)(*args)

    def _new(self, *shape: int) -> Array:
        return self.arena.empty(shape)

    def empty_like(self, x: Array) -> Array:
        return self._new(*x.shape)

    # Linear layers

    def linear_forward(self, x, w, b=None, residual=None, *, out=None):
        return self._linear_forward(x, w, b, residual, "off", out)

    def linear_backward(self, dy, saved, dw, db=None, *, out=None):
        return self._linear_backward(dy, saved, dw, db, out)

    def gelu_linear_forward(self, x, w, b=None, residual=None, *, approximate="tanh", out=None):
        return self._linear_forward(x, w, b, residual, approximate, out)

    def gelu_linear_backward(self, dy, saved, dw, db=None, *, out=None):
        return self._linear_backward(dy, saved, dw, db, out)

    def _linear_forward(self, x, w, b, residual, gelu, out):
        y = self._new(*x.shape[:-1], w.shape[0]) if out is None else out  # (..., O)
        self._product(y, x, w, b, residual, gelu)
        return y, Saved.of((x,), (w, gelu))

    def _product(self, y, x, w, b, residual, gelu):
        """y = f(x) wᵀ + b + residual; w float32 or quantised."""
        if not isinstance(w, QuantTensor):
            self._run("linear_forward", y, x, w, b, residual, gelu, self.products)
            return
        if gelu != "off":
            x, _ = self.gelu_forward(x, approximate=gelu)
        number = w.format.number
        self._run("quant_linear_forward", y, x, w.data, number, b, residual, self.activations)

    def _linear_backward(self, dy, saved, dw, db, out, expanded=None):
        x, w, gelu = saved
        dx = self.empty_like(x) if out is None else out  # (..., I)
        dw, db = wanted(dw), cleared(wanted(db))
        if not isinstance(w, QuantTensor):
            add = not isinstance(dw, Unwritten)
            dw = dw.array if isinstance(dw, Unwritten) else dw
            self._run("linear_backward", dx, dw, db, dy, x, w, gelu, add, self.products)
            return dx
        if dw is not None:
            raise ValueError(
                f"linear_backward: {w.format.name} weights are frozen, dw must be None"
            )
        expanded = self._expanded(w) if expanded is None else expanded
        how = (w.format.number, self.products, self.activations)
        self._run("quant_linear_backward", dx, expanded, dy, w.data, *how)
        if gelu != "off":
            self._run("gelu_backward", dx, dx, x, gelu)
        if db is not None and not self.arena.dry:
            db += dy.reshape(-1, w.shape[0]).sum(axis=0)
        return dx

    def _expanded(self, w):
        """Where some rows of a quantised weight are expanded; None for an array."""
        quantised = isinstance(w, QuantTensor)
        return self._new(self.machine.EXPANDED_ROWS, w.shape[1]) if quantised else None

    # Mixture of experts

    def route_forward(self, logits, k, *, normalise=True, balance=0.0):
        from .reference.experts import route_forward

        *results, saved = route_forward(logits, k, normalise=normalise, balance=balance)
        return *results, Saved.of((), saved)

    def route_backward(self, dweights, saved):
        from .reference.experts import route_backward

        return route_backward(dweights, saved)

    def experts_forward(self, x, weights, experts, gates, ups, downs, *, linear=None):
        return expert_rows.forward(self, x, weights, experts, gates, ups, downs, linear or self)

    def experts_backward(self, dy, saved, dgates, dups, ddowns):
        return expert_rows.backward(self, dy, saved, dgates, dups, ddowns)

    # Activations

    def gelu_forward(self, x, *, approximate="tanh", out=None):
        y = self.empty_like(x) if out is None else out
        self._run("gelu_forward", y, x, approximate)
        return y, Saved.of((x,), (approximate,))

    def gelu_backward(self, dy, saved, *, out=None):
        x, approximate = saved
        dx = self.empty_like(x) if out is None else out
        self._run("gelu_backward", dx, dy, x, approximate)
        return dx

    def silu_forward(self, x, *, out=None):
        y = self.empty_like(x) if out is None else out
        self._run("silu_forward", y, x)
        return y, (x,)

    def silu_backward(self, dy, saved, *, out=None):
        (x,) = saved
        dx = self.empty_like(x) if out is None else out
        self._run("silu_backward", dx, dy, x)
        return dx

    def swiglu_forward(self, gate, up, *, out=None):
        y = self.empty_like(gate) if out is None else out
        self._run("swiglu_forward", y, gate, up)
        return y, (gate, up)

    def swiglu_backward(self, dy, saved, *, out=None):
        gate, up = saved
        dgate, dup = (self.empty_like(gate), self.empty_like(up)) if out is None else out
        self._run("swiglu_backward", dgate, dup, dy, gate, up)
        return dgate, dup

    def geglu_forward(self, gate, up, *, out=None):
        y = self.empty_like(gate) if out is None else out
        self._run("geglu_forward", y, gate, up)
        return y, (gate, up)

    def geglu_backward(self, dy, saved, *, out=None):
        gate, up = saved
        dgate, dup = (self.empty_like(gate), self.empty_like(up)) if out is None else out
        self._run("geglu_backward", dgate, dup, dy, gate, up)
        return dgate, dup

    def scale_forward(self, x, factor, *, out=None):
        y = self.empty_like(x) if out is None else out
        self._run("scale", y, x, factor)
        return y, (factor,)

    def scale_backward(self, dy, saved, *, out=None):
        (factor,) = saved
        dx = self.empty_like(dy) if out is None else out
        self._run("scale", dx, dy, factor)
        return dx

    def residual_forward(self, x, y, *, out=None):
        z = self.empty_like(x) if out is None else out
        self._run("add", z, x, y)
        return z, ()

    def residual_backward(self, dy, saved):
        return dy, dy

    def dropout_forward(self, x, p, seed, counter, *, out=None):
        if not 0 <= p < 1:
            raise ValueError(f"dropout: p = {p}, expected 0 or more and less than 1")
        y = self.empty_like(x) if out is None else out
        saved = (int(p * 2**32), 1 / (1 - p), seed, counter)
        self._run("dropout", y, x, *saved)
        return y, saved

    def dropout_backward(self, dy, saved, *, out=None):
        dx = self.empty_like(dy) if out is None else out
        self._run("dropout", dx, dy, *saved)
        return dx

    # Embedding and norms

    def embedding_forward(self, tokens, wte, wpe=None, *, start=0, positions=None, out=None):
        x = self._new(*tokens.shape, wte.shape[1]) if out is None else out  # (B, T, C)
        if isinstance(wte, QuantTensor):
            number = wte.format.number
            self._run("quant_embedding_forward", x, tokens, wte.data, number, wpe, positions, start)
        else:
            self._run("embedding_forward", x, tokens, wte, wpe, positions, start)
        return x, (tokens, start)

    def embedding_backward(self, dx, saved, dwte, dwpe=None):
        tokens, start = saved
        dwte, dwpe = cleared(wanted(dwte)), cleared(wanted(dwpe))
        if dwte is None and dwpe is None:
            return
        self._run("embedding_backward", dwte, dwpe, dx, tokens, start)

    def layer_norm_forward(self, x, w, b=None, *, eps=1e-5, out=None):
        y = self.empty_like(x) if out is None else out
        mean, rstd = self._new(*x.shape[:-1]), self._new(*x.shape[:-1])
        b = np.zeros_like(w) if b is None else b  # the kernel always adds one
        self._run("layer_norm_forward", y, mean, rstd, x, w, b, eps)
        return y, Saved.of((x,), (w, mean, rstd))

    def layer_norm_backward(self, dy, saved, dw, db=None, dresidual=None, *, out=None):
        x, w, mean, rstd = saved
        dx = self.empty_like(x) if out is None else out
        dw, db = (np.zeros_like(w) if wanted(d) is None else cleared(d) for d in (dw, db))
        self._run("layer_norm_backward", dx, dw, db, dy, dresidual, x, w, mean, rstd)
        return dx

    def rms_norm_forward(self, x, w, *, eps=1e-5, out=None):
        y = self.empty_like(x) if out is None else out
        rstd = self._new(*x.shape[:-1])
        self._run("rms_norm_forward", y, rstd, x, w, eps)
        return y, Saved.of((x,), (w, rstd))

    def rms_norm_backward(self, dy, saved, dw, dresidual=None, *, out=None):
        x, w, rstd = saved
        dx = self.empty_like(x) if out is None else out
        dw = np.zeros_like(w) if wanted(dw) is None else cleared(dw)  # the kernel always adds
        self._run("rms_norm_backward", dx, dw, dy, dresidual, x, w, rstd)
        return dx

    # What is kept between forward and backward, in half the memory (saved.py)

    def to_bfloat16(self, x, *, out=None):
        h = self.arena.empty(x.shape, BFLOAT16) if out is None else out
        self._run("to_bfloat16", h, x)
        return h

    def from_bfloat16(self, h, *, out=None):
        x = self.empty_like(h) if out is None else out
        self._run("from_bfloat16", x, h)
        return x

    # Quantised weights

    def dequantize(self, w: QuantTensor, *, out=None):
        y = self._new(*w.shape) if out is None else out  # (O, I)
        self._run("dequantize", y, w.data, w.format.number)
        return y

    def quantize(self, x: Array, format: Format, importance: Array | None = None) -> QuantTensor:
        """x (O, I) float32 in `format`, so that Σ importance_i (w_oi − x_oi)² is small.

        importance (I,) float32, 1 where there is none: how much a column matters, for example
        the mean square of the input it is multiplied with. Raises ValueError where I is not a
        whole number of blocks, and for weights that are not finite or no float16 could hold.
        """
        data = np.empty((x.shape[0], format.row_bytes(x.shape[1])), np.uint8)
        self._run("quantize", data, x, format.number, importance)
        return QuantTensor(format, (x.shape[0], x.shape[1]), data)

    # Optimiser, in place over flat arrays

    def adamw_step(self, p, g, m, v, *, lr, beta1, beta2, eps, weight_decay, step, grad_scale):
        self._run("adamw_step", p, g, m, v, lr, beta1, beta2, eps, weight_decay, step, grad_scale)

    def muon_step(self, ps, gs, ms, *, lr, momentum, weight_decay, grad_scale):
        how = (lr, momentum, weight_decay, grad_scale, self.products)
        self._run("muon_step", ps, gs, ms, *how)

    def square_sum(self, g) -> float:
        return self._run("square_sum", g)
