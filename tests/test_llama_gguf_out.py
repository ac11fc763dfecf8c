"""Models written as GGUF files, and read back by tenarai and by the `gguf` package."""

import numpy as np
import pytest

import tenarai
from tenarai.api import Model
from tenarai.io import gguf as our_gguf
from tenarai.models.gguf_exchange import read_gguf
from tenarai.ops import reference
from test_llama import CASES, batch, peer_model
from test_llama_gguf import real, write_gguf
from test_llama_gradients import relative

gguf = pytest.importorskip("gguf")
pytest.importorskip("torch")


@pytest.fixture(params=CASES)
def case(request):
    return peer_model(*CASES[request.param])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_written_and_opened_again(case, tmp_path, dtype):
    case.save_pretrained(tmp_path / "hf")
    model = tenarai.load(tmp_path / "hf", ops=reference)
    assert all("window" in s for s in model.save(tmp_path / "m.gguf", dtype))
    again = tenarai.load(tmp_path / "m.gguf", ops=reference)
    tokens, _ = batch()
    # float16 keeps 11 bits of a weight
    tolerance = 1e-5 if dtype == "float32" else 3e-3
    assert relative(again.logits(tokens), model.logits(tokens)) < tolerance
    file = our_gguf.read(tmp_path / "m.gguf")
    kinds = {n: t.format.name for n, t in file.tensors.items()}
    wanted = "F32" if dtype == "float32" else "F16"
    for name, tensor in file.tensors.items():
        assert kinds[name] == (wanted if tensor.ndim == 2 else "F32"), name
    # and back: the Hugging Face folder of what was written holds the same numbers
    again.save(tmp_path / "back")
    back = tenarai.load(tmp_path / "back", ops=reference)
    assert relative(back.logits(tokens), again.logits(tokens)) < 1e-5


def test_the_package_reads_what_is_written(case, tmp_path):
    """Names, shapes and numbers are those that the `gguf` package's own writer gives above."""
    write_gguf(tmp_path / "theirs.gguf", case)
    case.save_pretrained(tmp_path / "hf")
    tenarai.load(tmp_path / "hf", ops=reference).save(tmp_path / "ours.gguf")
    ours, theirs = (gguf.GGUFReader(tmp_path / f"{n}.gguf") for n in ("ours", "theirs"))
    for field in theirs.fields.values():
        same = ours.fields.get(field.name)
        if field.name.startswith("GGUF.") and field.name != "GGUF.tensor_count":
            continue
        if field.name.endswith("sliding_window_pattern") and same is None:
            assert all(field.contents())  # all are local: nothing to say
            continue
        assert same is not None, field.name
        wanted = field.contents()
        wanted = pytest.approx(wanted, rel=1e-6) if isinstance(wanted, float) else wanted
        assert same.contents() == wanted, field.name
    expected = {t.name: t for t in theirs.tensors}
    assert {t.name for t in ours.tensors} == set(expected)
    for t in ours.tensors:
        np.testing.assert_allclose(t.data, expected[t.name].data, rtol=1e-5, atol=1e-6)


def test_a_real_file_written_again_has_the_same_tensors_and_tokenizer(tmp_path):
    path = real("smollm2")
    model = tenarai.load(path, ops=reference)
    assert model.save(tmp_path / "m.gguf") == []
    old, new = our_gguf.read(path), our_gguf.read(tmp_path / "m.gguf")
    assert set(old.tensors) == set(new.tensors)
    for name, tensor in old.tensors.items():
        assert tensor.format == new.tensors[name].format
        np.testing.assert_array_equal(tensor.raw(), new.tensors[name].raw())
    for key in old.metadata:
        if key.startswith("tokenizer."):
            np.testing.assert_array_equal(new.metadata[key], old.metadata[key])
            assert new.metadata.types[key] == old.metadata.types[key]
    assert read_gguf(new)[0].config == model.config


def test_gpt2_written_without_biases_has_zeros(tmp_path):
    from test_api import new_model

    model = new_model()
    model.save(tmp_path / "m.gguf")
    again = tenarai.load(tmp_path / "m.gguf", ops=reference)
    tokens = np.arange(7)[None] % model.config.vocab_size
    assert relative(again.logits(tokens), model.logits(tokens)) < 1e-5


def test_types_that_a_file_does_not_have(tmp_path):
    peer_model(*CASES["llama"]).save_pretrained(tmp_path / "hf")
    model = tenarai.load(tmp_path / "hf", ops=reference)
    for name in ("m.bin", "m.tenarai"):
        with pytest.raises(tenarai.TenaraiError, match="a Hugging Face folder or a GGUF file can"):
            model.save(tmp_path / name, "float16")
        with pytest.raises(tenarai.TenaraiError, match="cannot hold int3 .there is no such type"):
            model.save(tmp_path / name, "int3")


def test_quantised_weights_become_a_hugging_face_folder(tmp_path):
    """Expanded, and their q and k put in the order for halves."""
    transformers = pytest.importorskip("transformers")
    import torch

    model = Model(*read_gguf(our_gguf.read(real("smollm2"))), activations="float32")
    model.save(tmp_path / "hf")
    peer = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "hf").eval()
    tokens = np.arange(300, 340)[None]
    with torch.no_grad():
        expected = peer(torch.from_numpy(tokens)).logits.numpy()
    assert relative(model.logits(tokens), expected) < 1e-5
