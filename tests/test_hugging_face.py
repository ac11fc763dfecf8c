"""GPT-2 folders of Hugging Face, read and written, against `transformers` and PyTorch."""

import json
import shutil
import struct

import numpy as np
import pytest

import tenarai
from tenarai.errors import TenaraiError
from tenarai.io import safetensors_file
from tenarai.models.exchange import in_hugging_face_layout
from tenarai.models.table import Weights
from tenarai.ops import reference

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 61, "n_positions": 24, "n_embd": 20, "n_layer": 2, "n_head": 4}
SHAPES = {
    "small": SMALL,
    "odd": SMALL | {"vocab_size": 101, "n_embd": 33, "n_head": 3, "n_layer": 3, "n_positions": 40},
    "one head, exact gelu": SMALL | {"n_head": 1, "activation_function": "gelu"},
    "other epsilon, wide": SMALL | {"n_embd": 96, "layer_norm_epsilon": 1e-3},
}


def peer_model(shape, seed=0):
    """A random GPT2LMHeadModel in float32 whose biases and norms are random too."""
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        **shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="eager"
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def batch(shape, seed=0, B=3, T=13):
    rng = np.random.default_rng(seed)
    tokens, targets = rng.integers(0, shape["vocab_size"], (2, B, T))
    targets[0, 2] = targets[-1, -1] = -100
    return tokens, targets


def peer_loss(model, tokens, targets):
    """Mean cross-entropy over the targets that count; transformers' own loss shifts labels."""
    logits = model(torch.from_numpy(tokens)).logits
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(targets).flatten(), ignore_index=-100
    )


def peer_grads(model, tokens, targets):
    model.zero_grad()
    loss = peer_loss(model, tokens, targets)
    loss.backward()
    return loss.item(), {n: p.grad.numpy().copy() for n, p in model.named_parameters()}


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.fixture(scope="module", params=SHAPES)
def saved(request, tmp_path_factory):
    """(shape, transformers' model, the folder that it was saved in)."""
    shape = SHAPES[request.param]
    model, folder = peer_model(shape), tmp_path_factory.mktemp("hf") / "model"
    model.save_pretrained(folder)
    return shape, model, folder


@pytest.fixture
def folder(tmp_path):
    """A folder of its own to damage."""
    peer_model(SMALL).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(params=["reference", "fast"])
def ops(request):
    if request.param == "reference":
        return reference
    pytest.importorskip("tenarai._kernels", reason="the compiled core is not built here")
    from tenarai.ops.fast import Fast

    return Fast(threads=2)


def load(folder):
    return tenarai.load(folder, ops=reference)


# Against transformers


def test_logits(saved, ops):
    shape, peer, folder = saved
    tokens, _ = batch(shape)
    got = tenarai.load(folder, ops=ops).logits(tokens)
    expected = peer(torch.from_numpy(tokens)).logits.detach().numpy()
    assert got.dtype == np.float32 and got.shape == expected.shape
    assert relative(got, expected) < 1e-5  # float32 through a few layers


def test_loss_and_every_gradient(saved, ops):
    shape, peer, folder = saved
    tokens, targets = batch(shape)
    expected_loss, expected = peer_grads(peer, tokens, targets)
    loss, grads = tenarai.load(folder, ops=ops).loss_and_grads(tokens, targets)
    assert isinstance(loss, float) and abs(loss - expected_loss) < 1e-5
    assert set(grads) == set(expected)
    for name, g in expected.items():
        assert grads[name].dtype == np.float32 and grads[name].shape == g.shape, name
        assert relative(grads[name], g) < 1e-4, name


def test_ten_steps_of_adamw(saved, ops):
    shape, peer, folder = saved
    peer = peer_model(shape)  # a copy, since it is trained
    tokens, targets = batch(shape)
    matrices = [p for p in peer.parameters() if p.ndim > 1]
    vectors = [p for p in peer.parameters() if p.ndim < 2]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    expected = []
    for _ in range(10):
        optimiser.zero_grad()
        loss = peer_loss(peer, tokens, targets)
        loss.backward()
        optimiser.step()
        expected.append(loss.item())
    losses = our_steps(tenarai.load(folder, ops=ops), tokens, targets)
    assert expected[-1] < expected[0] - 0.5, "the steps must matter for this to be a test"
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-4)


