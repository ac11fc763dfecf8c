"""From settings to a `Trainer` that is ready: data, model, memory, and a checkpoint's state."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from tenarai import data
from tenarai.config import Settings, to_toml
from tenarai.errors import TenaraiError
from tenarai.io.atomic import atomic_write
from tenarai.io.checkpoint import Checkpoint
from tenarai.models.families import AnyModel, name_of
from tenarai.models.gpt2 import Dropout
from tenarai.models.table import Weights
from tenarai.ops import Arena, Fast

from . import memory
from .folder import RunFolder
from .loop import Plans, Trainer
from .metrics import Metrics, cut_samples
from .model import model_of
from .optim import optimiser_of
from .peak import best_product
from .report import Report
from .state import State


def build(
    settings: Settings,
    folder: RunFolder,
    checkpoint: Checkpoint | None,
    ops: Any,
    report: Report,
) -> tuple[Trainer, int]:
    """A trainer at `checkpoint`, or at step 0, and the bytes that it was said to need.

    Nothing large is taken before it is known to fit; the folder's files are written last.
    `ops` are the kernels where None is given. Raises TenaraiError.
    """
    ops = ops or Fast(settings.run.threads or None, arena=Arena(), products=settings.run.products)
    dataset = data.load(settings.data.source, settings.data.tokenizer, settings.data.vocab)
    model = model_of(settings.model, settings.optimiser, dataset.vocab_size)
    peak = best_product(ops)
    report.say(_what(settings, model, dataset, ops, peak))

    _import_what_comes_later(settings)
    process = memory.resident()
    state = _state(settings, model, dataset)
    trainer = _trainer(settings, state, dataset, ops, folder, report, peak)
    trainer.plans = _plans(trainer)
    activations = trainer.plans.train.bytes if trainer.plans.train else 0
    threads = getattr(ops, "threads", 1)  # the reference has none
    need = memory.need(model.table(), activations, dataset.bytes, process, state.optimiser, threads)
    free = memory.available()
    report.say(f"memory: {need}; {memory.in_words(free)} free")
    m = settings.model
    memory.check_fits(need, free, settings.optimiser.batch, m.recompute, m.saved_activations)
    _take(trainer.plans)

    if checkpoint is None:
        state.params.initialise(settings.run.seed)
    else:
        state.restore(checkpoint)
        _say_where(report, checkpoint, state, ops)
    _write_folder(trainer, fresh=checkpoint is None)
    return trainer, need.total


def _state(settings: Settings, model: AnyModel, dataset: Any) -> State:
    """All zeros, so that no memory is taken yet: the system gives pages when they are written."""
    loader = data.Loader(
        dataset.train, settings.optimiser.batch, settings.model.context, seed=settings.run.seed
    )
    table = model.table()
    return State(
        model=model,
        params=Weights(table),
        optimiser=optimiser_of(table, settings.optimiser),
        loader=loader,
        tokenizer=dataset.tokenizer.to_json(),
    )


def _trainer(
    settings: Settings,
    state: State,
    dataset: Any,
    ops: Any,
    folder: RunFolder,
    report: Report,
    peak: float | None,
) -> Trainer:
    validation = data.Loader(
        dataset.val, settings.optimiser.batch, settings.model.context, seed=0, shuffle=False
    )
    return Trainer(
        settings=settings,
        state=state,
        grads=Weights(state.params.table),
        ops=ops,
        plans=Plans(),
        validation=validation,
        tokenizer=dataset.tokenizer,
        folder=folder,
        report=report,
        peak=peak,
        prompt=settings.run.prompt or first_words(dataset),
    )


def first_words(dataset: Any) -> str:
    """Some words that begin a line of the validation text: a fair prompt in any language."""
    if dataset.tokenizer.name == "ids":  # tokens without a vocabulary
        return ""
    text = dataset.tokenizer.decode(dataset.val[0].tokens[:8192].tolist())
    for line in text.split("\n")[1:]:  # the first line may begin in the middle of a word
        words = line.split()
        if len(line) >= 16 and line[0].isalpha() and "\ufffd" not in line:
            return " ".join(words[:3]) if len(words) > 1 else line[:8]
    return ""


def _plans(trainer: Trainer) -> Plans:
    """Steps of training and validation, run dry; ops without an arena need no plan."""
    arena = getattr(trainer.ops, "arena", None)
    if arena is None:
        return Plans()
    s = trainer.settings
    tokens = np.zeros((s.optimiser.batch, s.model.context), np.int32)
    dropout = Dropout(0, 0)
    return Plans(
        arena,
        train=arena.plan(lambda: trainer.gradients(tokens, tokens, dropout, trainer.grads)),
        validate=arena.plan(lambda: trainer.loss(tokens, tokens)),
    )


def _import_what_comes_later(settings: Settings) -> None:
    """So that what the process holds is known: tensorboardX alone imports PyTorch where it can."""
    names = ["matplotlib.figure", "matplotlib.backends.backend_agg"]
    for name in names + (["tensorboardX"] if settings.run.tensorboard else []):
        importlib.import_module(name)


def _take(plans: Plans) -> None:
    if plans.arena is None:
        return
    try:
        plans.arena.allocate(plans.train, plans.validate)
    except MemoryError as error:
        raise TenaraiError(
            f"the system gave no {memory.in_words(plans.train.bytes)} for activations: "
            "take a smaller --batch, or see `ulimit -v`"
        ) from error


def _write_folder(trainer: Trainer, fresh: bool) -> None:
    """The folder as it was at the state's step: what came after was cut off and comes again."""
    folder, after = trainer.folder, -1 if fresh else trainer.state.step
    with atomic_write(folder.config, "w") as f:
        f.write(to_toml(trainer.settings))
    trainer.tokenizer.save(folder.tokenizer)
    cut_samples(folder.samples, after)
    events = folder.events if trainer.settings.run.tensorboard else None
    trainer.metrics = Metrics(folder.metrics, events, after)


