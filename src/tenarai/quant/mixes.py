"""Which tensor gets which format: the mixes that GGUF files are published in.

A mix has a format for most matrices and more bits for those whose rounding costs most: values and
the way down of the MLP, in some of the layers, and the output matrix (which is the embedding where
the two are tied). The choices are llama.cpp's, so that a file made here is in kind and size what
others of its name are:

                 Q2_K   Q3_K_S  Q3_K_M     Q3_K_L  Q4_K_S     Q4_K_M  Q5_K_M
    most         Q2_K   Q3_K    Q3_K       Q3_K    Q4_K       Q4_K    Q5_K
    output       Q6_K   Q6_K    Q6_K       Q6_K    Q6_K       Q6_K    Q6_K
    attn_v       Q3_K¹  -       Q4_K, 5²   Q5_K    - , 5⁴     -, 6ˢ   -, 6ˢ
    attn_qkv     -      -       Q4_K       Q4_K    -          Q5_K    Q6_K
    attn_output  Q3_K   -       Q4_K       Q5_K    -          -       -
    ffn_down     Q3_K   -       Q4_K, 5ⁿ   Q5_K    - , 5ᵉ     -, 6ˢ   -, 6ˢ

    -      as most; 5, 6: Q5_K, Q6_K in some of the layers
    ¹      Q4_K where four or more query heads share a key
    ², ⁴   in the first two, four layers; ⁿ in the first sixteenth, ᵉ eighth of them
    ˢ      in the first and last eighth of the layers, and every third between

In IQ4_NL and IQ4_XS attn_v is Q5_K where four or more query heads share a key, ffn_down ᵉ. In the
others all is of one format, but output in Q6_K (in Q8_0, as all).

A row that is no whole number of blocks falls back to what is next to it in bits: Q2_K, Q3_K and
IQ4_XS to IQ4_NL, Q4_K to Q5_0, Q5_K to Q5_1, Q6_K to Q8_0; where 32 does not divide it, to F16.
Vectors, norms, position embeddings and routers stay float32. `pure` gives every matrix one format.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tenarai.errors import TenaraiError
from tenarai.quant.formats import FORMATS, Format

LAYER = re.compile(r"blk\.(\d+)\.")
FALLBACK = {
    "Q2_K": "IQ4_NL",
    "Q3_K": "IQ4_NL",
    "IQ4_XS": "IQ4_NL",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    "Q8_K": "Q8_0",
}
KEPT = re.compile(r".*(_norm|position_embd|token_types|ffn_gate_inp|rope_freqs)\.weight")


@dataclass(frozen=True)
class Mix:
    name: str
    number: int  # general.file_type in GGUF files
    format: str  # of most matrices

    @property
    def is_float(self) -> bool:
        return FORMATS[self.format].block == 1


MIXES = {
    m.name: m
    for m in (
        Mix("F32", 0, "F32"),
        Mix("F16", 1, "F16"),
        Mix("BF16", 32, "BF16"),
        Mix("Q4_0", 2, "Q4_0"),
        Mix("Q4_1", 3, "Q4_1"),
        Mix("Q5_0", 8, "Q5_0"),
        Mix("Q5_1", 9, "Q5_1"),
        Mix("Q8_0", 7, "Q8_0"),
        Mix("Q2_K", 10, "Q2_K"),
        Mix("Q3_K_S", 11, "Q3_K"),
        Mix("Q3_K_M", 12, "Q3_K"),
        Mix("Q3_K_L", 13, "Q3_K"),
        Mix("Q4_K_S", 14, "Q4_K"),
        Mix("Q4_K_M", 15, "Q4_K"),
        Mix("Q5_K_S", 16, "Q5_K"),
        Mix("Q5_K_M", 17, "Q5_K"),
        Mix("Q6_K", 18, "Q6_K"),
        Mix("IQ4_NL", 25, "IQ4_NL"),
        Mix("IQ4_XS", 30, "IQ4_XS"),
    )
}
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}


@dataclass(frozen=True)
class Place:
    """What of a model the choice depends on."""

    layers: int
    queries_per_key: int = 1  # query heads over key heads
    tied: bool = False  # the embedding is the output matrix


def mix_of(name: str) -> Mix:
    """A mix by its name, in any case. Raises TenaraiError that lists the names."""
    wanted = name.upper()
    wanted = ALIASES.get(wanted, wanted)
    if wanted not in MIXES:
        raise TenaraiError(f"{name}: no such type of weights: take one of {', '.join(MIXES)}")
    return MIXES[wanted]


def format_of(
    mix: Mix, name: str, shape: tuple[int, ...], place: Place, *, pure: bool = False
) -> Format:
    """The format of tensor `name`, shape outermost first, in a file of this mix."""
    if len(shape) < 2 or not name.endswith("weight") or KEPT.fullmatch(name):
        return FORMATS["F32"]
    wanted = mix.format if pure or mix.is_float else _choice(mix, name, place)
    return fitting(FORMATS[wanted], shape[-1])


def fitting(format: Format, width: int) -> Format:
    """The format, or what stands in for it where rows of `width` are no whole number of blocks."""
    while width % format.block:
        format = FORMATS[FALLBACK.get(format.name, "F16")]
    return format


def more_bits(layer: int, layers: int) -> bool:
    """Whether a layer is one of those that get more: the ends, and every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _choice(mix: Mix, name: str, place: Place) -> str:
    if name == "output.weight" or (name == "token_embd.weight" and place.tied):
        return "Q8_0" if mix.format == "Q8_0" else "Q6_K"
    found = LAYER.match(name)
    if found is None:
        return mix.format
    layer, part = int(found[1]), name[found.end() :].removesuffix(".weight")
    chosen = {
        "attn_v": _values,
        "attn_qkv": _fused,
        "attn_output": _attention_output,
        "ffn_down": _down,
    }.get(part)
    return mix.format if chosen is None else chosen(mix, layer, place) or mix.format


def _values(mix: Mix, layer: int, place: Place) -> str | None:
    if mix.name == "Q2_K":
        return "Q4_K" if place.queries_per_key >= 4 else "Q3_K"
    if mix.name == "Q3_K_M":
        return "Q5_K" if layer < 2 else "Q4_K"
    if mix.name == "Q3_K_L":
        return "Q5_K"
    if mix.name == "Q4_K_S":
        return "Q5_K" if layer < 4 else None
    if mix.name in ("IQ4_NL", "IQ4_XS"):
        return "Q5_K" if place.queries_per_key >= 4 else None
    return _some(mix, layer, place)


def _fused(mix: Mix, layer: int, place: Place) -> str | None:
    return {"Q3_K_M": "Q4_K", "Q3_K_L": "Q4_K", "Q4_K_M": "Q5_K", "Q5_K_M": "Q6_K"}.get(mix.name)


def _attention_output(mix: Mix, layer: int, place: Place) -> str | None:
    return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(mix.name)


def _down(mix: Mix, layer: int, place: Place) -> str | None:
    if mix.name == "Q2_K":
        return "Q3_K"
    if mix.name == "Q3_K_M":
        return "Q5_K" if layer < place.layers // 16 else "Q4_K"
    if mix.name == "Q3_K_L":
        return "Q5_K"
    if mix.name in ("Q4_K_S", "IQ4_NL", "IQ4_XS"):
        return "Q5_K" if layer < place.layers // 8 else None
    return _some(mix, layer, place)


def _some(mix: Mix, layer: int, place: Place) -> str | None:
    if mix.name in ("Q4_K_M", "Q5_K_M") and more_bits(layer, place.layers):
        return "Q6_K"
    return None
