"""Models in GGUF files: their tensors meet the model's table.

Weights stay as they lie in the mapped file: float32 ones as arrays, all others as QuantTensors,
and the parts of a fused tensor as views of its rows. Nothing is copied or expanded. What the
metadata say is gguf_config.py's matter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from tenarai.errors import TenaraiError
from tenarai.io.gguf import GGUFFile, GGUFTensor
from tenarai.models import gguf_config
from tenarai.models.families import AnyModel
from tenarai.models.gguf_config import EMBEDDING, OUTPUT
from tenarai.models.table import FileWeights, Param, Weight, and_more

IN_LAYER = re.compile(r"blk\.(\d+)\.(.*)")
# Tensors that other programs write and that change nothing: masks, and RoPE's plain angles.
BUFFERS = re.compile(r"blk\.\d+\.(attn_rot_embd|attn\.(bias|masked_bias))(\.weight)?")


def read_gguf(file: GGUFFile) -> tuple[AnyModel, FileWeights]:
    """Model and weights of an open file. Raises TenaraiError: an architecture that is not known,
    numbers that do not fit, tensors missing, misshapen, too many or of a type that is unknown."""
    model = gguf_config.model_of(file)
    groups = by_file_name(model.table())
    tensors = {n: t for n, t in file.tensors.items() if not BUFFERS.fullmatch(n)}
    for name in gguf_config.FACTORS:
        tensors.pop(name, None)
    copy = tensors.pop(OUTPUT, None) if OUTPUT not in groups else None
    _check_tensors(tensors, groups, file)
    if copy is not None and copy.shape == tensors[EMBEDDING].shape:
        # A tied model in two copies: the same numbers, one of them perhaps rounded less.
        tensors[EMBEDDING] = max((tensors[EMBEDDING], copy), key=lambda t: t.format.bits)
    weights: dict[str, Weight] = {}
    for name, group in groups.items():
        whole = _whole(tensors[name], group)
        for p in group:
            rows = _rows(p)
            weights[p.name] = whole if rows is None else whole[rows]
    return model, FileWeights(model.table(), weights)


def _whole(tensor: GGUFTensor, group: list[Param]) -> Weight:
    if group[0].stacked:
        return tensor.matrices()
    return tensor.float32() if tensor.ndim == 1 else tensor.array()


def _rows(p: Param) -> slice | None:
    """Where the weight's rows lie in a tensor that holds several; None: it is the tensor."""
    if p.fused:
        return slice(p.fused.begin, p.fused.begin + p.shape[0])
    if p.stacked:
        return slice(p.stacked.index * p.shape[0], (p.stacked.index + 1) * p.shape[0])
    return None


def by_file_name(table: tuple[Param, ...]) -> dict[str, list[Param]]:
    """The weights in each tensor of a file, from its first row to its last."""
    groups: dict[str, list[Param]] = {}
    for p in table:
        groups.setdefault(p.gguf, []).append(p)
    return groups


def file_shape(group: list[Param]) -> tuple[int, ...]:
    p = group[0]
    if p.stacked:
        return (p.stacked.count, *p.shape)
    return (p.fused.rows, *p.shape[1:]) if p.fused else p.shape


def _check_tensors(
    tensors: Mapping[str, GGUFTensor], groups: Mapping[str, list[Param]], file: GGUFFile
) -> None:
    missing = [name for name in groups if name not in tensors]
    if missing:
        raise TenaraiError(
            f"{file.path}: {_said(missing[0])} of shape {file_shape(groups[missing[0]])} is missing"
            f"{and_more(missing)}: is the file complete?"
        )
    for name, group in groups.items():
        if tensors[name].shape != file_shape(group):
            raise TenaraiError(
                f"{file.path}: {_said(name)} has shape {tensors[name].shape}, the model expects "
                f"{file_shape(group)}: is this file from another model size?"
            )
    extra = [name for name in tensors if name not in groups]
    if extra:
        raise TenaraiError(
            f"{file.path}: {_said(extra[0])} of shape {tensors[extra[0]].shape} has no place in "
            f"the model that the file describes{and_more(extra)}: it needs a newer tenarai"
        )


def _said(name: str) -> str:
    """A tensor as people say it."""
    found = IN_LAYER.fullmatch(name)
    return f"layer {int(found[1])}: {found[2]}" if found else name
