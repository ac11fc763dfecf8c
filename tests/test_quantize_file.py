"""`tenarai quantize` and `tenarai imatrix`: mixes, whole files, importance matrices, what is
refused; and the generator of Phi-3's shape, which makes the files here."""

import json
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import tenarai
from tenarai import cli
from tenarai.errors import TenaraiError
from tenarai.io import gguf, gguf_write, imatrix
from tenarai.quant import FORMATS, mixes

pytest.importorskip("tenarai._kernels", reason="the compiled core is not built")
from tenarai.models.gguf_quantize import quantize_file

ROOT = Path(__file__).parent.parent
# What llama.cpp's quantisers lose of normal numbers.
NORMAL = json.loads((ROOT / "tests/goldens/quantisation_errors.json").read_text())
TYPES = [name for name, mix in mixes.MIXES.items() if not mix.is_float]


def make_phi3(path, *options):
    pytest.importorskip("gguf")
    shape = "--layers 4 --width 256 --hidden 512 --heads 4 --vocabulary 300 --context 128"
    command = [sys.executable, ROOT / "benchmarks/phi3_shape.py", path, *shape.split(), *options]
    done = subprocess.run([*command, "--vocab-file", "none"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def f16(tmp_path_factory):
    folder = tmp_path_factory.mktemp("f16")
    return make_phi3(folder / "f16.gguf", "--type", "F16", "--window", "64")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Once upon a time there was a small model. It read a text. " * 20)
    return path


def kinds(path):
    return {name: t.format.name for name, t in gguf.read(path).tensors.items()}


def invoke(*arguments):
    return CliRunner().invoke(cli.cli, [str(a) for a in arguments])


# Mixes


def names_of(layers, parts):
    matrices = [f"blk.{i}.{part}.weight" for i in range(layers) for part in parts]
    return [*matrices, "token_embd.weight", "output.weight"]


def count(mix, names, place, width=4096):
    shape = (width, width)
    return Counter(mixes.format_of(mixes.mix_of(mix), n, shape, place).name for n in names)


def test_the_mixes_of_published_files():
    phi3 = names_of(32, ("attn_qkv", "attn_output", "ffn_up", "ffn_down"))
    assert count("Q4_K_M", phi3, mixes.Place(32)) == {"Q4_K": 81, "Q5_K": 32, "Q6_K": 17}
    split = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    llama = names_of(32, split)
    assert count("Q4_K_M", llama, mixes.Place(32)) == {"Q4_K": 193, "Q6_K": 33}
    assert count("Q4_K_S", llama, mixes.Place(32)) == {"Q4_K": 217, "Q5_K": 8, "Q6_K": 1}
    assert count("Q5_K_M", llama, mixes.Place(32)) == {"Q5_K": 193, "Q6_K": 33}
    assert count("Q3_K_M", llama, mixes.Place(32)) == {
        "Q3_K": 129, "Q4_K": 92, "Q5_K": 4, "Q6_K": 1,
    }  # fmt: skip
    assert count("Q2_K", llama, mixes.Place(32)) == {"Q2_K": 129, "Q3_K": 96, "Q6_K": 1}
    assert count("Q8_0", llama, mixes.Place(32)) == {"Q8_0": 226}
    assert count("Q4_0", llama, mixes.Place(32)) == {"Q4_0": 225, "Q6_K": 1}


def test_rows_that_are_no_whole_number_of_blocks():
    place = mixes.Place(30, tied=True)
    for width, expected in ((576, "Q5_0"), (1536, "Q4_K"), (100, "F16")):
        found = mixes.format_of(mixes.mix_of("Q4_K_M"), "blk.9.ffn_up.weight", (8, width), place)
        assert found.name == expected
    fallbacks = {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
    for name, expected in fallbacks.items():
        assert mixes.fitting(FORMATS[name], 576).name == expected
    embedding = mixes.format_of(mixes.mix_of("Q4_K_M"), "token_embd.weight", (9, 576), place)
    assert embedding.name == "Q8_0"  # it is the output too: Q6_K, which 576 does not take


def test_the_gemma_file_has_the_mix_that_we_would_give_it():
    from tenarai.io.named_models import MODELS

    model = MODELS["gemma3-270m"]
    if not model.is_here():
        pytest.skip("tenarai pull gemma3-270m")
    file = gguf.read(model.path)
    place = mixes.Place(18, queries_per_key=4, tied=True)
    for t in file.tensors.values():
        assert mixes.format_of(mixes.mix_of("Q4_K_M"), t.name, t.shape, place) == t.format, t.name


# Whole files


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_runs(kind, f16, tmp_path):
    told = []
    target = tmp_path / "q.gguf"
    done = quantize_file(f16, target, kind.lower(), progress=told.append)
    before, after = gguf.read(f16), gguf.read(target)
    assert list(before.tensors) == list(after.tensors)
    assert sum(told) == done["weights"] == sum(t.size for t in before.tensors.values())
    assert done["bytes_after"] == target.stat().st_size < f16.stat().st_size
    for name, t in after.tensors.items():
        expected = mixes.format_of(mixes.MIXES[kind], name, t.shape, mixes.Place(4))
        assert t.format == expected
        x = before.tensors[name].float32()
        off = np.sqrt(((t.float32() - x) ** 2).mean() / (x**2).mean())
        bound = 1.02 * NORMAL[t.format.name]["normal"] if t.ndim > 1 else 0
        assert off <= bound, name
    same = {k: v for k, v in before.metadata.items() if not k.startswith("general.")}
    for key, value in same.items():
        assert np.array_equal(after.metadata[key], value)
        assert after.metadata.types[key] == before.metadata.types[key]
    assert after.metadata["general.file_type"] == mixes.MIXES[kind].number
    logits = tenarai.load(target).logits(np.arange(20))
    truth = tenarai.load(f16, activations="float32").logits(np.arange(20))
    assert np.linalg.norm(logits - truth) < 0.8 * np.linalg.norm(truth)


def test_pure_gives_one_type(f16, tmp_path):
    quantize_file(f16, tmp_path / "q.gguf", "Q4_K", pure=True)
    assert set(kinds(tmp_path / "q.gguf").values()) == {"F32", "Q4_K"}


def test_float_types(f16, tmp_path):
    done = quantize_file(f16, tmp_path / "f32.gguf", "F32")
    assert set(kinds(tmp_path / "f32.gguf").values()) == {"F32"}
    assert done["relative_rms_error"] == 0
    quantize_file(tmp_path / "f32.gguf", tmp_path / "f16.gguf", "F16")
    again, first = gguf.read(tmp_path / "f16.gguf"), gguf.read(f16)
    for name, t in first.tensors.items():
        assert np.array_equal(again.tensors[name].raw(), t.raw())


def test_what_is_refused(f16, tmp_path):
    target = tmp_path / "q.gguf"
    with pytest.raises(TenaraiError, match="no such type of weights: take one of F32"):
        quantize_file(f16, target, "Q9_K")
    with pytest.raises(TenaraiError, match="is the source itself"):
        quantize_file(f16, f16, "Q4_K_M", overwrite=True)
    link = tmp_path / "link.gguf"
    link.symlink_to(f16)
    with pytest.raises(TenaraiError, match="is the source itself"):
        quantize_file(f16, link, "Q4_K_M", overwrite=True)
    with pytest.raises(TenaraiError, match="no such file"):
        quantize_file(tmp_path / "none.gguf", target, "Q4_K_M")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(TenaraiError, match="expected a GGUF file: `tenarai convert"):
        quantize_file(tmp_path, target, "Q4_K_M")
    quantize_file(f16, target, "Q4_K_M")
    with pytest.raises(TenaraiError, match="exists: name another target"):
        quantize_file(f16, target, "Q5_K_M")
    with pytest.raises(TenaraiError, match="is Q4_K already, and rounding twice"):
        quantize_file(target, tmp_path / "r.gguf", "Q3_K_M")
    assert not (tmp_path / "r.gguf").exists()
    quantize_file(target, tmp_path / "r.gguf", "Q3_K_M", requantize=True)


def write_model(path, w):
    tensor = gguf_write.Tensor("blk.0.ffn_up.weight", w.shape, FORMATS["F32"], lambda: w)
    gguf_write.write(path, {"general.architecture": "llama"}, [tensor])
    return path


def test_weights_that_are_no_numbers(tmp_path):
    w = np.ones((4, 256), np.float32)
    w[2, 5] = np.nan
    source = write_model(tmp_path / "nan.gguf", w)
    with pytest.raises(TenaraiError, match=r"blk.0.ffn_up.weight, .*weight 5 of row 2 is nan"):
        quantize_file(source, tmp_path / "q.gguf", "Q4_0")
    assert [p.name for p in tmp_path.iterdir()] == ["nan.gguf"]


def test_ctrl_c_leaves_nothing(f16, tmp_path):
    def stop(weights):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_file(f16, tmp_path / "q.gguf", "Q4_K_M", progress=stop)
    assert not list(tmp_path.iterdir())


def test_a_matrix_is_taken_in_parts(tmp_path, monkeypatch):
    from tenarai.models import gguf_quantize as quantize

    w = np.random.default_rng(0).standard_normal((37, 256), np.float32)
    source = write_model(tmp_path / "m.gguf", w)
    quantize_file(source, tmp_path / "whole.gguf", "Q4_K_M")
    monkeypatch.setattr(quantize, "AT_ONCE", 5 * 256)
    quantize_file(source, tmp_path / "parts.gguf", "Q4_K_M")
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "parts.gguf").read_bytes()


# Importance


def legacy(entries):
    """llama.cpp's older format; each entry (name, calls, values)."""
    data = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        data += (
            struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(values))
        )
        data += np.asarray(values, "<f4").tobytes()
    return data + struct.pack("<i", 7)


def test_importance_matrices_are_read(tmp_path):
    path = tmp_path / "m.dat"
    path.write_bytes(legacy([("a.weight", 2, [2, 4, 8]), ("b.weight", 1, [5])]))
    found = imatrix.read(path)
    assert found["a.weight"].tolist() == [1, 2, 4] and found["b.weight"].tolist() == [5]
    imatrix.write(tmp_path / "m.gguf", {"a.weight": np.array([2.0, 4, 8])}, {"a.weight": 2}, "t")
    assert imatrix.read(tmp_path / "m.gguf")["a.weight"].tolist() == [1, 2, 4]


def test_damaged_importance_matrices_are_refused(f16, tmp_path):
    whole = legacy([("a.weight", 2, [2, 4, 8])])
    path = tmp_path / "m.dat"
    cuts = [whole[:n] for n in range(len(whole) - 4)]
    huge = [struct.pack("<i", 2**30 - 1) + whole[4:], struct.pack("<ii", 1, 2**29) + whole[8:]]
    bad = [legacy([("a.weight", 1, [np.nan])]), legacy([("a.weight", 1, [-1])]), legacy([])]
    for data in [*cuts, *huge, *bad, b"<html>" * 40]:
        path.write_bytes(data)
        with pytest.raises(TenaraiError):
            imatrix.read(path)
    with pytest.raises(TenaraiError, match="is a model, not an importance matrix"):
        imatrix.read(f16)
    with pytest.raises(TenaraiError, match="cannot read"):
        imatrix.read(tmp_path / "none.dat")


def test_an_importance_matrix_must_be_of_this_model(f16, tmp_path):
    path = tmp_path / "m.dat"
    path.write_bytes(legacy([("another.weight", 1, [1, 2])]))
    with pytest.raises(TenaraiError, match="none of its names"):
        quantize_file(f16, tmp_path / "q.gguf", "Q2_K", importance=path)
    path.write_bytes(legacy([("blk.0.ffn_up.weight", 1, [1, 2])]))
    with pytest.raises(TenaraiError, match=r"blk.0.ffn_up.weight has 2 columns, 256"):
        quantize_file(f16, tmp_path / "q.gguf", "Q2_K", importance=path)


def test_imatrix_gathers_the_mean_square_of_inputs(f16, tmp_path, text):
    out = tmp_path / "m.gguf"
    done = invoke("imatrix", "-m", f16, "-f", text, "-o", out, "-c", 32, "--json",
                  "--activations", "float32")  # fmt: skip
    assert done.exit_code == 0, done.output
    found = imatrix.read(out)
    matrices = [name for name, t in gguf.read(f16).tensors.items() if t.ndim == 2]
    assert set(found) == set(matrices) - {"token_embd.weight"}
    # The first layer's input by hand: what stands in the embedding, normed.
    model = tenarai.load(f16)
    ids = np.concatenate([*model.tokenizer.encode_chunks(text.read_text())])
    windows = [ids[i : i + 31] for i in range(0, len(ids), 31)]
    ids = np.concatenate([np.append(1, w) for w in windows])
    x = gguf.read(f16).tensors["token_embd.weight"].float32()[ids].astype(np.float64)
    x /= np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5)
    want = (x**2).mean(axis=0)
    assert np.allclose(found["blk.0.attn_qkv.weight"], want, rtol=1e-4)


