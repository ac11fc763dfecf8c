"""Settings taken out of an untrusted config.json: each with its kind and its bounds.

`None` for a default means that the file must have the setting. Each raises TenaraiError, which
names the file, the setting and what it should be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tenarai.errors import TenaraiError


def integer(
    config: Mapping[str, Any], name: str, default: int | None, high: int, where: Path, low: int = 1
) -> int:
    value = config.get(name, default)
    if value is None and name not in config:
        raise TenaraiError(f"{where}: {name} is missing: is the file whole?")
    if type(value) is not int or not low <= value <= high:
        raise TenaraiError(
            f"{where}: {name} is {value!r}, expected a whole number from {low} to {high}"
        )
    return value


def maybe_integer(
    config: Mapping[str, Any], name: str, default: int | None, high: int, where: Path
) -> int | None:
    """As `integer`, but the file may say null."""
    value = config.get(name, default)
    return None if value is None else integer(config, name, default, high, where)


def number(config: Mapping[str, Any], name: str, default: float, high: float, where: Path) -> float:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= high:
        raise TenaraiError(f"{where}: {name} is {value!r}, expected a number from 0 to {high:g}")
    return float(value)


def numbers(config: Mapping[str, Any], name: str, where: Path) -> tuple[float, ...]:
    """A list of positive numbers, as long as the file has it."""
    value = config.get(name)
    if not isinstance(value, list) or not all(
        isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < math.inf for x in value
    ):
        raise TenaraiError(f"{where}: {name} must be a list of positive numbers")
    return tuple(float(x) for x in value)


def flag(config: Mapping[str, Any], name: str, default: bool, where: Path) -> bool:
    value = config.get(name, default)
    if type(value) is not bool:
        raise TenaraiError(f"{where}: {name} is {value!r}, expected true or false")
    return value


def choice(
    config: Mapping[str, Any], name: str, default: str, known: tuple[str, ...], where: Path
) -> str:
    value = config.get(name, default)
    if not isinstance(value, str) or value not in known:
        raise TenaraiError(f"{where}: {name} = {value!r} is not supported, only {', '.join(known)}")
    return value
