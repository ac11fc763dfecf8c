"""Adapters on a mixture's experts: their files against PEFT and llama.cpp, merging, a whole run.

Their gradients by the complex step are in test_lora.py.
"""

import json
import warnings

import numpy as np
import pytest

import tenarai
from tenarai.finetune.merge import merge
from tenarai.finetune.run import finetune
from tenarai.io import gguf, safetensors_file
from tenarai.models import adapter_gguf, adapter_peft, snapshot
from tenarai.models.adapter import Adapter
from tenarai.models.gguf_quantize import quantize_file
from tenarai.models.llama import Llama, LlamaConfig
from tenarai.models.lora import AdapterGradients, LoraConfig, adapter_table, chosen_layers
from tenarai.models.rope import Rope
from tenarai.models.table import Weights
from tenarai.ops import Fast, reference
from tenarai.ops.gradient import Unwritten
from tenarai.ops.lora import Tuning
from tenarai.tokenizers import ByteTokenizer
from test_adapters import SMALL, adapter_of, torch_logits
from test_finetune import GIVEN, arrays
from tiny import Quiet, write_text

KINDS = {
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
                 "head_dim": 8, "norm_topk_prob": True},
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def theirs(request, tmp_path_factory):
    """transformers' model in its folder."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{request.param}Config")(**SMALL | KINDS[request.param])
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    folder = tmp_path_factory.mktemp("model") / request.param
    model.save_pretrained(folder)
    return folder


def mixture(**changes):
    config = LlamaConfig(
        vocab_size=256, context=128, layers=2, heads=4, kv_heads=2, head_size=8,
        width=32, hidden=64, rope=Rope(8), tied=True, experts=4, experts_per_token=2, **changes
    )  # fmt: skip
    model = Llama(config)
    return model, Weights(model.table()).initialise(3)


@pytest.fixture(scope="module", params=["mixtral", "qwen3moe"])
def base(request, tmp_path_factory):
    """A checkpoint; Q8_0 of it in a GGUF file."""
    folder = tmp_path_factory.mktemp("base")
    norm = {"qk_norm": True} if request.param == "qwen3moe" else {}
    model, params = mixture(arch=request.param, **norm)
    params.flat *= 3
    snapshot.write(folder / "m.tenarai", model, params, ByteTokenizer().to_json())
    tenarai.load(folder / "m.tenarai").save(folder / "f.gguf")
    quantize_file(folder / "f.gguf", folder / "q.gguf", "Q8_0")
    return folder


@pytest.mark.parametrize("layers", ["all", "experts"])
def test_ours_is_the_same_in_peft_in_gguf_and_merged(theirs, layers, tmp_path, rng):
    peft = pytest.importorskip("peft")
    import transformers

    tokens = rng.integers(0, 61, (2, 11)).astype(np.int32)
    ours = tenarai.load(theirs)
    adapter = adapter_of(ours.model, layers)
    assert any(".experts.3.down" in name for name in adapter.weights)
    adapter_peft.write(tmp_path / "a", adapter, ours.model, "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(theirs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = torch_logits(peft.PeftModel.from_pretrained(model, tmp_path / "a").eval(), tokens)
    assert abs(wanted - ours.logits(tokens)).max() > 0.1
    adapted = tenarai.load(theirs, lora=tmp_path / "a")
    close = {"atol": 1e-4 * abs(wanted).max()}  # float32, through products of products
    np.testing.assert_allclose(adapted.logits(tokens), wanted, **close)
    adapter_gguf.write(tmp_path / "a.gguf", adapter, ours.model)
    got = tenarai.load(theirs, lora=tmp_path / "a.gguf").logits(tokens)
    np.testing.assert_allclose(got, wanted, **close)
    for out in (tmp_path / "merged", tmp_path / "m.gguf"):
        assert not [x for x in adapted.save(out) if "weight" in x]
        np.testing.assert_allclose(tenarai.load(out).logits(tokens), wanted, **close)


def test_some_experts_and_several_ranks(base, tmp_path, rng):
    """As a PEFT folder may have it; a GGUF adapter has zeros where there is none."""
    model = tenarai.load(base / "m.tenarai").model
    whole = adapter_of(model, "experts")
    few = {n: a for n, a in whole.weights.items() if ".experts.1." not in n}
    stem = "h.0.mlp.experts.2.up"
    few[f"{stem}.lora_a"] = few[f"{stem}.lora_a"][:2]
    few[f"{stem}.lora_b"] = np.ascontiguousarray(few[f"{stem}.lora_b"][:, :2])
    adapter = Adapter(whole.config, few, {f"{stem}.weight": 1.5})
    tokens = rng.integers(0, 250, (2, 11)).astype(np.int32)
    for write, name in ((adapter_peft.write, "a"), (adapter_gguf.write, "a.gguf")):
        write(tmp_path / name, adapter, model)
    found = [
        tenarai.load(base / "m.tenarai", lora=tmp_path / n).logits(tokens) for n in ("a", "a.gguf")
    ]
    np.testing.assert_allclose(*found, atol=1e-5 * abs(found[0]).max())
    shapes = {n: t.shape for n, t in gguf.read(tmp_path / "a.gguf").tensors.items()}
    assert shapes["blk.0.ffn_up_exps.weight.lora_a"] == (4, 3, 32)
    assert shapes["blk.1.ffn_down_exps.weight.lora_b"] == (4, 32, 3)


@pytest.mark.parametrize("kind", ["float32", "same"])
def test_merging_over_quantised_experts(base, kind, tmp_path, rng):
    exact = {"activations": "float32"}
    tokens = rng.integers(0, 250, (2, 11)).astype(np.int32)
    model = tenarai.load(base / "q.gguf", **exact).model
    adapter_peft.write(tmp_path / "a", adapter_of(model, "experts", size=0.1), model)
    wanted = tenarai.load(base / "q.gguf", lora=tmp_path / "a", **exact).logits(tokens)
    assert abs(wanted - tenarai.load(base / "q.gguf", **exact).logits(tokens)).max() > 0.1
    merge(base / "q.gguf", tmp_path / "a", tmp_path / "m.gguf", kind)
    got = tenarai.load(tmp_path / "m.gguf", **exact).logits(tokens)
    close = {"float32": 1e-5, "same": 5e-2}[kind]  # of 24 and 8 bits
    assert np.linalg.norm(got - wanted) < close * np.linalg.norm(wanted)
    experts = [t for n, t in gguf.read(tmp_path / "m.gguf").tensors.items() if "exps" in n]
    assert {t.format.name for t in experts} == {"F32" if kind == "float32" else "Q8_0"}


def test_llama_cpp_takes_an_adapter_of_experts(base, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    model = tenarai.load(base / "f.gguf", activations="float32")
    adapter_gguf.write(tmp_path / "a.gguf", adapter_of(model.model, "all", size=0.1), model.model)
    ours = tenarai.load(base / "f.gguf", lora=tmp_path / "a.gguf", activations="float32")
    prompt = [10, 65, 66, 67]
    llama = llama_cpp.Llama(
        str(base / "f.gguf"), lora_path=str(tmp_path / "a.gguf"), verbose=False, n_ctx=64,
        n_threads=1, logits_all=True,
    )  # fmt: skip
    llama.eval(prompt)
    expected = np.array(llama.scores[: len(prompt)])
    llama.close()
    mine = ours.logits(np.array(prompt, np.int32))
    assert abs(mine - model.logits(np.array(prompt, np.int32))).max() > 0.1 * abs(mine).max()
    assert abs(expected - mine).max() < 0.01 * abs(mine).max()  # its float16 products


def test_experts_that_no_token_goes_to_have_zeros(rng):
    """Though their gradients held nothing: a token takes 2 of 4."""
    model, params = mixture(arch="mixtral")
    adapter = adapter_of(model, "experts").weights
    tokens = np.full((1, 3), 7, np.int32)
    found = []
    for ops in (reference, Fast(2)):
        grads = Weights(adapter_table(chosen_layers(model.table(), "experts"), 3))
        grads.flat[:] = np.nan
        marked = {name: Unwritten(g) for name, g in grads.items()}
        params_of = Adapter(LoraConfig(3, 7.0, 0.0, "experts"), adapter).on(params)
        wanted = AdapterGradients(marked, frozenset(params_of))
        tuning = Tuning(ops)
        _, saved = model.forward(tuning, params_of, tokens, tokens, wanted)
        model.backward(tuning, params_of, saved, wanted)
        found.append({name: g.copy() for name, g in grads.items()})
    assert any(not g.any() for g in found[0].values())
    for name, g in found[0].items():
        assert np.isfinite(g).all(), name
        np.testing.assert_allclose(found[1][name], g, atol=1e-5)


@pytest.mark.parametrize("file", ["m.tenarai", "q.gguf"])
def test_a_run_tunes_experts(base, file, tmp_path):
    data = write_text(tmp_path / "t.txt")
    given = GIVEN | {"lora": {"rank": 4, "layers": "experts"}, "schedule": {"steps": 12}}
    result = finetune(base / file, data, out=tmp_path / "run", report=Quiet(), given=given)
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [x["loss"] for x in lines if "loss" in x]
    assert losses[-1] < losses[0] - 0.3 and result.step == 12
    held = safetensors_file.open_file(tmp_path / "run" / "adapter" / adapter_peft.WEIGHTS)
    assert len(held) == 2 * 2 * 4 * 3 and all(".experts." in name for name in held)
    assert any(name.startswith("weights/h.1.mlp.experts.3") for name in arrays(tmp_path / "run")[0])
    tenarai.load(base / file, lora=tmp_path / "run").generate("say", max_tokens=3)
