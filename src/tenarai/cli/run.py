"""`tenarai run`: completes a prompt with a model, and says what it cost."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import click

EXAMPLES = """
\b
Examples:
  tenarai run -m runs/novel -p "The "
      writes on with what a run has learned
  tenarai run -m gpt2/ -f beginning.txt -n 200 --temp 0.7 --top-p 0.9 --seed 3
      a Hugging Face folder; the prompt from a file
  tenarai run -m gpt2_124M.bin -p "Once" --temp 0 --json
      llm.c's file; the most probable tokens; for a program to read
"""


@dataclass
class Completion:
    """What was written and what it cost."""

    prompt: str
    prompt_tokens: int
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    first: float = 0.0  # seconds to the first token: the prompt, and one token
    rest: float = 0.0  # seconds of all other tokens

    def timings(self) -> dict[str, Any]:
        n = len(self.tokens) - 1
        return {
            "prompt_tokens": self.prompt_tokens,
            "tokens": len(self.tokens),
            "prompt_tokens_per_s": self.prompt_tokens / self.first if self.first else None,
            "decode_tokens_per_s": n / self.rest if n > 0 and self.rest else None,
        }


@click.command(epilog=EXAMPLES)
@click.option("-m", "--model", "path", metavar="MODEL", required=True,
              help="A run's folder, a checkpoint, a Hugging Face folder, or llm.c's.")  # fmt: skip
@click.option("-p", "--prompt", metavar="TEXT", help="What to write on from.")
@click.option("-f", "--file", metavar="FILE", help="Take the prompt from a text file.")
@click.option("-n", "--tokens", "count", metavar="N", type=click.IntRange(0), default=200,
              show_default=True, help="Tokens to write at most.")  # fmt: skip
@click.option("--temp", metavar="X", type=float, default=0.8, show_default=True,
              help="Temperature: below 1 surer, 0 always the most probable token.")  # fmt: skip
@click.option("--top-k", metavar="N", type=int, default=40, show_default=True,
              help="Choose among the N most probable tokens; 0: all.")  # fmt: skip
@click.option("--top-p", metavar="X", type=float, default=1.0, show_default=True,
              help="Choose among the fewest tokens that are this probable together.")  # fmt: skip
@click.option("--seed", metavar="N", type=click.IntRange(0), default=0, show_default=True,
              help="The same seed writes the same text.")  # fmt: skip
@click.option("-t", "--threads", metavar="N", type=click.IntRange(1), default=None,
              help="Threads of the kernels (one a core by default).")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document at the end.")
def run(
    path: str,
    prompt: str | None,
    file: str | None,
    count: int,
    temp: float,
    top_k: int,
    top_p: float,
    seed: int,
    threads: int | None,
    as_json: bool,
) -> int:
    """Complete a prompt: the text goes to stdout as it is written, the timings to stderr."""
    if prompt is not None and file is not None:
        raise click.UsageError("give -p or -f, not both")
    from tenarai.api import load
    from tenarai.errors import TenaraiError
    from tenarai.infer.sampler import Sampling

    sampling = Sampling(temp, top_k, top_p)
    if file is not None:
        prompt = _read(file)
    model = load(path, threads=threads)
    if model.tokenizer is None:
        raise TenaraiError(
            f"{path}: no tokenizer lies beside this model: put its tokenizer.json, or for llm.c "
            "gpt2_tokenizer.bin, into the same folder"
        )
    done = Completion(prompt or "", len(model.tokenizer.encode(prompt or "")))
    stopped = False
    try:
        _write(model, done, count, sampling, seed, show=not as_json)
    except KeyboardInterrupt:
        stopped = True
    if as_json:
        result = {"prompt": done.prompt, "text": done.text, "token_ids": done.tokens}
        click.echo(json.dumps(result | done.timings() | {"seed": seed}, ensure_ascii=False))
    else:
        click.echo()
        click.echo(_summary(done, sampling, seed), err=True)
    return 130 if stopped else 0


def _read(file: str) -> str:
    """A prompt from a file: UTF-8, UTF-16 with a mark, or Shift_JIS, and which is said."""
    from tenarai.data import read_paths

    (document,) = read_paths([file])
    if document.encoding.lower() not in ("utf-8", "utf8", "ascii"):
        click.echo(f"{file}: read as {document.encoding}", err=True)
    return document.text


def _write(model: Any, done: Completion, count: int, sampling: Any, seed: int, show: bool) -> None:
    """Generate into `done`, and onto stdout as it comes."""

    def put(piece: str) -> None:
        done.text += piece
        if show and piece:
            sys.stdout.write(piece)
            sys.stdout.flush()

    if show:
        sys.stdout.write(done.prompt)
    decoder = model.tokenizer.stream()
    before = time.perf_counter()
    tokens = model.generate(
        done.prompt,
        count,
        sampling.temperature,
        seed,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        stream=True,
        return_tokens=True,
    )
    try:
        for token in tokens:
            now = time.perf_counter()
            if done.tokens:
                done.rest += now - before
            else:
                done.first = now - before
            done.tokens.append(token)
            put(decoder.push(token))
            before = time.perf_counter()
    finally:
        put(decoder.flush())


def _summary(done: Completion, sampling: Any, seed: int) -> str:
    t = done.timings()
    rates = [f"prompt {t['prompt_tokens']} tokens"]
    if t["prompt_tokens_per_s"]:
        rates[0] += f" ({t['prompt_tokens_per_s']:,.0f} tokens/s)"
    rates.append(f"written {t['tokens']} tokens")
    if t["decode_tokens_per_s"]:
        rates[1] += f" ({t['decode_tokens_per_s']:,.1f} tokens/s)"
    return f"[{sampling}; seed {seed}; {', '.join(rates)}]"
