"""The mixture of experts: gradients by the complex step, the kernels, transformers, training."""

import numpy as np
import pytest

import tenarai
from complex_step import gradient_errors
from tenarai.api import Model
from tenarai.config import Optimiser, resolve
from tenarai.errors import TenaraiError
from tenarai.models import exchange
from tenarai.models.llama import Llama, LlamaConfig
from tenarai.models.rope import Rope
from tenarai.models.table import Weights
from tenarai.ops import reference
from tenarai.ops.gradient import FROZEN, Unwritten
from tenarai.tokenizers import ByteTokenizer
from tenarai.train.optim import AdamW
from test_llama import batch, peer_logits, peer_model
from test_llama_gradients import (
    ODD,
    OPTIONS,
    loss_and_grads,
    our_batch,
    random_weights,
    relative,
)
from test_resume import Stops
from test_train_llama import go, place  # noqa: F401  a fixture
from tiny import trained

N, C, F = 9, 5, 7


def inputs(rng, E, k, dtype=np.float64):
    """x, weights and each expert's matrices; experts of which the last gets nothing, where that
    can be."""
    arrays = {"x": rng.standard_normal((3, N // 3, C)), "weights": rng.random((3, N // 3, k)) + 0.1}
    for e in range(E):
        shapes = {"gate": (F, C), "up": (F, C), "down": (C, F)}
        arrays |= {f"{n}{e}": rng.standard_normal(s) for n, s in shapes.items()}
    used = max(k, E - 1)
    experts = np.stack([rng.permutation(used)[:k] for _ in range(N)]).reshape(3, N // 3, k)
    return {n: a.astype(dtype) for n, a in arrays.items()}, experts.astype(np.int32)


def matrices(arrays, E):
    return [[arrays[f"{n}{e}"] for e in range(E)] for n in ("gate", "up", "down")]


@pytest.mark.parametrize("E, k", [(1, 1), (4, 1), (4, 2), (3, 3)])
def test_experts_by_the_complex_step(rng, E, k):
    arrays, experts = inputs(rng, E, k)
    upstream = rng.standard_normal((3, N // 3, C))

    def f(a):
        y, _ = reference.experts_forward(a["x"], a["weights"], experts, *matrices(a, E))
        return (upstream * y).sum()

    grads = {n: np.zeros_like(a) for n, a in arrays.items()}
    _, saved = reference.experts_forward(
        arrays["x"], arrays["weights"], experts, *matrices(arrays, E)
    )
    dx, dweights = reference.experts_backward(upstream, saved, *matrices(grads, E))
    grads |= {"x": dx, "weights": dweights}
    errors = gradient_errors(f, arrays, grads, rng, directions=1)
    used = {n: e for n, e in errors.items() if np.linalg.norm(grads[n]) > 0}
    assert max(used.values()) < 1e-12, used
    idle = set(errors) - set(used)
    unused = set(range(E)) - set(experts.reshape(-1).tolist())
    assert idle == {f"{n}{e}" for e in unused for n in ("gate", "up", "down")}
    assert unused or k == E


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("E, k", [(1, 1), (5, 1), (5, 3), (3, 3)])
def test_routing_by_the_complex_step(rng, E, k, normalise):
    logits, upstream = rng.standard_normal((2, 7, E)), rng.standard_normal((2, 7, k))
    how = {"normalise": normalise, "balance": 0.3}

    def f(a):
        weights, _, loss, _ = reference.route_forward(a["logits"], k, **how)
        return (upstream * weights).sum() + loss

    weights, experts, loss, saved = reference.route_forward(logits, k, **how)
    grads = {"logits": reference.route_backward(upstream, saved)}
    if E == 1 or (E == k == 1):
        assert np.abs(grads["logits"]).max() < 1e-15  # one expert: p is 1
    else:
        errors = gradient_errors(f, {"logits": logits}, grads, rng, directions=1)
        assert errors["logits"] < 1e-12
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    assert (np.sort(p, axis=-1)[..., ::-1][..., :k] == np.take_along_axis(p, experts, -1)).all()
    if normalise:
        np.testing.assert_allclose(weights.sum(axis=-1), 1)
    f_e = np.bincount(experts.reshape(-1), minlength=E) / 14
    assert loss == pytest.approx(0.3 * E * (f_e * p.reshape(-1, E).mean(axis=0)).sum())


@pytest.mark.parametrize("E, k", [(1, 1), (4, 1), (4, 2), (3, 3)])
@pytest.mark.parametrize("kind", ["added", "unwritten", "frozen"])
def test_kernels_against_the_reference(rng, E, k, kind):
    Fast = pytest.importorskip("tenarai.ops.fast").Fast
    arrays, experts = inputs(rng, E, k)
    small = {n: a.astype(np.float32) for n, a in arrays.items()}
    upstream = rng.standard_normal((3, N // 3, C))
    found = []
    for name, one, a in (("fast", Fast(threads=2), small), ("exact", reference, arrays)):
        grads = {n: np.ones_like(v) if kind == "added" else 0 * v for n, v in a.items()}
        given = grads
        if kind == "unwritten" and name == "fast":
            for n in grads:
                grads[n][...] = np.nan
            given = {n: Unwritten(g) for n, g in grads.items()}
        if kind == "frozen":
            given = dict.fromkeys(grads, FROZEN)
        y, saved = one.experts_forward(a["x"], a["weights"], experts, *matrices(a, E))
        d = upstream.astype(a["x"].dtype)
        dx, dweights = one.experts_backward(d, saved, *matrices(given, E))
        found.append({"y": y} | grads | {"x": dx, "weights": dweights})
    for n, exact in found[1].items():
        assert found[0][n].dtype == np.float32
        assert relative(found[0][n], exact) < 2e-6, n


def test_the_whole_loss_by_the_complex_step(rng):
    """With the balance loss in it, which only a step of training has."""
    model = Llama(LlamaConfig(**(ODD | OPTIONS["experts"])), balance=0.7)
    params = random_weights(model, rng)
    tokens, targets = our_batch(rng, model, 2, 7)
    loss, grads = loss_and_grads(reference, model, params, tokens, targets)
    plain = Llama(model.config).forward(reference, params, tokens, targets)[0]
    assert loss > plain + 0.6  # two experts a token: the least that it can be is 2 · 0.7 · 1

    def f(arrays):
        point = Weights(params.table, np.complex128)
        for name, value in arrays.items():
            point[name][...] = value
        scratch = Weights(params.table, np.complex128)
        return model.forward(reference, point, tokens, targets, scratch)[0]

    errors = gradient_errors(f, params, grads, rng, directions=1)
    assert max(errors.values()) < 1e-10, errors


def test_a_router_of_too_many():
    with pytest.raises(ValueError, match="route: 4 of 3 experts"):
        reference.route_forward(np.zeros((2, 3)), 4)


# Against transformers

CASES = {
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3moe": (
        "Qwen3Moe",
        {"num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 11, "head_dim": 6},
    ),
    "qwen3moe, normalised": (
        "Qwen3Moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 10, "head_dim": 6,
         "norm_topk_prob": True, "tie_word_embeddings": True},
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def saved(request, tmp_path_factory):
    kind, options = CASES[request.param]
    model, folder = plainly(peer_model(kind, options)), tmp_path_factory.mktemp("hf") / "model"
    model.save_pretrained(folder)
    return model, folder


def plainly(peer):
    """By loops over experts: the grouped products want widths that are multiples of 4."""
    peer.set_experts_implementation("eager")
    return peer


def in_files(peer, arrays):
    """transformers' parameters, which hold all experts in one, as its files name them."""
    mixtral = type(peer).__name__.startswith("Mixtral")
    names = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    found = {}
    for name, a in arrays.items():
        name = name.replace(".mlp.", ".block_sparse_moe.") if mixtral else name
        base, _, last = name.rpartition(".")
        if last == "gate_up_proj":
            for e, both in enumerate(a):
                half = len(both) // 2
                found[f"{base}.{e}.{names[0]}.weight"] = both[:half]
                found[f"{base}.{e}.{names[1]}.weight"] = both[half:]
        elif last == "down_proj":
            found |= {f"{base}.{e}.{names[2]}.weight": one for e, one in enumerate(a)}
        else:
            found[name] = a
    return found


def peer_loss(peer, tokens, targets, coefficient=0.0):
    import torch

    peer.zero_grad()
    out = peer(torch.from_numpy(tokens), output_router_logits=coefficient > 0)
    loss = torch.nn.functional.cross_entropy(
        out.logits.flatten(0, 1), torch.from_numpy(targets).flatten(), ignore_index=-100
    )
    if coefficient:
        loss = loss + coefficient * out.aux_loss
    loss.backward()
    return loss.item(), in_files(
        peer, {n: p.grad.numpy().copy() for n, p in peer.named_parameters()}
    )


def test_against_transformers(saved, ops, tmp_path):
    """Logits, loss, every gradient, two steps of AdamW, and the folder that is written again."""
    import torch

    peer, folder = saved
    tokens, targets = batch()
    model = tenarai.load(folder, ops=ops)
    assert relative(model.logits(tokens), peer_logits(peer, tokens)) < 1e-5
    expected_loss, expected = peer_loss(peer, tokens, targets)
    loss, grads = model.loss_and_grads(tokens, targets)
    assert abs(loss - expected_loss) < 1e-5 * expected_loss and set(grads) == set(expected)
    for name, g in expected.items():
        assert relative(grads[name], g) < 1e-4, name
    model.save(tmp_path / "again")
    theirs = type(peer).from_pretrained(tmp_path / "again", attn_implementation="eager")
    theirs = plainly(theirs.eval())
    assert relative(peer_logits(theirs, tokens), peer_logits(peer, tokens)) < 1e-6

    steps = torch.optim.AdamW(theirs.parameters(), lr=0.01, betas=(0.9, 0.95), eps=1e-3,
                              weight_decay=0.0)  # fmt: skip
    how = Optimiser(beta1=0.9, beta2=0.95, eps=1e-3, weight_decay=0.0)
    ours = AdamW(model.params.table, how)
    ids, wanted = tokens.astype(np.int32), np.where(targets < 0, -1, targets).astype(np.int32)
    before = {n: w.copy() for n, w in exchange.in_hugging_face_layout(model.params).items()}
    for step in (1, 2):
        peer_loss(theirs, tokens, targets)
        steps.step()
        _, grads = loss_and_grads(model.ops, model.model, model.params, ids, wanted)
        ours.step(model.ops, model.params, grads, lr=0.01, step=step, grad_scale=1.0)
    after = exchange.in_hugging_face_layout(model.params)
    named = {n: p.detach().numpy() for n, p in theirs.named_parameters()}
    for name, value in in_files(theirs, named).items():
        assert relative(after[name] - before[name], value - before[name]) < 1e-3, name


def test_balance_loss_against_transformers(tmp_path):
    """One layer: there the mean over layers is transformers' loss, which takes all as one."""
    peer = plainly(peer_model("Mixtral", CASES["mixtral"][1] | {"num_hidden_layers": 1}))
    peer.save_pretrained(tmp_path / "m")
    tokens, targets = batch()
    expected_loss, expected = peer_loss(peer, tokens, targets, 0.5)
    model = tenarai.load(tmp_path / "m", ops=reference)
    model.model.balance = 0.5
    loss, grads = model.loss_and_grads(tokens, targets)
    assert abs(loss - expected_loss) < 1e-5 * expected_loss
    for name, g in expected.items():
        assert relative(grads[name], g) < 1e-4, name


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_experts_per_tok": 9}, "experts_per_token is 9, expected 1 to 5"),
        ({"decoder_sparse_step": 2}, "layers without experts"),
        ({"mlp_only_layers": [0]}, "layers without experts"),
        ({"num_experts": 0}, "num_experts"),
    ],
)
def test_folders_that_cannot_be(tmp_path, change, message):
    import json

    peer_model(*CASES["qwen3moe"]).save_pretrained(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config |= {"num_experts": config.pop("num_local_experts", 5)} | change
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(TenaraiError, match=message):
        tenarai.load(tmp_path / "m")


# GGUF


@pytest.mark.parametrize("case", ["mixtral", "qwen3moe, normalised"])
def test_as_a_gguf_file_it_is_the_same_model(tmp_path, case):
    plainly(peer_model(*CASES[case])).save_pretrained(tmp_path / "m")
    model = tenarai.load(tmp_path / "m", ops=reference)
    assert model.save(tmp_path / "m.gguf") == []
    again = tenarai.load(tmp_path / "m.gguf", ops=reference)
    tokens, _ = batch()
    assert relative(again.logits(tokens), model.logits(tokens)) < 1e-6
    model.save(tmp_path / "half.gguf", "float16")
    half = tenarai.load(tmp_path / "half.gguf", ops=reference)
    assert half.params.quantised and relative(half.logits(tokens), model.logits(tokens)) < 5e-3
    again.save(tmp_path / "back")
    back = tenarai.load(tmp_path / "back", ops=reference)
    assert relative(back.logits(tokens), model.logits(tokens)) < 1e-6


@pytest.mark.parametrize("arch", ["mixtral", "qwen3moe"])
def test_llama_cpp_runs_it(rng, tmp_path, arch):
    llama_cpp = pytest.importorskip("llama_cpp")
    size = {"vocab_size": 256, "context": 64, "head_size": 8, "width": 32, "hidden": 24}
    options = {"arch": arch, "qk_norm": arch == "qwen3moe", "experts": 4, "rope": Rope(8)}
    model = Llama(LlamaConfig(**(ODD | size | options)))
    params = random_weights(model, rng, np.float32)
    opened = Model(model, params, ByteTokenizer(), ops=reference)
    assert opened.save(tmp_path / "m.gguf") == []
    peer = llama_cpp.Llama(
        str(tmp_path / "m.gguf"), n_ctx=64, logits_all=True, verbose=False, n_threads=2,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,
    )  # fmt: skip
    ids = list(b"experts of a mixture")
    peer.eval(ids)
    assert relative(np.asarray(peer.scores[: len(ids)]), opened.logits(ids)) < 1e-4
    peer.close()


def test_what_gguf_has_no_words_for(tmp_path):
    plainly(peer_model(*CASES["qwen3moe"])).save_pretrained(tmp_path / "m")
    with pytest.raises(TenaraiError, match="experts' weights that do not sum to 1"):
        tenarai.load(tmp_path / "m").save(tmp_path / "m.gguf")


# Training

MOE = {"preset": "moe-small", "experts": 4, "hidden": 24, "layers": 2}


@pytest.mark.parametrize("arch", ["mixtral", "qwen3moe"])
def test_it_learns_and_goes_on_to_the_same_bits(place, arch):  # noqa: F811
    how = MOE | {"arch": arch, "lr": 1e-2, "shared_hidden": 16 if arch == "qwen3moe" else 0}
    result = go(place, f"moe-{arch}", steps=20, **how)
    assert result.val_loss < 4
    assert go(place, f"moe-{arch}-2", Stops(9), steps=20, **how).step == 9
    assert go(place, f"moe-{arch}-2", resume=True, steps=20, **how).step == 20
    assert trained(place / f"moe-{arch}") == trained(place / f"moe-{arch}-2")
    model = tenarai.load(result.folder)
    assert model.generate("the ", 12, 0) and "experts" in str(vars(model.config))


@pytest.mark.parametrize(
    "given, message",
    [
        ({"experts": 4}, "model.experts = 4, and model.arch is llama: experts are of mixtral"),
        ({"arch": "qwen3moe"}, "model.experts = 0, and model.arch is qwen3moe"),
        ({"arch": "mixtral", "experts": 2, "experts_per_token": 3}, "take at most 2"),
        ({"shared_hidden": 8}, "is an expert beside others"),
        ({"balance": -1.0}, "balance is -1.0"),
    ],
)
def test_wrong_settings(given, message):
    with pytest.raises(TenaraiError, match=message):
        resolve("llama-small", given=given)
