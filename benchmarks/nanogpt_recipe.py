"""nanoGPT's character-level recipe for a CPU, in tenarai and in eager PyTorch: time to one loss.

4 layers, 4 heads, 128 wide, context 64, batch 12, no dropout, 2,000 steps; AdamW (0.9, 0.99),
decay 0.1, clip 1, warm-up 100, cosine from 1e-3 to 1e-4: the preset `char`. Ours is the training
loop that `tenarai train` runs; PyTorch's model has the same initial weights, and both see the same
batches from the same loader, so their losses can be laid side by side. The sides take turns,
`--every` steps at a time, in processes of their own. Only steps are timed, not the validations
between them. The target is the last validation loss that both have reached.

    python benchmarks/nanogpt_recipe.py tinyshakespeare.txt
    python benchmarks/nanogpt_recipe.py tinyshakespeare.txt --steps 500 --threads 2
    python benchmarks/nanogpt_recipe.py tinyshakespeare.txt --preset char-fast

With `--preset` ours is another recipe for the same model, PyTorch's stays the published one: what
is gained then is the recipe's, which PyTorch could follow as well, and not the step's alone.

Last line on stdout: one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tenarai.bench.peer import Answer, Peer, serve
from tenarai.bench.train import machine
from tenarai.config import Settings, resolve


def settings_of(request: dict[str, Any]) -> Settings:
    given = {"source": request["text"], "threads": request["threads"], "seed": request["seed"]}
    given |= {"tensorboard": False}
    if request["steps"]:
        given["steps"] = request["steps"]
    return resolve(preset=request["preset"], given=given)


def ours(request: dict[str, Any]) -> Answer:
    """Steps of the training loop: {"steps": n} → seconds in them, then the validation loss."""
    from tenarai.train.build import build
    from tenarai.train.folder import RunFolder
    from tenarai.train.report import Report

    folder = RunFolder(request["folder"]).claim(False)
    trainer, _ = build(settings_of(request), folder, None, None, Report(quiet=True))
    weights: dict[str, Any] = dict(trainer.state.params)
    np.savez(request["weights"], **weights)

    def answer(ask: dict[str, Any]) -> dict[str, Any]:
        start = time.perf_counter()
        for _ in range(ask["steps"]):
            trainer.step()
        return {"seconds": time.perf_counter() - start, "val_loss": trainer.validate()}

    return answer


def theirs(request: dict[str, Any]) -> Answer:
    """The same in eager PyTorch."""
    import torch

    from tenarai import data
    from tenarai.bench.torch_peer import TorchGPT2, load_weights, optimiser_of
    from tenarai.train.schedule import learning_rate

    torch.set_num_threads(request["threads"])
    settings = settings_of(request)
    s, m = settings.optimiser, settings.model
    dataset = data.load(settings.data.source, settings.data.tokenizer, settings.data.vocab)
    model = TorchGPT2(
        layers=m.layers,
        heads=m.heads,
        channels=m.width,
        bias=m.bias,
        gelu="none" if m.gelu == "exact" else m.gelu,
        context=m.context,
        vocabulary=dataset.vocab_size,
    )
    with np.load(request["weights"]) as file:
        load_weights(model, dict(file))
    optimiser = optimiser_of(model, vars(s))
    loader = data.Loader(dataset.train, s.batch, m.context, seed=settings.run.seed)
    validation = data.Loader(dataset.val, s.batch, m.context, seed=0, shuffle=False)
    done = 0

    def batch_of(source: data.Loader) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, targets = (torch.from_numpy(part.astype(np.int64)) for part in source.next())
        return tokens, targets

    def step(index: int) -> None:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(settings.schedule, s.lr, index)
        loss = model(*batch_of(loader))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), s.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        loss.item()

    def validate() -> float:
        validation.reset()
        batches = min(settings.run.val_batches, validation.batches)
        with torch.no_grad():
            losses = [model(*batch_of(validation)).item() for _ in range(batches)]
        return sum(losses) / len(losses)

    def answer(ask: dict[str, Any]) -> dict[str, Any]:
        nonlocal done
        start = time.perf_counter()
        for _ in range(ask["steps"]):
            step(done)
            done += 1
        return {"seconds": time.perf_counter() - start, "val_loss": validate()}

    return answer


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, float]]]:
    """Each side's curve: step, seconds in steps so far, validation loss."""
    request = {
        "text": str(arguments.text),
        "threads": arguments.threads,
        "steps": arguments.steps,
        "seed": arguments.seed,
        "folder": str(folder / "run"),
        "weights": str(folder / "weights.npz"),
    }
    curves: dict[str, list[dict[str, float]]] = {"ours": [], "torch": []}
    requests = {
        side: request | {"side": side, "preset": preset}
        for side, preset in (("ours", arguments.preset), ("torch", "char"))
    }
    steps_of = {side: settings_of(ask).schedule.steps for side, ask in requests.items()}
    peers: dict[str, Peer] = {}
    try:
        for side in curves:  # ours first: it writes the weights
            peers[side] = Peer(__file__, arguments.threads, requests[side])
        for begin in range(0, max(steps_of.values()), arguments.every):
            for side, curve in curves.items():
                steps = min(arguments.every, steps_of[side] - begin)
                if steps <= 0:
                    continue
                time.sleep(0.1)
                point = peers[side].ask({"steps": steps})
                before = curve[-1]["seconds"] if curve else 0.0
                point = {"step": begin + steps, **point}
                point["seconds"] += before
                curve.append(point)
                print(
                    f"{side:6} step {point['step']:5}: validation loss {point['val_loss']:.4f} "
                    f"after {point['seconds']:.2f} s",
                    file=sys.stderr,
                )
    finally:
        for peer in peers.values():
            peer.close()
    return curves


