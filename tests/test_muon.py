"""Muon: the orthogonal step against the singular values, PyTorch, and the kernels; in training."""

import numpy as np
import pytest

from tenarai.config import Optimiser
from tenarai.errors import TenaraiError
from tenarai.io.checkpoint import Checkpoint
from tenarai.io.checkpoint_folder import list_checkpoints
from tenarai.models.table import Weights
from tenarai.ops import fast, reference
from tenarai.ops.reference.muon import STEPS, A, B, C
from tenarai.train import memory
from tenarai.train.model import model_of
from tenarai.train.optim import Muon, is_hidden_matrix
from test_resume import Stops
from test_train_llama import go, place  # noqa: F401  a fixture
from tiny import trained

SHAPES = [(7, 7), (33, 5), (5, 33), (1, 9), (9, 1), (64, 130)]


def relative(a, b):
    return np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)


@pytest.mark.parametrize("shape", SHAPES)
def test_only_singular_values_change(rng, shape):
    """NS(U S Vᵀ) = U f(S) Vᵀ with f the polynomial, five times; near 1 from 0.02 of the norm on."""
    u, s, vt = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    s[-1] = 0.05 * s[0] if len(s) > 1 else s[0]
    x = s / np.linalg.norm(s)
    far = x > 0.02
    for _ in range(STEPS):
        x = A * x + B * x**3 + C * x**5
    got = reference.newton_schulz((u * s) @ vt)
    assert relative(got, (u * x) @ vt) < 1e-6  # EPS in the norm
    assert x[far].min() > 0.68 and x.max() < 1.21


@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_against_the_reference(rng, shape):
    Fast = pytest.importorskip("tenarai.ops.fast").Fast
    exact = [rng.standard_normal(shape) for _ in range(3)]
    p, g, m = (a.astype(np.float32) for a in exact)
    before, how = p.copy(), {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2, "grad_scale": 0.5}
    Fast(threads=2).muon_step([p], [g], [m], **how)
    reference.muon_step(*([a] for a in exact), **how)
    assert relative(m, exact[2]) < 1e-6
    # small singular values grow up to 480-fold, and their float32 error with them
    assert relative(p - before, exact[0] - before) < 1e-4


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("products", ["plain", "fast", "words"])
def test_many_matrices_at_once(rng, threads, products):
    """Small ones, which threads share out, and large ones between them: as each by itself, on every
    instruction set."""
    pytest.importorskip("tenarai._kernels", reason="the compiled core is not built")
    how = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2, "grad_scale": 0.5}
    shapes = [(48, 32), (700, 400), (16, 65), (0, 4), (4, 0), (513, 513), (130, 64)]
    start = [[rng.standard_normal(shape) for shape in shapes] for _ in range(3)]
    exact = [[a.copy() for a in of] for of in start]
    reference.muon_step(*exact, **how)
    for isa in fast.available_isas():
        got, one = ([[a.astype(np.float32) for a in of] for of in start] for _ in range(2))
        ops, alone = (fast.Fast(n, isa, products=products) for n in (threads, 1))
        ops.muon_step(*got, **how)
        for p, g, m in zip(*one, strict=True):
            alone.muon_step([p], [g], [m], **how)
        for kind in (0, 2):
            for a, b in zip(got[kind], one[kind], strict=True):
                assert (a == b).all(), isa
        bound = 1e-4 if products != "words" else 3e-2
        for a, b in zip(got[0], exact[0], strict=True):
            assert a.size == 0 or relative(a, b) < bound, isa


def test_matrices_that_do_not_belong_together_are_refused(rng):
    Fast = pytest.importorskip("tenarai.ops.fast").Fast
    how = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2, "grad_scale": 0.5}
    p = [np.ones((3, 4), np.float32)]
    for g in ([np.ones((4, 3), np.float32)], [], [np.ones((3, 4))]):
        with pytest.raises((ValueError, TypeError)):
            Fast(threads=2).muon_step(p, g, p, **how)


@pytest.mark.parametrize("shape", SHAPES)
def test_against_pytorch(rng, shape):
    torch = pytest.importorskip("torch")
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this PyTorch has no Muon")
    p, m = rng.standard_normal(shape), np.zeros(shape)
    theirs = torch.nn.Parameter(torch.tensor(p))
    peer = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.3, momentum=0.9)
    before = p.copy()
    for _ in range(3):
        g = rng.standard_normal(shape)
        theirs.grad = torch.tensor(0.7 * g)
        peer.step()
        how = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.3, "grad_scale": 0.7}
        reference.muon_step([p], [g], [m], **how)
    moved = theirs.detach().numpy() - before
    assert relative(p - before, moved) < 0.03  # PyTorch's products are bfloat16's


def test_a_gradient_of_zeros_moves_nothing():
    p, m = np.ones((3, 4)), np.zeros((3, 4))
    how = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0, "grad_scale": 1.0}
    reference.muon_step([p], [np.zeros((3, 4))], [m], **how)
    assert (p == 1).all()


def settings(**given):
    from tenarai.config import resolve

    return resolve("llama-small", given={"width": 32, "algorithm": "muon"} | given)


def test_which_weights_go_by_muon():
    s = settings()
    table = model_of(s.model, s.optimiser, 100).table()
    by_muon = {p.name.split(".", 2)[-1] for p in table if is_hidden_matrix(p)}
    assert by_muon == {
        "attn.q.weight", "attn.k.weight", "attn.v.weight", "attn.o.weight", "mlp.gate.weight",
        "mlp.up.weight", "mlp.down.weight",
    }  # fmt: skip
    params, grads = Weights(table).initialise(1), Weights(table)
    grads.flat[...] = 1e-3
    before = {n: w.copy() for n, w in params.items()}
    optimiser = Muon(table, s.optimiser)
    optimiser.step(reference, params, grads, lr=s.optimiser.lr / 2, step=1, grad_scale=1.0)
    for p in table:
        moved = params[p.name] - before[p.name] * (1 - 0.1 * s.optimiser.lr / 2 * p.decay)
        if not is_hidden_matrix(p):  # AdamW's first step is the learning rate
            assert np.allclose(moved, -s.optimiser.lr / 2, rtol=1e-2), p.name
        else:
            assert np.abs(moved).max() > 0
    states = sum(w.count for w in optimiser.states().values())
    matrices = sum(p.size for p in table if is_hidden_matrix(p))
    assert states == 2 * sum(p.size for p in table) - matrices
    need = memory.need(table, 0, 0, 0, optimiser, threads=3)
    assert need.moments < memory.need(table, 0, 0, 0).moments + optimiser.working_bytes(3)


def test_it_learns_and_goes_on_to_the_same_bits(place):  # noqa: F811
    how = {"algorithm": "muon", "z_loss": 1e-4, "lr": 1e-2}
    result = go(place, "muon", **how)
    assert result.val_loss < 4.5
    assert go(place, "muon-2", Stops(6), **how).step == 6
    with Checkpoint(list_checkpoints(place / "muon-2" / "checkpoints")[0]) as c:
        names = {n.split("/", 1)[0] for n in c.entries if n.endswith("mlp.up.weight")}
        assert names == {"weights", "momentum"}
    with pytest.raises(TenaraiError, match="algorithm is muon in this run and cannot become adamw"):
        go(place, "muon-2", resume=True, algorithm="adamw")
    assert go(place, "muon-2", resume=True, **how).step == 12
    assert trained(place / "muon") == trained(place / "muon-2")


def test_defaults_are_adamw():
    assert Optimiser().algorithm == "adamw" and Optimiser().z_loss == 0