def our_steps(model, tokens, targets):
    params, losses = model.params, []
    m, v = Weights(params.table), Weights(params.table)
    tokens, targets = tokens.astype(np.int32), np.where(targets < 0, -1, targets).astype(np.int32)
    for step in range(1, 11):
        grads = Weights(params.table)
        loss, saved = model.model.forward(model.ops, params, tokens, targets, grads)
        model.model.backward(model.ops, params, saved, grads)
        n = params.decayed
        for part, decay in ((slice(None, n), 0.1), (slice(n, None), 0.0)):
            model.ops.adamw_step(
                params.flat[part], grads.flat[part], m.flat[part], v.flat[part],
                lr=3e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=decay,
                step=step, grad_scale=1.0,
            )  # fmt: skip
        losses.append(float(loss))
    return losses


def test_a_written_folder_gives_transformers_equal_logits(saved, tmp_path):
    shape, peer, folder = saved
    load(folder).save(tmp_path / "ours")
    again, info = transformers.GPT2LMHeadModel.from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info  # nothing missing, unexpected or mismatched
    tokens = torch.from_numpy(batch(shape)[0])
    assert torch.equal(again(tokens).logits, peer(tokens).logits)


def test_there_and_back_is_the_same_bits(saved, tmp_path):
    _, _, folder = saved
    first = load(folder)
    assert first.save(tmp_path / "a") == []
    second = load(tmp_path / "a")
    assert first.config == second.config
    np.testing.assert_array_equal(first.params.flat, second.params.flat)
    second.save(tmp_path / "b")
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_files_are_what_the_library_reads(saved, tmp_path):
    safetensors = pytest.importorskip("safetensors")
    _, peer, folder = saved
    load(folder).save(tmp_path / "ours")
    with safetensors.safe_open(tmp_path / "ours" / "model.safetensors", "np") as f:
        assert f.metadata() == {"format": "pt"}
        assert set(f.keys()) == {n for n, _ in peer.named_parameters()}
        for name, p in peer.named_parameters():
            np.testing.assert_array_equal(f.get_tensor(name), p.detach().numpy())


# What other folders look like


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_files_become_float32(folder, dtype):
    half = peer_model(SMALL).to(getattr(torch, dtype))
    half.save_pretrained(folder)
    model = load(folder)
    weights = in_hugging_face_layout(model.params)
    for name, p in half.named_parameters():
        np.testing.assert_array_equal(weights[name], p.detach().float().numpy())
    assert model.params.flat.dtype == np.float32


