"""Gated linear attention and the delta rule over their kernels: methods of `Fast`.

The reference's names, arguments and order; the kernels' chunks are of 64 tokens, whatever `chunk`
says. Arrays are contiguous.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .saved import Saved

Array = np.ndarray
CHUNK = 64


class LinearAttention:
    _run: Any
    _new: Any
    empty_like: Any

    def gated_linear_attention_forward(
        self, q, k, v, g=None, initial=None, *, scale=None, chunk=CHUNK, out=None
    ):
        return self._linear_forward_pass(q, k, v, None, g, initial, scale, out)

    def gated_linear_attention_backward(self, dy, saved, dfinal=None):
        dq, dk, dv, _, dg, dinitial = self._linear_backward_pass(dy, saved, dfinal)
        return dq, dk, dv, dg, dinitial

    def gated_linear_attention_decode(
        self, q, k, v, g, states, slots, *, scale=None, out=None
    ) -> Array:
        return self._linear_step(q, k, v, None, g, states, slots, scale, out)

    def delta_rule_forward(
        self, q, k, v, beta, g=None, initial=None, *, scale=None, chunk=CHUNK, out=None
    ):
        return self._linear_forward_pass(q, k, v, beta, g, initial, scale, out)

    def delta_rule_backward(self, dy, saved, dfinal=None):
        return self._linear_backward_pass(dy, saved, dfinal)

    def delta_rule_decode(self, q, k, v, beta, g, states, slots, *, scale=None, out=None) -> Array:
        return self._linear_step(q, k, v, beta, g, states, slots, scale, out)

    def _linear_forward_pass(self, q, k, v, beta, g, initial, scale, out):
        (B, T, H, D), Dv = q.shape, v.shape[-1]
        scale = D**-0.5 if scale is None else scale
        y = self.empty_like(v) if out is None else out
        last = self._new(B, H, D, Dv)
        states = self._new(B, H, -(-T // CHUNK), D, Dv)
        u = None if beta is None else self.empty_like(v)
        self._run("linear_attention_forward", y, last, states, u, q, k, v, beta, g, initial, scale)
        exact = (beta, g, initial is not None, states, last, u, scale)
        return y, last, Saved.of((q, k, v), exact)

    def _linear_backward_pass(self, dy, saved, dfinal):
        q, k, v, beta, g, has_initial, states, last, u, scale = saved
        dq, dk, dv = self.empty_like(q), self.empty_like(k), self.empty_like(v)
        dbeta = None if beta is None else self.empty_like(beta)
        dg = None if g is None else self.empty_like(g)
        dinitial = self.empty_like(last) if has_initial else None
        u = v if u is None else u
        self._run(
            "linear_attention_backward", dq, dk, dv, dbeta, dg, dinitial, dy, dfinal, q, k, v,
            beta, g, states, last, u, scale,
        )  # fmt: skip
        return dq, dk, dv, dbeta, dg, dinitial

    def _linear_step(self, q, k, v, beta, g, states, slots, scale, out) -> Array:
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        y = self.empty_like(v) if out is None else out
        self._run("linear_attention_decode", y, states, slots, q, k, v, beta, g, scale)
        return y
