"""config.json of Hugging Face for the Llama family, to and from LlamaConfig.

As in hf_config.py: a setting that changes the result and cannot be followed is refused by name,
one that does not is passed over, one that the file leaves out has transformers' own default, and
every number has bounds. RoPE's settings are read in their old form (rope_theta, rope_scaling) and
in their new one (rope_parameters), and written in the old, which all versions read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from tenarai.errors import TenaraiError
from tenarai.models.hf_values import choice, flag, integer, maybe_integer, number, numbers
from tenarai.models.llama_config import LlamaConfig
from tenarai.models.rope import Rope

# model_type: (architectures entry, context, norm_eps, RoPE's base) as transformers defaults them
KINDS = {
    "llama": ("LlamaForCausalLM", 2048, 1e-6, 1e4),
    "mistral": ("MistralForCausalLM", 131072, 1e-6, 1e4),
    "mixtral": ("MixtralForCausalLM", 131072, 1e-5, 1e6),
    "phi3": ("Phi3ForCausalLM", 4096, 1e-5, 1e4),
    "qwen2": ("Qwen2ForCausalLM", 32768, 1e-6, 1e4),
    "qwen3": ("Qwen3ForCausalLM", 32768, 1e-6, 1e4),
    "qwen3moe": ("Qwen3MoeForCausalLM", 32768, 1e-6, 1e4),
    "gemma3": ("Gemma3ForCausalLM", 131072, 1e-6, 1e6),
}
NAMES = {"gemma3": "gemma3_text", "qwen3moe": "qwen3_moe"}  # where model_type is another
MODEL_TYPES = {NAMES.get(kind, kind): kind for kind in KINDS}
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu", "gelu_new": "gelu"}
_HIDDEN = {"qwen3moe": "moe_intermediate_size"}
REFUSED = ("final_logit_softcapping", "attn_logit_softcapping", "use_bidirectional_attention")
SIZES = 1 << 20
ROPE_TYPES = {"default": "none", "su": "longrope"}  # others have one name


def from_hugging_face(config: Mapping[str, Any], where: Path) -> LlamaConfig:
    """LlamaConfig of a config.json; `where` is its path, for the messages. Raises TenaraiError."""
    kind = MODEL_TYPES[config["model_type"]]
    _, default_context, default_eps, _ = KINDS[kind]
    for name in REFUSED:
        if config.get(name):
            raise TenaraiError(f"{where}: {name} = {config[name]!r} is not supported")
    width = integer(config, "hidden_size", None, SIZES, where)
    heads = integer(config, "num_attention_heads", None, SIZES, where)
    default_head = {"gemma3": 256, "qwen3": 128}.get(kind, width // heads)
    head_size = maybe_integer(config, "head_dim", default_head, SIZES, where) or width // heads
    layers = integer(config, "num_hidden_layers", None, 10_000, where)
    context = integer(config, "max_position_embeddings", default_context, 2**31 - 1, where)
    rope, local = _ropes(config, kind, head_size, context, where)
    activation = "hidden_activation" if kind == "gemma3" else "hidden_act"
    default = "gelu_pytorch_tanh" if kind == "gemma3" else "silu"
    bias = kind == "qwen2" or flag(config, "attention_bias", False, where)
    gemma = kind == "gemma3"
    try:
        return LlamaConfig(
            arch=kind,
            vocab_size=integer(config, "vocab_size", None, 2**31 - 1, where),
            context=context,
            layers=layers,
            heads=heads,
            kv_heads=maybe_integer(config, "num_key_value_heads", None, SIZES, where) or heads,
            head_size=head_size,
            width=width,
            hidden=integer(config, _HIDDEN.get(kind, "intermediate_size"), None, 1 << 24, where),
            rope=rope,
            local_rope=local,
            qkv_bias=bias and kind != "phi3",
            output_bias=bias and kind in ("llama", "qwen3", "qwen3moe", "gemma3"),
            mlp_bias=kind == "llama" and flag(config, "mlp_bias", False, where),
            qk_norm=kind in ("qwen3", "qwen3moe", "gemma3"),
            norms_after=gemma,
            gate=ACTIVATIONS[choice(config, activation, default, tuple(ACTIVATIONS), where)],
            embedding_scale=math.sqrt(width) if gemma else 1.0,
            attention_scale=_attention_scale(config, where) if gemma else None,
            windows=_windows(config, kind, layers, where),
            tied=flag(config, "tie_word_embeddings", gemma, where),
            norm_eps=number(config, "rms_norm_eps", default_eps, 1.0, where),
            **_experts(config, kind, where),
        )
    except ValueError as error:
        raise TenaraiError(f"{where}: {error}") from error


def _experts(config: Mapping[str, Any], kind: str, where: Path) -> dict[str, Any]:
    """How many experts, how many of them a token takes, and whether their weights sum to 1."""
    if kind not in ("mixtral", "qwen3moe"):
        return {}
    mixtral = kind == "mixtral"
    if not mixtral and (
        config.get("mlp_only_layers") or integer(config, "decoder_sparse_step", 1, SIZES, where) > 1
    ):
        raise TenaraiError(f"{where}: layers without experts among others with them")
    name = "num_local_experts" if mixtral or "num_experts" not in config else "num_experts"
    per_token = integer(config, "num_experts_per_tok", 2 if mixtral else 8, SIZES, where)
    return {
        "experts": integer(config, name, 8 if mixtral else 128, 10_000, where),
        "experts_per_token": per_token,
        "normalise_experts": mixtral or flag(config, "norm_topk_prob", False, where),
    }


def _attention_scale(config: Mapping[str, Any], where: Path) -> float:
    scalar = number(config, "query_pre_attn_scalar", 256, 1e9, where)
    if scalar <= 0:
        raise TenaraiError(f"{where}: query_pre_attn_scalar is {scalar}, expected more than 0")
    return float(scalar**-0.5)


def _windows(
    config: Mapping[str, Any], kind: str, layers: int, where: Path
) -> tuple[int | None, ...]:
    """Each layer's window, () where none has one."""
    default = 4096 if kind in ("mistral", "gemma3") else None
    window = maybe_integer(config, "sliding_window", default, 2**31 - 1, where)
    if kind in ("qwen2", "qwen3", "qwen3moe") and not flag(
        config, "use_sliding_window", False, where
    ):
        window = None
    if kind == "llama" or window is None:
        return ()
    if kind in ("mistral", "mixtral", "phi3", "qwen3moe"):
        return (window,) * layers
    types = config.get("layer_types")
    if types is None and kind == "gemma3":
        name = "sliding_window_pattern" if "sliding_window_pattern" in config else (
            "_sliding_window_pattern"
        )  # fmt: skip
        every = integer(config, name, 6, 10_000, where)
        local = [(i + 1) % every > 0 for i in range(layers)]
    elif types is None:
        first = integer(config, "max_window_layers", 28, 10_000, where, low=0)
        local = [i >= first for i in range(layers)]
    else:
        known = ("sliding_attention", "full_attention")
        if not isinstance(types, list) or len(types) != layers or set(types) - set(known):
            raise TenaraiError(
                f"{where}: layer_types must name {' or '.join(known)} for each of {layers} layers"
            )
        local = [t == known[0] for t in types]
    return tuple(window if is_local else None for is_local in local)


