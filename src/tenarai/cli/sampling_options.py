"""The options of `run` and `chat` that say how tokens are chosen.

The numbers are those of the table in infer/sampling.py, with what people start from as defaults.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from tenarai.infer.sampling import SHOWN, Sampling, parse_bias, parse_order

from .option_groups import apply, option

if TYPE_CHECKING:
    from tenarai.tokenizers import Tokenizer

GROUP = "Which token comes next"
CHAIN = ";".join(SHOWN.get(name, name).lower() for name in Sampling.usual().order)
# What is given on the command line and no number; texts may come from files.
TEXTS = ("grammar", "grammar_file", "json_schema", "json_schema_file")


def _numbers() -> list[Callable[[Any], Any]]:
    rows = []
    for f in Sampling.numbers():
        flag = f.metadata["flag"] or f.name.replace("_", "-")
        usual = f.metadata["usual"]
        whole = isinstance(f.default, int)
        rows.append(
            option(GROUP, f"--{flag}", f.name, type=int if whole else float, default=usual,
                   metavar="N" if whole else "X", show_default=True, help=f.metadata["help"])
        )  # fmt: skip
    return rows


sampling_options = apply(
    [
        *_numbers(),
        option(GROUP, "--dry-sequence-breaker", "dry_breakers", metavar="TEXT", multiple=True,
               help="DRY: no repetition reaches across a token with TEXT; `none` for nothing. "
                    "May stand several times.  [default: newline : \" *]"),
        option(GROUP, "-l", "--logit-bias", metavar="ID±X", multiple=True,
               help="Add X to the logit of a token: 15043+1, or 15043-inf to forbid it. "
                    "May stand several times."),
        option(GROUP, "--grammar", metavar="TEXT",
               help="Write what obeys a grammar, GBNF or Lark."),
        option(GROUP, "--grammar-file", metavar="FILE", help="The same from a file."),
        option(GROUP, "-j", "--json-schema", metavar="TEXT",
               help="Write JSON that obeys a schema ({} for any)."),
        option(GROUP, "--json-schema-file", metavar="FILE", help="The same from a file."),
        option(GROUP, "--samplers", metavar="A;B;...",
               help="What is applied, in this order. Penalties and DRY stand first unless they are "
                    f"named.  [default: {CHAIN}]"),
        option(GROUP, "-s", "--seed", metavar="N", type=click.IntRange(-1), default=-1,
               help="The same seed writes the same text.  [default: -1, a new one each time]"),
        option(GROUP, "--ignore-eos", is_flag=True, help="Forbid the tokens that end a text."),
    ]
)  # fmt: skip


def sampling_of(flags: dict[str, Any]) -> Sampling:
    """Takes the options of this table out of `flags`. Raises TenaraiError for bad values."""
    values: dict[str, Any] = {f.name: flags.pop(f.name) for f in Sampling.numbers()}
    values["logit_bias"] = tuple(parse_bias(text) for text in flags.pop("logit_bias"))
    samplers = flags.pop("samplers")
    if samplers is not None:
        values["order"] = parse_order(samplers)
    if breakers := flags.pop("dry_breakers"):
        values["dry_sequence_breakers"] = () if breakers == ("none",) else breakers
    texts = {name: flags.pop(name) for name in TEXTS}
    given = [name for name, text in texts.items() if text is not None]
    if len(given) > 1:
        a, b = (f"--{name.replace('_', '-')}" for name in given[:2])
        raise click.UsageError(f"give {a} or {b}, not both")
    for name in given:
        text = _text_of(texts[name]) if name.endswith("_file") else texts[name]
        values[name.removesuffix("_file")] = text
    return Sampling(**values)


def seed_of(flags: dict[str, Any]) -> int:
    """The seed, a new one where none was given."""
    seed = flags.pop("seed")
    if seed >= 0:
        return seed
    import secrets

    return secrets.randbelow(1 << 32)


def forbidding(sampling: Sampling, tokenizer: Tokenizer) -> Sampling:
    """The same, with the tokens that end a text forbidden."""
    from dataclasses import replace

    ends = tuple((token, -math.inf) for token in sorted(tokenizer.end_tokens))
    return replace(sampling, logit_bias=sampling.logit_bias + ends)


def _text_of(file: str) -> str:
    from tenarai.data import read_paths

    (document,) = read_paths([file])
    return document.text
