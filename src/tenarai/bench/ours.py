"""Our side of `bench train`: forward, backward and AdamW on the kernels, a step a request.

The same work as a step of the training loop with one micro-batch, its clipping left out, because
the opponent does none either. Run as a program it serves steps (see `peer.py`).
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from ..models.gpt2 import GPT2, GPT2Config
from ..models.gradients import micro_batch
from ..models.llama import Llama, LlamaConfig
from ..models.rope import Rope
from ..models.table import Weights
from ..ops import Arena, Fast
from .peer import Answer, serve


class Timed:
    """Ops that add up the seconds of each of their calls, by name."""

    def __init__(self, ops: Fast) -> None:
        self._ops = ops
        self.seconds: dict[str, float] = {}

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._ops, name)

        def timed(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **options)
            finally:
                took = time.perf_counter() - start
                self.seconds[name] = self.seconds.get(name, 0.0) + took

        return timed


def model_of(config: dict[str, Any], **how: Any) -> GPT2 | Llama:
    """The model of a configuration that came as JSON. Only a Llama's has a RoPE."""
    if "rope" not in config:
        return GPT2(GPT2Config(**config), **how)

    def tuples(fields: dict[str, Any]) -> dict[str, Any]:
        return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}

    config = tuples(config)
    ropes = {k: config[k] and Rope(**tuples(config[k])) for k in ("rope", "local_rope")}
    return Llama(LlamaConfig(**config | ropes), **how)


class Step:
    """A model, its optimiser's moments and its batches; `step(index)` is one step of training."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.arena = Arena()
        self.ops: Any = Fast(
            request["threads"],
            isa=request.get("isa"),
            arena=self.arena,
            products=request.get("products", "plain"),
        )
        how = {name: request.get(name, False) for name in ("recompute", "saved_bfloat16")}
        self.model = model_of(request["config"], **how)
        table = self.model.table()
        self.params = Weights(table).initialise(0)
        self.grads, self.m, self.v = (Weights(table) for _ in range(3))
        self.settings = request["optimiser"]
        self.batches = np.load(request["tokens"])  # (steps, B, T + 1)
        self.count = 0
        if request.get("save_weights"):
            weights: dict[str, Any] = dict(self.params)
            np.savez(request["save_weights"], **weights)
        tokens = np.ascontiguousarray(self.batches[0, :, :-1])
        self.plan = self.arena.plan(lambda: self.gradients(tokens, tokens, self.grads))
        self.arena.allocate(self.plan)

    def gradients(self, tokens: np.ndarray, targets: np.ndarray, grads: Any) -> float:
        loss, saved = self.model.forward(self.ops, self.params, tokens, targets, grads)
        self.model.backward(self.ops, self.params, saved, grads)
        return float(loss)

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        batch = self.batches[request["step"] % len(self.batches)]
        tokens, targets = (np.ascontiguousarray(part) for part in (batch[:, :-1], batch[:, 1:]))
        start = time.perf_counter()
        with self.arena.use(self.plan), micro_batch(self.grads, 0) as grads:
            loss = self.gradients(tokens, targets, grads)
        self.count += 1
        self.update()
        return {"seconds": time.perf_counter() - start, "loss": loss}

    def where(self, request: dict[str, Any]) -> dict[str, float]:
        """One more step: the seconds of each op in it, and of what lies between them."""
        fast, self.ops = self.ops, Timed(self.ops)
        try:
            total = self(request)["seconds"]
            return self.ops.seconds | {"between": total - sum(self.ops.seconds.values())}
        finally:
            self.ops = fast

    def update(self) -> None:
        """AdamW: the matrices decay, the vectors do not."""
        settings = {k: v for k, v in self.settings.items() if k != "weight_decay"}
        decayed, end = self.params.decayed, len(self.params.flat)
        for part, decay in (
            (slice(0, decayed), self.settings["weight_decay"]),
            (slice(decayed, end), 0.0),
        ):
            self.ops.adamw_step(
                *(weights.flat[part] for weights in (self.params, self.grads, self.m, self.v)),
                **settings,
                weight_decay=decay,
                step=self.count,
                grad_scale=1.0,
            )


def configure(request: dict[str, Any]) -> Answer:
    """{"threads", "config" (of GPT2Config or LlamaConfig), "tokens" (.npy), "optimiser",
    "recompute", "saved_bfloat16", "products", "isa", "save_weights" (where the initial weights go,
    .npz)}."""
    step = Step(request)

    def answer(ask: dict[str, Any]) -> dict[str, Any]:
        if ask.get("where"):
            return {
                "where": step.where(ask),
                "isa": step.ops.isa,
                "activation_bytes": step.plan.bytes,
            }
        return step(ask)

    return answer


if __name__ == "__main__":
    sys.exit(serve(configure, "ours"))
