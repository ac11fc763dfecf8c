"""What a path is, told from its first bytes, never from its name alone."""

from __future__ import annotations

import os
from pathlib import Path

from tenarai.errors import TenaraiError

HUGGING_FACE, LLMC, LLAMA2C, GGUF, SAFETENSORS, CHECKPOINT, FOLDER = (
    "Hugging Face folder",
    "llm.c model",
    "llama2.c model",
    "GGUF file",
    "safetensors file",
    "tenarai checkpoint",
    "folder",
)
READABLE = (
    "a GGUF file, a Hugging Face folder, llm.c's or llama2.c's .bin, a tenarai checkpoint or run "
    "folder"
)
# Files from before GGUF, their magic as a little-endian number; and GGUF with its bytes turned.
GGUF_MAGICS = (b"GGUF", b"FUGG")
OLD_GGML = (b"lmgg", b"fmgg", b"tjgg", b"algg")


def detect(path: str | os.PathLike[str]) -> str:
    """One of the names above. FOLDER is one without config.json: a run's, or no model at all.

    Raises TenaraiError for what is no model that can be read: a missing path, an empty file, a
    web page, a Git LFS pointer, Python's pickle, token shards, anything else.
    """
    path = Path(path)
    if not path.exists():
        raise TenaraiError(f"{path}: no such file or folder: check the name")
    if path.is_dir():
        return HUGGING_FACE if (path / "config.json").exists() else FOLDER
    if not path.is_file():  # reading from a pipe or a device might never end
        raise TenaraiError(f"{path}: is no ordinary file: save it to disk and name that")
    try:
        with path.open("rb") as f:
            start = f.read(512)
    except OSError as error:
        raise TenaraiError(f"cannot read {path}: {error.strerror}") from error
    if not start:
        raise TenaraiError(f"{path}: is empty: the download or the copy failed, do it again")
    if start[:4] in GGUF_MAGICS:
        return GGUF
    from tenarai.io import checkpoint, llama2c, llmc  # not needed for the commonest kind

    if start[:8] == checkpoint.MAGIC:
        return CHECKPOINT
    if start[:4] == llmc.MAGIC.to_bytes(4, "little"):
        return LLMC
    _refuse(path, start)
    if path.suffix == ".safetensors" or start[8:10] == b'{"':
        return SAFETENSORS
    if llama2c.looks_like(start):  # its first version has no magic
        return LLAMA2C
    raise TenaraiError(f"{path}: is no model that can be read: name {READABLE}")


def _refuse(path: Path, start: bytes) -> None:
    """Raise for what is known and is not a model."""
    for magic, what in ((20240520, "a shard of tokens"), (20240328, "a tokenizer")):
        if start[:4] == magic.to_bytes(4, "little"):
            raise TenaraiError(f"{path}: is {what} of llm.c, not a model: name the model's file")
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise TenaraiError(
            f"{path}: is a web page, not a model: use the address behind the page's download button"
        )
    if start[:4] in OLD_GGML:
        raise TenaraiError(f"{path}: is older than GGUF: take a newer file of the model")
    if start.startswith(b"version https://git-lfs"):
        raise TenaraiError(f"{path}: is a Git LFS pointer, not the model: run `git lfs pull`")
    if start.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04")) or (
        start.startswith(b"PK\x03\x04") and b"data.pkl" in start
    ):
        raise TenaraiError(
            f"{path}: Python's pickle can run any program when opened, so it is not read: save "
            "the model with transformers' save_pretrained"
        )
