"""A step of LoRA over a quantised GGUF base beside PyTorch's over the same weights in float32.

    python benchmarks/phi3_shape.py phi3-2l.gguf --layers 2
    python benchmarks/qlora_step.py phi3-2l.gguf --steps 3

PyTorch is `transformers`' model with `peft`'s adapters on every linear layer, scaled_dot_product
attention and fused AdamW, the base in float32 as the file's weights are when they are expanded.
Each side is a process of its own that waits while the other works; steps alternate, the first of
each does not count, and the losses of that first step, where no adapter has moved yet, must agree.
`--answers` is the share of tokens that are foretold, as of answers in conversations; all by
default.
Weights of a linear layer count 4 operations a token (forward and dx), the head's 4 a foretold one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import tenarai
from tenarai.models.families import name_of
from tenarai.models.lora import LoraConfig, linear_layers
from tenarai.train import memory

MALLOC = {  # glibc keeps what the peer frees, which is a third faster
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("model", metavar="MODEL.gguf")
    p.add_argument("-b", "--batch", type=int, default=1)
    p.add_argument("-T", "--context", type=int, default=512)
    p.add_argument("--rank", type=int, default=16)
    p.add_argument("--steps", type=int, default=3, help="that count (%(default)s)")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--answers", type=float, default=1.0, help="share of tokens that count")
    p.add_argument("--activations", choices=("float32", "words", "bytes"), default="words")
    p.add_argument("--products", choices=("plain", "fast", "words"), default="fast",
                   help="ours: of float32 matrices")  # fmt: skip
    p.add_argument("--recompute", action="store_true", help="ours keeps each block's input alone")
    p.add_argument("--alone", action="store_true", help="without PyTorch: speed and memory of ours")
    p.add_argument("--json", action="store_true", help="the last line alone")
    p.add_argument("--side", choices=("ours", "torch"), help=argparse.SUPPRESS)
    p.add_argument("--folder", help=argparse.SUPPRESS)
    return p.parse_args()


def batch(a: argparse.Namespace, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    ids = rng.integers(3, vocabulary, (a.batch, a.context + 1)).astype(np.int32)
    targets = ids[:, 1:].copy()
    targets[:, : round(a.context * (1 - a.answers))] = -1
    return ids[:, :-1].copy(), targets


class Ours:
    def __init__(self, a: argparse.Namespace):
        from tenarai.config import Optimiser
        from tenarai.data.packing import Rows
        from tenarai.finetune.base import tuned
        from tenarai.models.table import Weights
        from tenarai.ops import Arena, Fast
        from tenarai.ops.lora import Tuning
        from tenarai.train.optim import AdamW

        base = tenarai.load(a.model, context=min(4096, tenarai.load(a.model).config.context))
        lora = LoraConfig(a.rank, 2.0 * a.rank)
        self.tuned = tuned(base.model, base.params, lora, a.recompute)
        self.tuned.trained.initialise(1)
        self.ops = Tuning(Fast(a.threads, arena=Arena(), activations=a.activations,
                               products=a.products))  # fmt: skip
        self.grads = Weights(self.tuned.trained.table)
        self.optimiser = AdamW(self.tuned.trained.table, Optimiser(weight_decay=0.0))
        tokens, self.targets = batch(a, base.config.vocab_size)
        self.rows, self.count = Rows(tokens, None), 0
        self.plan = self.ops.arena.plan(self._gradients)
        self.ops.arena.allocate(self.plan)

    def _gradients(self) -> float:
        from tenarai.models.gradients import micro_batch

        with micro_batch(self.grads, 0) as grads:
            return self.tuned.gradients(self.ops, self.rows, self.targets, None, grads)

    def step(self) -> float:
        with self.ops.arena.use(self.plan):
            loss = self._gradients()
        self.count += 1
        how = {"lr": 1e-4, "step": self.count, "grad_scale": 1.0}
        self.optimiser.step(self.ops, self.tuned.trained, self.grads, **how)
        return loss


class Torch:
    def __init__(self, a: argparse.Namespace):
        import peft
        import torch
        import transformers

        torch.set_num_threads(a.threads)
        transformers.logging.set_verbosity_error()
        model = transformers.AutoModelForCausalLM.from_pretrained(
            a.folder, dtype=torch.float32, attn_implementation="sdpa"
        )
        config = peft.LoraConfig(
            r=a.rank, lora_alpha=2 * a.rank, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        self.model = peft.get_peft_model(model, config).train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(trained, 1e-4, weight_decay=0.0, fused=True)
        tokens, targets = batch(a, model.config.vocab_size)
        self.tokens = torch.tensor(tokens).long()
        self.targets = torch.tensor(np.where(targets < 0, -100, targets)).long()

    def step(self) -> float:
        import torch

        self.optimiser.zero_grad(set_to_none=True)
        logits = self.model(self.tokens, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), self.targets.flatten())
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())


def serve(a: argparse.Namespace) -> None:
    """One side: a step for each line on stdin."""
    side: Any = Ours(a) if a.side == "ours" else Torch(a)
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        loss = side.step()
        row = {"seconds": time.perf_counter() - start, "loss": loss, "bytes": memory.taken()}
        print(json.dumps(row), flush=True)


class Worker:
    def __init__(self, side: str, folder: str):
        words = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--folder", folder]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        more = MALLOC if side == "torch" else {}
        self.process: Any = subprocess.Popen(words, env=os.environ | more, **pipes)
        self.rows: list[dict[str, Any]] = []
        self._read()

    def step(self) -> None:
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        self.rows.append(self._read())

    def _read(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a side ended: see above")
        return dict(json.loads(line))

    def result(self) -> dict[str, Any]:
        seconds = [r["seconds"] for r in self.rows[1:]]
        return {
            "seconds": statistics.median(seconds),
            "all_seconds": [round(s, 4) for s in seconds],
            "losses": [r["loss"] for r in self.rows],
            "peak_bytes": self.rows[-1]["bytes"],
        }


def operations(a: argparse.Namespace, model: Any) -> int:
    """Of a step's products with frozen weights."""
    linear = sum(p.size for p in linear_layers(model.table()))
    tokens, c = a.batch * a.context, model.config
    return int(4 * tokens * (linear + a.answers * c.vocab_size * c.width))


