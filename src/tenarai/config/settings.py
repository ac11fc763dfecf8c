"""The settings of a training run: one frozen tree of dataclasses, each setting declared once.

A declaration has the description and the bounds. From it come the command line's flags and
help, the TOML file and the checks. Where values come from stands in resolve.py, presets in
presets.py; how a setting is used is the business of train/.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass, field
from typing import Any, cast

from tenarai.errors import TenaraiError

Value = int | float | bool | str
LARGEST = (1 << 63) - 1  # whole number: NumPy's int64


def setting(
    default: Value,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
    flag: str = "",
    family: str = "",
) -> Any:
    """A field with its description and bounds: low ≤ value ≤ high, value < below.

    `flag` is its name on the command line, where that is not its own; `family` the only family
    of models that has it, where it is not for all.
    """
    metadata: dict[str, Any] = {"help": help, "low": low, "high": high, "below": below}
    metadata |= {"choices": choices, "flag": flag, "family": family}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Model:
    """The model's shape. Some settings are of one family alone."""

    family: str = setting(
        "gpt2",
        "gpt2; or llama, which has RMS norm, RoPE, grouped heads and a gated MLP",
        choices=("gpt2", "llama"),
    )
    layers: int = setting(4, "transformer blocks", low=1)
    heads: int = setting(4, "attention heads a block; they divide the width", low=1)
    width: int = setting(192, "channels of the residual stream", low=1)
    context: int = setting(128, "longest sequence, in tokens", low=1)
    recompute: bool = setting(
        False, "keep only each block's input and compute the rest again in the backward pass"
    )
    saved_activations: str = setting(
        "float32",
        "what blocks keep for the backward pass: as computed, or rounded to bfloat16, half the "
        "memory (the loss is the same, gradients are off by some 0.2 %)",
        choices=("float32", "bfloat16"),
    )
    bias: bool = setting(True, "biases in the linear layers and layer norms", family="gpt2")
    gelu: str = setting(
        "tanh",
        "GPT-2's approximation by tanh, or the exact one",
        choices=("tanh", "exact"),
        family="gpt2",
    )
    dropout: float = setting(
        0.1, "share of activations dropped in training", low=0, below=1, family="gpt2"
    )
    arch: str = setting(
        "llama",
        "whose variant: qwen2 has biases of q, k and v, qwen3 norms of q and k, gemma3 both "
        "norms of a half, GeGLU and local layers, phi3 and mistral a window, mixtral and qwen3moe "
        "experts",
        choices=(
            "llama",
            "mistral",
            "mixtral",
            "phi3",
            "qwen2",
            "qwen3",
            "qwen3moe",
            "gemma3",
        ),
        family="llama",
    )
    kv_heads: int = setting(
        0, "heads of keys and values, which divide the heads; 0: as many", low=0, family="llama"
    )
    head_size: int = setting(
        0, "channels of a head; 0: the width over the heads", low=0, family="llama"
    )
    hidden: int = setting(
        0,
        "channels inside the MLP; 0: 8/3 of the width, up to a multiple of 32",
        low=0,
        family="llama",
    )
    rope_theta: float = setting(10000.0, "base of RoPE's angles", low=1, high=1e12, family="llama")
    window: int = setting(
        0,
        "last tokens that attention sees (mistral, phi3, gemma3's local layers); 0: all",
        low=0,
        family="llama",
    )
    tied: bool = setting(True, "the output projection is the embedding", family="llama")
    experts: int = setting(
        0,
        "MLPs of which each token takes some (mixtral, qwen3moe); 0: one MLP",
        low=0,
        high=10_000,
        family="llama",
    )
    experts_per_token: int = setting(2, "experts that a token takes", low=1, family="llama")
    shared_hidden: int = setting(
        0, "channels inside an expert that all tokens take besides; 0: none", low=0, family="llama"
    )
    norm_eps: float = setting(
        1e-5, "added to the mean square in RMS norms", low=1e-12, high=1, family="llama"
    )


