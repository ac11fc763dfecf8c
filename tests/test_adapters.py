"""Adapters in files: PEFT reads ours and we read its, GGUF's, merging, and files that lie."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import tenarai
from tenarai.cli import cli
from tenarai.errors import TenaraiError
from tenarai.finetune.merge import merge
from tenarai.io import gguf, gguf_write, safetensors_file
from tenarai.models import adapter_gguf, adapter_peft, snapshot
from tenarai.models.adapter import Adapter
from tenarai.models.llama import Llama, LlamaConfig
from tenarai.models.lora import LoraConfig, adapter_table, chosen_layers
from tenarai.models.rope import Rope
from tenarai.models.table import Weights
from tenarai.tokenizers import ByteTokenizer

SMALL = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
GPT2 = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
KINDS = {"Llama": SMALL, "Phi3": SMALL, "GPT2": GPT2 | {"bos_token_id": 0, "eos_token_id": 1}}
TOLERANCE = 2e-5  # float32, two layers


def adapter_of(model, layers="all", rank=3, seed=1, size=0.3):
    weights = Weights(adapter_table(chosen_layers(model.table(), layers), rank))
    rng = np.random.default_rng(seed)
    weights.flat[:] = size * rng.normal(size=weights.flat.shape)
    return Adapter(LoraConfig(rank, 7.0, 0.0, layers), dict(weights))


@pytest.fixture(scope="module", params=KINDS)
def theirs(request, tmp_path_factory):
    """transformers' model, and its folder."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("peft")
    torch.manual_seed(0)
    config = getattr(transformers, f"{request.param}Config")(**KINDS[request.param])
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    folder = tmp_path_factory.mktemp("model") / request.param
    model.save_pretrained(folder)
    return model, folder


def torch_logits(model, tokens):
    import torch

    with torch.no_grad():
        return model(torch.tensor(tokens).long()).logits.numpy()


@pytest.fixture
def tokens(rng):
    return rng.integers(0, 61, (2, 11)).astype(np.int32)


@pytest.mark.parametrize("layers", ["all", "attention"])
def test_ours_is_the_same_in_peft_in_gguf_and_merged(theirs, layers, tokens, tmp_path):
    import peft
    import transformers

    _, folder = theirs
    ours = tenarai.load(folder)
    adapter = adapter_of(ours.model, layers)
    adapter_peft.write(tmp_path / "a", adapter, ours.model, "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = torch_logits(peft.PeftModel.from_pretrained(model, tmp_path / "a").eval(), tokens)
    assert abs(wanted - ours.logits(tokens)).max() > 0.1
    adapted = tenarai.load(folder, lora=tmp_path / "a")
    np.testing.assert_allclose(adapted.logits(tokens), wanted, atol=TOLERANCE)
    adapter_gguf.write(tmp_path / "a.gguf", adapter, ours.model)
    got = tenarai.load(folder, lora=tmp_path / "a.gguf").logits(tokens)
    np.testing.assert_allclose(got, wanted, atol=TOLERANCE)
    for out in (tmp_path / "merged", tmp_path / "m.gguf"):
        assert not [x for x in adapted.save(out) if "weight" in x]
        np.testing.assert_allclose(tenarai.load(out).logits(tokens), wanted, atol=TOLERANCE)
    with pytest.raises(TenaraiError, match="frozen: merge it"):
        adapted.loss_and_grads(tokens, tokens)


def test_theirs_is_read(theirs, tokens, tmp_path):
    import peft
    import transformers

    _, folder = theirs
    rslora = folder.name == "Llama"
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules="all-linear", use_rslora=rslora, task_type="CAUSAL_LM",
        init_lora_weights=False,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(model, config).eval()
    model.save_pretrained(tmp_path / "a")
    adapted = tenarai.load(folder, lora=tmp_path / "a")
    np.testing.assert_allclose(adapted.logits(tokens), torch_logits(model, tokens), atol=TOLERANCE)
    # and out again: a file's one tensor is one adapter still
    adapter_peft.write(tmp_path / "b", adapted_to(adapted), adapted.model)
    again = safetensors_file.open_file(tmp_path / "b" / adapter_peft.WEIGHTS)
    before = safetensors_file.open_file(tmp_path / "a" / adapter_peft.WEIGHTS)
    assert {n: t.shape for n, t in again.items()} == {n: t.shape for n, t in before.items()}


def adapted_to(model):
    scale = next(w.scale for w in model.params.values() if hasattr(w, "scale"))
    config = LoraConfig(4, scale * 4)
    return Adapter(config, model.params.adapter)


def test_gradients_are_torchs(theirs, tokens, tmp_path):
    """Against autograd through PEFT's layers, with its names."""
    import peft
    import transformers

    from tenarai.finetune.base import tuned
    from tenarai.models.lora import AdapterGradients
    from tenarai.ops import Fast
    from tenarai.ops.lora import Tuning

    if theirs[1].name == "Phi3":
        pytest.skip("its fused layers share one A in PEFT")
    folder = theirs[1]
    ours = tenarai.load(folder)
    subject = tuned(ours.model, ours.params, LoraConfig(3, 7.0), False)
    adapter = adapter_of(ours.model)
    for name, array in adapter.weights.items():
        subject.trained[name][...] = array
    adapter_peft.write(tmp_path / "a", adapter, ours.model)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(model, tmp_path / "a", is_trainable=True).eval()
    targets = np.roll(tokens, -1, 1)
    logits = model(torch.tensor(tokens).long()).logits
    wanted = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.tensor(targets).long().flatten()
    )
    wanted.backward()
    grads = Weights(subject.trained.table)
    asked = AdapterGradients(grads, subject.names)
    ops = Tuning(Fast(2))
    loss, saved = subject.model.forward(ops, subject.weights, tokens, targets, asked)
    subject.model.backward(ops, subject.weights, saved, asked)
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    adapter_peft.write(tmp_path / "g", Adapter(adapter.config, grads), ours.model)
    found = safetensors_file.open_file(tmp_path / "g" / adapter_peft.WEIGHTS)
    named = {
        n.replace(".default", ""): p.grad for n, p in model.named_parameters() if p.requires_grad
    }
    assert named.keys() == found.keys()
    for name, tensor in found.items():
        g = named[name].numpy()
        np.testing.assert_allclose(tensor.read(), g, atol=1e-4 * abs(g).max(), err_msg=name)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """A model of arch llama in a GGUF file, its matrices Q8_0, RoPE of neighbours."""
    folder = tmp_path_factory.mktemp("q")
    tokenizer = ByteTokenizer()
    config = LlamaConfig(
        vocab_size=256, context=128, layers=2, heads=4, kv_heads=2, head_size=8, width=32,
        hidden=64, rope=Rope(8), tied=True,
    )  # fmt: skip
    model = Llama(config)
    params = Weights(model.table()).initialise(3)
    params.flat *= 3
    snapshot.write(folder / "m.tenarai", model, params, tokenizer.to_json())
    tenarai.load(folder / "m.tenarai").save(folder / "f.gguf")
    from tenarai.models.gguf_quantize import quantize_file

    quantize_file(folder / "f.gguf", folder / "q.gguf", "Q8_0")
    return folder / "q.gguf"


