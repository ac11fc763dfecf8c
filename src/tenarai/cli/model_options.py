"""The options of `run`, `chat`, `perplexity` and `eval` that say which model runs, and how."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from .option_groups import apply, option

if TYPE_CHECKING:
    from tenarai.api import Model
    from tenarai.infer.engine import Engine
    from tenarai.infer.sequence import Guesses

GROUP = "The model and the machine"
DTYPES = ["float16", "int8", "float32"]  # of the KV cache
ACTIVATIONS = ["bytes", "words", "float32"]
USUAL_CONTEXT = 4096  # tokens, where the model would take more and nobody asked

model_options = apply(
    [
        option(GROUP, "-m", "--model", "path", metavar="MODEL", required=True,
               help="A GGUF file, a name that `tenarai pull` knows, a run's folder, a checkpoint, "
                    "a Hugging Face folder, or llama2.c's or llm.c's file."),
        option(GROUP, "--tokenizer", metavar="FILE",
               help="The tokenizer, where none lies in or beside the model, or another one."),
        option(GROUP, "--lora", metavar="PATH",
               help="An adapter on it: a PEFT folder, a GGUF adapter, or a run of `finetune`."),
        option(GROUP, "-t", "--threads", metavar="N", type=click.IntRange(1),
               help="Threads of the kernels (one a core by default)."),
        option(GROUP, "--activations", type=click.Choice(ACTIVATIONS), default="bytes",
               show_default=True,
               help="In products with quantised weights: rounded to 8 bits in prompts and 12 where "
                    "tokens are written (bytes); to 12 everywhere, nearer to exact and slower in "
                    "prompts (words); or exact (float32)."),
        option(GROUP, "-ngl", "--n-gpu-layers", "gpu_layers", metavar="N", type=int,
               help="Accepted, and without effect: everything runs on the CPU."),
    ]
)  # fmt: skip


def context_option(text: str) -> Any:
    """-c, which each verb understands in its own way."""
    return option(
        GROUP, "-c", "--ctx-size", "context", metavar="N", type=click.IntRange(0), help=text
    )


engine_options = apply(
    [
        context_option("The longest text in tokens; 0: as long as the model takes.  "
                       f"[default: that, {USUAL_CONTEXT} at most]"),
        option(GROUP, "-b", "--batch-size", "batch", metavar="N", type=click.IntRange(1),
               default=512, show_default=True, help="Tokens of the prompt that are read at once."),
        option(GROUP, "--cache-type", "cache", type=click.Choice(DTYPES), default="float16",
               show_default=True,
               help="Numbers of the KV cache: int8 takes half the memory of float16."),
        option(GROUP, "--lookup", is_flag=True,
               help="Guess tokens from what stood in the text before: the same text, faster where "
                    "it repeats itself."),
        option(GROUP, "--draft", metavar="MODEL",
               help="Let a smaller model of the same vocabulary guess tokens: the same text, "
                    "faster where it guesses well."),
    ]
)  # fmt: skip


def open_engine(model: Model, flags: dict[str, Any], slots: int = 1) -> Engine:
    """The engine that the options of `engine_options` in `flags` describe."""
    return model.engine(slots=slots, rows=flags["batch"], cache=flags["cache"])


def guessers(model: Model, flags: dict[str, Any]) -> Callable[[], Guesses | None]:
    """What makes a guesser for a text, as the options say. Raises TenaraiError: a draft model with
    another vocabulary."""
    from tenarai.infer.speculative import DraftModel, PromptLookup

    if flags["draft"] is None:
        return PromptLookup if flags["lookup"] else lambda: None
    if flags["lookup"]:
        raise click.UsageError("give --lookup or --draft, not both")
    from tenarai.api import load
    from tenarai.io.named_models import model_path

    small = load(model_path(flags["draft"]))
    tokens = model.config.vocab_size
    draft = DraftModel(small.ops, small.model, small.params, tokens, model.context)
    return lambda: draft


def open_model(flags: dict[str, Any], usual: int | None = USUAL_CONTEXT) -> tuple[Model, float]:
    """The model that the options in `flags` describe (they are taken out), and the seconds.

    Without -c it is opened for `usual` tokens where it takes more.

    Says on stderr that there is no GPU here, where layers for it were asked for.
    Raises TenaraiError: what `tenarai.load` does; the compiled core is missing.
    """
    start = time.perf_counter()
    from tenarai.api import load
    from tenarai.io.named_models import model_path

    layers = flags.pop("gpu_layers")
    if layers:
        click.echo(f"-ngl {layers}: no GPU is used here, all layers run on the CPU", err=True)
    path, context = model_path(flags.pop("path")), flags.pop("context")
    rest = {name: flags.pop(name) for name in ("activations", "threads", "lora")}
    rest["tokenizer"] = flags.pop("tokenizer", None)
    model = load(path, context=context or None, **rest)
    if context is None and usual is not None and model.context > usual:
        model = model.for_context(usual)
    _ = model.ops  # a missing core is told before anything is written
    return model, time.perf_counter() - start


def need_tokenizer(model: Model, path: str) -> Any:
    """The model's tokenizer. Raises TenaraiError where it came without one."""
    from tenarai.errors import TenaraiError

    if model.tokenizer is None:
        raise TenaraiError(
            f"{path}: no tokenizer lies beside this model: name one (--tokenizer), or put its "
            "tokenizer.json (llama2.c's tokenizer.bin, llm.c's gpt2_tokenizer.bin) into the folder"
        )
    return model.tokenizer