@dataclass(frozen=True)
class Data:
    """What is learned from."""

    source: str = setting("pydoc", "a known text's name, a text file, a folder, or token shards")
    tokenizer: str = setting("bpe", "byte, char, bpe, gpt2, or a folder with a tokenizer")
    vocab: int = setting(1024, "size of the vocabulary that bpe trains", low=256, high=2**16)


@dataclass(frozen=True)
class Optimiser:
    """The step and its batches."""

    algorithm: str = setting(
        "adamw",
        "adamw; or muon for the layers' matrices, with adamw for all else",
        choices=("adamw", "muon"),
        flag="optimiser",
    )
    batch: int = setting(8, "sequences a micro-batch", low=1)
    accumulate: int = setting(1, "micro-batches whose gradients make one step", low=1)
    lr: float = setting(2e-3, "highest learning rate", low=0)
    muon_lr: float = setting(
        0.02, "Muon's highest learning rate, which rises and falls as lr does", low=0
    )
    momentum: float = setting(0.95, "decay of Muon's momentum", low=0, below=1)
    beta1: float = setting(0.9, "decay of the first moment", low=0, below=1)
    beta2: float = setting(0.99, "decay of the second moment", low=0, below=1)
    eps: float = setting(1e-8, "added to the root of the second moment", low=0)
    weight_decay: float = setting(0.1, "decay of the matrices, a step and learning rate", low=0)
    z_loss: float = setting(
        0.0,
        "weight of (log Z)² in the loss: it keeps the logits from drifting; 1e-4 is usual",
        low=0,
    )
    balance: float = setting(
        0.01, "weight of the loss that keeps experts equally busy, where there are some", low=0
    )
    clip: float = setting(1.0, "longest gradient (global norm) that is used whole; 0: any", low=0)


@dataclass(frozen=True)
class Schedule:
    """How long, and the learning rate on the way."""

    kind: str = setting(
        "cosine",
        "after the warm-up: cosine, wsd (stable, then a linear decay) or constant",
        choices=("cosine", "wsd", "constant"),
        flag="schedule",
    )
    steps: int = setting(1300, "steps of the optimiser", low=1)
    warmup: int = setting(100, "steps in which the learning rate rises from 0", low=0)
    decay: int = setting(300, "last steps in which wsd falls to min_lr", low=0)
    min_lr: float = setting(1e-4, "learning rate at the end of cosine and wsd", low=0)


@dataclass(frozen=True)
class Run:
    """What is measured, shown and kept."""

    seed: int = setting(1, "of the first weights, the order of the data, dropout, samples", low=0)
    threads: int = setting(0, "threads of the kernels; 0: one a core", low=0)
    products: str = setting(
        "fast",
        "large matrix products: plain, fast (as exact on the whole: seven multiplications for "
        "eight, or with AMX 24-bit whole numbers, twice as fast) or words (of 16-bit whole "
        "numbers, 2.5 times as fast with AMX, 1.6 with AVX-512 VNNI, attention's too, 1.3 with "
        "AVX2; off by 3e-4 as with TF32, gradients by 1e-3; fast elsewhere)",
        choices=("plain", "fast", "words"),
    )
    val_every: int = setting(250, "steps between validations; 0: never", low=0)
    val_batches: int = setting(20, "micro-batches of the validation set", low=1)
    sample_every: int = setting(500, "steps between samples; 0: only at the end", low=0)
    sample_tokens: int = setting(120, "tokens a sample", low=1)
    prompt: str = setting(
        "", "what the samples begin with; empty: some words of the validation text"
    )
    log_every: int = setting(10, "steps between lines of metrics.jsonl", low=1)
    checkpoint_every: int = setting(250, "steps between checkpoints; 0: only at the end", low=0)
    keep: int = setting(2, "newest checkpoints that are kept, besides the best", low=1)
    tensorboard: bool = setting(True, "write event files for TensorBoard")


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run. The same settings and threads give the same bits."""

    model: Model = Model()
    data: Data = Data()
    optimiser: Optimiser = Optimiser()
    schedule: Schedule = Schedule()
    run: Run = Run()


SECTIONS: dict[str, type] = {
    "model": Model,
    "data": Data,
    "optimiser": Optimiser,
    "schedule": Schedule,
    "run": Run,
}


@dataclass(frozen=True)
class Setting:
    """One row of the table of all settings."""

    section: str
    name: str
    type: type
    default: Value
    help: str
    low: float | None
    high: float | None
    below: float | None
    choices: tuple[str, ...]
    flag: str
    family: str  # the only one that has it; "" for all

    @property
    def key(self) -> str:
        return f"{self.section}.{self.name}"

    def of(self, settings: Settings) -> Value:
        """Its value in `settings`."""
        return cast(Value, getattr(getattr(settings, self.section), self.name))

    def belongs_to(self, family: Any) -> bool:
        """Whether a model of that family has it."""
        return self.family in ("", family)

    @property
    def fixed(self) -> bool:
        """Whether a run that goes on must keep it: the weights and the data's order hang on it."""
        keys = ("optimiser.batch", "optimiser.accumulate", "optimiser.algorithm", "run.seed")
        free = self.key in ("model.dropout", "model.recompute", "model.saved_activations")
        return not free and (self.section in ("model", "data") or self.key in keys)


