"""All that changes while training: what a checkpoint holds, so that going on gives the same bits.

Arrays of a checkpoint: `weights/NAME`, `adam_m/NAME`, `adam_v/NAME` for each of the model's
weights (under Muon `momentum/NAME` for the layers' matrices, in place of the last two), and
`tokenizer`, its JSON document in UTF-8. Its meta, beside what `State.meta` lists: the settings and
the model's configuration. Random numbers have no state of their own: dropout and samples are
counted from the seed and the step, the loader tells its own position.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tenarai import __version__
from tenarai.config import Settings, to_values
from tenarai.io.checkpoint import Checkpoint, CheckpointError, write_checkpoint
from tenarai.models import config_json
from tenarai.models.families import AnyModel
from tenarai.models.table import Weights

from .optim import AdamW, Muon


@dataclass
class State:
    """The weights, the optimiser's moments, the data's position, and the counts."""

    model: AnyModel
    params: Weights
    optimiser: AdamW | Muon
    loader: Any
    tokenizer: dict[str, Any]  # its document
    step: int = 0  # steps that were taken
    seconds: float = 0.0  # spent in them
    val_loss: float | None = None  # at `step`, where it was measured then

    def save(self, path: Path, settings: Settings, ops: Any) -> int:
        """Write a checkpoint, whole or not at all; → bytes. Raises WriteError."""
        arrays = {
            f"{group}/{name}": array
            for group, weights in self._groups().items()
            for name, array in weights.items()
        }
        document = json.dumps(self.tokenizer, ensure_ascii=False).encode()
        arrays["tokenizer"] = np.frombuffer(document, np.uint8)
        meta = {
            "kind": "training",
            "family": config_json.family_of(self.model.config),
            "version": __version__,
            "step": self.step,
            "seconds": self.seconds,
            "val_loss": self.val_loss,
            "threads": getattr(ops, "threads", 1),
            "isa": getattr(ops, "isa", ""),
            "loader": self.loader.state(),
            "tokenizer_digest": document_digest(self.tokenizer),
            "model": config_json.to_json(self.model.config),
            "settings": to_values(settings),
        }
        return write_checkpoint(path, arrays, meta)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take everything back. Raises CheckpointError where it is of another model or text."""
        meta = checkpoint.meta
        if meta.get("kind") != "training":
            raise CheckpointError(f"{checkpoint.path}: not a training checkpoint: cannot go on")
        if meta.get("tokenizer_digest") != document_digest(self.tokenizer):
            raise CheckpointError(
                f"{checkpoint.path}: was trained with another tokenizer than the data's is now: "
                "was the text changed? Start a new run (--out)"
            )
        self._read(checkpoint)

    def _read(self, checkpoint: Checkpoint) -> None:
        """The arrays and the place. Raises CheckpointError where either is damaged."""
        meta = checkpoint.meta
        for group, weights in self._groups().items():
            for name, array in weights.items():
                checkpoint.read(f"{group}/{name}", array)
        try:
            self.loader.restore(meta["loader"])
            self.step, self.seconds = int(meta["step"]), float(meta["seconds"])
            self.val_loss = meta["val_loss"]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{checkpoint.path}: its state cannot be read ({error!r}): use another checkpoint"
            ) from error

    def _groups(self) -> dict[str, Weights]:
        return {"weights": self.params, **self.optimiser.states()}


def document_digest(document: dict[str, Any]) -> str:
    """Tells two tokenizers apart."""
    text = json.dumps(document, sort_keys=True, ensure_ascii=False).encode()
    return hashlib.blake2b(text, digest_size=16).hexdigest()