def main() -> None:
    a = arguments()
    if a.side:
        return serve(a)
    model = tenarai.load(a.model)
    with tempfile.TemporaryDirectory() as folder:
        sides = {"ours": Worker("ours", folder)}
        if not a.alone:
            model.save(folder)
            sides["torch"] = Worker("torch", folder)
        for _ in range(a.steps + 1):
            for side in sides.values():
                side.step()
        found = {name: side.result() for name, side in sides.items()}
        for side in sides.values():
            side.process.stdin.close()
            side.process.wait()
    flops = operations(a, model.model)
    ours = found["ours"]
    out: dict[str, Any] = {
        "model": Path(a.model).name, "kind": name_of(model.model), "batch": a.batch,
        "context": a.context, "rank": a.rank, "threads": a.threads, "answers": a.answers,
        "activations": a.activations, "products": a.products,
        "gflops": flops / ours["seconds"] / 1e9, **found,
    }  # fmt: skip
    if "torch" in found:
        theirs = found["torch"]
        out["speedup"] = theirs["seconds"] / ours["seconds"]
        out["loss_difference"] = abs(theirs["losses"][0] - ours["losses"][0])
        if a.activations == "float32" and out["loss_difference"] > 1e-3:
            raise SystemExit(f"the first losses differ: {ours['losses'][0]}, {theirs['losses'][0]}")
    if not a.json:
        for name, row in found.items():
            rate, held = a.batch * a.context / row["seconds"], memory.in_words(row["peak_bytes"])
            print(f"{name:6} {row['seconds']:8.3f} s a step  {rate:7.0f} tokens/s  {held}")
        print(f"speedup {out.get('speedup', 0):.2f}")
    print(json.dumps(out))


if __name__ == "__main__":
    main()