def all_settings() -> list[Setting]:
    """Every setting, in the order of declaration. Names are unique over all sections."""
    types = {"int": int, "float": float, "bool": bool, "str": str}
    return [
        Setting(section, f.name, types[str(f.type)], cast(Value, f.default), **f.metadata)
        for section, cls in SECTIONS.items()
        for f in dataclasses.fields(cls)
    ]


def find(name: str, where: str) -> Setting:
    """The setting of that name ("lr" or "optimiser.lr"). Raises TenaraiError."""
    for row in all_settings():
        if name in (row.name, row.key):
            return row
    raise TenaraiError(unknown(name, where))


def unknown(name: str, where: str) -> str:
    """What to say about a name that no setting has: the nearest that exists."""
    rows = all_settings()
    plain = name.rsplit(".", 1)[-1]
    moved = [row.key for row in rows if row.name == plain]
    candidates = {row.key: row.key for row in rows} | {row.name: row.key for row in rows}
    candidates |= {section: f"[{section}]" for section in SECTIONS}
    close = difflib.get_close_matches(name, candidates, 1) or difflib.get_close_matches(
        plain, candidates, 1, cutoff=0.5
    )
    near = moved or [candidates[key] for key in close]
    hint = f"the nearest is {near[0]}" if near else "see `tenarai train --help` for all of them"
    return f"{where}: no setting is called {name}: {hint}"


def typed(row: Setting, value: Any, where: str) -> Value:
    """`value` as the row's type, inside its bounds. Raises TenaraiError that says what may be."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if type(value) is int and abs(value) > LARGEST:
        raise TenaraiError(f"{where}: {row.key} beyond 2^63: take a smaller number")
    if row.type is float and type(value) is int:
        value = float(value)
    if not isinstance(value, int | float | bool | str) or type(value) is not row.type:
        raise TenaraiError(f"{where}: {row.key} is {value!r}, it must be {words[row.type]}")
    if row.choices and value not in row.choices:
        raise TenaraiError(f"{where}: {row.key} is {value!r}, it may be {', '.join(row.choices)}")
    if isinstance(value, str):
        return value
    inside = (
        math.isfinite(value)
        and (row.low is None or value >= row.low)
        and (row.high is None or value <= row.high)
        and (row.below is None or value < row.below)
    )
    if not inside:
        raise TenaraiError(f"{where}: {row.key} is {value}, it must be {_bounds(row)}")
    return value


def _bounds(row: Setting) -> str:
    parts = []
    if row.low is not None:
        parts.append(f"at least {row.low}")
    if row.high is not None:
        parts.append(f"at most {row.high}")
    if row.below is not None:
        parts.append(f"below {row.below}")
    return " and ".join(parts) or "a finite number"
