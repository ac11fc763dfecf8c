"""`tenarai convert` and `tenarai inspect`: model files."""

from __future__ import annotations

import json
from typing import Any

import click

CONVERT_EXAMPLES = """
\b
Examples:
  tenarai convert gpt2/ gpt2_124M.bin
      a Hugging Face folder, for llm.c's programs (--dtype bfloat16 for its GPU ones)
  tenarai convert gpt2_124M.bin gpt2-folder
      llm.c's file, for transformers
  tenarai convert runs/novel novel-model
      what a run has learned so far, with its tokenizer, for transformers
"""

INSPECT_EXAMPLES = """
\b
Examples:
  tenarai inspect gpt2/
      a Hugging Face folder: its configuration, tokenizer and tensors
  tenarai inspect runs/novel
      the newest checkpoint of a run, its checksum verified
  tenarai inspect gpt2_124M.bin --json
      the same for a program
"""


@click.command(epilog=CONVERT_EXAMPLES)
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


@click.command(epilog=INSPECT_EXAMPLES)
@click.argument("path", metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def inspect(path: str, as_json: bool) -> None:
    """Show what FILE is: its configuration, tokenizer, tensors, their shapes, types and sizes."""
    from tenarai.files import describe

    found = describe(path)
    click.echo(json.dumps(found, ensure_ascii=False) if as_json else "\n".join(_lines(found)))


def _lines(found: dict[str, Any]) -> list[str]:
    lines = [f"{found['path']}: {found['kind']}", f"tokenizer: {found['tokenizer'] or 'none'}"]
    for title in ("config", "run"):
        values = {k: v for k, v in found.get(title, {}).items() if not isinstance(v, dict)}
        if values:
            width = max(len(key) for key in values)
            lines += [f"{title}:"]
            lines += [f"  {_shown(key):{width}}  {_shown(v)}" for key, v in values.items()]
    tensors = found["tensors"]
    lines.append(
        f"{len(tensors)} tensors, {found['numbers']:,} numbers, {found['bytes'] / 1e6:,.1f} MB:"
    )
    width = max((len(t["name"]) for t in tensors), default=0)
    for t in tensors:
        shape = str(tuple(t["shape"]))
        lines.append(f"  {_shown(t['name']):{width}}  {t['dtype']:8}  {shape:16}  {t['bytes']:,}")
    return lines


def _shown(value: Any) -> str:
    """A stranger's text may hold what moves a terminal's cursor: show that escaped."""
    text = str(value)
    return text if text.isprintable() else repr(text)
