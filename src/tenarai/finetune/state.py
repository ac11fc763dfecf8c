"""What a checkpoint of fine-tuning holds: the trained weights, the optimiser's state, the place.

Arrays as in train/state.py. Of an adapter its own weights alone, and the meta says on which model;
of a model that is tuned whole it is a model too, which `tenarai run` and `convert` open.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tenarai import __version__
from tenarai.io.checkpoint import Checkpoint, CheckpointError, write_checkpoint
from tenarai.models import config_json
from tenarai.models.lora import LoraConfig
from tenarai.train.state import State

KIND = "finetuning"


@dataclass
class TuningState(State):
    """`params` are the weights that are trained; `base` names the model that they began from."""

    base: str = ""
    lora: LoraConfig | None = None
    about: dict[str, Any] = field(default_factory=dict)  # more for the meta

    def save(self, path: Path, settings: Any, ops: Any) -> int:
        arrays = {
            f"{group}/{name}": array
            for group, weights in self._groups().items()
            for name, array in weights.items()
        }
        document = json.dumps(self.tokenizer, ensure_ascii=False).encode()
        arrays["tokenizer"] = np.frombuffer(document, np.uint8)
        meta = {
            "kind": KIND if self.lora is None else "adapter",
            "family": config_json.family_of(self.model.config),
            "version": __version__,
            "step": self.step,
            "seconds": self.seconds,
            "val_loss": self.val_loss,
            "threads": getattr(ops, "threads", 1),
            "isa": getattr(ops, "isa", ""),
            "loader": self.loader.state(),
            "model": config_json.to_json(self.model.config),
            "base": self.base,
            "lora": None if self.lora is None else asdict(self.lora),
            "settings": asdict(settings),
            **self.about,
        }
        return write_checkpoint(path, arrays, meta)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Raises CheckpointError where it is of another kind, or of another model."""
        meta = checkpoint.meta
        kind = KIND if self.lora is None else "adapter"
        if meta.get("kind") != kind or meta.get("lora") != (self.lora and asdict(self.lora)):
            raise CheckpointError(
                f"{checkpoint.path}: is no checkpoint of this fine-tuning: start anew (--out)"
            )
        self._read(checkpoint)
