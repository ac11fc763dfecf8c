"""A whole run of fine-tuning: the model, the data, the loop, and what is written of it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tenarai.api import Model, load
from tenarai.config.resolve import tomllib
from tenarai.data.packing import PackedLoader, Rows
from tenarai.errors import TenaraiError
from tenarai.io.atomic import atomic_write
from tenarai.io.checkpoint import Checkpoint
from tenarai.io.checkpoint_folder import newest_checkpoint
from tenarai.io.named_models import model_path
from tenarai.models.families import name_of
from tenarai.models.gpt2 import Dropout
from tenarai.models.table import Weights
from tenarai.ops import Arena, Fast
from tenarai.ops.lora import Tuning
from tenarai.tokenizers.base import TokenizerError
from tenarai.tokenizers.chat import ChatTemplate, chat_template
from tenarai.train import memory
from tenarai.train.folder import RunFolder, newest_run
from tenarai.train.interrupt import Interrupt
from tenarai.train.loop import Plans
from tenarai.train.metrics import Metrics, cut_samples
from tenarai.train.optim import AdamW
from tenarai.train.report import Report, duration

from .base import Tuned, bytes_of, packs, tuned
from .examples import Encoder
from .settings import CONTEXT, Settings, resolve, to_toml
from .sources import Sets, read_sets
from .state import TuningState
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
) -> Result:
    """Tune `model` on `data`, or go on with a run. `given`: settings, section → name → value.

    `out` is the run's folder (runs/finetune-DATE by default). Raises TenaraiError.
    """
    report = report or Report()
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
            tuner, said = _build(about, settings, folder, checkpoint, report)
        return _run(tuner, about, said)
    finally:
        folder.release()


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


# From settings to a tuner that is ready


def _build(
    about: Mapping[str, str],
    settings: Settings,
    folder: RunFolder,
    checkpoint: Checkpoint | None,
    report: Report,
) -> tuple[Tuner, int]:
    process = memory.resident()
    base = load(model_path(about["model"]))
    settings = _with_context(settings, base, about["model"])
    if base.tokenizer is None:
        raise TenaraiError(f"{about['model']}: no tokenizer lies beside this model, to read text")
    lora = settings.lora.config if settings.lora.rank else None
    subject = tuned(base.model, base.params, lora, settings.model.recompute)
    template = _template(base) if settings.data.template else None
    longest = settings.model.context + 1
    encode = Encoder(base.tokenizer, template, longest, settings.data.truncate)
    sets = read_sets(about["data"], settings, encode)
    settings, loaders = _loaders(settings, sets, subject)
    ops = Tuning(Fast(settings.run.threads or None, arena=Arena(), activations="float32"))
    report.say(_what(about, settings, subject, sets, loaders, ops))
    state = TuningState(
        model=subject.model, params=subject.trained,
        optimiser=AdamW(subject.trained.table, settings.optimiser), loader=loaders[0],
        tokenizer=base.tokenizer.to_json(), base=about["model"], lora=lora,
    )  # fmt: skip
    tuner = Tuner(
        settings=settings, state=state, grads=Weights(subject.trained.table), ops=ops,
        plans=Plans(), validation=loaders[1], tokenizer=base.tokenizer, folder=folder,
        report=report, peak=None, prompt=settings.run.prompt or sets.prompt,
        tuned=subject, template=template if sets.chat or settings.run.prompt else None,
    )  # fmt: skip
    said = _take(tuner, process, report)
    if checkpoint is not None:
        state.restore(checkpoint)
        report.say(f"going on from {checkpoint.path}, step {state.step}")
    elif lora is not None:
        subject.trained.initialise(settings.run.seed)
    _write_folder(tuner, about, fresh=checkpoint is None)
    return tuner, said


def _with_context(settings: Settings, base: Model, name: str) -> Settings:
    asked, most = settings.model.context, base.config.context
    if asked > most:
        raise TenaraiError(
            f"{name}: takes {most} tokens, model.context is {asked}: lower --context"
        )
    context = asked or min(most, CONTEXT)
    return dataclasses.replace(settings, model=dataclasses.replace(settings.model, context=context))


def _template(base: Model) -> ChatTemplate | None:
    assert base.tokenizer is not None
    try:
        return chat_template(base.metadata, base.tokenizer)
    except TokenizerError:
        return None


def _loaders(
    settings: Settings, sets: Sets, subject: Tuned
) -> tuple[Settings, tuple[PackedLoader, PackedLoader]]:
    """Of rows as long as they need be, and the steps that so many epochs are."""
    pack, batch = settings.data.pack and packs(subject.model), settings.optimiser.batch
    longest = max(e.places for e in (*sets.train, *sets.val))
    T = settings.model.context if pack else min(settings.model.context, -(-longest // 32) * 32)
    train = PackedLoader(sets.train, batch, T, settings.run.seed, pack=pack)
    val = PackedLoader(sets.val, batch, T, pack=pack, shuffle=False)
    model = dataclasses.replace(settings.model, context=T)
    schedule = settings.schedule
    if schedule.epochs:
        steps = math.ceil(schedule.epochs * train.batches / settings.optimiser.accumulate)
        schedule = dataclasses.replace(schedule, steps=steps)
        schedule = dataclasses.replace(schedule, warmup=min(schedule.warmup, steps // 10))
    return dataclasses.replace(settings, model=model, schedule=schedule), (train, val)


def _take(tuner: Tuner, process: int, report: Report) -> int:
    """Plan, say and take the memory of a step; → bytes in all."""
    import importlib

    for name in ("matplotlib.figure", "matplotlib.backends.backend_agg"):
        importlib.import_module(name)
    arena, s = tuner.ops.arena, tuner.settings
    tokens = np.zeros((s.optimiser.batch, s.model.context), np.int32)
    documents = np.zeros_like(tokens) if tuner.state.loader.pack else None
    rows, dropout = Rows(tokens, documents), Dropout(0, 0)
    plans = Plans(
        arena,
        train=arena.plan(lambda: tuner.gradients(rows, tokens, dropout, tuner.grads)),
        validate=arena.plan(lambda: tuner.loss(rows, tokens)),
    )
    table = tuner.state.params.table
    frozen = bytes_of(tuner.tuned.weights.base) if tuner.tuned.lora else 0
    need = memory.need(table, max(plans.train.bytes, plans.validate.bytes), 0, process)
    need = dataclasses.replace(need, weights=need.weights + frozen)
    free = memory.available()
    report.say(f"memory: {need}; {memory.in_words(free)} free")
    memory.check_fits(need, free, s.optimiser.batch, s.model.recompute)
    arena.allocate(plans.train, plans.validate)
    tuner.plans = plans
    return need.total


def _write_folder(tuner: Tuner, about: Mapping[str, str], fresh: bool) -> None:
    folder, after = tuner.folder, -1 if fresh else tuner.state.step
    with atomic_write(folder.config, "w") as f:
        f.write(to_toml(tuner.settings, about))
    tuner.tokenizer.save(folder.tokenizer)
    cut_samples(folder.samples, after)
    events = folder.events if tuner.settings.run.tensorboard else None
    tuner.metrics = Metrics(folder.metrics, events, after)


def _what(
    about: Mapping[str, str],
    settings: Settings,
    subject: Tuned,
    sets: Sets,
    loaders: tuple[PackedLoader, PackedLoader],
    ops: Any,
) -> str:
    c, count = subject.model.config, sum(p.size for p in subject.model.table())
    how = "every weight is tuned"
    if subject.lora:
        how = f"an adapter of {subject.trained.count:,} weights is tuned: {_lora(subject)}"
    train, val = sets.train, sets.val
    counted = sum(int(e.counts[1:].sum()) for e in train)
    s, o = settings.schedule, settings.optimiser
    T, batches = settings.model.context, loaders[0].batches
    return (
        f"model: {about['model']}, {name_of(subject.model)} of {count / 1e6:.1f} million weights, "
        f"{c.layers} layers, width {c.width}; {how}\n"
        f"data: {about['data']}, {len(train):,} examples of {sum(map(len, train)):,} tokens, "
        f"{counted:,} of them to foretell; {len(val):,} to validate\n"
        f"plan: {s.steps:,} steps of {o.batch * o.accumulate} rows of {T} tokens, "
        f"{s.steps * o.accumulate / batches:.1f} times over the data\n"
        f"machine: {ops.threads} threads, {ops.isa}"
    )


def _lora(subject: Tuned) -> str:
    assert subject.lora is not None
    c = subject.lora
    return f"rank {c.rank}, alpha {c.alpha:g}, {len(subject.trained) // 2} layers ({c.layers})"


# Training, and what came of it


def _run(tuner: Tuner, about: Mapping[str, str], said: int) -> Result:
    report, start = tuner.report, time.perf_counter()
    first, before = tuner.state.step, tuner.state.seconds
    with Interrupt() as interrupt, contextlib.closing(tuner.metrics):
        tuner.run(interrupt)
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
        _say_result(report, result, time.perf_counter() - start)
    return result


def _say_result(report: Report, result: Result, seconds: float) -> None:
    val = ""
    if result.val_loss is not None and result.val_loss_before is not None:
        val = f", validation {result.val_loss_before:.3f} before and {result.val_loss:.3f} now"
    loss = f"loss {result.loss:.3f}{val}" if result.loss is not None else "nothing left to do"
    rate = f", {result.tokens_per_s:,.0f} tokens/s" if result.tokens_per_s else ""
    report.say(f"\nstep {result.step}: {loss}. {duration(seconds)}{rate}")
    report.say(f"\n--- after ---\n{result.sample.strip()}\n---")
