"""`tenarai perplexity`: how well a model foretells a text, and how far it is from another."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import click

from .model_options import ACTIVATIONS, context_option, model_options, need_tokenizer, open_model
from .option_groups import GroupedCommand, option
from .prompt import from_file

if TYPE_CHECKING:
    from tenarai.infer.perplexity import Window

EXAMPLES = """
\b
Examples:
  tenarai perplexity -m phi-3-mini-q4.gguf -f wiki.test.txt -c 512
      perplexity with its standard error, every token counted once
  tenarai perplexity -m smollm2 -f text.txt --kl-vs smollm2 --json
      what rounding activations to 12 bits costs: against the same weights, exactly
  tenarai perplexity -m model-q4.gguf -f text.txt --kl-base f16.base --windows halves
      against what another model said, saved before with --save-base f16.base

Windows: with `strided`, each is --stride tokens further on, and of each those tokens count that
were in none before: every token once, after at least CTX - STRIDE others but in the first window.
With `halves`, windows lie side by side and the second half of each counts, which is llama.cpp's
definition.
"""
GROUP = "What is measured"
USUAL_CONTEXT = 512


@click.command(cls=GroupedCommand, epilog=EXAMPLES)
@option(GROUP, "-f", "--file", metavar="FILE", required=True, help="The text.")
@option(GROUP, "--windows", "kind", type=click.Choice(["strided", "halves"]), default="strided",
        show_default=True, help="Which tokens count after which; see below.")  # fmt: skip
@option(GROUP, "--stride", metavar="N", type=click.IntRange(1),
        help="How far a window is from the next.  [default: half the context]")  # fmt: skip
@option(GROUP, "--chunks", metavar="N", type=click.IntRange(1), help="Only the first N windows.")
@option(GROUP, "--kl-vs", metavar="MODEL", help="KL divergence from another model's predictions.")
@option(GROUP, "--kl-activations", type=click.Choice(ACTIVATIONS), default="float32",
        show_default=True, help="The activations of that model.")  # fmt: skip
@option(GROUP, "--kl-base", metavar="FILE", help="The same from saved predictions.")
@option(GROUP, "--save-base", metavar="FILE", help="Save this model's (2 bytes a token and entry).")
@option(GROUP, "--json", "as_json", is_flag=True, help="Print one JSON document at the end.")
@model_options
@context_option(f"The length of a window in tokens.  [default: {USUAL_CONTEXT} at most]")
def perplexity(
    file: str,
    kind: str,
    stride: int | None,
    chunks: int | None,
    kl_vs: str | None,
    kl_activations: str,
    kl_base: str | None,
    save_base: str | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Measure how well a model foretells a text: exp of the mean of -ln p over its tokens."""
    if kl_vs is not None and kl_base is not None:
        raise click.UsageError("give --kl-vs or --kl-base, not both")
    if stride is not None and kind == "halves":
        raise click.UsageError("--stride is for strided windows")
    import numpy as np

    from tenarai.infer import kl_base as bases
    from tenarai.infer.perplexity import measure

    text = from_file(file)
    given = flags | {"path": kl_vs, "activations": kl_activations}
    given |= {"gpu_layers": None, "lora": None}
    path, chosen = flags["path"], flags["context"]
    model, _ = open_model(flags, usual=None)
    tokenizer = need_tokenizer(model, path)
    longest = model.config.context
    context = min(USUAL_CONTEXT, longest) if chosen is None else chosen or longest
    bos = tokenizer.bos if tokenizer.add_bos else None
    tokens = np.concatenate([np.zeros(0, np.int32), *tokenizer.encode_chunks(text, progress=True)])
    windows = _windows(kind, len(tokens), context, stride, bos)[:chunks]
    about = {"text": bases.digest(tokens, windows), "model": str(path)}
    rows, V = sum(w.end - w.first for w in windows), model.config.vocab_size
    base: Any = None
    if kl_vs is not None:
        other, _ = open_model(given, usual=None)
        _same_vocabulary(V, other.config.vocab_size, kl_vs)
        base = lambda ids, first: other.logits(ids)[first - 1 : -1]  # noqa: E731
    elif kl_base is not None:
        base = bases.BaseReader(kl_base, about["text"], rows, V)
    with contextlib.ExitStack() as stack:
        save = (
            stack.enter_context(bases.BaseWriter(save_base, about, rows, V)) if save_base else None
        )
        figures = measure(
            model.logits, tokens, windows, bos=bos, bos_replaces=kind == "halves",
            base=base, save=save, progress=True,
        )  # fmt: skip
    found = figures.as_json() | {"windows": kind, "context": context, "file": file, "model": path}
    if kind == "strided":
        found["stride"] = _stride(context, stride)
    click.echo(json.dumps(found, ensure_ascii=False) if as_json else _shown(found, len(windows)))


def _stride(context: int, stride: int | None) -> int:
    return stride if stride is not None else max(1, context // 2)


def _windows(kind: str, n: int, context: int, stride: int | None, bos: int | None) -> list[Window]:
    from tenarai.infer.perplexity import halves, strided

    if kind == "halves":
        return list(halves(n, context))
    # what stands before every window takes the place of one of its tokens
    return list(strided(n, context - (bos is not None), _stride(context, stride)))


def _same_vocabulary(V: int, other: int, path: str) -> None:
    from tenarai.errors import TenaraiError

    if other != V:
        raise TenaraiError(
            f"{path}: has {other} tokens, the model has {V}: compare models of one vocabulary"
        )


def _shown(found: dict[str, Any], windows: int) -> str:
    how = f"{windows} windows of {found['context']} tokens"
    how += f", {found['stride']} apart" if "stride" in found else ", the second half of each"
    lines = [
        f"{found['tokens_counted']:,} tokens counted: {how}",
        f"perplexity {found['perplexity']:.4f} ± {found['standard_error']:.4f}"
        f"   ({found['tokens_per_s']:,.1f} tokens per second)",
    ]
    if kl := found.get("kl"):
        lines += [
            f"KL divergence from the base {kl['mean']:.6f} ± {kl['standard_error']:.6f} "
            f"(median {kl['median']:.6f}, 99 % below {kl['p99']:.6f}, largest {kl['max']:.6f})",
            f"the same most probable token {100 * kl['same_most_probable']:.2f} %, "
            f"perplexity {kl['perplexity_ratio']:.5f} times the base's {kl['base_perplexity']:.4f}",
        ]
    return "\n".join(lines)
