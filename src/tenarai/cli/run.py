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
    from tenarai.tokenizers import Tokenizer

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
  tenarai run -m smollm2 -p "The sea is" -p "The sky is" --temp 0
      two prompts, written on at once
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
@option(
    GROUP,
    "-p",
    "--prompt",
    "prompts",
    metavar="TEXT",
    multiple=True,
    help="What to write on from; several: all are written at once.",
)
@option(GROUP, "-f", "--file", "files", metavar="FILE", multiple=True,
        help="Take the prompt from a text file; several likewise.")  # fmt: skip
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
    help="Continuations of a prompt, written at once with seeds one apart: four cost less than "
    "twice one.",
)
@option(GROUP, "--no-echo", is_flag=True, help="Do not show the prompt before the text.")
@option(GROUP, "--json", "as_json", is_flag=True, help="Print one JSON document at the end.")
@model_options
@engine_options
@sampling_options
def run(
    prompts: tuple[str, ...],
    files: tuple[str, ...],
    count: int,
    samples: int,
    no_echo: bool,
    as_json: bool,
    **flags: Any,
) -> int:
    """Complete a prompt: the text goes to stdout as it is written, all else to stderr."""
    if prompts and files:
        raise click.UsageError("give -p or -f, not both")
    from tenarai.infer.timings import Timings

    sampling, seed = sampling_of(flags), seed_of(flags)
    texts = [from_argument(p) for p in prompts] or [from_file(f) for f in files] or [""]
    path, ignore_end = flags["path"], flags.pop("ignore_eos")
    model, seconds = open_model(flags)
    start = time.perf_counter()
    tokenizer = need_tokenizer(model, path)
    seconds += time.perf_counter() - start
    if ignore_end:
        sampling = forbidding(sampling, tokenizer)
    asked = [_asked(tokenizer, text) for text in texts]
    done, several = asked[0], len(asked) > 1 or samples > 1
    numbers = _numbers(model, flags, count, done)
    if not as_json:
        click.echo(_head(sampling, seed, numbers), err=True)
        write("" if no_echo or several else done.prompt)
    if several:
        seeds = list(range(seed, seed + samples))
        return _several(model, asked, seeds, sampling, count, flags, no_echo, as_json)
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


def _asked(tokenizer: Tokenizer, prompt: str) -> Completion:
    from tenarai.infer.generate import start_of_text

    ids = tokenizer.with_bos(tokenizer.encode(prompt))
    return Completion(prompt, ids or start_of_text(tokenizer))


def _several(
    model: Model,
    asked: list[Completion],
    seeds: list[int],
    sampling: Sampling,
    count: int,
    flags: dict[str, Any],
    no_echo: bool,
    as_json: bool,
) -> int:
    """A continuation a prompt and seed, written at once; shown one after another when all are
    done."""
    from .samples import text_of, write_samples

    if flags["lookup"] or flags["draft"] is not None:
        raise click.UsageError("several texts take no guesses: leave out --lookup and --draft")
    engine = open_engine(model, flags, slots=min(64, len(asked) * len(seeds)))
    limit = count if count >= 0 else ENDLESS
    numbers = [_numbers(model, flags, count, one) for one in asked]
    keeps = [n["n_keep"] for n in numbers]
    sequences, stopped = write_samples(
        model, engine, [one.ids for one in asked], seeds, sampling, keeps,
        max_tokens=limit, shift=flags["shift"],
    )  # fmt: skip
    found, tokens, seconds = [], 0, 0.0
    for (which, seed), sequence in sequences.items():
        one = asked[which]
        text = text_of(model, sequence, start=not one.prompt)
        done = Completion(one.prompt, one.ids, text, sequence.tokens)
        found.append(_document(done, sampling, seed, numbers[which], sequence.timings))
        tokens += len(sequence.tokens)
        seconds += sequence.timings.evaluation_s + sequence.timings.sample_s
        if not as_json:
            name = [f"prompt {which + 1}"] if len(asked) > 1 else []
            name += [f"seed {seed}"] if len(seeds) > 1 else []
            write(f"# {', '.join(name)}\n" + ("" if no_echo else one.prompt) + text + "\n\n")
    if as_json:
        click.echo(json.dumps({"samples": found}, ensure_ascii=False))
    else:
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
