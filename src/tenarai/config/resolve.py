"""Where settings come from: defaults < preset < TOML file < flags (or keyword arguments)."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from tenarai.errors import TenaraiError

from .checks import check_together
from .presets import PRESETS
from .settings import (
    SECTIONS,
    Model,
    Schedule,
    Settings,
    Value,
    all_settings,
    find,
    typed,
    unknown,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Values = dict[str, dict[str, Value]]  # section → name → value


def resolve(
    preset: str | None = None,
    file: str | os.PathLike[str] | None = None,
    given: Mapping[str, Value] | None = None,
) -> Settings:
    """Settings from a preset's name, a TOML file and single settings by name, the last winning.

    The file may name its preset (`preset = "gpt2"` at the top); the argument wins over it.
    A warm-up, decay or min_lr that only the preset set is fitted to the steps and lr asked for.
    Raises TenaraiError for an unknown name, a wrong type or an impossible value.
    """
    asked, file_preset = _asked(file, given)
    values = _over(_preset(preset or file_preset or "small"), asked)
    _fit_to_asked(values, asked)
    return from_values(values)


def override(
    settings: Settings,
    preset: str | None = None,
    file: str | os.PathLike[str] | None = None,
    given: Mapping[str, Value] | None = None,
) -> Settings:
    """`settings`, those of a run that goes on, with what is asked for now.

    A preset counts whole where it is named, so that the command that began a run also goes on
    with it. Raises TenaraiError as `resolve` does, and for what cannot change in a run.
    """
    asked, file_preset = _asked(file, given)
    if preset or file_preset:
        asked = to_values(resolve(preset, file, given))
    new = from_values(_over(to_values(settings), asked))
    for row in all_settings():
        old, now = row.of(settings), row.of(new)
        if row.fixed and old != now:
            raise TenaraiError(
                f"{row.key} is {old} in this run and cannot become {now} when it goes on: "
                "leave it out, or start a new run (--out)"
            )
    return new


def _asked(
    file: str | os.PathLike[str] | None, given: Mapping[str, Value] | None
) -> tuple[Values, str | None]:
    """What the file and the single settings say, merged, and the preset that the file names."""
    from_file, preset = read_toml(file) if file is not None else ({}, None)
    from_given: Values = {}
    for name, value in (given or {}).items():
        row = find(name, "the settings given")
        from_given.setdefault(row.section, {})[row.name] = typed(row, value, "the settings given")
    return _merged([from_file, from_given]), preset


def from_values(values: Mapping[str, Mapping[str, Any]]) -> Settings:
    """Settings from section → name → value, over the defaults, checked. Raises TenaraiError."""
    rows = {row.key: row for row in all_settings()}
    parts: dict[str, Any] = {}
    for section, cls in SECTIONS.items():
        names = values.get(section, {})
        parts[section] = cls(
            **{n: typed(rows[f"{section}.{n}"], v, "the settings") for n, v in names.items()}
        )
    _check_family(values)
    settings = Settings(**parts)
    check_together(settings)
    return settings


def to_values(settings: Settings) -> Values:
    """Section → name → value: what from_values takes. Those of the model's family alone."""
    values: Values = {section: {} for section in SECTIONS}
    for row in all_settings():
        if row.belongs_to(settings.model.family):
            values[row.section][row.name] = row.of(settings)
    return values


def read_toml(path: str | os.PathLike[str]) -> tuple[Values, str | None]:
    """The settings a TOML file gives and the preset it names. Raises TenaraiError."""
    where = os.fspath(path)
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise TenaraiError(f"cannot read the settings {where}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, no TOML, numbers of 5,000 digits
        raise TenaraiError(f"{where} is not a TOML file: {error}") from error
    preset = document.pop("preset", None)
    if preset is not None and not isinstance(preset, str):
        raise TenaraiError(f"{where}: preset is {preset!r}, it is the name of one, in quotes")
    values: Values = {}
    for section, names in document.items():
        if section not in SECTIONS or not isinstance(names, dict):
            raise TenaraiError(unknown(section, where))
        for name, value in names.items():
            row = find(f"{section}.{name}", where)
            values.setdefault(section, {})[row.name] = typed(row, value, where)
    return values, preset


def to_toml(settings: Settings) -> str:
    """The settings as TOML, each with its description; read_toml gives them back."""
    values = to_values(settings)
    lines = []
    for section in SECTIONS:
        lines.append(f"[{section}]\n")
        for row in all_settings():
            if row.name in values[section]:
                entry = tomli_w.dumps({row.name: values[section][row.name]}).rstrip("\n")
                lines.append(f"{entry}  # {row.help}\n")
        lines.append("\n")
    return "".join(lines).rstrip("\n") + "\n"


def _preset(name: str) -> Values:
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise TenaraiError(f"no preset is called {name}: {hint}There are {', '.join(PRESETS)}.")
    return {section: dict(names) for section, names in PRESETS[name].items()}


def _merged(layers: Iterable[Values]) -> Values:
    merged: Values = {}
    for layer in layers:
        for section, names in layer.items():
            merged.setdefault(section, {}).update(names)
    return merged


def _over(base: Values, asked: Values) -> Values:
    """`asked` over `base`, less what of `base` is of another family than the model's now."""
    merged = _merged([base, asked])
    family = merged.get("model", {}).get("family", Model.family)
    for row in all_settings():
        if not row.belongs_to(family) and row.name not in asked.get(row.section, {}):
            merged.get(row.section, {}).pop(row.name, None)
    return merged


def _check_family(values: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise TenaraiError for a setting of another family than the model's."""
    family = values.get("model", {}).get("family", Model.family)
    for row in all_settings():
        if row.name in values.get(row.section, {}) and not row.belongs_to(family):
            raise TenaraiError(
                f"{row.key} is of the family {row.family}, this model is a {family}: leave it "
                f'out, or set model.family = "{row.family}"'
            )


def _fit_to_asked(values: Values, asked: Values) -> None:
    """Fit the preset's warm-up, decay and min_lr to the steps and lr that were asked for."""
    schedule, asked_schedule = values.setdefault("schedule", {}), asked.get("schedule", {})
    steps = int(schedule.get("steps", Schedule.steps))
    for name, share in (("warmup", 10), ("decay", 5)):
        length = int(schedule.get(name, getattr(Schedule, name)))
        if "steps" in asked_schedule and name not in asked_schedule:
            schedule[name] = min(length, steps // share)
    lr = asked.get("optimiser", {}).get("lr")
    if lr is not None and "min_lr" not in asked_schedule:
        schedule["min_lr"] = min(float(schedule.get("min_lr", Schedule.min_lr)), float(lr))
