"""The numbers that GGUF files use: types of metadata values and types of tensors.

Source: the GGUF specification (ggml, docs/gguf.md) and ggml's list of types. How formats of weights
are made and read is the business of quant/; here they have only names and sizes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tenarai.errors import TenaraiError
from tenarai.quant import FORMATS, Format

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32  # of tensors, where general.alignment does not say otherwise
MAX_DIMS = 4
MAX_KEY = 65535  # bytes of a key
MAX_NAME = 64  # bytes of a tensor's name
# No model comes near these. What Python keeps of an entry is larger than the entry in the file.
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_STRINGS = 1 << 22  # of one array

STRING, ARRAY = 8, 9
SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
# Type names, as `Metadata.types` has them; an array's is its element's in brackets.
VALUE_NAMES = {number: dtype.name for number, dtype in SCALARS.items()} | {STRING: "string"}
VALUE_NUMBERS = {name: number for number, name in VALUE_NAMES.items()}
INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
FLOATS = ("float32", "float64")

# ggml's types that can stand in a file and that tenarai does not compute with.
OTHERS = (
    Format("IQ2_XXS", 16, 256, 66),
    Format("IQ2_XS", 17, 256, 74),
    Format("IQ3_XXS", 18, 256, 98),
    Format("IQ1_S", 19, 256, 50),
    Format("IQ3_S", 21, 256, 110),
    Format("IQ2_S", 22, 256, 82),
    Format("I8", 24, 1, 1),
    Format("I16", 25, 1, 2),
    Format("I32", 26, 1, 4),
    Format("I64", 27, 1, 8),
    Format("F64", 28, 1, 8),
    Format("IQ1_M", 29, 256, 56),
    Format("TQ1_0", 34, 256, 54),
    Format("TQ2_0", 35, 256, 66),
    Format("MXFP4", 39, 32, 17),
    Format("NVFP4", 40, 64, 36),
    Format("Q1_0", 41, 128, 18),
)
BY_NUMBER = {f.number: f for f in (*FORMATS.values(), *OTHERS)}
# Types that ggml has dropped from files, or never wrote to one.
DROPPED = {
    4: "Q4_2",
    5: "Q4_3",
    9: "Q8_1",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}


class GGUFError(TenaraiError):
    """A GGUF file that cannot be used. The message names the file and is one line."""


def shown(text: str, limit: int = 60) -> str:
    """A stranger's text for a message: one line, nothing that moves a cursor, not too long."""
    text = text if len(text) <= limit else text[:limit] + "..."
    return text if text.isprintable() and text else repr(text)


def type_name(number: int) -> str:
    """ggml's name of a tensor type, known to it or not."""
    if number in BY_NUMBER:
        return BY_NUMBER[number].name
    return DROPPED.get(number, f"number {number}")
