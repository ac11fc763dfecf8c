"""Opening tokenizers: a file of many kinds, or a folder with one. All untrusted."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tenarai.io import formats, gguf

from . import simple
from .base import Tokenizer, TokenizerError
from .bpe import EOT, HFTokenizer, byte_level_bpe
from .byte_letters import letters_of
from .gguf import from_gguf
from .sentencepiece_files import LLAMA2C_NAME, from_llama2c, from_model
from .vocabulary import MAX_PIECE

MAX_BYTES = 1 << 28  # the largest tokenizer.json in use has some 35 MB
LLMC_MAGIC = 20240328
LLMC_NAME = "gpt2_tokenizer.bin"
_NAMES = ("tokenizer.json", "vocab.json", "tokenizer.model", LLMC_NAME, LLAMA2C_NAME)


def load(path: str | os.PathLike[str]) -> Tokenizer:
    """Open a tokenizer, whatever kind it is.

    A GGUF file, a tokenizer.json (ours or Hugging Face's), GPT-2's vocab.json beside its
    merges.txt, SentencePiece's .model, llm.c's gpt2_tokenizer.bin, llama2.c's tokenizer.bin, or a
    folder (a dataset, a run, a Hugging Face model) that has one of them.
    Raises TokenizerError with the file's name, what is wrong, and what to do.
    """
    path = Path(path)
    if path.is_dir():
        path = _in_folder(path)
    try:
        if _is_gguf(path):
            return from_gguf(gguf.read(path).metadata)
        if path.name.endswith(".model"):
            return from_model(_read(path))
        if path.name.endswith(".bin"):
            data = _read(path)
            return (from_llama2c if _is_llama2c(data) else _load_llmc)(data)
        if path.name in ("vocab.json", "merges.txt"):
            return _load_gpt2(path.with_name("vocab.json"), path.with_name("merges.txt"))
        return _load_json(path)
    except TokenizerError as error:
        raise TokenizerError(f"cannot use the tokenizer {path}: {error}") from error


def from_document(document: dict[str, Any]) -> Tokenizer:
    """The tokenizer whose `to_json` gave `document`. Untrusted too: raises TokenizerError."""
    if "tenarai_tokenizer" in document:
        return _ours(document)
    return _shaped(lambda: HFTokenizer(document))


def find(folder: str | os.PathLike[str], names: Sequence[str] | None = None) -> Path | None:
    """The tokenizer's file in a folder, the first of `names` if given; None where none is."""
    return next((p for name in names or _NAMES if (p := Path(folder) / name).is_file()), None)


def _is_gguf(path: Path) -> bool:
    if path.suffix == ".gguf":
        return True
    try:
        with path.open("rb") as f:
            return f.read(4) in formats.GGUF_MAGICS
    except OSError:
        return False  # the reader of the other kinds says it better


def _is_llama2c(data: bytes) -> bool:
    """It starts with the length of its longest token, llm.c's with a date; and its first token is
    not longer (an llm.c file with a damaged date has its number of tokens there)."""
    longest, first = (int.from_bytes(data[at : at + 4], "little") for at in (0, 8))
    return 0 < longest <= MAX_PIECE and first <= longest


def _in_folder(folder: Path) -> Path:
    if found := find(folder):
        return found
    raise TokenizerError(
        f"no tokenizer in the folder {folder}: expected one of {', '.join(_NAMES)}; "
        "name a dataset, a run, a model folder or a tokenizer.json"
    )


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            what = "no ordinary file" if path.exists() else "no such file"
            raise TokenizerError(f"{what}: check the path")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise TokenizerError(f"{size} bytes are more than any tokenizer has: is it a model?")
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"cannot read it: {error.strerror or error}") from error


def _parse(path: Path) -> dict[str, Any]:
    data = _read(path)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        what = "a web page" if data.lstrip()[:1] == b"<" else "damaged or another kind of file"
        raise TokenizerError(f"{path.name} is not JSON ({error}): {what}? Fetch it again") from None
    if not isinstance(document, dict):
        raise TokenizerError(f"{path.name} holds a {type(document).__name__}, not an object")
    return document


def _load_json(path: Path) -> Tokenizer:
    document = _parse(path)
    if "tenarai_tokenizer" not in document:
        tokenizer = _shaped(lambda: HFTokenizer(document))
        eos = tokenizer.id_of(_eos(path) or "")
        tokenizer.eot = tokenizer.eot if eos is None else eos
        return tokenizer
    return _ours(document)


