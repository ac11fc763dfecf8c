"""A run's folder: what lies where, and that one process at a time trains into it.

config.toml      the settings
tokenizer.json   text to tokens and back
metrics.jsonl    what was measured, one JSON object a line
loss.png         the same as a picture
samples.txt      what the model wrote on the way
checkpoints/     step-00000250.tenarai, ...: everything to go on from
tensorboard/     event files
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from filelock import FileLock, Timeout

from tenarai.errors import TenaraiError
from tenarai.io.atomic import WriteError, atomic_write, make_folder
from tenarai.io.checkpoint_folder import list_checkpoints


class RunFolder:
    """The paths of one run's folder, and its lock."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.config = self.path / "config.toml"
        self.tokenizer = self.path / "tokenizer.json"
        self.metrics = self.path / "metrics.jsonl"
        self.plot = self.path / "loss.png"
        self.samples = self.path / "samples.txt"
        self.checkpoints = self.path / "checkpoints"
        self.events = self.path / "tensorboard"
        self._lock = FileLock(str(self.path / ".lock"), timeout=0)

    def __str__(self) -> str:
        return str(self.path)

    def holds_run(self) -> bool:
        return self.config.exists() or bool(list_checkpoints(self.checkpoints))

    def claim(self, resume: bool) -> RunFolder:
        """Create the folder where it is missing, find out that it can be written, and lock it.

        Raises TenaraiError: not writable, a run is in it and `resume` is not asked for, or
        another process trains into it.
        """
        if self.holds_run() and not resume:
            raise TenaraiError(
                f"{self} already holds a run: go on with it (--resume --out {self}), or choose "
                "another folder (--out)"
            )
        make_folder(self.path)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise TenaraiError(
                f"another process is training into {self}: wait for it, stop it, or choose "
                "another folder (--out)"
            ) from error
        except OSError as error:
            raise WriteError(self.path, error) from error
        try:
            make_folder(self.checkpoints)
            self._check_writable()
        except BaseException:
            self.release()
            raise
        return self

    def release(self) -> None:
        """Let go of the lock; a folder into which nothing was written is removed."""
        if not self.holds_run():
            for path in (self.checkpoints, self.path):
                with contextlib.suppress(OSError):
                    (path / ".lock").unlink(missing_ok=True)
                    path.rmdir()
        self._lock.release()

    def _check_writable(self) -> None:
        for folder in (self.path, self.checkpoints):
            probe = folder / ".probe"
            with atomic_write(probe) as f:
                f.write(b"0" * 4096)
            with contextlib.suppress(OSError):
                probe.unlink()
        for file in (self.metrics, self.samples):
            if file.exists() and not os.access(file, os.W_OK):
                raise WriteError(file, PermissionError(13, "not writable"))


def newest_run(root: str | os.PathLike[str] = "runs") -> Path:
    """The run in `root` that was trained last. Raises TenaraiError where there is none."""
    runs = [p for p in Path(root).glob("*") if RunFolder(p).holds_run()]
    if not runs:
        raise TenaraiError(f"no run in {root}/ to resume: name its folder with --out")
    return max(runs, key=_last_change)


def _last_change(run: Path) -> float:
    folder = RunFolder(run)
    times = [0.0]
    for file in (folder.config, folder.metrics):
        with contextlib.suppress(OSError):
            times.append(file.stat().st_mtime)
    return max(times)
