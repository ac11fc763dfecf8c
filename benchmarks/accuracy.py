"""How near a GGUF file's answers are to what its weights say: tenarai and llama.cpp, one run.

    python benchmarks/accuracy.py smollm2
    python benchmarks/accuracy.py gemma3-270m --before 560 --window 700    past its window of 512
    python benchmarks/accuracy.py phi3-2-layers.gguf --windows 1

The truth is `transformers` in float32 on the dequantised weights (`Model.save` writes them to a
folder that goes away again). Beside it: tenarai with each kind of activations, and llama.cpp
through its low-level calls. Told of each:

    greedy     of 8 continuations of 32 tokens: equal to the truth's; or first another token where
               the truth's two best logits differ by less than 0.02 (a tie); or another one (left)
    top 20     the largest error of a log-probability among the truth's 20 best first tokens
    perplexity and mean KL divergence (nats a token) on a text, every token of a window counted
    logits     |l - t| / |t|, over all logits of the text

Needs torch, transformers and llama-cpp-python.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import tenarai
from tenarai.bench.llama_cpp_peer import Llama
from tenarai.infer.engine import Engine
from tenarai.infer.perplexity import kl_divergence, log_softmax
from tenarai.io.named_models import model_path
from tenarai.quant import ACTIVATIONS

TEXT = Path(__file__).parents[2] / "shared/data/text/wikitext2_valid.txt"
TIE, BEST = 0.02, 20
PROMPTS = [
    "The capital of Japan is",
    "def fibonacci(n):\n    ",
    "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n",
    "Once upon a time, in a village by the sea, there lived",
    "1, 1, 2, 3, 5, 8, 13,",
    "東京は日本の",
    "Dear Sir or Madam,\n\nI am writing to",
    "Water boils at 100 degrees Celsius because",
]
Logits = Callable[[list[int]], np.ndarray]  # ids (T,) → logits (T, V)
Greedy = Callable[[list[int], int], list[int]]  # ids, n → the n most probable tokens after them


@dataclass
class Side:
    """A program: its logits, its greedy continuations, and what is added up of them."""

    logits: Logits
    greedy: Greedy
    outcomes: list[str] = field(default_factory=list)
    top: float = 0.0
    nll: list[np.ndarray] = field(default_factory=list)
    kl: list[np.ndarray] = field(default_factory=list)
    squares: float = 0.0  # of the logits' errors

    def figures(self, truth: Side, norm: float) -> dict[str, Any]:
        perplexity, right = (float(np.exp(np.concatenate(s.nll).mean())) for s in (self, truth))
        return {
            "greedy": {kind: self.outcomes.count(kind) for kind in ("equal", "tie", "left")},
            "top_20": self.top,
            "perplexity": perplexity,
            "perplexity_error": perplexity / right - 1,
            "kl": float(np.concatenate(self.kl).mean()),
            "logits": (self.squares / norm) ** 0.5,
        }


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("model", metavar="MODEL", help="a GGUF file or a name that is known")
    p.add_argument("--before", type=int, default=0, help="tokens of the text before each prompt")
    p.add_argument("--tokens", type=int, default=32, help="of a continuation (%(default)s)")
    p.add_argument("--text", type=Path, default=TEXT, help="a text file (WikiText-2)")
    p.add_argument("--window", type=int, default=512, help="tokens of a window (%(default)s)")
    p.add_argument("--windows", type=int, default=4, help="how many (%(default)s)")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--json", action="store_true")
    return p.parse_args()


def of_transformers(model: tenarai.Model) -> tuple[Side, Callable[[list[int], int], np.ndarray]]:
    """The truth, and the gaps between its two best logits along a greedy continuation."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        peer = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    @torch.no_grad()
    def logits(ids: list[int]) -> np.ndarray:
        return peer(torch.tensor([ids])).logits[0].numpy()

    @torch.no_grad()
    def steps(ids: list[int], n: int) -> list[np.ndarray]:
        given, past, rows = torch.tensor([ids]), None, []
        for _ in range(n):
            out = peer(given, past_key_values=past, use_cache=True)
            rows.append(out.logits[0, -1].numpy())
            given, past = torch.tensor([[int(rows[-1].argmax())]]), out.past_key_values
        return rows

    def gaps(ids: list[int], n: int) -> np.ndarray:
        best = np.array([np.partition(row, -2)[-2:] for row in steps(ids, n)])
        return best[:, 1] - best[:, 0]

    return Side(logits, lambda ids, n: [int(row.argmax()) for row in steps(ids, n)]), gaps


def of_tenarai(path: Path, activations: str, a: argparse.Namespace, context: int) -> Side:
    opened = tenarai.load(path, activations=activations, threads=a.threads, context=context)
    engine = Engine(opened.ops, opened.model, opened.params)

    def greedy(ids: list[int], n: int) -> list[int]:
        return list(engine.follow(engine.submit(ids, n)))

    return Side(lambda ids: opened.logits(np.array(ids)), greedy)


