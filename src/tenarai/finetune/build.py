"""From settings to a `Tuner` that is ready: model, data, memory, and a checkpoint's state."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tenarai.api import Model, load
from tenarai.data.packing import PackedLoader, Rows
from tenarai.errors import TenaraiError
from tenarai.io.atomic import atomic_write
from tenarai.io.checkpoint import Checkpoint
from tenarai.io.named_models import model_path
from tenarai.models.families import name_of
from tenarai.models.gpt2 import Dropout
from tenarai.models.table import Weights
from tenarai.ops import Arena, Fast
from tenarai.ops.lora import Tuning
from tenarai.tokenizers.base import TokenizerError
from tenarai.tokenizers.chat import ChatTemplate, chat_template
from tenarai.train import memory
from tenarai.train.folder import RunFolder
from tenarai.train.loop import Plans
from tenarai.train.metrics import Metrics, cut_samples
from tenarai.train.optim import AdamW
from tenarai.train.report import Report

from .base import Tuned, bytes_of, packs, tuned
from .examples import Encoder
from .settings import CONTEXT, Settings, to_toml
from .sources import Sets, read_sets
from .state import TuningState
from .tuner import Tuner


def build(
    about: Mapping[str, str],
    settings: Settings,
    folder: RunFolder,
    checkpoint: Checkpoint | None,
    report: Report,
) -> tuple[Tuner, int]:
    """A tuner at `checkpoint`, or at step 0, and the bytes that it was said to need.

    Nothing large is taken before it is known to fit; the folder's files are written last.
    `about` names the model and the data. Raises TenaraiError.
    """
    process = memory.resident()
    base = load(model_path(about["model"]))
    settings = _with_context(settings, base, about["model"])
    if base.tokenizer is None:
        raise TenaraiError(f"{about['model']}: no tokenizer lies beside this model, to read text")
    lora = settings.lora.config if settings.lora.rank else None
    beta = settings.preferences.beta if settings.preferences.dpo else None
    m = settings.model
    rounded = m.saved_activations == "bfloat16"
    subject = tuned(base.model, base.params, lora, m.recompute, beta, rounded)
    template = _template(base) if settings.data.template else None
    longest = settings.model.context + 1
    encode = Encoder(base.tokenizer, template, longest, settings.data.truncate)
    sets = read_sets(about["data"], settings, encode)
    settings, loaders = _loaders(settings, sets, subject)
    how: dict[str, Any] = {"activations": settings.model.activations}
    how["products"] = settings.run.products
    ops = Tuning(Fast(settings.run.threads or None, arena=Arena(), **how))
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
    pairs = subject.beta is not None
    pack = settings.data.pack and packs(subject.model) and not pairs
    batch, group = settings.optimiser.batch * (2 if pairs else 1), 2 if pairs else 1
    longest = max(e.places for e in (*sets.train, *sets.val))
    T = settings.model.context if pack else min(settings.model.context, -(-longest // 32) * 32)
    how: dict[str, Any] = {"pack": pack, "group": group}
    together = 1 if pairs else settings.optimiser.accumulate
    train = PackedLoader(sets.train, batch, T, settings.run.seed, together=together, **how)
    val = PackedLoader(sets.val, batch, T, shuffle=False, **how)
    if not pairs:
        val.together = min(settings.run.val_batches, val.batches)
    model = dataclasses.replace(settings.model, context=T)
    schedule = settings.schedule
    if schedule.epochs:
        steps = math.ceil(schedule.epochs * train.batches / settings.optimiser.accumulate)
        schedule = dataclasses.replace(schedule, steps=steps)
        schedule = dataclasses.replace(schedule, warmup=min(schedule.warmup, steps // 10))
    return dataclasses.replace(settings, model=model, schedule=schedule), (train, val)


def _take(tuner: Tuner, process: int, report: Report) -> int:
    """Plan, say and take the memory of a step; → bytes in all."""
    for name in ("matplotlib.figure", "matplotlib.backends.backend_agg"):
        importlib.import_module(name)
    arena, s = tuner.ops.arena, tuner.settings
    tokens = np.zeros((tuner.state.loader.batch, s.model.context), np.int32)
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
    memory.check_fits(need, free, s.optimiser.batch, s.model.recompute, s.model.saved_activations)
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
        f"machine: {ops.how}"
    )


def _lora(subject: Tuned) -> str:
    assert subject.lora is not None
    c = subject.lora
    return f"rank {c.rank}, alpha {c.alpha:g}, {len(subject.trained) // 2} layers ({c.layers})"
