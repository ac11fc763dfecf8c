"""What a path is, told from its first bytes, never from its name alone."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from tenarai.errors import TenaraiError
from tenarai.io import llmc

HUGGING_FACE, LLMC, SAFETENSORS, FOLDER, OTHER = (
    "hugging_face",
    "llmc",
    "safetensors",
    "folder",
    "other",
)


def detect(path: str | os.PathLike[str]) -> str:
    """One of the names above; FOLDER and OTHER are for the caller, who knows checkpoints.

    Raises TenaraiError for what certainly is no model that can be read: a missing path, an empty
    file, a web page, a GGUF file, a Git LFS pointer, Python's pickle.
    """
    path = Path(path)
    if not path.exists():
        raise TenaraiError(f"{path}: no such file or folder: check the name")
    if path.is_dir():
        if (path / "config.json").exists():
            return HUGGING_FACE
        return FOLDER
    try:
        with path.open("rb") as f:
            start = f.read(512)
    except OSError as error:
        raise TenaraiError(f"cannot read {path}: {error.strerror}") from error
    if not start:
        raise TenaraiError(f"{path}: is empty: the download or the copy failed, do it again")
    if start[:4] == np.array(llmc.MAGIC, "<i4").tobytes():
        return LLMC
    _refuse(path, start)
    if path.suffix == ".safetensors" or start[8:10] == b'{"':
        return SAFETENSORS
    return OTHER


def _refuse(path: Path, start: bytes) -> None:
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise TenaraiError(
            f"{path}: is a web page, not a model: use the address behind the page's download button"
        )
    if start.startswith(b"GGUF"):
        raise TenaraiError(
            f"{path}: GGUF files are not yet supported: use a Hugging Face folder or llm.c's .bin"
        )
    if start.startswith(b"version https://git-lfs"):
        raise TenaraiError(f"{path}: is a Git LFS pointer, not the model: run `git lfs pull`")
    if start.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04")) or (
        start.startswith(b"PK\x03\x04") and b"data.pkl" in start
    ):
        raise TenaraiError(
            f"{path}: Python's pickle can run any program when opened, so it is not read: save "
            "the model with transformers' save_pretrained"
        )
