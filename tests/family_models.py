"""A small random model of every family, as files of every kind, whose tensors can be changed.

files = Files.of("qwen3", "shards", folder)      # written as `Model.save` writes it
files.tensors["model.norm.weight"] = ...
files.write()                                    # as they are now, into another place
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tenarai.api import Model
from tenarai.io import gguf, gguf_write, hugging_face, safetensors_file
from tenarai.models.gpt2 import GPT2, GPT2Config
from tenarai.models.llama import Llama, LlamaConfig
from tenarai.models.rope import Rope
from tenarai.models.table import Weights
from tenarai.ops import reference
from tenarai.quant import FORMATS

# No two dims are the same, so that a tensor of another's shape, or turned, does not pass for it.
SIZES = {
    "vocab_size": 61, "context": 16, "layers": 2, "heads": 4, "kv_heads": 2, "head_size": 6,
    "width": 32, "hidden": 40, "rope": Rope(6),
}  # fmt: skip
EXPERTS = {"experts": 3, "experts_per_token": 2}
GEMMA = {
    "qk_norm": True, "norms_after": True, "gate": "gelu", "embedding_scale": 32**0.5,
    "attention_scale": 6**-0.5, "windows": (4, None), "tied": True, "local_rope": Rope(6),
}  # fmt: skip
OPTIONS = {
    "llama": {"qkv_bias": True, "output_bias": True, "mlp_bias": True},
    "mistral": {"windows": (4, 4)},
    "mixtral": EXPERTS,
    "phi3": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
    "qwen3moe": {"qk_norm": True} | EXPERTS,
    "gemma3": GEMMA,
}
FAMILIES = ("gpt2", *OPTIONS)
KINDS = ("folder", "shards", "gguf")
PART = 20_000  # bytes of a part, of which there are several


def model_of(family: str, **changes) -> Model:
    if family == "gpt2":
        numbers = {"vocab_size": 61, "context": 16, "layers": 2, "heads": 4, "width": 24}
        model = GPT2(GPT2Config(**numbers | changes))
    else:
        model = Llama(LlamaConfig(**SIZES | {"arch": family} | OPTIONS[family] | changes))
    params = Weights(model.table()).initialise(1)
    for name in params:  # biases are no zeros
        params[name][...] += 0.01
    return Model(model, params, ops=reference)


@dataclass
class Files:
    """A model's files: `tensors` by name, as they lie there, in float32; `settings` are
    config.json's or the GGUF file's metadata."""

    kind: str
    path: Path
    settings: dict
    tensors: dict[str, np.ndarray]
    types: dict = field(default_factory=dict)

    @classmethod
    def of(cls, family: str, kind: str, folder: Path, **changes) -> Files:
        path = folder / ("m.gguf" if kind == "gguf" else "m")
        model_of(family, **changes).save(path, shard_size=PART if kind == "shards" else None)
        if kind == "gguf":
            file = gguf.read(path)
            tensors = {n: np.array(t.float32()) for n, t in file.tensors.items()}
            settings, types = dict(file.metadata.items()), dict(file.metadata.types)
            return cls(kind, path, settings, tensors, types)
        settings, found = hugging_face.read_folder(path)
        return cls(kind, path, settings, {n: t.read() for n, t in found.items()})

    def write(self) -> Path:
        """The files as they are now; → their path."""
        if self.kind == "gguf":
            tensors = [
                gguf_write.Tensor(n, a.shape, FORMATS["F32"], lambda a=a: np.ascontiguousarray(a))
                for n, a in self.tensors.items()
            ]
            gguf_write.write(self.path, self.settings, tensors, self.types)
        else:
            made = [(n, a.shape, lambda a=a: a) for n, a in self.tensors.items()]
            size = PART if self.kind == "shards" else None
            hugging_face.write_folder(self.path, self.settings, made, shard_size=size)
        return self.path

    def edit_json(self, name: str, change: Callable[[dict], object]) -> None:
        path = self.path / name
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    def add_twice(self, name: str) -> None:
        """Into the last part of a folder in parts, a tensor that lies in an earlier one."""
        last = sorted(self.path.glob("model-*.safetensors"))[-1]
        held = {n: t.read() for n, t in safetensors_file.open_file(last).items()}
        assert name not in held
        made = [(n, a.shape, lambda a=a: a) for n, a in (held | {name: self.tensors[name]}).items()]
        safetensors_file.write_file(last, made, {"format": "pt"})