# What is said


def _what(settings: Settings, model: AnyModel, dataset: Any, ops: Any, peak: float | None) -> str:
    c = model.config
    count = sum(param.size for param in model.table())
    train, val = dataset.train_tokens, dataset.val_tokens
    kv = getattr(c, "kv_heads", c.heads)
    keys = f" ({kv} of keys)" if kv < c.heads else ""
    o = settings.optimiser
    step = o.batch * o.accumulate * c.context
    machine = getattr(ops, "how", "1 threads, NumPy")
    if getattr(ops, "has_words", False) and ops.products != "words":
        machine += " (faster with --products words, off by 3e-4)"
    gemm = f", {peak:.0f} GFLOP/s (best matrix product, MFU is of it)" if peak else ""
    return (
        f"model: {name_of(model)} of {count / 1e6:.2f} million weights: {c.layers} layers, "
        f"{c.heads} heads{keys}, width {c.width}, context {c.context}\n"
        f"data: {settings.data.source}, {train:,} tokens to learn, {val:,} to validate "
        f"({dataset.tokenizer.name}, {c.vocab_size:,} kinds)\n"
        f"plan: {settings.schedule.steps:,} steps of {step:,} tokens, "
        f"{settings.schedule.steps * step / max(train, 1):.1f} times over the data\n"
        f"machine: {machine}{gemm}"
    )


def _say_where(report: Report, checkpoint: Checkpoint, state: State, ops: Any) -> None:
    report.say(f"going on from {checkpoint.path}, step {state.step}")
    for what, now in (("threads", getattr(ops, "threads", 1)), ("isa", getattr(ops, "isa", ""))):
        then = checkpoint.meta.get(what)
        if then != now:
            report.say(
                f"warning: trained with {what} {then} until now, and {now} from here: results "
                "will differ in their last bits"
            )
