"""Every family's files with a tensor that is missing, misshapen, twice there or unknown: one line
of error, which names the tensor, the shape found and the shape expected."""

import json
import re
import shutil

import numpy as np
import pytest

import tenarai
from family_models import FAMILIES, KINDS, Files, model_of
from tenarai.errors import TenaraiError
from tenarai.ops import reference

pytestmark = pytest.mark.usefixtures("no_fsync")

# A tensor of each kind that a family has, by Hugging Face's names and by GGUF's.
OF_FOLDERS = {
    "embedding": r"model\.embed_tokens\.weight|transformer\.wte\.weight",
    "positions": r"transformer\.wpe\.weight",
    "head": r"lm_head\.weight",
    "attention": r".*\.1\.(self_attn\.(q|qkv)_proj|attn\.c_attn)\.weight",
    "attention's output": r".*\.1\.(self_attn\.o_proj|attn\.c_proj)\.weight",
    "attention's bias": r".*\.0\.(self_attn\.q_proj|attn\.c_attn)\.bias",
    "mlp": r".*\.1\.(mlp\.(up|gate_up)_proj|mlp\.c_fc)\.weight",
    "mlp's output": r".*\.1\.(mlp\.down_proj|mlp\.c_proj)\.weight",
    "norm": r".*\.0\.(input_layernorm|ln_1)\.weight",
    "last norm": r"model\.norm\.weight|transformer\.ln_f\.weight",
    "norm of q": r".*\.0\.self_attn\.q_norm\.weight",
    "router": r".*\.1\.(block_sparse_moe|mlp)\.gate\.weight",
    "expert": r".*\.1\.(block_sparse_moe|mlp)\.experts\.2\.(w3|up_proj)\.weight",
}
OF_GGUF = {
    "embedding": r"token_embd\.weight",
    "positions": r"position_embd\.weight",
    "attention": r"blk\.1\.attn_(q|qkv)\.weight",
    "attention's output": r"blk\.1\.attn_output\.weight",
    "attention's bias": r"blk\.0\.attn_(q|qkv)\.bias",
    "mlp": r"blk\.1\.ffn_up\.weight",
    "mlp's output": r"blk\.1\.ffn_down\.weight",
    "norm": r"blk\.0\.attn_norm\.weight",
    "last norm": r"output_norm\.weight",
    "norm of q": r"blk\.0\.attn_q_norm\.weight",
    "router": r"blk\.1\.ffn_gate_inp\.weight",
    "experts": r"blk\.1\.ffn_up_exps\.weight",
}


@pytest.fixture(scope="module", params=[(f, k) for f in FAMILIES for k in KINDS], ids="-".join)
def files(request, tmp_path_factory):
    family, kind = request.param
    return Files.of(family, kind, tmp_path_factory.mktemp("bad"))


def of_each_kind(files):
    """Names of tensors, one of each kind that there is."""
    patterns = OF_GGUF if files.kind == "gguf" else OF_FOLDERS
    found = [[n for n in files.tensors if re.fullmatch(p, n)] for p in patterns.values()]
    assert all(len(names) <= 1 for names in found) and sum(map(len, found)) >= 7
    return [names[0] for names in found if names]


def said(name):
    """How an error names a tensor."""
    layer = re.fullmatch(r"blk\.(\d+)\.(.*)", name)
    return f"layer {layer[1]}: {layer[2]}" if layer else name


def refused(files, tensors, tmp_path, *words):
    """Opening the files with these tensors is an error of one line with all the words."""
    path = tmp_path / files.path.name
    changed = Files(files.kind, path, files.settings, tensors, files.types).write()
    error = error_of(changed)
    for word in (str(path), *map(str, words)):
        assert word in error, f"{word!r} is not said: {error}"
    return error


def error_of(path, **how):
    with pytest.raises(TenaraiError) as caught:
        tenarai.load(path, ops=reference, **how)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < len(str(path)) + 400
    return str(caught.value)


def test_unchanged_files_fit(files, tmp_path):
    path = tmp_path / files.path.name
    Files(files.kind, path, files.settings, files.tensors, files.types).write()
    tokens = np.arange(5, dtype=np.int32)
    again, first = tenarai.load(path, ops=reference), tenarai.load(files.path, ops=reference)
    np.testing.assert_array_equal(again.logits(tokens), first.logits(tokens))


def test_missing(files, tmp_path):
    for name in of_each_kind(files):
        rest = {n: a for n, a in files.tensors.items() if n != name}
        error = refused(files, rest, tmp_path, said(name), "is the file")
        if name != "token_embd.weight":  # which says how large the vocabulary is
            assert f"of shape {files.tensors[name].shape} is missing" in error


def test_misshapen(files, tmp_path):
    """One row less, turned, and flat."""
    for name in of_each_kind(files):
        a = files.tensors[name]
        for wrong in (a[:-1], a.T, a.reshape(1, -1)):
            expected = a.shape
            if name == "token_embd.weight":  # how many rows it has is the file's to say
                known = any(key.endswith(".vocab_size") for key in files.settings)
                fewer = known and len(wrong) < len(a)
                expected = ".vocab_size is 61" if fewer else (len(wrong), a.shape[1])
            if wrong.shape == expected:
                continue
            changed = files.tensors | {name: np.ascontiguousarray(wrong)}
            refused(files, changed, tmp_path, f"{said(name)} has shape {wrong.shape}", expected)


