"""A model's configuration from GGUF metadata (gguf_out.py writes them).

A file's `general.architecture` is the prefix of its keys. Some of a model's numbers stand in no
key but in its tensors: the vocabulary's size, whether there are biases and an output of its own,
RoPE's factors; and a few of Gemma 3's nowhere, since every program knows them. The file is
untrusted: every number has a type and bounds. Sources: ggml, docs/gguf.md, and the keys that
llama.cpp's converter writes.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np

from tenarai.errors import TenaraiError
from tenarai.io.gguf import GGUFFile
from tenarai.io.gguf_types import INTEGERS
from tenarai.models.families import AnyModel
from tenarai.models.gpt2 import GPT2, GPT2Config
from tenarai.models.llama import Llama
from tenarai.models.llama_config import LlamaConfig
from tenarai.models.rope import Rope

ARCHITECTURES = ("llama", "phi3", "qwen2", "qwen3", "qwen3moe", "gemma3", "gpt2")
FLOATS = ("float32", "float64")
SIZES, LENGTHS = 1 << 20, 1 << 31
ARCH = "general.architecture"
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
SHORT, LONG, FREQUENCIES = (
    "rope_factors_short.weight",
    "rope_factors_long.weight",
    "rope_freqs.weight",
)
FACTORS = (SHORT, LONG, FREQUENCIES)  # tensors that are no weights
GEMMA_EVERY, GEMMA_LOCAL_BASE, GEMMA_27B_LAYERS = 6, 10000.0, 62


def model_of(file: GGUFFile) -> AnyModel:
    """The model that the file describes. Raises TenaraiError, which names the key: an architecture
    that is not known, a number missing, of another type, out of bounds or not fitting others."""
    arch = file.metadata.typed(ARCH, "string")
    if arch not in ARCHITECTURES:
        raise TenaraiError(
            f"{file.path}: its architecture is {arch[:40]!r}: those known are "
            f"{', '.join(ARCHITECTURES)}"
        )
    keys = _Keys(file, arch)
    try:
        return GPT2(_gpt2(keys)) if arch == "gpt2" else Llama(_llama(keys))
    except ValueError as error:
        raise TenaraiError(f"{file.path}: {error}") from error


class _Keys:
    """The file's keys below its architecture, each with its bounds."""

    def __init__(self, file: GGUFFile, arch: str):
        self.file, self.arch = file, arch

    def integer(self, name: str, high: int, default: int | None = None, low: int = 1) -> int:
        key = f"{self.arch}.{name}"
        if default is not None and key not in self.file.metadata:
            return default
        if key in self.file.metadata.types and self.file.metadata.types[key].startswith("["):
            return self._same_in_all(key, low, high)
        value = self.file.metadata.typed(key, *INTEGERS)
        if not low <= value <= high:
            raise TenaraiError(f"{self.file.path}: {key} is {value}, expected {low} to {high}")
        return int(value)

    def _same_in_all(self, key: str, low: int, high: int) -> int:
        """A number that the file gives for each layer."""
        values = self.file.metadata[key]
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "iu" or not values.size:
            raise TenaraiError(f"{self.file.path}: {key} is no list of whole numbers")
        first = int(values[0])
        if not low <= first <= high or (values != first).any():
            raise TenaraiError(
                f"{self.file.path}: {key} must be one number from {low} to {high}, the same in all "
                "layers: models whose layers differ cannot be run"
            )
        return first

    def number(self, name: str, default: float | None = None, high: float = 1e12) -> float:
        """A positive number."""
        key = f"{self.arch}.{name}"
        if default is not None and key not in self.file.metadata:
            return default
        value = float(self.file.metadata.typed(key, *FLOATS))
        if not 0 < value <= high:
            raise TenaraiError(f"{self.file.path}: {key} is {value}, expected 0 to {high:g}")
        return value

    def text(self, name: str, default: str) -> str:
        return self.file.metadata.typed(f"{self.arch}.{name}", "string", default=default)

    def has(self, name: str) -> bool:
        return f"{self.arch}.{name}" in self.file.metadata

    def in_a_layer(self, part: str, kind: str) -> bool:
        """Whether any layer has such a tensor, so that where one lacks it, that one is named."""
        pattern = re.compile(rf"blk\.\d+\.{part}\.{kind}")
        return any(map(pattern.fullmatch, self.file.tensors))

    def vocabulary(self) -> int:
        tensor = self.file.tensors.get(EMBEDDING)
        if tensor is None or tensor.ndim != 2:
            raise TenaraiError(f"{self.file.path}: has no matrix {EMBEDDING}: is the file whole?")
        rows = tensor.shape[0]
        if (said := self.integer("vocab_size", LENGTHS, rows)) > rows:
            raise TenaraiError(
                f"{self.file.path}: {EMBEDDING} has shape {tensor.shape}, and "
                f"{self.arch}.vocab_size is {said}: is the file whole?"
            )
        return rows

    def factors(self, name: str) -> tuple[float, ...]:
        """RoPE's factors, a tensor of a number for each pair."""
        tensor = self.file.tensors[name]
        if tensor.ndim != 1 or tensor.size > SIZES:
            raise TenaraiError(f"{self.file.path}: {name} has shape {tensor.shape}, no list")
        return tuple(float(x) for x in tensor.float32())


