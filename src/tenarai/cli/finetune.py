"""`tenarai finetune`: the settings as flags, and the call of `tenarai.finetune.run.finetune`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import click

from .option_groups import GroupedCommand, option

EXAMPLES = """
\b
Examples:
  tenarai finetune -m smollm2 dialogues.jsonl --lora 16 --out runs/dialogues
      an adapter of rank 16 on a quantised model, which itself stays as it is
  tenarai finetune -m gpt2/ novel.txt --steps 300 --lr 5e-5
      every weight of a Hugging Face model, on a text
  tenarai finetune --resume --out runs/dialogues --steps 400
      go on where that run was stopped, for longer

DATA is JSON lines (messages; prompt and completion; instruction, input and output; or text), a
text file or a folder of them, or a text that `tenarai data` knows. In conversations the loss is on
the assistant's answers alone.
"""
GROUPS = {
    "lora": "The adapter",
    "model": "The rows",
    "data": "The data",
    "preferences": "Preferences",
    "optimiser": "The optimiser",
    "schedule": "The schedule",
    "run": "The run",
}


def _setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """A flag for each setting."""
    from tenarai.finetune.settings import all_settings

    from .train import toml_value

    for row in reversed(all_settings()):
        name, text = (
            row.flag or row.name.replace("_", "-"),
            f"{row.help}  [{toml_value(row.default)}]",
        )
        key, group = row.key.replace(".", "__"), GROUPS[row.section]
        if row.type is bool:
            flag: Any = {"default": None}
            names = (f"--{name}/--no-{name}", key)
        else:
            kind: Any = click.Choice(row.choices) if row.choices else row.type
            metavar = None if row.choices else {int: "N", float: "X", str: "TEXT"}[row.type]
            flag, names = {"type": kind, "metavar": metavar, "default": None}, (f"--{name}", key)
        command = option(group, *names, help=text, **flag)(command)
    return command


@click.command(cls=GroupedCommand, epilog=EXAMPLES)
@click.argument("data", metavar="[DATA]", required=False)
@option("The run", "-m", "--model", metavar="MODEL",
        help="A GGUF file, a name that `tenarai pull` knows, a Hugging Face folder, or a "
             "checkpoint.")  # fmt: skip
@option("The run", "--out", metavar="DIR", help="The run's folder (runs/finetune-DATE by default).")
@option("The run", "--resume", is_flag=True, help="Go on with the run in --out, or the newest.")
@option("The run", "--merge", "merged", metavar="OUT",
        help="Write the tuned model at the end: a .gguf file, or a folder.")  # fmt: skip
@option("The run", "--json", "as_json", is_flag=True, help="Print one JSON document at the end.")
@_setting_options
def finetune(
    data: str | None,
    model: str | None,
    out: str | None,
    resume: bool,
    merged: str | None,
    as_json: bool,
    **flags: Any,
) -> int:
    """Fine-tune a model on DATA: all of its weights, or an adapter on it (--lora)."""
    from tenarai.finetune.run import finetune as run
    from tenarai.train.report import Report

    given: dict[str, dict[str, Any]] = {}
    for key, value in flags.items():
        if value is not None:
            section, name = key.split("__")
            given.setdefault(section, {})[name] = value
    report = Report(sys.stderr if as_json else sys.stdout)
    result = run(model, data, out=out, resume=resume, report=report, given=given, merged=merged)
    if as_json:
        click.echo(json.dumps(result.as_json(), ensure_ascii=False))
    return 128 + result.signal if result.signal else 0