@pytest.mark.parametrize("kind", ["float32", "float16", "same"])
def test_merging_over_a_quantised_base(quantised, kind, rng, tmp_path):
    tokens = rng.integers(0, 256, (2, 11)).astype(np.int32)
    exact = {"activations": "float32"}
    base = tenarai.load(quantised, **exact)
    adapter = adapter_of(base.model, size=0.1)
    for name, path in (("peft", tmp_path / "a"), ("gguf", tmp_path / "a.gguf")):
        write = adapter_peft.write if name == "peft" else adapter_gguf.write
        write(path, adapter, base.model)
    wanted = tenarai.load(quantised, lora=tmp_path / "a", **exact).logits(tokens)
    other = tenarai.load(quantised, lora=tmp_path / "a.gguf", **exact).logits(tokens)
    np.testing.assert_array_equal(wanted, other)
    out = tmp_path / "m.gguf"
    words = ["merge", "-m", str(quantised), "--lora", str(tmp_path / "a"), str(out), "--as", kind]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    got = tenarai.load(out, **exact).logits(tokens)
    close = {"float32": 1e-5, "float16": 2e-3, "same": 5e-2}[kind]  # of 24, 11 and 8 bits
    assert np.linalg.norm(got - wanted) < close * np.linalg.norm(wanted)
    formats = {t.format.name for t in gguf.read(out).tensors.values() if t.ndim == 2}
    wide = {"float32": "F32", "float16": "F16", "same": "Q8_0"}[kind]
    assert formats == {wide, "Q8_0"}  # the embedding has no adapter
    with pytest.raises(TenaraiError, match="exists"):
        merge(quantised, tmp_path / "a", out)


