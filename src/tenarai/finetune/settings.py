"""The settings of fine-tuning, declared as training's are (config/settings.py).

Values come from the defaults and the flags. Those of a run stand in its folder, and it goes
on with them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import tomli_w

from tenarai.config import Optimiser, Run, Schedule, Setting, Value
from tenarai.config.settings import setting, typed
from tenarai.errors import TenaraiError
from tenarai.models.lora import LoraConfig

CONTEXT = 512  # the longest row where nobody asked for another
FULL_LR = 2e-5  # the default where every weight is tuned


@dataclass(frozen=True)
class Lora:
    """The adapter."""

    rank: int = setting(
        0, "rank of an adapter on the frozen model (16 is usual); 0: tune every weight",
        low=0, high=4096, flag="lora",
    )  # fmt: skip
    alpha: float = setting(
        0.0, "the adapter's product is scaled by alpha / rank; 0: twice the rank", low=0,
        flag="lora-alpha",
    )  # fmt: skip
    dropout: float = setting(
        0.0, "share of the adapters' inputs dropped", low=0, below=1, flag="lora-dropout"
    )
    layers: str = setting(
        "all", "which linear layers: all, attention, mlp, experts, or names as in attn.q,attn.v",
        flag="lora-layers",
    )  # fmt: skip

    @property
    def config(self) -> LoraConfig:
        return LoraConfig(self.rank, self.alpha or 2.0 * self.rank, self.dropout, self.layers)


@dataclass(frozen=True)
class Model:
    """What is held of the model."""

    context: int = setting(
        0, "longest example, and length of a row, in tokens; 0: as the model's, 512 at most", low=0
    )
    activations: str = setting(
        "words",
        "what activations and their gradients are rounded to in products with a quantised model's "
        "weights: words (12 to 16 bits), bytes (faster, gradients of a deep model are off by some "
        "5 %) or float32 (not at all)",
        choices=("float32", "words", "bytes"),
    )
    recompute: bool = setting(
        False, "keep only each block's input and compute the rest again in the backward pass"
    )
    saved_activations: str = setting(
        "float32",
        "what blocks keep for the backward pass: as computed, or rounded to bfloat16, half the "
        "memory (the loss is the same, gradients are off by some 0.2 %)",
        choices=("float32", "bfloat16"),
    )


@dataclass(frozen=True)
class Data:
    """What is learned from."""

    val: str = setting("", "file to validate on; empty: a share of the data")
    val_share: float = setting(0.05, "that share", low=0, below=1)
    pack: bool = setting(True, "put several examples into a row, each attending to itself alone")
    truncate: bool = setting(False, "cut examples that are longer than the context")
    template: bool = setting(True, "write prompts and answers as the model's chat template does")


@dataclass(frozen=True)
class Preferences:
    """Learning from pairs of answers."""

    dpo: bool = setting(False, "learn from chosen and rejected answers (DPO)")
    beta: float = setting(0.1, "how dear it is to leave the model as it was", low=1e-6)


@dataclass(frozen=True)
class TuningOptimiser(Optimiser):
    batch: int = setting(1, "rows a micro-batch", low=1)
    accumulate: int = setting(4, "micro-batches whose gradients make one step", low=1)
    lr: float = setting(2e-4, "highest learning rate", low=0)
    beta2: float = setting(0.999, "decay of the second moment", low=0, below=1)
    weight_decay: float = setting(0.0, "decay of the matrices, a step and learning rate", low=0)


@dataclass(frozen=True)
class TuningSchedule(Schedule):
    steps: int = setting(200, "steps of the optimiser", low=1)
    epochs: float = setting(0.0, "times over the data, in place of steps; 0: steps count", low=0)
    warmup: int = setting(10, "steps in which the learning rate rises from 0", low=0)
    decay: int = setting(20, "last steps in which wsd falls to min_lr", low=0)
    min_lr: float = setting(0.0, "learning rate at the end of cosine and wsd", low=0)


@dataclass(frozen=True)
class TuningRun(Run):
    val_every: int = setting(50, "steps between validations; 0: never", low=0)
    sample_every: int = setting(0, "steps between samples; 0: before and after", low=0)
    prompt: str = setting("", "what the samples answer; empty: a question of the validation data")
    checkpoint_every: int = setting(100, "steps between checkpoints; 0: only at the end", low=0)
    keep: int = setting(1, "newest checkpoints that are kept, besides the best", low=1)
    tensorboard: bool = setting(False, "write event files for TensorBoard")


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run, besides the model and the data."""

    lora: Lora = Lora()
    model: Model = Model()
    data: Data = Data()
    preferences: Preferences = Preferences()
    optimiser: TuningOptimiser = TuningOptimiser()
    schedule: TuningSchedule = TuningSchedule()
    run: TuningRun = TuningRun()


