"""A model written as a file of any kind: which writer, which type of numbers, which tokenizer.

What each kind can hold is checked by its writer in models/; io/targets.py has the table of kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenarai.errors import TenaraiError
from tenarai.io.atomic import atomic_write
from tenarai.io.targets import TARGETS, type_for
from tenarai.models import exchange, gguf_out, llama2c_exchange, llmc_exchange, snapshot
from tenarai.models.families import AnyModel
from tenarai.models.gpt2 import GPT2
from tenarai.models.table import FileWeights, Weights
from tenarai.tokenizers import Tokenizer, TokenizerError, hf_files
from tenarai.tokenizers import gguf_out as tokenizer_gguf
from tenarai.tokenizers.sentencepiece_files import LLAMA2C_NAME, to_llama2c

Progress = Callable[[int], object]
SHARD_SIZE = 5 * 10**9  # bytes of a Hugging Face folder's file of weights
BESIDE = "the tokenizer: keep its file beside the model"


@dataclass(frozen=True)
class Whole:
    """All that is written. `metadata` of the file that the model came from (GGUF's keys), `files`
    of the Hugging Face folder: they go along unchanged into a target of the same kind."""

    model: AnyModel
    params: Weights | FileWeights
    tokenizer: Tokenizer | None
    metadata: Mapping[str, Any]
    files: Mapping[str, bytes]


def target_of(path: Path, model: AnyModel) -> str:
    """The kind that a path's suffix asks for. `.bin` is llm.c's for a GPT-2, else llama2.c's."""
    if path.suffix == ".bin":
        return "llmc" if isinstance(model, GPT2) else "llama2c"
    if path.suffix in (".pt", ".pth", ".ckpt", ".safetensors"):
        raise TenaraiError(
            f"{path}: {path.suffix} files cannot be written: name a folder for Hugging Face's "
            "format, or a file ending in .gguf, .bin (llm.c, llama2.c) or .tenarai"
        )
    return next((name for name, t in TARGETS.items() if t.suffix == path.suffix), "hf")


def write(
    path: Path,
    whole: Whole,
    target: str | None = None,
    type: str | None = None,
    shard_size: int | None = None,
    keep_quantised: bool = False,
    progress: Progress = lambda weights: None,
) -> list[str]:
    """Write the model as a `target` of targets.TARGETS, by the path's suffix where it is None;
    → what that kind could not hold.

    Matrices become `type`, but with `keep_quantised` not those that are quantised. `progress` is
    told the weights done.
    Raises TenaraiError: a kind or type that there is not, a model that the kind cannot hold;
    WriteError.
    """
    target = target or target_of(path, whole.model)
    if target not in TARGETS:
        raise TenaraiError(f"{target}: no such kind of file: take one of {', '.join(TARGETS)}")
    if type is not None or target != "gguf":  # there, quantised weights stay as they are
        type = type_for(path, target, type)
    if shard_size is not None and target != "hf":
        raise TenaraiError(f"{path}: only a Hugging Face folder is written in parts")
    if target == "gguf":
        return _gguf(path, whole, type, keep_quantised, progress)
    if target == "hf":
        return _folder(path, whole, str(type), shard_size or SHARD_SIZE, progress)
    model, params = whole.model, whole.params.expanded()
    if target == "llmc":
        llmc_exchange.write_llmc(path, model, params, str(type), progress)
        return [BESIDE] if whole.tokenizer else []
    if target == "tenarai":
        document = whole.tokenizer.to_json() if whole.tokenizer else None
        snapshot.write(path, model, params, document, progress)
        return []
    version = 1 if target == "llama2c-v1" else 2 if type == "Q8_0" else 0
    llama2c_exchange.write_llama2c(path, model, params, version, progress)
    return _llama2c_tokenizer(path, whole.tokenizer, model.config.vocab_size)


def _gguf(path: Path, whole: Whole, type: str | None, keep: bool, progress: Progress) -> list[str]:
    """Of a model that came from a GGUF file, its tokenizer, name and licence go along."""
    types = dict(getattr(whole.metadata, "types", {}))
    own = {
        key: value
        for key, value in whole.metadata.items()
        if key.startswith(("tokenizer.", "general.")) and key not in gguf_out.OWN_KEYS
    }
    left_out = []
    if "tokenizer.ggml.model" not in own and whole.tokenizer is not None:
        try:
            made = tokenizer_gguf.to_gguf(whole.tokenizer, whole.model.config.vocab_size)
            own |= made
        except TokenizerError as error:
            left_out = [f"the tokenizer ({error}): keep its file beside the model"]
    gguf_out.write_gguf(path, whole.model, whole.params, type, own, types, keep, progress)
    return left_out + gguf_out.unheeded(whole.model)


def _folder(path: Path, whole: Whole, type: str, shard_size: int, progress: Progress) -> list[str]:
    files = dict(whole.files)
    ids: dict[str, Any] = {}
    left_out: list[str] = []
    if whole.tokenizer is not None:
        template = whole.metadata.get("tokenizer.chat_template")
        context = whole.model.config.context
        made, ids, left_out = hf_files.folder_files(whole.tokenizer, context, template)
        files = made | files  # what came with a folder is the truer
    exchange.write_hugging_face(
        path, whole.model, whole.params.expanded(), files, ids,
        type=type, shard_size=shard_size, progress=progress,
    )  # fmt: skip
    return left_out


def _llama2c_tokenizer(path: Path, tokenizer: Tokenizer | None, vocab_size: int) -> list[str]:
    """tokenizer.bin beside the model, where llama2.c's programs look for it."""
    if tokenizer is None:
        return []
    beside = path.with_name(LLAMA2C_NAME)
    try:
        data = to_llama2c(tokenizer, vocab_size)
    except TokenizerError as error:
        return [f"the tokenizer ({error}): keep its file beside the model"]
    if beside.exists():
        same = beside.read_bytes() == data
        return [] if same else [f"the tokenizer: another {LLAMA2C_NAME} lies there already"]
    with atomic_write(beside) as f:
        f.write(data)
    return []
