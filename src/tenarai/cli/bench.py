"""`tenarai bench`: speed, next to the machine's own limits and to PyTorch where it is installed."""

from __future__ import annotations

import json
from typing import Any

import click

from .model_options import ACTIVATIONS

VOCABULARIES = {"gpt2": 50257, "char": 65, "byte": 256}  # of a preset's tokenizer

TRAIN_EXAMPLES = """
\b
Examples:
  tenarai bench train --preset gpt2 -b 4 -T 64 --threads 2 --vs torch
      a step of GPT-2 124M, beside PyTorch eager and compiled
  tenarai bench train --preset gpt2 -b 4 -T 1024 --steps 2 --json
      one line of JSON, no peer
  tenarai bench train --preset char -b 12 -T 64 --vs eager
      nanoGPT's recipe for a CPU
  tenarai bench train --preset llama-15m -b 8 -T 256 --products words --vs torch
      a step of llama2.c's 15 million weights, ours with products in words
  tenarai bench train --preset gpt2 --products words --vs torch-bfloat16
      both sides rounded: PyTorch's products and attention by autocast
"""

OPS_EXAMPLES = """
\b
Examples:
  tenarai bench ops
      every op at GPT-2's shapes, beside PyTorch where it is installed
  tenarai bench ops --only attention --threads 2 --products words
      one kind of op, its products in words
  tenarai bench ops --vs none --json
      one line of JSON, no peer
"""

INFER_EXAMPLES = """
\b
Examples:
  tenarai bench infer -m smollm2 -p 512 -n 64 --threads 2 --vs llama-cpp
      a model that `tenarai pull smollm2` fetched, beside llama.cpp
  tenarai bench infer -m model-q4_k_m.gguf --activations float32
      the exact path, no peer
  tenarai bench infer -m smollm2 --sequences 4 --json
      four texts at once; one line of JSON
"""

PEERS = {
    "none": (),
    "torch": ("eager", "compile"),
    "eager": ("eager",),
    "compile": ("compile",),
    "torch-bfloat16": ("eager-bfloat16", "compile-bfloat16"),
}

threads_option = click.option("--threads", "-t", type=click.IntRange(1), default=None,
                              help="All of this process's cores by default.")  # fmt: skip
products_option = click.option("--products", type=click.Choice(["plain", "fast", "words"]),
                               default="fast", show_default=True,
                               help="How ours makes large products.")  # fmt: skip
json_option = click.option("--json", "as_json", is_flag=True, help="Print one line of JSON only.")


@click.group()
def bench() -> None:
    """Measure speed against the machine's limits and against peers.

    The last line on stdout is one line of JSON.
    """


@bench.command(epilog=TRAIN_EXAMPLES)
@click.option("--preset", default="gpt2", show_default=True, help="The model's shape.")
@click.option("-b", "--batch", type=click.IntRange(1), default=4, show_default=True)
@click.option("-T", "--time", "length", type=click.IntRange(1), default=64, show_default=True,
              help="Tokens a sequence.")  # fmt: skip
@threads_option
@click.option("--steps", type=click.IntRange(1), default=5, show_default=True,
              help="Steps measured a side, after one that is not.")  # fmt: skip
@click.option("--vs", type=click.Choice(list(PEERS)), default="none", show_default=True,
              help="PyTorch: eager, compiled, both, or both in bfloat16.")  # fmt: skip
@click.option("--recompute", is_flag=True, help="Keep only the blocks' inputs (less memory).")
@click.option("--saved-activations", type=click.Choice(["float32", "bfloat16"]),
              default="float32", show_default=True,
              help="What blocks keep for the backward.")  # fmt: skip
@products_option
@click.option("--isa", default=None, help="Instruction set of our kernels; the best by default.")
@click.option("--plain-malloc", is_flag=True, help="PyTorch without the malloc settings it likes.")
@json_option
def train(
    preset: str,
    batch: int,
    length: int,
    threads: int | None,
    steps: int,
    vs: str,
    recompute: bool,
    saved_activations: str,
    products: str,
    isa: str | None,
    plain_malloc: bool,
    as_json: bool,
) -> None:
    """Time training steps: forward, backward and AdamW."""
    from tenarai.bench import train as measured
    from tenarai.ops.fast import default_threads

    benchmark = measured.TrainBenchmark(
        _config(preset),
        batch=batch,
        time=length,
        threads=threads or default_threads(),
        steps=steps,
        peers=_peers(vs),
        recompute=recompute,
        saved_bfloat16=saved_activations == "bfloat16",
        products=products,
        isa=isa,
        malloc=not plain_malloc,
    )
    result = measured.run(benchmark, _say) | {"preset": preset}
    _show(result, measured.table, as_json)


