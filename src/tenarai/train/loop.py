"""The training loop: one step on one screen, and what happens between steps.

    loss of each micro-batch → gradients, added up → clipped → AdamW

The state that changes stands in state.py, the settings in config/, what people see in report.py.
Which data and which folder is decided in run.py.
"""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tenarai.config import Settings
from tenarai.errors import TenaraiError
from tenarai.infer.generate import generate_text
from tenarai.infer.sampler import Sampling
from tenarai.io.atomic import WriteError
from tenarai.io.checkpoint_folder import checkpoint_metas, checkpoint_path, prune_checkpoints
from tenarai.models.families import name_of
from tenarai.models.gpt2 import Dropout
from tenarai.models.gradients import micro_batch
from tenarai.models.table import Weights
from tenarai.tokenizers import Tokenizer

from .folder import RunFolder
from .interrupt import Interrupt
from .metrics import Metrics, Record, rounded
from .optim import clip_scale, global_norm
from .peak import exceeded
from .plot import plot_loss
from .report import Report
from .schedule import learning_rate
from .state import State

SAMPLING = Sampling(temperature=0.8, top_k=40)


@dataclass
class Plans:
    """Where a step's activations lie in the arena; None: each op allocates its own."""

    arena: Any = None
    train: Any = None
    validate: Any = None

    def use(self, plan: Any) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if plan is None else self.arena.use(plan)