def _ours(document: dict[str, Any]) -> Tokenizer:
    if document.get("type") == "huggingface" and isinstance(document.get("tokenizer"), dict):
        return _shaped(lambda: HFTokenizer(document["tokenizer"], document.get("eot")))
    if document.get("type") == "gguf" and isinstance(document.get("metadata"), dict):
        return from_gguf(document["metadata"])
    return simple.from_json(document)


def _eos(path: Path) -> str | None:
    """The name of the end-of-text token in the tokenizer_config.json beside a file."""
    beside = path.with_name("tokenizer_config.json")
    if not beside.is_file():
        return None
    eos = _parse(beside).get("eos_token")
    eos = eos.get("content") if isinstance(eos, dict) else eos
    return eos if isinstance(eos, str) else None


def _load_gpt2(vocab: Path, merges: Path) -> Tokenizer:
    vocabulary = _parse(vocab)
    try:
        lines = _read(merges).decode().split("\n")
    except UnicodeDecodeError:
        raise TokenizerError("merges.txt is not UTF-8: fetch it again") from None
    pairs = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        parts = line.rstrip("\r").split(" ")
        if len(parts) != 2:
            raise TokenizerError(f"line {number} of merges.txt is not two tokens: fetch it again")
        pairs.append((parts[0], parts[1]))
    tokenizer = _shaped(lambda: byte_level_bpe(vocabulary, pairs))
    tokenizer.name = "gpt2" if tokenizer.vocab_size == 50257 else "bpe"
    return tokenizer


def _load_llmc(data: bytes) -> Tokenizer:
    """llm.c's file: int32[256] = {20240328, version 1 or 2, V, id of end of text (version 2)},
    then V times {uint8 length, bytes}; the file ends there.

    It has no merges, but in a BPE vocabulary ids are in the order of merging: joining, again and
    again, the two neighbours whose union has the lowest id gives back the encoding, and a token
    stripped of its own id falls into the two parts that it was merged from.
    """
    pieces, eot = _read_llmc(data)
    ranks: dict[bytes, int] = {}
    merges: list[tuple[str, str]] = []
    for i, piece in enumerate(pieces):
        if i == eot:
            continue
        if piece in ranks:
            raise TokenizerError(f"tokens {ranks[piece]} and {i} are the same: damaged?")
        if len(piece) > 1:
            parts = _merge_by_rank(piece, ranks)
            if len(parts) != 2:
                raise TokenizerError(f"token {i} is no merge of two earlier ones: damaged?")
            merges.append((letters_of(parts[0]), letters_of(parts[1])))
        ranks[piece] = i
    vocabulary = {letters_of(piece): i for piece, i in ranks.items()}
    tokenizer = byte_level_bpe({**vocabulary, EOT: eot}, merges)
    tokenizer.name = "gpt2" if len(pieces) == 50257 else "bpe"
    return tokenizer


def _read_llmc(data: bytes) -> tuple[list[bytes], int]:
    if len(data) < 1024:
        raise TokenizerError(f"{len(data)} bytes are too few for llm.c's header of 1024: cut off?")
    magic, version, count, eot = struct.unpack_from("<4i", data)
    if magic != LLMC_MAGIC:
        raise TokenizerError(f"it starts with {magic}, llm.c's tokenizers with {LLMC_MAGIC}")
    if version not in (1, 2):
        raise TokenizerError(f"version {version} is unknown, expected 1 or 2")
    eot = 50256 if version == 1 else eot
    if not 256 < count <= len(data) or not 0 <= eot < count:
        raise TokenizerError(f"{count} tokens with end of text {eot} cannot be: damaged?")
    pieces, position = [], 1024
    for i in range(count):
        length = data[position] if position < len(data) else 0
        piece = data[position + 1 : position + 1 + length]
        if not piece or len(piece) != length:
            raise TokenizerError(f"it ends or is damaged at token {i} of {count}: fetch it again")
        pieces.append(piece)
        position += 1 + length
    if position != len(data):
        raise TokenizerError(f"{len(data) - position} bytes follow the last token: damaged?")
    return pieces, eot


def _merge_by_rank(piece: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while len(parts) > 1:
        best = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], 1 << 30))
        if parts[best] + parts[best + 1] not in ranks:
            break
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts


def _shaped(make: Callable[[], HFTokenizer]) -> HFTokenizer:
    """Wrong types deep in somebody's JSON show as these errors of Python."""
    try:
        return make()
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise TokenizerError(f"its parts are not as expected ({error}): fetch it again") from error
