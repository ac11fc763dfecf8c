"""A whole run: which settings and folder, going on from a checkpoint, and what came of it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenarai.config import Settings, Value, from_values, override, resolve, to_values
from tenarai.errors import TenaraiError
from tenarai.io.checkpoint import Checkpoint
from tenarai.io.checkpoint_folder import newest_checkpoint

from . import memory
from .build import build
from .folder import RunFolder, newest_run
from .interrupt import Interrupt
from .loop import Trainer
from .report import Report, duration


@dataclass(frozen=True)
class Result:
    """What came of a run."""

    folder: Path
    step: int
    steps: int
    loss: float | None  # of the last step that was logged
    val_loss: float | None  # the last one measured
    best_val_loss: float | None
    tokens_per_s: float | None  # over all steps of this process
    mfu: float | None
    seconds: float  # in steps, over the whole run
    memory_said: int  # bytes, before it began
    memory_taken: int | None  # bytes, the process's peak
    sample: str
    signal: int  # that ended it, 0 where none did

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"folder": str(self.folder)}


def train(
    config: Settings | str | os.PathLike[str] | Mapping[str, Mapping[str, Value]] | None = None,
    *,
    preset: str | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    report: Report | None = None,
    ops: Any = None,
    **given: Value,
) -> Result:
    """Train a language model from nothing, or go on with a run.

    `config` is a TOML file, `Settings`, or section → name → value; `preset` names the settings to
    start from and single settings follow as keywords:

        result = tenarai.train(preset="char", source="novel.txt", steps=500, out="runs/novel")

    `out` is the run's folder (runs/PRESET-DATE by default). With `resume` its newest whole
    checkpoint is gone on from, to the bits of a run that was never stopped; with none there, the
    run begins. `ops` are the kernels by default. Raises TenaraiError for what the user can mend.
    """
    report = report or Report()
    if isinstance(config, Settings):
        config = to_values(config)
    if isinstance(config, Mapping):
        values = {f"{s}.{name}": v for s, names in config.items() for name, v in names.items()}
        config, given = None, values | given
    if resume and out is None:
        out = newest_run()
    asked: dict[str, Any] = {"preset": preset, "file": config, "given": given}
    settings = None if resume else resolve(**asked)
    folder = RunFolder(out if out is not None else _new_folder(preset, config)).claim(resume)
    try:
        checkpoint = _checkpoint(folder, report) if resume else None
        if checkpoint is not None:
            settings = override(_settings_of(checkpoint), **asked)
        elif settings is None:
            settings = _settings_of_folder(folder, asked)
        with checkpoint or contextlib.nullcontext():
            trainer, said = build(settings, folder, checkpoint, ops, report)
        return _run(trainer, said)
    finally:
        folder.release()


def _new_folder(preset: str | None, config: Any) -> Path:
    name = preset or (Path(config).stem if config is not None else "small")
    base = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    return next(p for p in _numbered(base) if not p.exists())


def _numbered(base: Path) -> Iterator[Path]:
    yield base
    for n in itertools.count(2):
        yield base.with_name(f"{base.name}-{n}")


# Going on


def _checkpoint(folder: RunFolder, report: Report) -> Checkpoint | None:
    """The newest whole checkpoint. Broken ones are told; raises where all are."""
    checkpoint, errors = newest_checkpoint(folder.checkpoints)
    for error in errors:
        report.say(f"warning: {error}")
    if checkpoint is None and errors:
        raise TenaraiError(
            f"{folder.checkpoints}: none of {len(errors)} checkpoints is whole: {errors[0]}"
        )
    if checkpoint is None:
        report.say(f"{folder} has no checkpoint yet: starting at step 0")
    return checkpoint


def _settings_of(checkpoint: Checkpoint) -> Settings:
    values = checkpoint.meta.get("settings")
    if not isinstance(values, dict) or not all(isinstance(v, dict) for v in values.values()):
        raise TenaraiError(
            f"{checkpoint.path}: holds no settings: it is a model without a run, and cannot go on"
        )
    return from_values(values)


def _settings_of_folder(folder: RunFolder, asked: dict[str, Any]) -> Settings:
    """Of a run that was cut off before its first checkpoint, or of one that is to begin."""
    if folder.config.exists():
        return override(resolve(file=folder.config), **asked)
    return resolve(**asked)


# Training, and what came of it


def _run(trainer: Trainer, said: int) -> Result:
    report, start = trainer.report, time.perf_counter()
    first, before = trainer.state.step, trainer.state.seconds
    with Interrupt() as interrupt, contextlib.closing(trainer.metrics):
        trainer.run(interrupt)
    if interrupt.signal:
        report.say(
            f"stopped after step {trainer.state.step}; everything is saved. Go on with:\n"
            f"  tenarai train --resume --out {trainer.folder}"
        )
    s = trainer.settings
    records = trainer.metrics.records
    losses = [r["loss"] for r in records if "loss" in r]
    vals = [r["val_loss"] for r in records if "val_loss" in r]
    tokens = s.optimiser.batch * s.optimiser.accumulate * s.model.context
    seconds, steps = trainer.state.seconds - before, trainer.state.step - first
    rate = steps * tokens / seconds if steps else None
    flops = trainer.state.model.flops_per_token(s.model.context)
    result = Result(
        folder=trainer.folder.path,
        step=trainer.state.step,
        steps=s.schedule.steps,
        loss=losses[-1] if losses else None,
        val_loss=vals[-1] if vals else None,
        best_val_loss=min(vals) if vals else None,
        tokens_per_s=rate,
        mfu=flops * rate / (trainer.peak * 1e9) if rate and trainer.peak else None,
        seconds=trainer.state.seconds,
        memory_said=said,
        memory_taken=memory.taken(),
        sample="" if interrupt.signal else trainer.sample(),
        signal=interrupt.signal,
    )
    if not interrupt.signal:
        _say_result(report, result, time.perf_counter() - start, _prompt(trainer))
    return result


def _prompt(trainer: Trainer) -> str:
    """One that the model can read: words, or ids where the vocabulary is not at hand."""
    return trainer.prompt or ("0" if trainer.tokenizer.name == "ids" else "The ")


def _say_result(report: Report, result: Result, seconds: float, prompt: str) -> None:
    val = f", validation {result.val_loss:.3f}" if result.val_loss is not None else ""
    loss = f"loss {result.loss:.3f}{val}" if result.loss is not None else "nothing left to do"
    rate = f", {result.tokens_per_s:,.0f} tokens/s" if result.tokens_per_s else ""
    report.say(f"\nstep {result.step}: {loss}. {duration(seconds)}{rate}")
    report.say(f"\n--- what it writes now ---\n{result.sample.strip()}\n---\n")
    report.say(f"{result.folder} holds:")
    report.say("  checkpoints/   the newest and the best, to go on from or to write with")
    report.say("  loss.png, metrics.jsonl, tensorboard/, samples.txt   how it went")
    report.say("  config.toml, tokenizer.json   the settings and the vocabulary")
    report.say(f'\nWrite with it:  tenarai run -m {result.folder} -p "{prompt}"')
