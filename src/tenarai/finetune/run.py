"""A whole run of fine-tuning: the model, the data, the loop, and what is written of it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenarai.api import load
from tenarai.config.resolve import tomllib
from tenarai.errors import TenaraiError
from tenarai.io.checkpoint_folder import newest_checkpoint
from tenarai.models import adapter_gguf, adapter_peft
from tenarai.models.adapter import FOLDER, Adapter
from tenarai.train import memory
from tenarai.train.folder import RunFolder, newest_run
from tenarai.train.interrupt import Interrupt
from tenarai.train.report import Report, duration

from .build import build
from .merge import check_free, merge
from .settings import resolve
from .tuner import Tuner

PathName = str | os.PathLike[str]


@dataclass(frozen=True)
class Result:
    """What came of a run."""

    folder: Path
    model: str
    step: int
    steps: int
    loss: float | None  # of the last step that was logged
    val_loss_before: float | None
    val_loss: float | None  # the last one measured
    tokens_per_s: float | None
    seconds: float  # in steps, over the whole run
    memory_said: int  # bytes, before it began
    memory_taken: int | None  # bytes, the process's peak
    sample_before: str
    sample: str
    signal: int  # that ended it, 0 where none did

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"folder": str(self.folder)}


def finetune(
    model: PathName | None = None,
    data: PathName | None = None,
    *,
    out: PathName | None = None,
    resume: bool = False,
    report: Report | None = None,
    given: Mapping[str, Mapping[str, Any]] | None = None,
    merged: PathName | None = None,
) -> Result:
    """Tune `model` on `data`, or go on with a run. `given`: settings, section → name → value.

    `out` is the run's folder (runs/finetune-DATE by default), `merged` where the model goes at the
    end, its adapter in its weights (as finetune/merge.py has it). Raises TenaraiError.
    """
    report = report or Report()
    if merged is not None:
        check_free(merged)
    if resume:
        out = out if out is not None else newest_run()
    elif model is None or data is None:
        raise TenaraiError("name the model (-m MODEL) and the DATA to tune it on")
    folder = RunFolder(out if out is not None else _new_folder()).claim(resume)
    try:
        about, before = _held(folder) if resume else ({}, None)
        about = about | {k: str(v) for k, v in (("model", model), ("data", data)) if v is not None}
        settings = resolve(given or {}, before)
        checkpoint = None
        if resume:
            checkpoint, errors = newest_checkpoint(folder.checkpoints)
            for error in errors:
                report.say(f"warning: {error}")
        with checkpoint or contextlib.nullcontext():
            tuner, said = build(about, settings, folder, checkpoint, report)
        result = _run(tuner, about, said)
    finally:
        folder.release()
    if merged is not None and not result.signal:
        if tuner.tuned.lora:
            merge(about["model"], folder.path, merged)
        else:
            dtype = "float16" if str(merged).endswith(".gguf") else "float32"
            load(folder.path).save(merged, dtype)
        report.say(f"wrote {merged}")
    return result


def _new_folder() -> Path:
    base = Path("runs") / f"finetune-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (base if n == 1 else base.with_name(f"{base.name}-{n}") for n in range(1, 10**6))
    return next(p for p in names if not p.exists())


def _held(folder: RunFolder) -> tuple[dict[str, str], dict[str, Any]]:
    """The model and data of a run's folder, and its settings."""
    try:
        document = tomllib.loads(folder.config.read_text(encoding="utf-8"))
        about = document.pop("finetune")
        return {k: str(about[k]) for k in ("model", "data")}, document
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TenaraiError(f"{folder}: holds no run of `tenarai finetune` to go on with") from error


# Training, and what came of it


def _run(tuner: Tuner, about: Mapping[str, str], said: int) -> Result:
    report, start = tuner.report, time.perf_counter()
    first, before = tuner.state.step, tuner.state.seconds
    with Interrupt() as interrupt, contextlib.closing(tuner.metrics):
        tuner.run(interrupt)
    if tuner.tuned.lora:
        write_adapters(tuner, about["model"])
    if interrupt.signal:
        report.say(
            f"stopped after step {tuner.state.step}; everything is saved. Go on with:\n"
            f"  tenarai finetune --resume --out {tuner.folder}"
        )
    s, records = tuner.settings, tuner.metrics.records
    losses = [r["loss"] for r in records if "loss" in r]
    vals = [r["val_loss"] for r in records if "val_loss" in r]
    tokens = s.optimiser.batch * s.optimiser.accumulate * s.model.context
    seconds, steps = tuner.state.seconds - before, tuner.state.step - first
    result = Result(
        folder=tuner.folder.path,
        model=about["model"],
        step=tuner.state.step,
        steps=s.schedule.steps,
        loss=losses[-1] if losses else None,
        val_loss_before=next((r["val_loss"] for r in records if r["step"] == 0), None),
        val_loss=vals[-1] if vals else None,
        tokens_per_s=steps * tokens / seconds if steps else None,
        seconds=tuner.state.seconds,
        memory_said=said,
        memory_taken=memory.taken(),
        sample_before=tuner.before,
        sample="" if interrupt.signal else tuner.sample(),
        signal=interrupt.signal,
    )
    if not interrupt.signal:
        _say_result(report, result, time.perf_counter() - start, tuner.tuned.lora is not None)
    return result


def write_adapters(tuner: Tuner, base: str) -> None:
    """The adapter in both formats, into the run's folder."""
    assert tuner.tuned.lora is not None
    folder, adapter = tuner.folder.path, Adapter(tuner.tuned.lora, tuner.state.params)
    adapter_peft.write(folder / FOLDER, adapter, tuner.state.model, base)
    adapter_gguf.write(folder / "adapter.gguf", adapter, tuner.state.model, folder.name)


def _say_result(report: Report, result: Result, seconds: float, lora: bool) -> None:
    val = ""
    if result.val_loss is not None and result.val_loss_before is not None:
        val = f", validation {result.val_loss_before:.3f} before and {result.val_loss:.3f} now"
    loss = f"loss {result.loss:.3f}{val}" if result.loss is not None else "nothing left to do"
    rate = f", {result.tokens_per_s:,.0f} tokens/s" if result.tokens_per_s else ""
    report.say(f"\nstep {result.step}: {loss}. {duration(seconds)}{rate}")
    report.say(f"\n--- after ---\n{result.sample.strip()}\n---\n")
    report.say(f"{result.folder} holds:")
    report.say("  checkpoints/   to go on from" + ("" if lora else ", and the model"))
    if lora:
        report.say("  adapter/       for PEFT and tenarai; adapter.gguf for llama.cpp")
    report.say("  loss.png, metrics.jsonl, config.toml   how it went, the settings")
    how = f"-m {result.model} --lora {result.folder}" if lora else f"-m {result.folder}"
    report.say(f"\nTalk with it:  tenarai chat {how}")