def test_llama_cpp_takes_the_adapter_and_the_merged_model(quantised, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    base = tenarai.load(quantised, activations="float32")
    adapter = adapter_of(base.model, size=0.1)
    adapter_gguf.write(tmp_path / "a.gguf", adapter, base.model)
    ours = tenarai.load(quantised, lora=tmp_path / "a.gguf", activations="float32")
    ours.save(tmp_path / "m.gguf", dtype="float16")
    merged = tenarai.load(tmp_path / "m.gguf", activations="float32")
    prompt = [10, 65, 66, 67]
    quiet = {"verbose": False, "n_ctx": 64, "n_threads": 1, "logits_all": True}
    for path, lora, model in (
        (quantised, tmp_path / "a.gguf", ours),
        (tmp_path / "m.gguf", None, merged),
    ):
        llama = llama_cpp.Llama(str(path), lora_path=str(lora) if lora else None, **quiet)
        llama.eval(prompt)
        theirs = np.array(llama.scores[: len(prompt)])
        mine = model.logits(np.array(prompt, np.int32))
        # llama.cpp rounds activations to 8 bits
        assert abs(theirs - mine).max() < 0.03 * abs(mine).max()
        llama.close()


def damaged(folder: Path, change) -> Path:
    path = folder / "adapter_config.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return folder


BAD = {
    "no LoRA": (lambda d: d.update(peft_type="IA3"), "peft_type is 'IA3'"),
    "DoRA": (lambda d: d.update(use_dora=True), "use_dora is True"),
    "biases": (lambda d: d.update(bias="all"), "bias is 'all'"),
    "modules": (lambda d: d.update(modules_to_save=["lm_head"]), "modules_to_save"),
    "rank": (lambda d: d.update(r=0), "r is 0"),
    "alpha": (lambda d: d.update(lora_alpha="x"), "lora_alpha is 'x'"),
    "pattern": (lambda d: d.update(alpha_pattern={"q_proj": "x"}), "alpha_pattern of q_proj"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_config_that_cannot_be_followed(quantised, tmp_path, name):
    change, message = BAD[name]
    model = tenarai.load(quantised).model
    adapter_peft.write(tmp_path / "a", adapter_of(model), model)
    with pytest.raises(TenaraiError, match=message):
        tenarai.load(quantised, lora=damaged(tmp_path / "a", change))


def test_an_adapter_for_another_model_is_refused(quantised, tmp_path):
    model = tenarai.load(quantised).model
    for change, message in (
        ({"width": 64}, r"layers\.0\.self_attn\.q_proj.*\(3, 64\) and \(32, 3\).*\(32, 32\)"),
        ({"layers": 3}, r"layers\.2\..*which this model has not"),
        ({"hidden": 96}, r"mlp\.gate_proj.*\(96, 3\).*\(64, 32\)"),
    ):
        other = Llama(LlamaConfig(**{**vars(model.config), **change}))
        adapter_peft.write(tmp_path / "a", adapter_of(other), other)
        with pytest.raises(TenaraiError, match=message):
            tenarai.load(quantised, lora=tmp_path / "a")
        adapter_gguf.write(tmp_path / "a.gguf", adapter_of(other), other)
        with pytest.raises(TenaraiError, match="another model size|this model has not"):
            tenarai.load(quantised, lora=tmp_path / "a.gguf")


def test_files_that_are_no_whole_adapter(quantised, tmp_path):
    model = tenarai.load(quantised).model
    adapter_peft.write(tmp_path / "a", adapter_of(model), model)
    weights = tmp_path / "a" / adapter_peft.WEIGHTS
    held = {n: t.read() for n, t in safetensors_file.open_file(weights).items()}

    def peft(arrays):
        rows = [(n, a.shape, lambda a=a: a) for n, a in arrays.items()]
        safetensors_file.write_file(weights, rows, {})
        with pytest.raises(TenaraiError) as error:
            tenarai.load(quantised, lora=tmp_path / "a")
        return str(error.value)

    first = next(iter(held))
    assert "has no a" in peft({n: a for n, a in held.items() if n != first})
    assert "holds no adapter" in peft({})
    assert "no matrix of a plain LoRA" in peft(
        held | {"base_model.model.lm_head.weight": np.ones(3)}
    )
    assert "no matrix" in peft(held | {first: np.ones((3, 2, 2), np.float32)})
    weights.unlink()
    with pytest.raises(TenaraiError, match="no adapter_model"):
        tenarai.load(quantised, lora=tmp_path / "a")
    with pytest.raises(TenaraiError, match="no adapter in this folder"):
        tenarai.load(quantised, lora=tmp_path)
    with pytest.raises(TenaraiError, match="is a model, no adapter"):
        tenarai.load(quantised, lora=quantised)

    adapter_gguf.write(tmp_path / "a.gguf", adapter_of(model), model)
    file = gguf.read(tmp_path / "a.gguf")
    tensors = [gguf_write.Tensor(t.name, t.shape, t.format, t.raw) for t in file.tensors.values()]

    def changed(keys, tensors=tensors):
        gguf_write.write(tmp_path / "b.gguf", dict(file.metadata) | keys, tensors)
        with pytest.raises(TenaraiError) as error:
            tenarai.load(quantised, lora=tmp_path / "b.gguf")
        return str(error.value)

    assert "'gpt2'" in changed({"general.architecture": "gpt2"})
    assert "'control'" in changed({"adapter.type": "control"})
    assert "lora.alpha is 0.0" in changed({"adapter.lora.alpha": 0.0})
    assert "has no b" in changed({}, tensors[:-1])
    assert "holds no adapter" in changed({}, [])
