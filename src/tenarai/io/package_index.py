"""Fetching a pinned file from a package index with pip, the index's own client.

Which packages and what is in them is the caller's matter. Nothing of a package is run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tenarai.errors import TenaraiError


class PipError(TenaraiError):
    """pip did not bring the file. The message is what it said last, on one line."""


def download(
    package: str,
    version: str,
    sha256: str,
    folder: Path,
    options: Sequence[str],
    environment: dict[str, str] | None = None,
    progress: bool = False,
) -> None:
    """Have pip put one file of that checksum into `folder`. Raises PipError.

    `options` say which kind of file; `environment` is added to the process's own; with `progress`
    pip shows its bar where stderr is a terminal.
    """
    wanted = folder / f"{package}.requirements.txt"
    wanted.write_text(f"{package}=={version} --hash=sha256:{sha256}\n")
    show = progress and sys.stderr.isatty()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--disable-pip-version-check", *options, *(() if show else ("--quiet",))]
    command += ["--dest", str(folder), "--requirement", str(wanted)]
    try:
        ran = subprocess.run(
            command,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno() if show else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise PipError(f"cannot run pip: {error}") from error
    finally:
        wanted.unlink(missing_ok=True)
    if ran.returncode:
        raise PipError(last_words(ran.stderr))


def last_words(said: str) -> str:
    """The line of pip's complaints that says most, and what to do about it."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = next(
        (line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else ""
    )
    advice = "is there a network?"
    if "No module named pip" in said:
        advice = f"install pip with `{sys.executable} -m ensurepip`."
    elif "No space left" in said:
        last, advice = "the disk is full", "free some space."
    elif "HASH" in said.upper():
        advice = "the index has another file than the one that is expected."
    return f"{last[:200].rstrip(':') or 'pip said nothing'}: {advice}"