def _gpt2(keys: _Keys) -> GPT2Config:
    width = keys.integer("embedding_length", SIZES)
    hidden = keys.integer("feed_forward_length", 4 * SIZES, 4 * width)
    if hidden != 4 * width:
        raise ValueError(f"feed_forward_length = {hidden}: only four times {width} is supported")
    return GPT2Config(
        vocab_size=keys.vocabulary(),
        context=keys.integer("context_length", LENGTHS),
        layers=keys.integer("block_count", 10_000),
        heads=keys.integer("attention.head_count", SIZES),
        width=width,
        bias="output_norm.bias" in keys.file.tensors,
        norm_eps=keys.number("attention.layer_norm_epsilon", 1e-5, 1.0),
    )


def _llama(keys: _Keys) -> LlamaConfig:
    arch, tensors = keys.arch, keys.file.tensors
    experts = keys.integer("expert_count", 10_000, 0, low=0)
    with_experts = {"llama": (False, True), "qwen3moe": (True,)}.get(arch, (False,))
    if bool(experts) not in with_experts:
        raise ValueError(f"a mixture of {experts} experts in a {arch}, which cannot be run")
    if keys.has("final_logit_softcapping") or keys.has("attn_logit_softcapping"):
        raise ValueError("soft limits of logits, which cannot be followed")
    width = keys.integer("embedding_length", SIZES)
    heads = keys.integer("attention.head_count", SIZES)
    layers = keys.integer("block_count", 10_000)
    if not keys.has("attention.key_length") and width % heads:
        raise ValueError(f"{heads} heads do not divide a width of {width}")
    head_size = keys.integer("attention.key_length", SIZES, max(1, width // heads))
    if keys.integer("attention.value_length", SIZES, head_size) != head_size:
        raise ValueError("values of another size than keys, which cannot be run")
    context = keys.integer("context_length", LENGTHS)
    windows = _windows(keys, layers)
    gemma = arch == "gemma3"
    rope = _rope(keys, head_size, context)
    local = Rope(rope.size, keys.number("rope.freq_base_swa", GEMMA_LOCAL_BASE))
    qkv, output, mlp = (
        keys.in_a_layer(part, "bias") for part in ("attn_(q|k|v|qkv)", "attn_output", "ffn_[a-z]+")
    )
    return LlamaConfig(
        arch=_family(arch, experts, bool(windows), qkv or output or mlp),
        vocab_size=keys.vocabulary(),
        context=context,
        layers=layers,
        heads=heads,
        kv_heads=keys.integer("attention.head_count_kv", SIZES, heads),
        head_size=head_size,
        width=width,
        hidden=keys.integer(
            f"{'expert_' if arch == 'qwen3moe' else ''}feed_forward_length", 1 << 24
        ),
        rope=rope,
        local_rope=local if gemma else None,
        pairing="adjacent" if arch == "llama" else "half",
        qkv_bias=qkv,
        output_bias=output,
        mlp_bias=mlp,
        qk_norm=keys.in_a_layer("attn_[qk]_norm", "weight"),
        norms_after=gemma,
        gate="gelu" if gemma else "silu",
        embedding_scale=math.sqrt(width) if gemma else 1.0,
        attention_scale=_gemma_scale(keys, layers, width, heads, head_size) if gemma else None,
        windows=windows,
        tied=OUTPUT not in tensors,
        norm_eps=keys.number("attention.layer_norm_rms_epsilon", high=1.0),
        experts=experts,
        experts_per_token=keys.integer("expert_used_count", 10_000) if experts else 2,
    )


def _family(arch: str, experts: int, windows: bool, biases: bool) -> str:
    """What Hugging Face calls it: a llama with experts is Mixtral, one with a window Mistral."""
    if arch != "llama" or biases:
        return arch
    return "mixtral" if experts else "mistral" if windows else arch


def _gemma_scale(keys: _Keys, layers: int, width: int, heads: int, head_size: int) -> float:
    """query_pre_attn_scalar^(−½). Files do not say it: it is the head's size, but in the 27B the
    width over the heads. Files of ours say it where it is neither."""
    scalar = width / heads if layers == GEMMA_27B_LAYERS else head_size
    return keys.number("attention.scale", float(scalar**-0.5))


def _windows(keys: _Keys, layers: int) -> tuple[int | None, ...]:
    """Each layer's window, () where none has one. 0 in a file stands for none."""
    window = keys.integer("attention.sliding_window", LENGTHS, 0, low=0)
    if not window:
        return ()
    key = f"{keys.arch}.attention.sliding_window_pattern"
    pattern = keys.file.metadata.get(key)
    if isinstance(pattern, np.ndarray):  # whether each layer is local
        if pattern.dtype != np.bool_ or len(pattern) != layers:
            raise ValueError(f"{key} must hold {layers} truth values")
        return tuple(window if local else None for local in pattern)
    default = GEMMA_EVERY if keys.arch == "gemma3" else 0
    every = keys.integer("attention.sliding_window_pattern", 10_000, default, low=0)
    return tuple(None if every and (i + 1) % every == 0 else window for i in range(layers))


def _rope(keys: _Keys, head_size: int, context: int) -> Rope:
    size = keys.integer("rope.dimension_count", SIZES, head_size)
    base = keys.number("rope.freq_base", 10000.0)
    kind = keys.text("rope.scaling.type", "none")
    original = keys.integer("rope.scaling.original_context_length", LENGTHS, context)
    attention = keys.number("rope.scaling.attn_factor", 0.0) or None
    tensors = keys.file.tensors
    if SHORT in tensors and LONG in tensors:
        return Rope(
            size, base, "longrope", max(1.0, context / original), original, attention,
            short=keys.factors(SHORT), long=keys.factors(LONG),
        )  # fmt: skip
    if FREQUENCIES in tensors:
        return Rope(size, base, "factors", short=keys.factors(FREQUENCIES))
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0))
    if kind == "yarn":
        fast = keys.number("rope.scaling.yarn_beta_fast", 32.0)
        slow = keys.number("rope.scaling.yarn_beta_slow", 1.0)
        times = keys.number("rope.scaling.yarn_attn_factor", attention or 1.0)
        plain = Rope(size, base, "yarn", factor, original, None, fast, slow)
        return replace(plain, attention_factor=times * plain.attention_scale())
    if kind == "linear" or (kind == "none" and factor != 1):
        return Rope(size, base, "linear", factor)
    if kind != "none":
        raise ValueError(f"RoPE scaling {kind!r} without its factors, which cannot be followed")
    return Rope(size, base)