SECTIONS: dict[str, type] = {
    "lora": Lora,
    "model": Model,
    "data": Data,
    "preferences": Preferences,
    "optimiser": TuningOptimiser,
    "schedule": TuningSchedule,
    "run": TuningRun,
}
FREE = ("run.", "schedule.", "optimiser.lr", "optimiser.clip", "data.val")  # may change in a run


def all_settings() -> list[Setting]:
    """Every setting, in the order of declaration."""
    types = {"int": int, "float": float, "bool": bool, "str": str}
    return [
        Setting(section, f.name, types[str(f.type)], cast(Value, f.default), **f.metadata)
        for section, cls in SECTIONS.items()
        for f in dataclasses.fields(cls)
    ]


def resolve(given: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> Settings:
    """Settings from section → name → value: `given` over `before`, over the defaults.

    `before` are those of a run that goes on: what decides its weights and the order of its data
    cannot change. Raises TenaraiError: no such setting, of a wrong type, out of bounds.
    """
    rows = {row.key: row for row in all_settings()}
    values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for source, where in ((before or {}, "the run's settings"), (given, "the settings given")):
        for key, value in _flat(source):
            if key not in rows:
                raise TenaraiError(f"{where}: no setting is called {key}")
            row, value = rows[key], typed(rows[key], value, where)
            old = values[row.section].get(row.name, row.default)
            if before is not None and source is given and value != old:
                _check_free(row, old, value)
            values[row.section][row.name] = value
    if not values["lora"].get("rank", Lora.rank):
        values["optimiser"].setdefault("lr", FULL_LR)
    settings = Settings(**{s: SECTIONS[s](**v) for s, v in values.items()})
    return _fitted(settings, given)


def _flat(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(f"{s}.{n}", v) for s, names in values.items() for n, v in dict(names).items()]


def _check_free(row: Setting, old: Value, now: Value) -> None:
    if not row.key.startswith(FREE):
        raise TenaraiError(
            f"{row.key} is {old} in this run and cannot become {now} when it goes on: leave it "
            "out, or start a new run (--out)"
        )


def _fitted(settings: Settings, given: Mapping[str, Any]) -> Settings:
    """A warm-up and decay that nobody asked for are at most a tenth and a fifth of the steps."""
    schedule, asked = settings.schedule, given.get("schedule", {})
    for name, share in (("warmup", 10), ("decay", 5)):
        if name not in asked:
            most = min(getattr(schedule, name), schedule.steps // share)
            schedule = dataclasses.replace(schedule, **{name: most})
    if schedule.warmup > schedule.steps:
        raise TenaraiError(
            f"schedule.warmup = {schedule.warmup} is longer than the run of {schedule.steps} "
            f"steps: take a warm-up of at most {schedule.steps} or more steps"
        )
    if schedule.kind != "constant" and schedule.min_lr > settings.optimiser.lr:
        raise TenaraiError(
            f"schedule.min_lr = {schedule.min_lr} is above optimiser.lr = "
            f"{settings.optimiser.lr}: take one below it"
        )
    return dataclasses.replace(settings, schedule=schedule)


def to_toml(settings: Settings, about: Mapping[str, str]) -> str:
    """The settings as TOML, after a table [finetune] of what the run is about."""
    lines = ["[finetune]\n", tomli_w.dumps(dict(about)), "\n"]
    for section in SECTIONS:
        lines.append(f"[{section}]\n")
        for row in all_settings():
            if row.section == section:
                value = getattr(getattr(settings, section), row.name)
                lines.append(f"{tomli_w.dumps({row.name: value}).rstrip()}  # {row.help}\n")
        lines.append("\n")
    return "".join(lines).rstrip("\n") + "\n"
