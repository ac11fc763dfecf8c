"""`tenarai convert`: a model file of one kind into one of another."""

from __future__ import annotations

import json
import re

import click

EXAMPLES = """
\b
Examples:
  tenarai convert runs/novel novel.gguf --type Q8_0
      what a run has learned so far, for llama.cpp
  tenarai convert smollm2 smollm2-folder --type BF16 --shard-size 100MB
      a GGUF file (or a pulled model), for transformers, its weights in several files
  tenarai convert stories15M.bin stories.gguf --tokenizer tokenizer.bin
      llama2.c's file, with the tokenizer that it does not hold
"""
TARGET_NAMES = ("hf", "gguf", "llama2c", "llama2c-v1", "llmc", "tenarai")
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class Size(click.ParamType):
    """Bytes: 500MB, 5GB."""

    name = "size"

    def convert(self, value: object, param: object, ctx: object) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([0-9.]+)\s*([KMGT]?)B?", str(value).upper())
        try:
            size = int(float(found[1]) * UNITS[found[2]]) if found else 0
        except ValueError:
            size = 0
        return size or self.fail(f"{value!r} is no size such as 500MB or 5GB")


@click.command(epilog=EXAMPLES)
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@click.option("--to", type=click.Choice(TARGET_NAMES), help="The kind of OUT, if not by its name.")
@click.option(
    "--type",
    "--dtype",
    "kind",
    metavar="TYPE",
    help="Of the matrices: F32, F16, BF16, or a quantised type such as Q8_0, Q4_K_M. "
    "[default: F32; what is quantised already stays so in GGUF]",
)
@click.option(
    "--shard-size", type=Size(), metavar="SIZE", help="Of a folder's files at most [default: 5GB]."
)
@click.option("--tokenizer", metavar="FILE", help="The tokenizer, where IN has none or another.")
@click.option("--force", is_flag=True, help="Overwrite OUT where it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def convert(
    source: str,
    target: str,
    to: str | None,
    kind: str | None,
    shard_size: int | None,
    tokenizer: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write the model IN as OUT.

    IN is a GGUF file, a name of `tenarai pull`, a Hugging Face folder, llama2.c's or llm.c's .bin,
    a tenarai checkpoint or a run's folder. OUT is a GGUF file where it ends in .gguf, a checkpoint
    where it ends in .tenarai, llm.c's (of a GPT-2) or llama2.c's file where it ends in .bin, and
    else a Hugging Face folder. --type Q8_0 makes llama2.c's file of version 2, for its runq.
    """
    from tenarai.files import convert as run
    from tenarai.io.named_models import model_path

    left_out = run(
        model_path(source), target, kind, to=to, shard_size=shard_size, tokenizer=tokenizer,
        overwrite=force, progress=True,
    )  # fmt: skip
    if as_json:
        click.echo(json.dumps({"written": target, "left_out": left_out}, ensure_ascii=False))
        return
    click.echo(f"wrote {target}")
    for what in left_out:
        click.echo(f"left out: {what}")
