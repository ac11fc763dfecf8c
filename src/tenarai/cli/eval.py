"""`tenarai eval`: how well a model answers, counted as lm-evaluation-harness counts."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .model_options import context_option, model_options, need_tokenizer, open_model
from .option_groups import GroupedCommand, option

if TYPE_CHECKING:
    from tenarai.infer.likelihood import Scorer

EXAMPLES = """
\b
Examples:
  tenarai eval hellaswag -m smollm2 -d hellaswag_val.jsonl --limit 200
      which of four endings goes on; the first 200 questions
  tenarai eval lambada -m runs/novel -d lambada_test.jsonl --json
      the last word of a passage: greedy accuracy and perplexity; for a program
  tenarai eval choice -m smollm2 -d exam.jsonl --template "Question: {question}\\nAnswer:"
      your own: a line is {"question": "...", "choices": ["...", ...], "answer": 0}

Tasks: hellaswag and lambada take the published JSONL files (hellaswag also text files of six lines
a question), choice JSONL as above or ARC's, perplexity a text or JSONL of {"text"}. acc takes the
most probable answer, acc_norm the most probable one a character, acc_bytes one a byte. To have
lm-evaluation-harness itself drive a model: python -m tenarai.eval_harness --help
"""
GROUP = "The evaluation"


@click.command(cls=GroupedCommand, epilog=EXAMPLES)
@click.argument("task", type=click.Choice(["hellaswag", "lambada", "choice", "perplexity"]))
@option(GROUP, "-d", "--data", "file", metavar="FILE", required=True, help="The questions.")
@option(GROUP, "--limit", metavar="N", type=click.IntRange(1), help="Only the first N.")
@option(GROUP, "--template", metavar="TEXT", default="{question}", show_default=True,
        help="What stands before a choice; \\n is a line end. For choice.")  # fmt: skip
@option(GROUP, "--json", "as_json", is_flag=True, help="Print one JSON document.")
@model_options
@context_option("The most tokens that the model looks back on.  [default: as it takes]")
def eval(
    task: str, file: str, limit: int | None, template: str, as_json: bool, **flags: Any
) -> None:
    """Measure how well a model answers the questions of a file."""
    from tenarai.errors import TenaraiError
    from tenarai.infer.likelihood import Scorer
    from tenarai.infer.tasks import TASKS

    more = {"template": template.replace("\\n", "\n")} if task == "choice" else {}
    items = list(itertools.islice(TASKS[task](Path(file), **more), limit))
    if not items:
        raise TenaraiError(f"{file}: has no questions: is it the file of this task?")
    path, context = flags["path"], flags["context"]
    model, _ = open_model(flags, usual=None)
    tokenizer = need_tokenizer(model, path)
    start = time.perf_counter()
    scorer = Scorer(model.ops, model.model, model.params, context or None)
    metrics = _measure(task, scorer, tokenizer, items)
    found = {
        "task": task,
        "model": path,
        "data": file,
        "samples": len(items),
        "seconds": time.perf_counter() - start,
        "results": {n: {"value": v, "stderr": e} for n, (v, e) in metrics.items()},
    }
    click.echo(json.dumps(found, ensure_ascii=False) if as_json else _shown(found))


def _measure(task: str, scorer: Scorer, tokenizer: Any, items: list[Any]) -> Any:
    from tenarai.infer import tasks

    if task == "perplexity":
        return tasks.whole_texts(scorer, tokenizer, items, progress=True)
    delimiter = "" if task == "lambada" else " "
    scores = tasks.score(scorer, tokenizer, items, delimiter, progress=True)
    return tasks.last_words(scores) if task == "lambada" else tasks.accuracies(items, scores)


def _shown(found: dict[str, Any]) -> str:
    lines = [f"{found['task']}: {found['samples']:,} samples, {found['seconds']:.1f} s"]
    for name, r in found["results"].items():
        lines.append(f"  {name:<16} {r['value']:.4f} ± {r['stderr']:.4f}")
    return "\n".join(lines)
