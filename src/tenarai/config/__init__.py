"""Settings: what they are (settings.py), their presets, and where their values come from."""

from .presets import PRESETS
from .resolve import from_values, override, read_toml, resolve, to_toml, to_values
from .settings import (
    SECTIONS,
    Data,
    Model,
    Optimiser,
    Run,
    Schedule,
    Setting,
    Settings,
    Value,
    all_settings,
)

__all__ = [
    "PRESETS",
    "SECTIONS",
    "Data",
    "Model",
    "Optimiser",
    "Run",
    "Schedule",
    "Setting",
    "Settings",
    "Value",
    "all_settings",
    "from_values",
    "override",
    "read_toml",
    "resolve",
    "to_toml",
    "to_values",
]