def test_importance_makes_the_model_truer(f16, tmp_path, text):
    """By the errors that count, x wᵀ over a text: smaller than without."""
    out, plain, better = (tmp_path / name for name in ("m.gguf", "plain.gguf", "better.gguf"))
    assert invoke("imatrix", "-m", f16, "-f", text, "-o", out).exit_code == 0
    quantize_file(f16, plain, "Q2_K")
    done = quantize_file(f16, better, "Q2_K", importance=out)
    assert [t["name"] for t in done["tensors"] if t["importance"]] == list(imatrix.read(out))
    columns, truth = imatrix.read(out), gguf.read(f16).tensors
    for name, c in columns.items():
        lost = [
            (c * (gguf.read(path).tensors[name].float32() - truth[name].float32()) ** 2).sum()
            for path in (better, plain)
        ]
        assert lost[0] < lost[1], name


# The command line


def test_the_command_line(f16, tmp_path):
    target = tmp_path / "q.gguf"
    done = invoke("quantize", f16, target, "q4_k_m")
    assert done.exit_code == 0
    assert "Q4_K_M" in done.output and "bits a weight" in done.output
    done = invoke("quantize", f16, target, "Q5_K_M", "--force", "--json", "--threads", 1)
    found = json.loads(done.stdout)
    assert found["type"] == "Q5_K_M" and found["bits_after"] < found["bits_before"] < 17
    assert {t["to"] for t in found["tensors"]} == {"F32", "Q5_K", "Q6_K"}


def test_the_generator_gives_the_published_mix(tmp_path):
    path = make_phi3(tmp_path / "phi3.gguf")
    found = gguf.read(path)
    assert found.metadata["phi3.attention.sliding_window"] == 2047
    formats = kinds(path)
    assert formats["blk.1.attn_qkv.weight"] == "Q5_K"
    assert formats["output.weight"] == formats["blk.3.ffn_down.weight"] == "Q6_K"
    assert formats["blk.3.ffn_up.weight"] == formats["token_embd.weight"] == "Q4_K"
    logits = tenarai.load(path).logits(np.arange(30))
    assert np.isfinite(logits).all() and 0.5 < logits.std() < 5
