"""A model's configuration as JSON, to and from the dataclasses of the families.

What is read is untrusted: each value must have its field's type, whole numbers have a bound, and
the dataclass looks at the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from typing import Any

from .families import AnyConfig
from .gpt2 import GPT2Config
from .llama_config import LlamaConfig
from .rope import Rope

FAMILIES: dict[str, type] = {"gpt2": GPT2Config, "llama": LlamaConfig}
LARGEST = 1 << 31


def family_of(config: AnyConfig) -> str:
    return next(name for name, kind in FAMILIES.items() if isinstance(config, kind))


def to_json(config: AnyConfig) -> dict[str, Any]:
    return asdict(config)


def from_json(family: Any, given: Any) -> Any:
    """The configuration. Raises ValueError: an unknown family, a setting missing, unknown, of the
    wrong type or out of bounds."""
    if not isinstance(family, str) or family not in FAMILIES:
        raise ValueError(f"family is {family!r}, expected one of {', '.join(FAMILIES)}")
    config = _build(FAMILIES[family], given)
    if config.layers > 10_000 or config.width > 1 << 20:
        raise ValueError(f"{config.layers} layers of width {config.width}")
    return config


def _build(kind: type, given: Any) -> Any:
    known = {f.name: f for f in fields(kind)}
    if not isinstance(given, Mapping) or not set(given) <= set(known):
        raise ValueError(f"is no {kind.__name__}: is it from a newer tenarai?")
    for name, f in known.items():
        if name not in given and f.default is MISSING:
            raise ValueError(f"{name} is missing")
    return kind(**{name: _value(name, known[name].type, given[name]) for name in given})


def _value(name: str, kind: Any, value: Any) -> Any:
    """`value` as the field's type, given as its source has it: "int", "tuple[float, ...]"."""
    if "None" in kind.split(" | ") and value is None:
        return None
    if kind.startswith("Rope"):
        return _build(Rope, value)
    if kind.startswith("tuple[") and isinstance(value, list):
        inner = kind.removeprefix("tuple[").removesuffix(", ...]")
        return tuple(_value(name, inner, v) for v in value)
    plain = {"int": int, "float": float, "str": str, "bool": bool}.get(kind.split(" | ")[0])
    huge = isinstance(value, int) and value > LARGEST
    if plain is None or type(value) is not plain or huge:
        raise ValueError(f"{name} is {value!r}, expected {kind}")
    return value
