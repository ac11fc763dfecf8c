"""The loop of fine-tuning: training's (train/loop.py), with what is another here.

Losses and gradients are the tuned model's (base.py), and samples answer a question, before and
after.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tenarai.infer.generate import generate_ids, start_of_text
from tenarai.infer.sampler import Sampler, Sampling
from tenarai.models.families import name_of
from tenarai.models.gpt2 import Dropout
from tenarai.tokenizers.chat import ChatTemplate, encode_chat
from tenarai.train.loop import Trainer
from tenarai.train.metrics import Record, rounded
from tenarai.train.plot import plot_loss

from .base import Tuned

GREEDY = Sampling(temperature=0.0)


@dataclass
class Tuner(Trainer):
    """A run in progress. `settings` are finetune/settings.py's."""

    settings: Any
    tuned: Tuned = field(kw_only=True)
    template: ChatTemplate | None = field(kw_only=True)  # for the prompt; None: it is a text
    before: str = field(default="", kw_only=True)  # the sample at step 0
    first_loss: float | None = field(default=None, kw_only=True)  # the base's, in validation

    def gradients(self, tokens: Any, targets: np.ndarray, dropout: Dropout | None, grads: Any):
        return self.tuned.gradients(self.ops, tokens, targets, dropout, grads)

    def loss(self, tokens: Any, targets: np.ndarray) -> float:
        return self.tuned.loss(self.ops, tokens, targets)

    def sample(self) -> str:
        """What the model answers, or how it goes on: each time the most probable token."""
        tokenizer = self.tokenizer
        if self.template is not None:
            ids = encode_chat(tokenizer, self.template, [{"role": "user", "content": self.prompt}])
        else:
            ids = tokenizer.with_bos(tokenizer.encode(self.prompt)) or start_of_text(tokenizer)
        most = min(self.settings.run.sample_tokens, self.state.model.config.context - len(ids))
        sampler = Sampler(GREEDY, tokenizer=tokenizer)
        model, params = self.state.model, self.tuned.weights
        stop = tokenizer.end_tokens
        made = list(generate_ids(self.ops, model, params, ids, max(1, most), sampler, stop))
        text = tokenizer.decode([i for i in made if i not in stop])
        return text if self.template is not None else self.prompt + text

    def draw(self) -> None:
        n = self.state.params.count
        title = f"{name_of(self.state.model)}, {n / 1e6:.1f}M parameters trained"
        plot_loss(self.metrics.records, self.folder.plot, title)

    def _before_the_first(self) -> None:
        super()._before_the_first()
        self.first_loss = next(
            (r["val_loss"] for r in self.metrics.records if r["step"] == 0), None
        )
        self.before = self.sample()
        asked = f"{self.prompt.strip()}\n---\n" if self.template is not None else ""
        self.report.say(f"--- before: a sample ---\n{asked}{self.before.strip()}\n---")

    def _record(self, loss: float, lr: float, norm: float, seconds: float) -> Record:
        record = super()._record(loss, lr, norm, seconds)
        record["epoch"] = self.state.loader.epoch
        if self.tuned.beta is not None:
            z = self.tuned.margins
            record["margin"] = rounded(float(z.mean()))
            record["accuracy"] = rounded(float((z > 0).mean()))
        return record