# RoPE


def _ropes(
    config: Mapping[str, Any], kind: str, head_size: int, context: int, where: Path
) -> tuple[Rope, Rope | None]:
    """RoPE's settings, and those of layers with a window where they are others (Gemma 3)."""
    new = config.get("rope_parameters") or {}
    old = config.get("rope_scaling") or {}
    if not isinstance(new, dict) or not isinstance(old, dict):
        raise TenaraiError(f"{where}: rope_parameters and rope_scaling must be JSON objects")
    top = {key: config[key] for key in ("rope_theta", "partial_rotary_factor") if key in config}
    top = {"rope_theta": KINDS[kind][3]} | top
    if kind == "phi3" and "original_max_position_embeddings" in config:
        top["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    if kind != "gemma3":
        return _rope(top | (new or old), head_size, context, where), None
    local = {"rope_theta": config.get("rope_local_base_freq", 1e4)}
    per_layer = [new.get(name) for name in ("full_attention", "sliding_attention")]
    full, sliding = (p if isinstance(p, dict) else {} for p in per_layer)
    return (
        _rope(top | (full if new else old), head_size, context, where),
        _rope(local | sliding, head_size, context, where),
    )


def _rope(given: Mapping[str, Any], head_size: int, context: int, where: Path) -> Rope:
    kind = given.get("rope_type", given.get("type", "default"))
    scaling = ROPE_TYPES.get(kind, kind) if isinstance(kind, str) else kind
    known = ("none", "linear", "dynamic", "yarn", "llama3", "longrope")
    if scaling not in known:
        raise TenaraiError(
            f"{where}: rope_type {kind!r} is not supported, only default, {', '.join(known[1:])}"
        )
    share = number(given, "partial_rotary_factor", 1.0, 1.0, where)
    original = context if scaling == "dynamic" else integer(
        given, "original_max_position_embeddings", context, 2**31 - 1, where,
    )  # fmt: skip
    attention = given.get("attention_factor")
    factor = given.get("factor")
    if factor is None:
        given = {**given, "factor": max(1.0, context / original)}
    if scaling == "yarn" and attention is None and given.get("mscale"):
        attention = _mscale(given, where)
    try:
        return Rope(
            size=int(head_size * share),
            base=number(given, "rope_theta", 1e4, 1e12, where),
            scaling=scaling,
            factor=number(given, "factor", 1.0, 1e6, where) if scaling != "none" else 1.0,
            original_context=original if scaling not in ("none", "linear") else 0,
            attention_factor=None if attention is None else float(attention),
            beta_fast=number(given, "beta_fast", 32.0, 1e6, where),
            beta_slow=number(given, "beta_slow", 1.0, 1e6, where),
            truncate=flag(given, "truncate", True, where),
            low=number(given, "low_freq_factor", 1.0, 1e6, where),
            high=number(given, "high_freq_factor", 4.0, 1e6, where),
            short=numbers(given, "short_factor", where) if scaling == "longrope" else (),
            long=numbers(given, "long_factor", where) if scaling == "longrope" else (),
        )
    except (TypeError, ValueError) as error:
        raise TenaraiError(f"{where}: {error}") from error


def _mscale(given: Mapping[str, Any], where: Path) -> float | None:
    """YaRN's attention factor as DeepSeek gives it, by two multiples of ln s."""
    factor = number(given, "factor", 1.0, 1e6, where)
    top, below = (number(given, n, 0.0, 1e6, where) for n in ("mscale", "mscale_all_dim"))
    if not below or factor <= 1:
        return None
    return (0.1 * top * math.log(factor) + 1) / (0.1 * below * math.log(factor) + 1)


# Writing


def to_hugging_face(c: LlamaConfig) -> dict[str, Any]:
    """config.json for the architecture's ...ForCausalLM. Raises TenaraiError for a model that the
    architecture has no words for there, such as a Llama with windows."""
    out = _written(c)
    again = from_hugging_face(out, Path("config.json"))
    for f in fields(LlamaConfig):
        ours, theirs = getattr(c, f.name), getattr(again, f.name)
        same = ours == theirs or (f.name == "attention_scale" and math.isclose(ours, theirs))
        if not same and f.name not in ("rope", "local_rope", "pairing"):
            raise TenaraiError(
                f"{KINDS[c.arch][0]} of transformers has no {f.name} = {ours!r}: write a GGUF file "
                "or a checkpoint (.tenarai) instead"
            )
    return out


def _written(c: LlamaConfig) -> dict[str, Any]:
    gemma = c.arch == "gemma3"
    kind = NAMES.get(c.arch, c.arch)
    out: dict[str, Any] = {
        "architectures": [KINDS[c.arch][0]],
        "model_type": kind,
        "vocab_size": c.vocab_size,
        "hidden_size": c.width,
        "intermediate_size": c.hidden,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_size,
        "max_position_embeddings": c.context,
        "rms_norm_eps": c.norm_eps,
        "hidden_activation" if gemma else "hidden_act": (
            "silu" if c.gate == "silu" else "gelu_pytorch_tanh"
        ),
        "tie_word_embeddings": c.tied,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": "float32",
        "pad_token_id": None,  # Phi-3's default is beyond a small vocabulary
    } | _rope_out(c.rope, c.head_size)
    if c.arch in ("llama", "qwen3", "qwen3moe", "gemma3"):
        out["attention_bias"] = c.qkv_bias
    if c.arch == "llama":
        out["mlp_bias"] = c.mlp_bias
    if c.experts:
        out |= {
            "num_local_experts" if c.arch == "mixtral" else "num_experts": c.experts,
            "num_experts_per_tok": c.experts_per_token,
            "router_aux_loss_coef": 0.001,
        }
    if c.arch == "qwen3moe":
        out |= {
            "moe_intermediate_size": c.hidden,
            "norm_topk_prob": c.normalise_experts,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    if c.arch == "phi3":
        out["original_max_position_embeddings"] = c.rope.original_context or c.context
    if gemma:
        scalar = (c.attention_scale or c.head_size**-0.5) ** -2
        whole = round(scalar)
        out["query_pre_attn_scalar"] = whole if math.isclose(scalar, whole) else scalar
        out["rope_local_base_freq"] = (c.local_rope or c.rope).base
    return out | _windows_out(c)


def _windows_out(c: LlamaConfig) -> dict[str, Any]:
    window = next((w for w in c.windows if w is not None), None)
    if c.arch == "llama":
        return {}
    out: dict[str, Any] = {"sliding_window": window}
    if c.arch in ("qwen2", "qwen3", "qwen3moe"):
        out["use_sliding_window"] = window is not None
    if c.arch in ("qwen2", "qwen3", "gemma3"):
        out["layer_types"] = [
            "full_attention" if c.window_of(i) is None else "sliding_attention"
            for i in range(c.layers)
        ]
    return out


def _rope_out(r: Rope, head_size: int) -> dict[str, Any]:
    out: dict[str, Any] = {"rope_theta": r.base}
    if r.size != head_size:
        out["partial_rotary_factor"] = r.size / head_size
    if r.scaling == "none":
        return out
    scaling: dict[str, Any] = {"rope_type": r.scaling, "factor": r.factor}
    if r.original_context:
        scaling["original_max_position_embeddings"] = r.original_context
    if r.attention_factor is not None:
        scaling["attention_factor"] = r.attention_factor
    if r.scaling == "yarn":
        scaling |= {"beta_fast": r.beta_fast, "beta_slow": r.beta_slow, "truncate": r.truncate}
    if r.scaling == "llama3":
        scaling |= {"low_freq_factor": r.low, "high_freq_factor": r.high}
    if r.scaling == "longrope":
        scaling |= {"short_factor": list(r.short), "long_factor": list(r.long)}
    if r.scaling == "factors":  # one list for all contexts: both of longrope's
        scaling |= {"rope_type": "longrope", "attention_factor": 1.0, "factor": 1.0}
        scaling |= {"short_factor": list(r.short), "long_factor": list(r.short)}
        scaling["original_max_position_embeddings"] = 1 << 20
    return out | {"rope_scaling": scaling}