def test_unknown(files, tmp_path):
    layer = "blk.1." if files.kind == "gguf" else next(
        n[: n.index(".1.") + 3] for n in files.tensors if ".1." in n
    )  # fmt: skip
    for name in (f"{layer}attn.extra.weight", "surplus.weight"):
        changed = files.tensors | {name: np.ones((3, 5), np.float32)}
        refused(files, changed, tmp_path, said(name), (3, 5), "has no place")


def test_twice(files, tmp_path):
    for name in of_each_kind(files):
        if files.kind == "gguf":
            path = tmp_path / "m.gguf"
            other = name[:-1] + "T"  # as long, so that one name can take the other's place
            tensors = files.tensors | {other: files.tensors[name]}
            Files("gguf", path, files.settings, tensors, files.types).write()
            path.write_bytes(path.read_bytes().replace(other.encode(), name.encode()))
            assert f"{name} stands there twice" in error_of(path)
        elif not name.startswith("lm_head."):  # with and without the prefix
            twice = files.tensors | {name.split(".", 1)[1]: files.tensors[name]}
            refused(files, twice, tmp_path, name, "twice")


# Folders in parts


@pytest.fixture
def shards(tmp_path):
    files = Files.of("llama", "shards", tmp_path)
    assert len(list(files.path.glob("model-*"))) >= 3
    return files


INDEX = "model.safetensors.index.json"
FIRST = "model.embed_tokens.weight"


@pytest.mark.parametrize(
    "place, words",
    [
        ("model-00009-of-00009.safetensors", ["model-00009-of-00009.safetensors"]),
        ("model-00002-of-00009.safetensors", [FIRST, "model-00002-of-"]),
        ("../other/model-00001-of-00009.safetensors", ["../other/", "beside it"]),
        ("/etc/passwd", ["/etc/passwd", "beside it"]),
        ("..", ["'..'", "beside it"]),
        ("config.json", ["config.json", "beside it"]),
        ("a\0\n.safetensors", ["a\\x00\\n.safetensors"]),
        ("", ["''", "beside it"]),
        (None, ["weight_map"]),
        (["model.safetensors"], ["weight_map"]),
    ],
)
def test_an_index_that_points_nowhere(shards, place, words):
    count = len(list(shards.path.glob("model-*-of-*")))
    place = place.replace("00002-of-00009", f"00002-of-{count:05}") if isinstance(place, str) else (
        place
    )  # fmt: skip
    outside = shards.path.parent / "other"
    shutil.copytree(shards.path, outside)
    shards.edit_json(INDEX, lambda d: d["weight_map"].update({FIRST: place}))
    error = error_of(shards.path)
    assert all(word in error for word in words), error


def test_a_part_that_is_gone_or_cut_off(shards):
    part = sorted(shards.path.glob("model-*"))[1]
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    assert part.name in error_of(shards.path)
    part.unlink()
    assert part.name in error_of(shards.path)
    part.mkdir()
    assert part.name in error_of(shards.path)


def test_a_link_out_of_the_folder_is_followed(shards, tmp_path):
    """Hugging Face's own cache holds links."""
    part = sorted(shards.path.glob("model-*"))[1]
    part.rename(tmp_path / "blob")
    part.symlink_to(tmp_path / "blob")
    tenarai.load(shards.path, ops=reference)


def test_a_tensor_that_the_index_does_not_list(shards):
    """It counts: parts hold what they hold."""
    name = "model.layers.1.mlp.up_proj.weight"
    expected = tenarai.load(shards.path, ops=reference).params.flat
    shards.edit_json(INDEX, lambda d: d["weight_map"].pop(name))
    np.testing.assert_array_equal(tenarai.load(shards.path, ops=reference).params.flat, expected)


def test_a_tensor_in_two_parts(shards):
    shards.add_twice(FIRST)
    error = error_of(shards.path)
    assert FIRST in error and error.count("safetensors") >= 2 and "two" in error


def test_an_empty_index(shards):
    (shards.path / INDEX).write_text(json.dumps({"weight_map": {}}))
    assert "is missing" in error_of(shards.path)


# What only the tensors say


def test_the_embedding_of_another_vocabulary(tmp_path):
    """A GGUF file's vocabulary is as large as its embedding: an output of another size is not, nor
    one that the keys tell."""
    files = Files.of("qwen3", "gguf", tmp_path)
    files.tensors["token_embd.weight"] = files.tensors["token_embd.weight"][:-1]
    error = error_of(files.write())
    assert "token_embd.weight has shape (60, 32), and qwen3.vocab_size is 61" in error
    del files.settings["qwen3.vocab_size"]
    error = error_of(files.write())
    assert "output.weight has shape (61, 32), the model expects (60, 32)" in error


def test_files_of_another_model(tmp_path):
    """config.json of one size beside weights of another."""
    for family in FAMILIES:
        (tmp_path / family).mkdir()
        files = Files.of(family, "folder", tmp_path / family)
        windows = {"gemma3": (4, None, 4), "mistral": (4,) * 3}.get(family)
        other = model_of(family, layers=3, **({"windows": windows} if windows else {}))
        other.save(tmp_path / family / "other")
        shutil.copy(tmp_path / family / "other" / "config.json", files.path)
        error = error_of(files.path)
        assert ".2." in error and "is missing (and " in error
