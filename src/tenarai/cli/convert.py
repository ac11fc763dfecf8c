"""`tenarai convert`: a model file of one kind into one of another."""

from __future__ import annotations

import click

EXAMPLES = """
\b
Examples:
  tenarai convert gpt2/ gpt2_124M.bin
      a Hugging Face folder, for llm.c's programs (--dtype bfloat16 for its GPU ones)
  tenarai convert gpt2_124M.bin gpt2-folder
      llm.c's file, for transformers
  tenarai convert runs/novel novel-model
      what a run has learned so far, with its tokenizer, for transformers
"""


@click.command(epilog=EXAMPLES)
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    help="Numbers in an llm.c file (float32 by default).",
)
@click.option("--force", is_flag=True, help="Overwrite OUT where it exists.")
def convert(source: str, target: str, dtype: str, force: bool) -> None:
    """Write the model IN as OUT.

    IN is a Hugging Face folder, llm.c's .bin, a tenarai checkpoint or a run's folder. OUT is
    llm.c's file where it ends in .bin, a checkpoint where it ends in .tenarai, and else a
    Hugging Face folder.
    """
    from tenarai.files import convert as run

    left_out = run(source, target, dtype, overwrite=force)
    click.echo(f"wrote {target}")
    for what in left_out:
        click.echo(f"left out: {what}")
