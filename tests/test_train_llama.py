"""The Llama family under `tenarai train`: it learns, goes on, and runs elsewhere as here."""

import numpy as np
import pytest

import tenarai
from tenarai.config import PRESETS, from_values, resolve, to_values
from tenarai.errors import TenaraiError
from tenarai.models.llama import Llama
from tenarai.train.model import model_of
from tenarai.train.run import train
from test_llama_gradients import relative
from test_resume import Stops
from tiny import TINY, Quiet, trained, write_text

SMALL = {k: v for k, v in TINY.items() if k != "dropout"} | {"preset": "llama-small", "heads": 4}
ARCHITECTURES = {
    "llama": {"rope_theta": 500.0, "hidden": 40},
    "mistral": {"window": 5},
    "phi3": {"window": 7, "tied": False},
    "qwen2": {"norm_eps": 1e-6},
    "qwen3": {"head_size": 14, "kv_heads": 1},
    "gemma3": {"window": 4, "layers": 6},
}
TOKENIZERS = ("bpe", "byte", "char")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        write_text(folder / "text.txt")
        yield folder


def go(place, name, report=None, **changes):
    settings = SMALL | {"source": str(place / "text.txt")} | changes
    return train(out=place / name, report=report or Quiet(), **settings)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_learns(place, arch):
    report = Quiet()
    result = go(
        place, arch, report, arch=arch, steps=30, lr=1e-2, val_every=30, sample_every=0,
        checkpoint_every=0, **ARCHITECTURES[arch],
    )  # fmt: skip
    assert result.val_loss < 3.5 < np.log(256)
    model = tenarai.load(result.folder)
    assert isinstance(model.model, Llama) and model.config.arch == arch
    assert repr(model)[1:-1].split(" of ")[0] in report.said[0]
    assert model.generate("the ", max_tokens=5, seed=1)


def test_going_on_gives_the_same_bits(place):
    """And recomputing a block gives those of keeping it."""
    go(place, "whole")
    assert go(place, "resumed", Stops(7), recompute=True).step == 7
    assert go(place, "resumed", resume=True, recompute=True).step == 12
    whole, resumed = trained(place / "whole"), trained(place / "resumed")
    for run in (whole, resumed):
        run["meta"]["settings"]["model"].pop("recompute")
    assert whole == resumed


# Elsewhere


@pytest.fixture(scope="module", params=TOKENIZERS)
def run(request, place):
    """A run that has learned some of the text, in vocabularies of each kind that training makes."""
    result = go(
        place, f"run-{request.param}", tokenizer=request.param, steps=20, lr=1e-2, sample_every=0,
        context=64, vocab=280, val_every=0,
    )  # fmt: skip
    return result.folder


TEXT = "the bird hears the child.\nthe dog follows the cat.\n"
WIDE = "naïve 手習い\t'é'  don't\\n \U0001f600"  # what a vocabulary of bytes can say besides


def test_as_a_gguf_file_it_is_the_same_model(run, tmp_path):
    model = tenarai.load(run)
    assert model.save(tmp_path / "m.gguf") == []
    again = tenarai.load(tmp_path / "m.gguf")
    text = TEXT if run.name == "run-char" else TEXT + WIDE
    ids = model.tokenizer.encode(text)
    assert again.tokenizer.encode(text) == ids and again.tokenizer.decode(ids) == text
    ids = ids[:64]
    assert again.tokenizer.end_tokens == model.tokenizer.end_tokens
    assert relative(again.logits(ids), model.logits(ids)) < 1e-6
    assert again.generate(TEXT, 20, 0) == model.generate(TEXT, 20, 0)
    assert again.save(tmp_path / "twice.gguf") == []
    assert (tmp_path / "twice.gguf").read_bytes() == (tmp_path / "m.gguf").read_bytes()


