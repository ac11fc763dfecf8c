"""Opening prepared data: a dataset folder of ours, or a folder of somebody's llm.c shards."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenarai import tokenizers
from tenarai.tokenizers import IdTokenizer, Tokenizer

from .encoding import DataError
from .shards import Shard, open_shard
from .sources import cache_folder

DESCRIPTION = "dataset.json"
CHECKED_BYTES = 1 << 26  # up to here checksums are compared at every opening (about 0.05 s)
_SAMPLED = 1 << 25  # tokens of a foreign shard that are looked at to tell its vocabulary
_KNOWN = {2: (50257, 50256), 4: (128256, 128001)}  # bytes a token: GPT-2, Llama 3 (V, eot)


@dataclass(frozen=True)
class Dataset:
    """Tokens to learn from (`train`), to be judged by (`val`), and what they mean.

    info: where they came from, as dataset.json has it; empty for foreign shards.
    """

    folder: Path
    train: list[Shard]
    val: list[Shard]
    tokenizer: Tokenizer
    vocab_size: int
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def train_tokens(self) -> int:
        return sum(map(len, self.train))

    @property
    def val_tokens(self) -> int:
        return sum(map(len, self.val))

    @property
    def bytes(self) -> int:
        """Bytes of the memory-mapped tokens."""
        return sum(shard.tokens.nbytes for shard in self.train + self.val)


def is_dataset(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder of token shards, ours or another's."""
    path = Path(path)
    return path.is_dir() and ((path / DESCRIPTION).is_file() or any(path.glob("*train*.bin")))


def open_dataset(path: str | os.PathLike[str], tokenizer: str | None = None) -> Dataset:
    """Open a folder of shards.

    Ours has a dataset.json, which must agree with the files beside it. Another's has *train*.bin
    and *val*.bin in llm.c's format; its vocabulary is `tokenizer` (a name or a path), else what
    lies in the folder, else GPT-2's where that is at hand and fits, else bare ids; "gpt2" that is
    not at hand counts as not given.
    Raises DataError, TokenizerError.
    """
    folder = Path(path)
    if (folder / DESCRIPTION).is_file():
        return _open_ours(folder)
    train, val = (
        [open_shard(p) for p in sorted(folder.glob(f"*{split}*.bin"))] for split in ("train", "val")
    )
    if not train:
        raise DataError(f"no {DESCRIPTION} and no *train*.bin in {folder}: prepare it first")
    if not val:
        raise DataError(
            f"no *val*.bin in {folder}: put one beside the training shards, to measure by"
        )
    found = _foreign_tokenizer(folder, train + val, tokenizer)
    return Dataset(folder, train, val, found, found.vocab_size)


def _open_ours(folder: Path) -> Dataset:
    info = read_info(folder)
    _check_file(folder / "tokenizer.json", info["tokenizer"]["sha256"])
    splits: dict[str, list[Shard]] = {}
    for split in ("train", "val"):
        splits[split] = []
        for entry in info[split]["shards"]:
            shard = open_shard(folder / entry["file"])
            if len(shard) != entry["tokens"]:
                raise DataError(
                    f"{shard.path} has {len(shard)} tokens, {DESCRIPTION} says {entry['tokens']}: "
                    "remove the folder and prepare it again"
                )
            splits[split].append(shard)
    dataset = Dataset(
        folder, splits["train"], splits["val"], tokenizers.load(folder), info["vocab_size"], info
    )
    if dataset.tokenizer.vocab_size != dataset.vocab_size:
        raise DataError(
            f"the tokenizer of {folder} has {dataset.tokenizer.vocab_size} tokens, {DESCRIPTION} "
            f"says {dataset.vocab_size}: remove the folder and prepare it again"
        )
    if dataset.bytes <= CHECKED_BYTES:
        check_sums(dataset)
    return dataset


def check_sums(dataset: Dataset) -> None:
    """Compare every shard with its checksum in dataset.json. Raises DataError at a changed one."""
    for split in ("train", "val"):
        for entry in dataset.info.get(split, {}).get("shards", ()):
            _check_file(dataset.folder / entry["file"], entry["sha256"])


def _check_file(path: Path, wanted: str) -> None:
    try:
        found = sha256_of(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if found != wanted:
        raise DataError(
            f"{path} was changed since it was made (checksum): "
            "remove the folder and prepare it again"
        )


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_info(folder: Path) -> dict[str, Any]:
    """dataset.json, its shape checked: names of files are names only, counts are numbers."""
    path = folder / DESCRIPTION
    try:
        info = json.loads(path.read_bytes())
        good = info["format"] == "tenarai-dataset" and type(info["vocab_size"]) is int
        good = good and isinstance(info["tokenizer"]["sha256"], str)
        for split in ("train", "val"):
            for e in info[split]["shards"]:
                good = good and type(e["tokens"]) is int and isinstance(e["sha256"], str)
                good = good and Path(e["file"]).name == e["file"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error!r}): prepare the data again") from error
    if not good or info.get("version") != 1:
        raise DataError(
            f"{path} is damaged or of a newer tenarai (version {info.get('version')!r}): "
            "prepare the data again"
        )
    return info


def named_tokenizer(name: str) -> Tokenizer:
    """A ready tokenizer: `byte`, `gpt2` where its files are at hand, or a path."""
    if name == "byte":
        return tokenizers.ByteTokenizer()
    if name != "gpt2" or tokenizers.find(name):
        return tokenizers.load(name)
    folder = _gpt2_folder()
    if tokenizers.find(folder):
        return tokenizers.load(folder)
    raise DataError(
        "GPT-2's vocabulary is not at hand: put vocab.json and merges.txt, tokenizer.json or "
        f"llm.c's gpt2_tokenizer.bin into {folder}, or name the folder that has them"
    )


def _gpt2_folder() -> Path:
    return cache_folder() / "tokenizers" / "gpt2"


def _foreign_tokenizer(folder: Path, shards: list[Shard], wanted: str | None) -> Tokenizer:
    highest = max(int(shard.tokens[:_SAMPLED].max()) for shard in shards)
    found: Tokenizer | None = None
    if wanted == "gpt2" and not tokenizers.find("gpt2") and not tokenizers.find(_gpt2_folder()):
        # Training needs no more than ids.
        wanted = None
    if wanted not in (None, "bpe", "char"):  # those two are made from texts, here are none
        found = named_tokenizer(str(wanted))
    elif tokenizers.find(folder):
        found = tokenizers.load(folder)
    elif highest < _KNOWN[2][0] and tokenizers.find(_gpt2_folder()):
        found = named_tokenizer("gpt2")
    if found is None:
        size, eot = _KNOWN[shards[0].tokens.itemsize]
        return IdTokenizer(size, eot) if highest < size else IdTokenizer(highest + 1)
    if highest >= found.vocab_size:
        raise DataError(
            f"the shards in {folder} hold token {highest}, the tokenizer {found.name} has only "
            f"{found.vocab_size}: name the one that they were made with"
        )
    return found
