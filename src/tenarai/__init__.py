"""Tenarai: train, explain and run language models on CPUs, every gradient by hand.

    model = tenarai.load("gpt2")        # a Hugging Face folder, llm.c's .bin, a run's folder
    model.generate("To be, or not", max_tokens=40)
    tenarai.train(preset="char", source="novel.txt", out="runs/novel")

These names are imported when first used, so that `import tenarai` and a part alone stay light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenarai import train
    from tenarai.api import Model, load
    from tenarai.errors import TenaraiError

__version__ = "0.1.0"
__all__ = ["Model", "TenaraiError", "__version__", "load", "train"]

_HOME = {"Model": "tenarai.api", "TenaraiError": "tenarai.errors", "load": "tenarai.api"}


def __getattr__(name: str) -> Any:
    if name == "train":  # the package itself can be called
        return import_module("tenarai.train")
    if name not in _HOME:
        raise AttributeError(f"module 'tenarai' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