def test_llama_cpp_runs_it(run, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    model = tenarai.load(run)
    model.save(tmp_path / "m.gguf")
    peer = llama_cpp.Llama(
        str(tmp_path / "m.gguf"), n_ctx=64, logits_all=True, verbose=False, n_threads=2,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,
    )  # fmt: skip
    text = TEXT if run.name == "run-char" else TEXT[:25] + WIDE
    ids = model.tokenizer.encode(text)
    assert peer.tokenize(text.encode(), add_bos=False, special=False) == ids
    assert peer.detokenize(ids).decode() == text
    ids = ids[:64]
    peer.eval(ids)
    # float32 throughout but for its exponentials in the softmax and SiLU
    assert relative(np.asarray(peer.scores[: len(ids)]), model.logits(ids)) < 1e-4
    peer.close()


def test_transformers_runs_it(run, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = tenarai.load(run)
    model.save(tmp_path / "hf")
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    ids = model.tokenizer.encode(TEXT)
    with torch.no_grad():
        logits = peer(torch.tensor([ids])).logits[0].numpy()
    assert relative(logits, model.logits(ids)) < 1e-5
    if run.name == "run-bpe":
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
        assert theirs(TEXT)["input_ids"] == ids


# Settings


def test_shapes_of_the_presets():
    """Weights as they are published: 260K, 15M, 42M, 110M, 135M, 3.8 billion."""
    millions = {
        "llama-260k": (512, 0.26), "llama-15m": (32000, 15.19), "llama-42m": (32000, 41.69),
        "llama-110m": (32000, 109.53), "smollm2-135m": (49152, 134.52), "phi3-mini": (32064, 3821),
    }  # fmt: skip
    for name, (vocab, count) in millions.items():
        settings = resolve(name)
        assert settings.data.vocab == vocab
        model = model_of(settings.model, settings.optimiser, vocab)
        weights = sum(p.size for p in model.table()) / 1e6
        assert weights == pytest.approx(count, rel=1e-3), name


def test_settings_of_a_family_are_its_own(tmp_path):
    small = to_values(resolve("llama-small"))["model"]
    assert "kv_heads" in small and "dropout" not in small
    assert "kv_heads" not in to_values(resolve("small"))["model"]
    assert resolve("char", given={"family": "llama"}).model.kv_heads == 0  # preset's own left out
    assert from_values(to_values(resolve("llama-15m"))) == resolve("llama-15m")


@pytest.mark.parametrize(
    "given, message",
    [
        ({"family": "mamba"}, "model.family is 'mamba', it may be gpt2, llama"),
        ({"arch": "mamba"}, "model.arch is 'mamba', it may be llama, mistral"),
        ({"dropout": 0.1}, "model.dropout is of the family gpt2, this model is a llama: leave it"),
        ({"family": "gpt2", "window": 3}, "model.window is of the family llama, this model"),
        ({"kv_heads": 3}, "kv_heads = 3 do not divide model.heads = 4: take 1, 2, 4"),
        ({"width": 190}, "heads = 4 do not divide model.width = 190"),
        ({"width": 36, "heads": 4}, "a head has 9 channels, and RoPE turns pairs"),
        ({"head_size": 7}, "a head has 7 channels"),
        ({"window": 3}, 'window = 3 is of mistral.*set model.arch = "mistral"'),
        ({"kv_heads": -1}, "it must be at least 0"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
        ({"rope_theta": "1e4"}, "rope_theta is '1e4', it must be a number"),
        ({"kv_head": 2}, "no setting is called kv_head: the nearest is model.kv_heads"),
    ],
)
def test_wrong_settings(given, message):
    with pytest.raises(TenaraiError, match=message):
        resolve("llama-small", given=given)


def test_a_run_keeps_its_family(place):
    go(place, "kept", steps=2, val_every=0, sample_every=0)
    with pytest.raises(TenaraiError, match="model.family is llama in this run and cannot become"):
        train(out=place / "kept", report=Quiet(), resume=True, preset="small")
    with pytest.raises(TenaraiError, match="model.kv_heads is 2 in this run"):
        train(out=place / "kept", report=Quiet(), resume=True, kv_heads=1)


def test_what_does_not_fit_is_said(place, monkeypatch):
    """Phi-3-mini's shape asks for 58 GB of weights, gradients and moments, and ends before."""
    monkeypatch.setattr("tenarai.train.memory.available", lambda: 8 << 30)
    with pytest.raises(
        TenaraiError, match=r"this run needs [\d.]+ GB .*optimiser 29\.01 GB.*a smaller preset"
    ):
        train(preset="phi3-mini", source=str(place / "text.txt"), tokenizer="byte", context=256,
              out=place / "phi", report=Quiet())  # fmt: skip


def test_presets_name_their_family():
    assert {n for n in PRESETS if resolve(n).model.family == "llama"} == {
        "llama-small", "llama-260k", "llama-15m", "llama-42m", "llama-110m", "smollm2-135m",
        "phi3-mini", "moe-small",
    }  # fmt: skip
