"""`tenarai data`: texts to a folder of tokens, and what such a folder holds."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

EXAMPLES = """
\b
Examples:
  tenarai data --list
      the texts that are known by name, with their licences
  tenarai data novel.txt notes/ --vocab 4096 --out data/mine
      your own texts: UTF-8, UTF-16 with its mark, Shift_JIS and EUC-JP are told apart
  tenarai data data/mine
      what a folder of tokens holds; llm.c's *train*.bin and *val*.bin as well

`tenarai train data/mine` then learns from the folder.
"""


@click.command(epilog=EXAMPLES)
@click.argument("sources", metavar="[NAME|PATH]...", nargs=-1)
@click.option("--out", metavar="DIR", help="The folder to make (one in the cache by default).")
@click.option(
    "--tokenizer",
    metavar="byte|char|bpe|gpt2|PATH",
    default="bpe",
    show_default=True,
    help="What the tokens are: bytes, characters, pairs learnt from the text, or a ready one.",
)
@click.option(
    "--vocab", metavar="N", type=int, default=2048, show_default=True, help="How many, for bpe."
)
@click.option(
    "--val",
    metavar="X",
    type=float,
    default=0.1,
    show_default=True,
    help="The part at the end of the text that is kept to measure by.",
)
@click.option("--encoding", metavar="NAME", help="How the files are written, where it is not seen.")
@click.option("--list", "as_list", is_flag=True, help="List the texts that are known by name.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def data(
    sources: tuple[str, ...],
    out: str | None,
    tokenizer: str,
    vocab: int,
    val: float,
    encoding: str | None,
    as_list: bool,
    as_json: bool,
) -> None:
    """Fetch a named text, or read your own, and turn it into tokens for training."""
    from tenarai.data import SOURCES, is_dataset, open_dataset, prepare

    if as_list:
        return _list(as_json)
    if not sources:
        raise click.UsageError("name a text (`tenarai data --list` has some), a file or a folder")
    if len(sources) == 1 and sources[0] not in SOURCES and is_dataset(sources[0]):
        if out is not None:
            raise click.UsageError(f"{sources[0]} holds tokens already: leave --out away")
        # The default is for texts; tokens bring their own vocabulary unless one is asked for.
        source = click.get_current_context().get_parameter_source("tokenizer")
        asked = source is click.core.ParameterSource.COMMANDLINE
        dataset = open_dataset(sources[0], tokenizer if asked else None)
    else:
        dataset = prepare(sources, out, tokenizer, vocab, val, encoding)
    if as_json:
        click.echo(json.dumps(_described(dataset), ensure_ascii=False))
    else:
        _tell(dataset)


def _list(as_json: bool) -> None:
    from tenarai.data import SOURCES

    rows = [
        {
            "name": s.name,
            "title": s.title,
            "licence": s.licence,
            "attribution": s.attribution,
            "size": s.size,
        }
        for s in SOURCES.values()
    ]
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False))
        return
    for row in rows:
        click.echo(f"{row['name']:<12} {row['title']}")
        click.echo(f"{'':<12} {row['size']}; {row['licence']}; {row['attribution']}")


def _described(dataset: Any) -> dict[str, Any]:
    return {
        "folder": str(dataset.folder),
        "vocab_size": dataset.vocab_size,
        "tokenizer": dataset.tokenizer.name,
        "eot": dataset.tokenizer.eot,
        "train_tokens": dataset.train_tokens,
        "val_tokens": dataset.val_tokens,
        "train_shards": [str(s.path) for s in dataset.train],
        "val_shards": [str(s.path) for s in dataset.val],
        "sources": dataset.info.get("sources", []),
    }


def _tell(dataset: Any) -> None:
    characters = 0
    for source in dataset.info.get("sources", []):
        characters += source["characters"]
        kinds = ", ".join(source["encodings"])
        texts = "1 text" if source["documents"] == 1 else f"{source['documents']:,} texts"
        click.echo(f"{source['name']}: {texts}, {source['characters']:,} characters, {kinds}")
        if "licence" in source:
            click.echo(f"  {source['licence']}; {source['attribution']}")
    tokens = dataset.train_tokens + dataset.val_tokens
    each = f", {characters / tokens:.2f} characters each" if characters else ""
    click.echo(f"tokenizer   {dataset.tokenizer.name}, {dataset.vocab_size:,} kinds of token{each}")
    for name, shards in (("train", dataset.train), ("validation", dataset.val)):
        files = "1 file" if len(shards) == 1 else f"{len(shards)} files"
        click.echo(f"{name:<11} {sum(map(len, shards)):,} tokens in {files}")
    click.echo(f"folder      {dataset.folder}")
    sys.stdout.flush()