@dataclass
class Trainer:
    """A run in progress. Everything it needs is given; it makes nothing but gradients."""

    settings: Settings
    state: State
    grads: Weights
    ops: Any
    plans: Plans
    validation: Any  # a loader of the fixed validation set
    tokenizer: Tokenizer
    folder: RunFolder
    report: Report
    peak: float | None  # GFLOP/s of the machine's best matrix product
    prompt: str  # what the samples begin with
    metrics: Metrics = field(init=False)  # opened when the state is known

    def run(self, interrupt: Interrupt) -> None:
        """Train to the last step, or to the end of the step in which a signal comes."""
        steps = self.settings.schedule.steps
        self.report.start(self.state.step, steps)
        try:
            if self.state.step == 0:
                self._before_the_first()
            while self.state.step < steps and not interrupt.signal:
                self._after_step(self.step(), last=self.state.step == steps)
            if not checkpoint_path(self.folder.checkpoints, self.state.step).exists():
                self.save()
        finally:
            self.report.stop()

    def step(self) -> Record:
        """One step of the optimiser. → its record. Raises TenaraiError where loss or gradient
        is not a number; the weights are then those of the step before."""
        s, state = self.settings.optimiser, self.state
        start = time.perf_counter()
        lr = learning_rate(self.settings.schedule, s.lr, state.step)
        loss = 0.0
        for i in range(s.accumulate):
            tokens, targets = state.loader.next()  # (B, T) each
            dropout = Dropout(self.settings.run.seed, state.step * s.accumulate + i)
            with self.plans.use(self.plans.train), micro_batch(self.grads, i) as grads:
                loss += self.gradients(tokens, targets, dropout, grads) / s.accumulate
        norm = global_norm(self.ops, self.grads) / s.accumulate
        self._check_finite(loss, norm)
        state.optimiser.step(
            self.ops,
            state.params,
            self.grads,
            lr=lr,
            step=state.step + 1,
            grad_scale=clip_scale(norm, s.clip) / s.accumulate,
        )
        state.step += 1
        state.val_loss = None
        seconds = time.perf_counter() - start
        state.seconds += seconds
        return self._record(loss, lr, norm, seconds)

    def gradients(
        self, tokens: np.ndarray, targets: np.ndarray, dropout: Dropout | None, grads: Any
    ) -> float:
        """Add a micro-batch's gradients to `grads`; → its loss."""
        model, params = self.state.model, self.state.params
        loss, saved = model.forward(self.ops, params, tokens, targets, grads, dropout)
        model.backward(self.ops, params, saved, grads)
        return float(loss)

    def loss(self, tokens: np.ndarray, targets: np.ndarray) -> float:
        """Loss without gradients or dropout."""
        return float(self.state.model.forward(self.ops, self.state.params, tokens, targets)[0])

    def validate(self) -> float:
        """Mean loss over the fixed validation set."""
        self.validation.reset()
        losses = []
        for _ in range(min(self.settings.run.val_batches, self.validation.batches)):
            tokens, targets = self.validation.next()
            with self.plans.use(self.plans.validate):
                losses.append(self.loss(tokens, targets))
        mean = sum(losses) / len(losses)
        if not math.isfinite(mean):
            raise self._not_finite("validation loss", mean)
        return mean

    def sample(self) -> str:
        """A text by the model as it is now; the same at the same step."""
        run = self.settings.run
        pieces = generate_text(
            self.ops,
            self.state.model,
            self.state.params,
            self.tokenizer,
            self.prompt,
            run.sample_tokens,
            SAMPLING,
            seed=run.seed + self.state.step,
        )
        return self.prompt + "".join(pieces)

    def save(self) -> None:
        """Write a checkpoint, then drop those that are not to be kept."""
        folder = self.folder.checkpoints
        self._check_weights()
        try:
            self.state.save(checkpoint_path(folder, self.state.step), self.settings, self.ops)
        except WriteError as error:
            raise TenaraiError(f"step {self.state.step}: {error}. {self._last_good()}") from error
        prune_checkpoints(folder, self.settings.run.keep, self._best())

    def draw(self) -> None:
        n = sum(param.size for param in self.state.model.table())
        plot_loss(
            self.metrics.records,
            self.folder.plot,
            f"{name_of(self.state.model)}, {n / 1e6:.1f}M parameters",
        )

    # Between steps

    def _before_the_first(self) -> None:
        run, steps = self.settings.run, self.settings.schedule.steps
        if run.val_every:
            record = {"step": 0, "val_loss": rounded(self.validate())}
            self.metrics.append(record)
            self.report.logged(record, steps, 0)
        if run.sample_every:
            self._show_sample()

    def _after_step(self, record: Record, last: bool) -> None:
        run, step, steps = self.settings.run, self.state.step, self.settings.schedule.steps
        left = (steps - step) * self.state.seconds / step
        if run.val_every and (last or step % run.val_every == 0):
            self.state.val_loss = record["val_loss"] = rounded(self.validate())
        self.report.step(record, steps, left)
        if last or step == 1 or "val_loss" in record or step % run.log_every == 0:
            self.metrics.append(record)
            self.report.logged(record, steps, left)
        if run.sample_every and step % run.sample_every == 0 and not last:
            self._show_sample()
        if last or (run.checkpoint_every and step % run.checkpoint_every == 0):
            self.save()
            self.draw()

    def _show_sample(self) -> None:
        text = self.sample()
        try:
            with self.folder.samples.open("a", encoding="utf-8") as f:
                f.write(f"--- step {self.state.step} ---\n{text}\n\n")
        except OSError as error:
            raise WriteError(self.folder.samples, error) from error
        self.report.say(f"--- a sample at step {self.state.step} ---\n{text.strip()}\n---")

    def _record(self, loss: float, lr: float, norm: float, seconds: float) -> Record:
        s = self.settings.optimiser
        T = self.settings.model.context
        tokens = s.batch * s.accumulate * T
        rate = tokens / seconds
        record = {
            "step": self.state.step,
            "loss": rounded(loss, 8),
            "lr": rounded(lr),
            "grad_norm": rounded(norm),
            "tokens": self.state.step * tokens,
            "tokens_per_s": rounded(rate),
            "seconds": rounded(self.state.seconds),
        }
        if self.peak:
            gflops = self.state.model.flops_per_token(T) * rate / 1e9
            if gflops > self.peak:
                self.peak = exceeded(self.peak, gflops, self.ops)
            record["mfu"] = rounded(gflops / self.peak, 4)
        return record

    # Guards

    def _check_finite(self, loss: float, norm: float) -> None:
        for what, value in (("loss", loss), ("gradient's norm", norm)):
            if not math.isfinite(value):
                raise self._not_finite(what, value)

    def _check_weights(self) -> None:
        """A step can ruin the weights before a loss shows it: such weights are never saved.
        From 1e15 on, products of three of them leave float32's range."""
        total = float(self.ops.square_sum(self.state.params.flat))
        if not total < 1e30:
            raise self._not_finite("sum of the squared weights", total)

    def _not_finite(self, what: str, value: float) -> TenaraiError:
        return TenaraiError(
            f"after step {self.state.step} the {what} is {value}: training stopped, and no "
            f"checkpoint was written. {self._last_good()} Try a lower --lr, a longer --warmup or "
            "a smaller --clip"
        )

    def _last_good(self) -> str:
        for path, _ in checkpoint_metas(self.folder.checkpoints):
            return f"The last good checkpoint is {path}."
        return "There is no checkpoint yet."

    def _best(self) -> list[int]:
        """The step of the lowest validation loss among the checkpoints, where there is one."""
        losses = [
            (meta["val_loss"], meta["step"])
            for _, meta in checkpoint_metas(self.folder.checkpoints)
            if isinstance(meta.get("val_loss"), float)
        ]
        return [min(losses)[1]] if losses else []