def of_llama_cpp(path: Path, a: argparse.Namespace, context: int) -> Side:
    llama = Llama(str(path), a.threads, context, 1, repack=False)

    def logits(ids: list[int]) -> np.ndarray:
        llama.clear()
        parts = []
        for start in range(0, len(ids), 512):
            part = ids[start : start + 512]
            n = len(part)
            llama.rows(part, range(start, start + n), [0] * n, [True] * n)
            parts += [llama.logits(i).copy() for i in range(n)]
        return np.stack(parts)

    def greedy(ids: list[int], n: int) -> list[int]:
        llama.clear()
        llama.prompt(ids)
        found = [int(llama.logits().argmax())]
        while len(found) < n:
            llama.rows(found[-1:], [len(ids) + len(found) - 1], [0], [True])
            found.append(int(llama.logits().argmax()))
        return found

    return Side(logits, greedy)


def outcome(found: list[int], right: list[int], gaps: np.ndarray) -> str:
    for token, wanted, gap in zip(found, right, gaps, strict=True):
        if token != wanted:
            return "tie" if gap < TIE else "left"
    return "equal"


def continuations(sides: dict[str, Side], truth: Side, gaps: Any, prompts: list, n: int) -> None:
    for ids in prompts:
        right, near = truth.greedy(ids, n), gaps(ids, n)
        first = log_softmax(truth.logits(ids)[-1:])[0]
        best = np.argpartition(first, -BEST)[-BEST:]
        for side in sides.values():
            side.outcomes.append(outcome(side.greedy(ids, n), right, near))
            error = log_softmax(side.logits(ids)[-1:])[0][best] - first[best]
            side.top = max(side.top, float(np.abs(error).max()))


def text(sides: dict[str, Side], truth: Side, windows: list[list[int]]) -> float:
    """Adds a text's figures; → the sum of squares of the truth's logits."""
    norm = 0.0
    for ids in windows:
        targets, rows = np.array(ids[1:]), np.arange(len(ids) - 1)
        right = truth.logits(ids)[:-1]
        norm += float(np.square(right, dtype=np.float64).sum())
        p = log_softmax(right)
        truth.nll.append(-p[rows, targets].astype(np.float64))
        for side in sides.values():
            found = side.logits(ids)[:-1]
            side.squares += float(np.square(found - right, dtype=np.float64).sum())
            q = log_softmax(found)
            side.nll.append(-q[rows, targets].astype(np.float64))
            side.kl.append(kl_divergence(p, q))
    return norm


def main() -> None:
    a = arguments()
    path = model_path(a.model)
    model = tenarai.load(path)
    assert model.tokenizer is not None
    begun = model.tokenizer.with_bos
    ids = model.tokenizer.encode(a.text.read_text("utf-8")[: 12 * a.window * (a.windows + 1)])
    before, ids = ids[: a.before], ids[a.before :]
    prompts = [
        begun(before + model.tokenizer.encode(prompt, parse_special=True)) for prompt in PROMPTS
    ]
    windows = [begun(ids[i * a.window :][: a.window - 1]) for i in range(a.windows)]
    context = max(a.window, max(map(len, prompts)) + a.tokens) + 8
    torch.set_num_threads(a.threads)
    truth, gaps = of_transformers(model.for_context(context))
    sides = {name: of_tenarai(path, name, a, context) for name in ACTIVATIONS}
    sides["llama.cpp"] = of_llama_cpp(path, a, context)
    continuations(sides, truth, gaps, prompts, a.tokens)
    norm = text(sides, truth, windows)
    found = {name: side.figures(truth, norm) for name, side in sides.items()}
    show(a, found, {
        "benchmark": "accuracy", "model": path.name, "text": a.text.name,
        "text_tokens": sum(len(w) - 1 for w in windows), "window": a.window,
        "prompt_tokens": [len(p) for p in prompts], "tokens": a.tokens,
        "perplexity": float(np.exp(np.concatenate(truth.nll).mean())), "sides": found,
    })  # fmt: skip


def show(a: argparse.Namespace, found: dict[str, Any], result: dict[str, Any]) -> None:
    if not a.json:
        print(f"{result['model']}: truth's perplexity {result['perplexity']:.4f}\n")
        print(f"{'':11}equal  tie  left   top 20  perplexity          KL     logits")
        for name, f in found.items():
            counts = "".join(f"{f['greedy'][kind]:6}" for kind in ("equal", "tie", "left"))
            print(
                f"{name:10}{counts}{f['top_20']:9.4f}{100 * f['perplexity_error']:+11.4f} %"
                f"{f['kl']:12.2e}{100 * f['logits']:9.4f} %"
            )
        print()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
