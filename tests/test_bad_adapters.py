"""Adapters that are damaged or for another model, over every family: an error of one line that
names the tensor and the shapes."""

import json

import numpy as np
import pytest

from family_models import FAMILIES, model_of
from tenarai.errors import TenaraiError
from tenarai.io import gguf, gguf_write, safetensors_file
from tenarai.models import adapter_gguf, adapter_peft
from tenarai.models.adapter import read_adapter
from tenarai.quant import FORMATS
from test_adapters import adapter_of

pytestmark = pytest.mark.usefixtures("no_fsync")

WEIGHTS, CONFIG = adapter_peft.WEIGHTS, "adapter_config.json"
# What makes another model of a family; its dims are then others.
OTHERS = {"width": {"width": 48}, "layers": {"layers": 3}}


@pytest.fixture(params=["peft", "gguf"])
def kind(request):
    return request.param


def write(kind, path, model):
    module = adapter_peft if kind == "peft" else adapter_gguf
    module.write(path, adapter_of(model), model)
    return path


def tensors_of(kind, path):
    if kind == "peft":
        return {n: t.read() for n, t in safetensors_file.open_file(path / WEIGHTS).items()}
    return {n: np.array(t.float32()) for n, t in gguf.read(path).tensors.items()}


def rewrite(kind, path, tensors):
    if kind == "peft":
        made = [(n, a.shape, lambda a=a: a) for n, a in tensors.items()]
        safetensors_file.write_file(path / WEIGHTS, made, {})
        return
    metadata = gguf.read(path).metadata
    made = [
        gguf_write.Tensor(n, a.shape, FORMATS["F32"], lambda a=a: np.ascontiguousarray(a))
        for n, a in tensors.items()
    ]
    gguf_write.write(path, metadata, made)


def error_of(path, model):
    with pytest.raises(TenaraiError) as caught:
        read_adapter(path, model)
    text = str(caught.value)
    assert "\n" not in text and len(text) < len(str(path)) + 300 and str(path) in text
    return text


def test_an_adapter_of_another_model(family, kind, tmp_path):
    model = model_of(family).model
    for change in OTHERS.values():
        more = {"gemma3": {"windows": (4, None, 4)}, "mistral": {"windows": (4,) * 3}}
        windows = more.get(family, {}) if "layers" in change else {}
        other = model_of(family, **change, **windows).model
        error = error_of(write(kind, tmp_path / f"a{len(change)}{change}", other), model)
        assert "this model has not" in error if "layers" in change else "model size" in error, error
    for other in FAMILIES:  # of another family: refused by name, shape, or, the same layers, taken
        path = write(kind, tmp_path / other, model_of(other).model)
        if (other == "gpt2") != (family == "gpt2"):
            error_of(path, model)


def test_tensors_of_every_kind(family, kind, tmp_path):
    """Each A and B of one layer missing, cut, turned, of a dim too many."""
    model = model_of(family).model
    path = write(kind, tmp_path / "a", model)
    whole = tensors_of(kind, path)
    read_adapter(path, model)
    names = [n for n in whole if ".1." in n and ("experts." not in n or "experts.1." in n)]
    assert len(names) >= 8
    for name in names:
        a = whole[name]
        stem = name.removeprefix("base_model.model.").replace(".lora_A", "").replace(".lora_B", "")
        stem = stem.removesuffix(".weight").replace(".weight.lora_a", "").replace(
            ".weight.lora_b", ""
        )  # fmt: skip
        rewrite(kind, path, {n: x for n, x in whole.items() if n != name})
        error = error_of(path, model)
        assert stem in error and "has no " in error, error
        for wrong in (
            a[..., :-1],
            a[..., :-1, :],
            np.swapaxes(a, -1, -2),
            a[None, None],
            a.ravel(),
        ):
            if wrong.size and wrong.shape != a.shape and wrong.ndim <= 4:
                rewrite(kind, path, whole | {name: np.ascontiguousarray(wrong)})
                error = error_of(path, model)
                assert stem in error and str(wrong.shape) in error, error


def test_names_that_are_no_layers(family, kind, tmp_path):
    model = model_of(family).model
    path = write(kind, tmp_path / "a", model)
    whole, two = tensors_of(kind, path), np.ones((3, 3), np.float32)
    layers = ("model.norm", "model.layers.0.mlp.other", "lm_head", "model.embed_tokens")
    for layer in layers if kind == "peft" else ("output", "token_embd", "blk.0.other"):
        if kind == "peft":
            more = {f"base_model.model.{layer}.lora_{x}.weight": two for x in "AB"}
        else:
            more = {f"{layer}.weight.lora_{x}": two for x in "ab"}
        rewrite(kind, path, whole | more)
        assert layer in error_of(path, model)


ABSURD = [None, True, "x", 0, -1, 2.5, 10**400, float("nan"), float("inf"), [], {"a": {}}, "\n"]


def test_settings_of_peft(tmp_path):
    model = model_of("mixtral").model
    path = write("peft", tmp_path / "a", model)
    right = json.loads((path / CONFIG).read_text())
    for name in [*right, "use_dora", "layers_to_transform", "lora_bias", "target_parameters"]:
        for value in ABSURD:
            (path / CONFIG).write_text(json.dumps(right | {name: value}))
            try:
                adapter = read_adapter(path, model)
            except TenaraiError as error:
                assert "\n" not in str(error) and len(str(error)) < len(str(path)) + 600
            else:
                assert all(np.isfinite(adapter.scale_of(p.name)) for p in model.table())
                assert name not in ("r", "lora_alpha", "peft_type") or value in (0, 2.5)
        (path / CONFIG).write_text(json.dumps({k: v for k, v in right.items() if k != name}))
        try:
            read_adapter(path, model)
        except TenaraiError as error:
            assert name in str(error)
    for pattern in ("rank_pattern", "alpha_pattern"):
        for value in (*ABSURD, 10**9):
            (path / CONFIG).write_text(json.dumps(right | {pattern: {"w1": value, "q_proj": 3}}))
            try:
                adapter = read_adapter(path, model)
            except TenaraiError as error:
                assert "\n" not in str(error) and pattern in str(error)
            else:
                assert all(np.isfinite(adapter.scale_of(p.name)) for p in model.table())


def test_files_that_are_cut_off(tmp_path):
    model = model_of("llama").model
    peft, one = write("peft", tmp_path / "a", model), write("gguf", tmp_path / "a.gguf", model)
    for file, path in ((peft / WEIGHTS, peft), (peft / CONFIG, peft), (one, one)):
        whole = file.read_bytes()
        for length in (0, 1, 7, 9, 40, len(whole) // 2, len(whole) - 40):
            file.write_bytes(whole[:length])
            error_of(path, model)
        file.write_bytes(whole)
        file.write_bytes(b"<!DOCTYPE html>")
        error_of(path, model)
        file.write_bytes(whole)
    integers = {"dtype": "I64", "shape": [3, 32], "data_offsets": [0, 768]}
    header = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": integers}
    text = json.dumps(header).encode()
    (peft / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + bytes(768))
    assert "q_proj" in error_of(peft, model)