def rewrite(folder, change):
    """Pass the tensors of a folder's file through `change`, name → tensor."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = {n: t.clone() for n, t in load_file(path).items()}
    path.unlink()
    save_file(change(tensors), path)


def test_names_without_prefix_and_with_masks(folder):
    expected = load(folder).params.flat
    mask = torch.tril(torch.ones(24, 24)).bool().view(1, 1, 24, 24)

    def change(tensors):
        old = {n.removeprefix("transformer."): t for n, t in tensors.items()}
        old |= {f"h.{i}.attn.bias": mask.clone() for i in range(2)}
        return old | {"h.0.attn.masked_bias": torch.tensor(-1e4)}

    rewrite(folder, change)
    model = load(folder)
    np.testing.assert_array_equal(model.params.flat, expected)
    _, grads = model.loss_and_grads(*batch(SMALL))
    assert "transformer.wte.weight" in grads and len(grads) == 28


def test_a_tied_head_is_accepted_and_another_refused(folder):
    rewrite(folder, lambda t: t | {"lm_head.weight": t["transformer.wte.weight"].clone()})
    load(folder)
    rewrite(folder, lambda t: t | {"lm_head.weight": t["lm_head.weight"] + 1})
    with pytest.raises(TenaraiError, match="lm_head.weight differs"):
        load(folder)


def test_a_file_in_shards(folder):
    expected = load(folder).params.flat
    peer_model(SMALL).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    np.testing.assert_array_equal(load(folder).params.flat, expected)

    index = folder / "model.safetensors.index.json"
    whole = index.read_text()
    name = json.loads(whole)["weight_map"]["transformer.ln_f.weight"]
    for wrong, words in (
        (f"../{name}", "beside it"),
        ("model-9.safetensors", "model-9"),
        (7, "map"),
    ):
        changed = json.loads(whole)
        changed["weight_map"]["transformer.ln_f.weight"] = wrong
        index.write_text(json.dumps(changed))
        with pytest.raises(TenaraiError, match=words):
            load(folder)


# Bad folders: one clear line each


def test_missing_misshapen_and_extra_tensors_are_named(folder, tmp_path):
    name = "transformer.h.1.mlp.c_fc.weight"
    cases = {
        "missing": (
            lambda t: {n: x for n, x in t.items() if n != name},
            [r"\(20, 80\)", "missing"],
        ),
        "misshapen": (
            lambda t: t | {name: t[name].T.contiguous()},
            [r"\(80, 20\)", r"\(20, 80\)", "model size"],
        ),
        "extra": (lambda t: t | {"transformer.h.2.x": torch.ones(3)}, [r"h\.2\.x", r"\(3,\)"]),
    }
    for case, (change, words) in cases.items():
        copy = shutil.copytree(folder, tmp_path / case)
        rewrite(copy, change)
        with pytest.raises(TenaraiError) as caught:
            load(copy)
        for word in [*words, case if case == "missing" else ""]:
            assert caught.match(word)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "setting, value",
    [
        ("model_type", "mamba"),
        ("activation_function", "relu"),
        ("activation_function", ["gelu"]),
        ("scale_attn_by_inverse_layer_idx", True),
        ("scale_attn_weights", False),
        ("add_cross_attention", True),
        ("tie_word_embeddings", False),
        ("n_inner", 40),
        ("n_head", 3),
        ("n_head", 0),
        ("n_embd", -20),
        ("n_embd", 2**40),
        ("n_layer", 10**9),
        ("n_layer", 2.0),
        ("n_layer", True),
        ("n_positions", "24"),
        ("vocab_size", None),
        ("layer_norm_epsilon", -1e-5),
        ("layer_norm_epsilon", float("nan")),
        ("resid_pdrop", 1.0),
    ],
)
def test_settings_that_cannot_be_followed_are_refused_by_name(folder, setting, value):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {setting: value}))
    with pytest.raises(TenaraiError, match=setting):
        load(folder)


def test_settings_that_change_nothing_are_passed_over(folder):
    expected = load(folder).params.flat
    path = folder / "config.json"
    more = {"n_inner": 80, "reorder_and_upcast_attn": True, "summary_type": "mean", "use_cache": 0}
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    np.testing.assert_array_equal(load(folder).params.flat, expected)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "not JSON"),
        (b"[1]", "expected an object"),
        (b"{", "not JSON"),
        (b"\xff\xfe{", "not JSON"),
        (b"[" * 200_000, "not JSON"),
        (b" " * (2 << 20), "larger than"),
    ],
)
def test_a_damaged_config(folder, content, words):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(TenaraiError, match=words):
        load(folder)


def test_no_weights_and_pickled_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(TenaraiError, match="download model.safetensors"):
        load(folder)
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(TenaraiError, match="can run any program"):
        load(folder)


def test_every_truncation_and_random_damage_is_a_clear_error(folder):
    path = folder / "model.safetensors"
    raw, rng = path.read_bytes(), np.random.default_rng(0)
    n = struct.unpack("<Q", raw[:8])[0]
    for length in [0, 1, 7, 8, 9, 8 + n // 2, 8 + n, 8 + n + 1, len(raw) - 1]:
        path.write_bytes(raw[:length])
        with pytest.raises(TenaraiError) as caught:
            load(folder)
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    path.write_bytes(raw + b"\0")
    with pytest.raises(TenaraiError, match="not a whole safetensors file"):
        load(folder)
    for _ in range(200):
        damaged = bytearray(raw)
        for at in rng.integers(0, 8 + n, rng.integers(1, 4)):
            damaged[at] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            load(folder)
        except TenaraiError as error:
            assert "\n" not in str(error)


def test_a_header_that_lies(tmp_path):
    cases = [
        {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}},
        {"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 2**63]}},
        {"a": 3},
    ]
    for header in cases:
        text = json.dumps(header).encode()
        path = tmp_path / "x.safetensors"
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
        with pytest.raises(TenaraiError, match="not a whole safetensors file"):
            safetensors_file.open_file(path)
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(TenaraiError, match="not a whole safetensors file"):
        safetensors_file.open_file(path)
