"""`tenarai imatrix`: which columns of a model's matrices matter, from a text."""

from __future__ import annotations

import json
from typing import Any

import click

from .model_options import context_option, model_options, need_tokenizer, open_model
from .option_groups import GroupedCommand, option
from .prompt import from_file

EXAMPLES = """
\b
Examples:
  tenarai imatrix -m model-f16.gguf -f text.txt -o model.imatrix
      then: tenarai quantize model-f16.gguf model-q3.gguf Q3_K_M --imatrix model.imatrix
  tenarai imatrix -m model-q8.gguf -f text.txt -o model.imatrix --chunks 100
      a quantised model will do as well, and 100 windows of 512 tokens are enough
  tenarai imatrix -m smollm2 -f text.txt -o smollm2.imatrix -c 2048 --json
      longer windows, for a model that is to read long texts

The text should be like what the model is for. The file is one that llama.cpp reads too.
"""
GROUP = "What is measured"
USUAL_CONTEXT = 512


@click.command(cls=GroupedCommand, epilog=EXAMPLES)
@option(GROUP, "-f", "--file", metavar="FILE", required=True, help="The text.")
@option(GROUP, "-o", "--output", metavar="OUT", required=True, help="The file to write.")
@option(GROUP, "--chunks", metavar="N", type=click.IntRange(1), help="Only the first N windows.")
@option(GROUP, "--force", is_flag=True, help="Overwrite OUT where it exists.")
@option(GROUP, "--json", "as_json", is_flag=True, help="Print one JSON document.")
@model_options
@context_option(f"The length of a window in tokens.  [default: {USUAL_CONTEXT} at most]")
def imatrix(
    file: str, output: str, chunks: int | None, force: bool, as_json: bool, **flags: Any
) -> None:
    """Measure the mean square of what each column of a GGUF model's matrices is multiplied with."""
    from pathlib import Path

    import numpy as np
    from tqdm import tqdm

    from tenarai.errors import TenaraiError
    from tenarai.infer.importance import gather
    from tenarai.io.imatrix import write

    if Path(output).exists() and not force:
        raise TenaraiError(f"{output}: exists: name another file, or overwrite it (--force)")
    text, path, chosen = from_file(file), flags["path"], flags["context"]
    model, _ = open_model(flags, usual=None)
    tokenizer = need_tokenizer(model, path)
    bos = tokenizer.bos if tokenizer.add_bos else None
    longest = model.config.context
    context = min(USUAL_CONTEXT, longest) if chosen is None else chosen or longest
    ids = np.concatenate([np.zeros(0, np.int32), *tokenizer.encode_chunks(text)])
    if chunks is not None:
        ids = ids[: chunks * (context - (bos is not None))]
    with tqdm(total=len(ids), unit=" tokens", unit_scale=True, disable=None) as bar:
        found = gather(model, ids, context, bos, bar.update)
    write(output, found.sums, found.counts, source=Path(file).name)
    said = {"output": output, "tokens": len(ids), "matrices": len(found.sums), "context": context}
    click.echo(
        json.dumps(said)
        if as_json
        else f"wrote {output}: {len(found.sums)} matrices, over {len(ids):,} tokens"
    )
