"""`tenarai tokenize`: how a text falls into tokens, and back."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from .prompt import from_argument

EXAMPLES = """
\b
Examples:
  tenarai tokenize -m runs/novel "To be, or not to be"
      ids and pieces, with the tokenizer of a run
  tenarai tokenize -m smollm2 --special --json "<|im_start|>吾輩は猫である"
      with a model that was pulled, names of special tokens as those tokens; one JSON document
  tenarai tokenize -m data/mine --decode "17 4 1023"
      back from ids to text
"""


@click.command(epilog=EXAMPLES)
@click.option(
    "-m",
    "--model",
    metavar="PATH",
    required=True,
    help="A GGUF file or a pulled model's name, a run, a dataset or a model folder, a "
    "tokenizer.json, a SentencePiece .model, or llm.c's or llama2.c's tokenizer file.",
)
@click.argument("text")
@click.option("--special", is_flag=True, help="Names of special tokens in TEXT are those tokens.")
@click.option("--decode", is_flag=True, help="TEXT is token ids, give their text.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def tokenize(model: str, text: str, special: bool, decode: bool, as_json: bool) -> None:
    """Show how TEXT falls into tokens (`-` reads it from standard input)."""
    from tenarai import tokenizers
    from tenarai.io.named_models import model_path

    text = _stdin() if text == "-" else from_argument(text, "TEXT")
    tokenizer = tokenizers.load(model_path(model))
    if decode:
        ids = _ids(text, tokenizer.vocab_size)
    else:
        ids = tokenizer.encode(text, parse_special=special)
    document: dict[str, Any] = {
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "count": len(ids),
        "ids": ids,
        "pieces": [tokenizer.token_bytes(i).decode(errors="replace") for i in ids],
        "bytes": [tokenizer.token_bytes(i).hex() for i in ids],
        "text": tokenizer.decode(ids),
    }
    if as_json:
        click.echo(json.dumps(document, ensure_ascii=False))
    elif decode:
        click.echo(document["text"])
    else:
        for i in ids:
            click.echo(f"{i:>8}  {_shown(tokenizer.token_bytes(i))}")
        click.echo(f"{len(ids)} tokens ({tokenizer.name}, {tokenizer.vocab_size:,} kinds)")


def _shown(piece: bytes) -> str:
    """A piece as people read it; parts of a character as their bytes."""
    try:
        return repr(piece.decode())
    except UnicodeDecodeError:
        return f"bytes {piece.hex(' ')}"


def _stdin() -> str:
    from tenarai.data.encoding import decode

    return decode(sys.stdin.buffer.read(), "standard input")[0]


def _ids(text: str, vocab_size: int) -> list[int]:
    try:
        ids = [int(word) for word in text.replace(",", " ").strip(" []").split()]
    except ValueError:
        raise click.UsageError(f"--decode takes ids such as `17 4 1023`, not {text!r}") from None
    if bad := [i for i in ids if not 0 <= i < vocab_size]:
        raise click.UsageError(f"id {bad[0]} is not in the vocabulary: 0 to {vocab_size - 1}")
    return ids
