"""`tenarai train`: the settings' table as flags, and the call of `tenarai.train`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import click

from tenarai.config import PRESETS, Setting, all_settings

EXAMPLES = """
\b
Examples:
  tenarai train
      about two minutes on two cores: English prose, a small GPT, a sample
  tenarai train novel.txt --layers 4 --width 256 --steps 3000 --out runs/novel
      your own text (a file, a folder, or token shards) and your own size
  tenarai train novel.txt --preset llama-small --kv-heads 1
      the modern kind of model; `tenarai convert` makes a GGUF file of the run for llama.cpp
  tenarai train --resume --out runs/novel
      go on where that run was stopped, to the same bits

A run's folder holds config.toml, which --config takes again, with changes as you like.
"""


def _setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """A flag for each setting but the data's source, which is the argument."""
    for row in reversed(all_settings()):
        if row.key != "data.source":
            command = _option(row)(command)
    return command


def _option(row: Setting) -> Callable[..., Any]:
    name = (row.flag or row.name).replace("_", "-")
    of = f"{row.family}'s: " if row.family else ""
    text = f"{of}{row.help}  [{row.key} = {toml_value(row.default)}]"
    if row.type is bool:
        return click.option(f"--{name}/--no-{name}", row.name, default=None, help=text)
    kind: Any = click.Choice(row.choices) if row.choices else row.type
    metavar = None if row.choices else {int: "N", float: "X", str: "TEXT"}[row.type]
    return click.option(f"--{name}", row.name, type=kind, metavar=metavar, default=None, help=text)


def toml_value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else json.dumps(value)


@click.command(epilog=EXAMPLES)
@click.argument("source", metavar="[DATA]", required=False)
@click.option("--preset", metavar="NAME", help=f"Settings to start from: {', '.join(PRESETS)}.")
@click.option("--config", "file", metavar="FILE", help="A TOML file with settings.")
@click.option("--out", metavar="DIR", help="The run's folder (runs/PRESET-DATE by default).")
@click.option("--resume", is_flag=True, help="Go on with the run in --out, or the newest in runs/.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document at the end.")
@_setting_options
def train(
    source: str | None,
    preset: str | None,
    file: str | None,
    out: str | None,
    resume: bool,
    as_json: bool,
    **flags: Any,
) -> int:
    """Train a language model on DATA: a known text's name, a file, a folder, or token shards.

    Settings come from the defaults (in brackets, with their names in the TOML file), then
    --preset, then --config, then the flags.
    """
    from tenarai.train.report import Report
    from tenarai.train.run import train as run

    given = {name: value for name, value in flags.items() if value is not None}
    if source is not None:
        given["source"] = source
    report = Report(sys.stderr if as_json else sys.stdout)
    result = run(file, preset=preset, out=out, resume=resume, report=report, **given)
    if as_json:
        click.echo(json.dumps(result.as_json(), ensure_ascii=False))
    return 128 + result.signal if result.signal else 0