@bench.command(epilog=OPS_EXAMPLES)
@threads_option
@click.option("--only", default="", help="Only ops whose names contain this.")
@click.option("--vs", type=click.Choice(["none", "torch"]), default=None,
              help="PyTorch where it is installed, by default.")  # fmt: skip
@products_option
@click.option("--isa", default=None, help="Instruction set of our kernels; the best by default.")
@json_option
def ops(
    threads: int | None, only: str, vs: str | None, products: str, isa: str | None, as_json: bool
) -> None:
    """Time each op, forward and backward, at GPT-2's shapes."""
    from tenarai.bench.ops import run, table
    from tenarai.bench.train import torch_is_installed
    from tenarai.ops.fast import default_threads

    if vs == "torch":
        _peers(vs)
    torch = vs == "torch" or (vs is None and torch_is_installed())
    threads = threads or default_threads()
    result = run(threads, only, torch=torch, products=products, isa=isa, say=_say)
    _show(result, table, as_json)


@bench.command(epilog=INFER_EXAMPLES)
@click.option("-m", "--model", "path", metavar="MODEL", required=True, help="A GGUF file or name.")
@click.option("-p", "--prompt", type=click.IntRange(1), default=512, show_default=True,
              help="Tokens of the prompt.")  # fmt: skip
@click.option("-n", "--generate", type=click.IntRange(1), default=64, show_default=True,
              help="Tokens to write.")  # fmt: skip
@click.option("--sequences", type=click.IntRange(1, 64), default=1, show_default=True,
              help="Texts at once.")  # fmt: skip
@threads_option
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True,
              help="Measured, after one that is not.")  # fmt: skip
@click.option("--activations", type=click.Choice(ACTIVATIONS), default="bytes",
              show_default=True)  # fmt: skip
@click.option("--vs", type=click.Choice(["none", "llama-cpp"]), default="none", show_default=True)
@json_option
def infer(
    path: str,
    prompt: int,
    generate: int,
    sequences: int,
    threads: int | None,
    rounds: int,
    activations: str,
    vs: str,
    as_json: bool,
) -> None:
    """Time a prompt and the writing of tokens."""
    from tenarai.bench import infer as measured
    from tenarai.io.named_models import model_path
    from tenarai.ops.fast import default_threads

    benchmark = measured.InferBenchmark(
        str(model_path(path)), prompt, generate, sequences, threads or default_threads(), rounds,
        activations, vs == "llama-cpp",
    )  # fmt: skip
    _show(measured.run(benchmark, _say), measured.table, as_json)


def _config(preset: str) -> Any:
    """The preset's model, with the vocabulary of its tokenizer."""
    from dataclasses import replace

    from tenarai.config import resolve
    from tenarai.errors import TenaraiError
    from tenarai.models.gpt2 import GPT2Config
    from tenarai.train.model import model_of

    settings = resolve(preset=preset)
    data, model = settings.data, settings.model
    if model.experts:
        raise TenaraiError(f"--preset {preset}: mixtures of experts are not measured")
    vocab_size = VOCABULARIES.get(data.tokenizer, data.vocab)
    config = model_of(model, settings.optimiser, vocab_size).config
    return replace(config, dropout=0.0) if isinstance(config, GPT2Config) else config


def _peers(vs: str) -> tuple[str, ...]:
    from tenarai.bench.train import torch_is_installed
    from tenarai.errors import TenaraiError

    if PEERS[vs] and not torch_is_installed():
        raise TenaraiError(
            f"--vs {vs}: PyTorch is not installed here: pip install torch, or --vs none"
        )
    return PEERS[vs]


def _say(text: str) -> None:
    click.echo(text, err=True)


def _show(result: dict[str, Any], table: Any, as_json: bool) -> None:
    if not as_json:
        click.echo(table(result) + "\n")
    click.echo(json.dumps(result))
