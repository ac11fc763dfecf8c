"""`tenarai merge`: an adapter into its model."""

from __future__ import annotations

import json

import click

EXAMPLES = """
\b
Examples:
  tenarai merge -m smollm2 --lora runs/dialogues dialogues.gguf
      what `tenarai finetune --lora` made, as one file for tenarai and llama.cpp
  tenarai merge -m smollm2 --lora runs/dialogues small.gguf --as same
      each matrix in the format that it had: as small as the model was, and rounded again
  tenarai merge -m gpt2/ --lora peft-adapter/ merged/
      a Hugging Face folder, for transformers
"""


@click.command(epilog=EXAMPLES)
@click.argument("out", metavar="OUT")
@click.option("-m", "--model", metavar="MODEL", required=True, help="What the adapter is for.")
@click.option(
    "--lora",
    metavar="PATH",
    required=True,
    help="A PEFT folder, a GGUF adapter, or the folder of a run of `tenarai finetune`.",
)
@click.option(
    "--as",
    "kind",
    type=click.Choice(["float16", "float32", "same"]),
    default="float16",
    show_default=True,
    help="Adapted matrices in a GGUF file; same: in the format that each had.",
)
@click.option("--force", is_flag=True, help="Overwrite OUT where it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def merge(out: str, model: str, lora: str, kind: str, force: bool, as_json: bool) -> None:
    """Write MODEL with an adapter in its weights as OUT.

    OUT is a GGUF file where it ends in .gguf, a checkpoint where it ends in .tenarai, and else a
    Hugging Face folder.
    """
    from tenarai.finetune.merge import merge as run

    left_out = run(model, lora, out, kind, force)
    if as_json:
        click.echo(json.dumps({"out": out, "left_out": left_out}, ensure_ascii=False))
        return
    click.echo(f"wrote {out}")
    for what in left_out:
        click.echo(f"left out: {what}")
