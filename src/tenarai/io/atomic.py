"""Writing a file whole or not at all. What is in the file is the caller's matter.

    with atomic_write("run/checkpoint.bin") as f:
        f.write(data)

The bytes go to a temporary file beside the target, are fsynced, the file is renamed over the
target, and the folder is fsynced. Whoever is killed in the middle, by whatever signal, leaves the
old file as it was.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tenarai.errors import TenaraiError

# What the write itself can fail with; any other OSError of the caller's block is the caller's.
_WRITE_ERRNOS = {errno.ENOSPC, errno.EFBIG, errno.EIO, errno.EROFS}
_WRITE_ERRNOS |= {getattr(errno, name) for name in ("EDQUOT",) if hasattr(errno, name)}

_ADVICE = {
    errno.ENOSPC: "the disk is full: free some space or choose another folder",
    errno.EFBIG: "the file would be larger than the limit for files here: see `ulimit -f`",
    errno.EIO: "the disk reports an input/output error: choose another disk",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EACCES: "no permission to write there: choose another folder or change its permissions",
    errno.EPERM: "no permission to write there: choose another folder or change its permissions",
    errno.ENOENT: "its folder does not exist: create it first",
    errno.ENOTDIR: "a part of the path is a file, not a folder: choose another path",
    errno.EISDIR: "it is a folder: name a file",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
}
if hasattr(errno, "EDQUOT"):
    _ADVICE[errno.EDQUOT] = "your disk quota is used up: free some space or choose another folder"


class WriteError(TenaraiError):
    """A file or folder that could not be written. `path` is the one that was meant."""

    def __init__(self, path: str | os.PathLike[str], error: OSError):
        advice = _ADVICE.get(error.errno or 0, f"{error.strerror or error}: choose another path")
        super().__init__(f"cannot write {os.fspath(path)}: {advice}")
        self.path = Path(path)
        self.errno = error.errno


@contextlib.contextmanager
def atomic_write(
    path: str | os.PathLike[str], mode: str = "wb", encoding: str | None = None
) -> Iterator[IO[Any]]:
    """Give a file object; when the block ends well, `path` holds what was written to it.

    `mode` is "wb" or "w" (UTF-8 unless `encoding` says otherwise, newlines as given); the file
    can be read back and sought in. On an error in the block the temporary file is removed and
    `path` stays as it was. A symbolic link is followed, permissions of an old file are kept.

    Raises WriteError: full disk, quota, no permission, no such folder, a folder of that name.
    """
    if mode not in ("wb", "w"):
        raise ValueError(f'mode is "wb" or "w", not {mode!r}')
    target = Path(os.path.realpath(path))
    try:
        if stat.S_ISDIR(target.stat().st_mode):
            raise IsADirectoryError(errno.EISDIR, "is a directory")
    except FileNotFoundError:
        pass  # nothing to replace; whether its folder is there, opening will tell
    except OSError as error:
        raise WriteError(path, error) from error
    import secrets  # slow to import, and most that import this file only read

    _remove_stale(target)
    temporary = target.with_name(f"{_prefix(target)}{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        descriptor = os.open(temporary, flags, 0o666)
    except OSError as error:
        raise WriteError(path, error) from error
    text = {} if mode == "wb" else {"encoding": encoding or "utf-8", "newline": ""}
    try:
        with os.fdopen(descriptor, mode + "+", **text) as f:  # type: ignore[call-overload]
            yield f
            f.flush()
            os.fsync(f.fileno())
        with contextlib.suppress(OSError):  # a new file has no permissions to keep
            os.chmod(temporary, os.stat(target).st_mode & 0o7777)
        os.replace(temporary, target)
        fsync_folder(target.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        ours = isinstance(error, OSError) and (
            error.errno in _WRITE_ERRNOS or error.filename == os.fspath(temporary)
        )
        if ours:
            assert isinstance(error, OSError)
            raise WriteError(path, error) from error
        raise


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Create a folder and those above it, where they are missing. Raises WriteError."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise WriteError(path, NotADirectoryError(errno.ENOTDIR, "not a folder")) from error
    except OSError as error:
        raise WriteError(path, error) from error
    return folder


def fsync_folder(folder: str | os.PathLike[str]) -> None:
    """Make renames in `folder` survive a power cut, where the system lets a folder be synced."""
    with contextlib.suppress(OSError):  # Windows and some network file systems cannot
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _prefix(target: Path) -> str:
    import platform

    node = re.sub(r"[^A-Za-z0-9-]", "", platform.node())[:32] or "here"
    name = target.name.encode()[:80].decode(errors="ignore")
    return f".{name}.{node}."


def _remove_stale(target: Path) -> None:
    """Remove what writers of this target left behind that were killed on this machine."""
    import psutil

    prefix = _prefix(target)
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.[0-9a-f]{8}\.tmp")
    with contextlib.suppress(OSError):
        for entry in os.scandir(target.parent):
            match = pattern.fullmatch(entry.name)
            if match and not psutil.pid_exists(int(match[1])):
                os.unlink(entry.path)
