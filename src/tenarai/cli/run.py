"""`tenarai run`: completes a prompt with a model, and says what it cost."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from .model_options import (
    engine_options,
    guessers,
    model_options,
    need_tokenizer,
    open_engine,
    open_model,
)
from .option_groups import GroupedCommand, option
from .prompt import from_argument, from_file, write
from .sampling_options import forbidding, sampling_of, sampling_options, seed_of

if TYPE_CHECKING:
    from tenarai.api import Model
    from tenarai.infer.sampling import Sampling
    from tenarai.infer.timings import Timings

EXAMPLES = """
\b
Examples:
  tenarai run -m phi-3-mini-q4.gguf -f prompt.txt -n 200 --temp 0.7 --repeat-penalty 1.1
      write on from a file's text (UTF-8, UTF-16 with a mark, Shift_JIS)
  tenarai run -m runs/novel -p "The " --samplers "top_k;temperature" --top-k 20 --seed 3
      with what a run has learned, another chain, and the same text each time
  tenarai run -m smollm2 -p "A person as JSON: " --json-schema '{"type": "object"}' --json
      nothing but JSON is written; one document for a program to read
  tenarai run -m smollm2 -p "Once upon a time" --samples 4 --seed 1
      four stories at once, with seeds 1 to 4
"""
GROUP = "The text"
ENDLESS = 1 << 31
FULL = "\nended: the context of {} tokens is full (-c for a longer one, or --context-shift)"


@dataclass
class Completion:
    """One prompt and what was written after it."""

    prompt: str
    ids: list[int]  # of the prompt
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    stopped: bool = False  # by Ctrl-C


@click.command(cls=GroupedCommand, epilog=EXAMPLES)
@option(GROUP, "-p", "--prompt", metavar="TEXT", help="What to write on from.")
@option(GROUP, "-f", "--file", metavar="FILE", help="Take the prompt from a text file.")
@option(GROUP, "-n", "--predict", "--tokens", "count", metavar="N", type=click.IntRange(-1),
        default=200, show_default=True,
        help="Tokens to write at most; -1: until the text ends.")  # fmt: skip
@option(GROUP, "--keep", metavar="N", type=click.IntRange(-1), default=0, show_default=True,
        help="Tokens of the prompt that stay when the context is full; -1: all.")  # fmt: skip
@option(GROUP, "--context-shift", "shift", is_flag=True,
        help="Go on when the context is full, with the newer half of the text.")  # fmt: skip
@option(
    GROUP,
    "--samples",
    metavar="N",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Continuations, written at once with seeds one apart: four cost less than twice one.",
)
@option(GROUP, "--no-echo", is_flag=True, help="Do not show the prompt before the text.")
@option(GROUP, "--json", "as_json", is_flag=True, help="Print one JSON document at the end.")
@model_options
@engine_options
@sampling_options
def run(
    prompt: str | None,
    file: str | None,
    count: int,
    samples: int,
    no_echo: bool,
    as_json: bool,
    **flags: Any,
) -> int:
    """Complete a prompt: the text goes to stdout as it is written, all else to stderr."""
    if prompt is not None and file is not None:
        raise click.UsageError("give -p or -f, not both")
    from tenarai.infer.generate import start_of_text
    from tenarai.infer.timings import Timings

    sampling, seed = sampling_of(flags), seed_of(flags)
    prompt = from_argument(prompt or "") if file is None else from_file(file)
    path, ignore_end = flags["path"], flags.pop("ignore_eos")
    model, seconds = open_model(flags)
    start = time.perf_counter()
    tokenizer = need_tokenizer(model, path)
    seconds += time.perf_counter() - start
    if ignore_end:
        sampling = forbidding(sampling, tokenizer)
    ids = tokenizer.with_bos(tokenizer.encode(prompt))
    done = Completion(prompt, ids or start_of_text(tokenizer))
    numbers = _numbers(model, flags, count, done)
    if not as_json:
        click.echo(_head(sampling, seed, numbers), err=True)
        write("" if no_echo or samples > 1 else prompt)
    if samples > 1:
        seeds = list(range(seed, seed + samples))
        return _several(model, done, seeds, sampling, numbers, flags, no_echo, as_json)
    timings = Timings(load_s=seconds)
    engine = open_engine(model, flags)
    writing = {
        "seed": seed, "sampling": sampling, "keep": numbers["n_keep"], "shift": flags["shift"],
        "guesser": guessers(model, flags)(), "engine": engine, "timings": timings,
    }  # fmt: skip
    _complete(model, done, numbers["n_predict"], writing, show=not as_json)
    full = not flags["shift"] and len(done.ids) + len(done.tokens) > engine.context
    if as_json:
        click.echo(
            json.dumps(_document(done, sampling, seed, numbers, timings), ensure_ascii=False)
        )
    else:
        click.echo()
        if full:
            click.echo(FULL.format(engine.context), err=True)
        click.echo("\n" + timings.table(), err=True)
    return 130 if done.stopped else 0


def _several(
    model: Model,
    asked: Completion,
    seeds: list[int],
    sampling: Sampling,
    numbers: dict[str, int],
    flags: dict[str, Any],
    no_echo: bool,
    as_json: bool,
) -> int:
    """A continuation a seed, written at once; shown one after another when all are done."""
    from .samples import text_of, write_samples

    if flags["lookup"] or flags["draft"] is not None:
        raise click.UsageError("--samples takes no guesses: leave out --lookup and --draft")
    engine = open_engine(model, flags, slots=len(seeds))
    limit = numbers["n_predict"] if numbers["n_predict"] >= 0 else ENDLESS
    sequences, stopped = write_samples(
        model, engine, asked.ids, seeds, sampling,
        max_tokens=limit, keep=numbers["n_keep"], shift=flags["shift"],
    )  # fmt: skip
    found = []
    for seed, sequence in zip(seeds, sequences, strict=False):
        text = text_of(model, sequence, start=not asked.prompt)
        done = Completion(asked.prompt, asked.ids, text, sequence.tokens)
        found.append(_document(done, sampling, seed, numbers, sequence.timings))
        if not as_json:
            write(f"# seed {seed}\n" + ("" if no_echo else asked.prompt) + text + "\n\n")
    if as_json:
        click.echo(json.dumps({"samples": found}, ensure_ascii=False))
    else:
        tokens = sum(len(s.tokens) for s in sequences)
        seconds = sum(s.timings.evaluation_s + s.timings.sample_s for s in sequences)
        rate = tokens / seconds if seconds else 0.0
        click.echo(f"{tokens} tokens of {len(found)} texts, {rate:.1f} a second", err=True)
    return 130 if stopped else 0


def _complete(
    model: Model, done: Completion, count: int, writing: dict[str, Any], show: bool
) -> None:
    """Generate `count` tokens (-1: no limit) into `done`, and onto stdout as they come; Ctrl-C ends
    it. `writing`: the other arguments of Model.generate."""
    assert model.tokenizer is not None
    decoder = model.tokenizer.stream(start=not done.prompt)
    limit = count if count >= 0 else ENDLESS

    def put(piece: str) -> None:
        done.text += piece
        if show:
            write(piece)

    try:
        for token in model.generate(done.ids, limit, stream=True, return_tokens=True, **writing):
            done.tokens.append(int(token))
            put(decoder.push(int(token)))
    except KeyboardInterrupt:
        done.stopped = True
    put(decoder.flush())


def _numbers(model: Model, flags: dict[str, Any], count: int, done: Completion) -> dict[str, int]:
    keep = len(done.ids) if flags["keep"] < 0 else min(flags["keep"], len(done.ids))
    numbers = {"n_ctx": model.context, "n_batch": flags["batch"]}
    return numbers | {"n_predict": count, "n_keep": keep}


def _head(sampling: Sampling, seed: int, numbers: dict[str, int]) -> str:
    """What is said before the text: the settings, the chain, the sizes."""
    values = "\n".join(f"    {line}" for line in sampling.values().splitlines())
    sizes = ", ".join(f"{name} = {value}" for name, value in numbers.items())
    return f"seed: {seed}\nsampling:\n{values}\nsampling order: {sampling}\n{sizes}\n"


def _document(
    done: Completion, sampling: Sampling, seed: int, numbers: dict[str, int], timings: Timings
) -> dict[str, Any]:
    return {
        "prompt": done.prompt,
        "text": done.text,
        "token_ids": done.tokens,
        "tokens": len(done.tokens),
        "seed": seed,
        "samplers": str(sampling),
        **numbers,
        **timings.as_json(),
    }