def seconds_to(curve: list[dict[str, float]], target: float) -> float:
    """Seconds until the curve is at most `target`, a straight line between measured points."""
    previous = None
    for point in curve:
        if point["val_loss"] <= target:
            if previous is None:
                return point["seconds"]
            share = (previous["val_loss"] - target) / (previous["val_loss"] - point["val_loss"])
            return previous["seconds"] + share * (point["seconds"] - previous["seconds"])
        previous = point
    raise ValueError(f"the curve never reaches {target}")


def configure(request: dict[str, Any]) -> Answer:
    return {"ours": ours, "torch": theirs}[request["side"]](request)


def main() -> int:
    if len(sys.argv) == 1 and not sys.stdin.isatty():
        return serve(configure, "recipe")  # started by `measure`
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, help="a text; nanoGPT takes tinyshakespeare")
    parser.add_argument("--preset", default="char", help="ours (%(default)s)")
    parser.add_argument("--steps", type=int, help="of both (the recipes' own)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=int, default=100, help="steps a turn")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    arguments.text = arguments.text.resolve(strict=True)
    with tempfile.TemporaryDirectory(prefix="tenarai-recipe-") as folder:
        curves = measure(arguments, Path(folder))
    target = max(min(p["val_loss"] for p in curve) for curve in curves.values())
    seconds = {side: seconds_to(curve, target) for side, curve in curves.items()}
    step = {side: 1e3 * c[-1]["seconds"] / c[-1]["step"] for side, c in curves.items()}
    result = {
        "benchmark": "nanogpt_recipe",
        "machine": machine(),
        "threads": arguments.threads,
        "preset": arguments.preset,
        "steps": {side: curve[-1]["step"] for side, curve in curves.items()},
        "target_val_loss": target,
        "seconds": seconds["ours"],
        "torch_seconds": seconds["torch"],
        "speedup_vs_eager": seconds["torch"] / seconds["ours"],
        "ms_per_step": step["ours"],
        "torch_ms_per_step": step["torch"],
        "curves": curves,
    }
    print(f"validation loss {target:.4f}: ours {seconds['ours']:.1f} s, eager PyTorch "
          f"{seconds['torch']:.1f} s: {result['speedup_vs_eager']:.2f}x "
          f"({step['ours']:.2f} and {step['torch']:.2f} ms a step)")  # fmt: skip
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
