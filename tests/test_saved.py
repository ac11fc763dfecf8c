"""Saved activations in bfloat16: the conversion's bits, what is rounded, what that does."""

import re
from dataclasses import replace

import numpy as np
import pytest

from fast_cases import misaligned
from tenarai.errors import TenaraiError
from tenarai.models.gpt2 import GPT2, Dropout, GPT2Config
from tenarai.models.llama import Llama, LlamaConfig
from tenarai.models.lora import Adapted, AdapterGradients, LoraConfig, adapter_table, chosen_layers
from tenarai.models.table import Weights
from tenarai.ops import Arena, reference
from tenarai.ops.lora import Tuning
from tenarai.ops.saved import Saved, expand_saved, round_saved
from tenarai.train.run import train
from test_llama_gradients import ODD, OPTIONS, our_batch, random_weights, relative
from test_resume import Stops
from tiny import TINY, Quiet, trained, write_text

pytest.importorskip("tenarai._kernels", reason="the compiled core is not built")
from tenarai.ops import fast

WIDE = {"width": 32, "hidden": 48}  # sums long enough to average over
GPT2_CONFIG = GPT2Config(vocab_size=23, context=11, layers=2, heads=4, width=32, dropout=0.1)
MODELS = {
    "gpt2": GPT2(GPT2_CONFIG),
    **{name: Llama(LlamaConfig(**(ODD | WIDE | OPTIONS[name]))) for name in OPTIONS},
}
# A rounding is off by 2⁻⁸ at most and 0.2 % on average. What is linear in an activation (weights'
# gradients, norms) averages over hundreds of them: 0.1 %. Attention is not: q·k of these weights
# reaches 10, so p = exp(q·k - lse) is off by some 1 %, and rows no longer sum to 1.
TOLERANCE = 2.5e-2


# The conversion


@pytest.fixture(scope="module", params=fast.available_isas())
def ops(request):
    return fast.Fast(threads=2, isa=request.param)


def patterns():
    """Every upper half of a float32, with the lower ones at which rounding turns: ties, and beside
    them. Subnormal numbers, infinities and NaNs are among them."""
    upper = np.arange(2**16, dtype=np.uint32) << np.uint32(16)
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    return (upper[:, None] | lower).reshape(-1).view(np.float32)


def test_bits_are_those_of_numpy_and_pytorch(ops):
    x = patterns()
    h = ops.to_bfloat16(x)
    np.testing.assert_array_equal(h, reference.to_bfloat16(x))
    back = ops.from_bfloat16(h)
    np.testing.assert_array_equal(back.view(np.uint32), h.astype(np.uint32) << 16)
    np.testing.assert_array_equal(back.view(np.uint32), reference.from_bfloat16(h).view(np.uint32))
    np.testing.assert_array_equal(np.isnan(back), np.isnan(x))
    np.testing.assert_array_equal(np.isinf(back[np.isinf(x)]), True)
    torch = pytest.importorskip("torch")
    theirs = torch.from_numpy(x).to(torch.bfloat16)
    bits = theirs.view(torch.int16).numpy().view(np.uint16)
    number = ~np.isnan(x)  # of NaNs PyTorch keeps no sign
    np.testing.assert_array_equal(h[number], bits[number])
    widened = theirs.float().numpy()
    np.testing.assert_array_equal(back[number].view(np.uint32), widened[number].view(np.uint32))


def test_every_length_misaligned(ops, rng):
    for n in [*range(1, 131), 20_003]:  # below two vectors, and on several threads
        x = misaligned(rng.standard_normal(n))
        guarded = np.full(n + 3, 0xABCD, np.uint16)
        h = guarded[1 : n + 1]  # 2 bytes after a multiple of 4
        assert ops.to_bfloat16(x, out=h) is h
        np.testing.assert_array_equal(h, reference.to_bfloat16(x))
        assert (guarded[[0, n + 1, n + 2]] == 0xABCD).all()
        back = misaligned(np.zeros(n + 1))
        ops.from_bfloat16(h, out=back[:n])
        np.testing.assert_array_equal(back[:n], reference.from_bfloat16(h))
        assert back[n] == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda o: o.to_bfloat16(np.ones(4, np.float32), out=np.ones(3, np.uint16)),
        lambda o: o.to_bfloat16(np.ones(4)),
        lambda o: o.to_bfloat16(np.ones((4, 2), np.float32).T),
        lambda o: o.from_bfloat16(np.ones(4, np.int16)),
        lambda o: o.from_bfloat16(np.ones(4, np.uint16), out=np.ones(5, np.float32)),
    ],
)
def test_wrong_arrays_are_refused(ops, call):
    with pytest.raises((ValueError, TypeError)):
        call(ops)


# What is rounded


def test_views_and_what_stays(rng):
    """Activations are rounded once each, views are views again; the rest is the same objects."""
    ops = fast.Fast(threads=1)
    qkv, x = (rng.standard_normal(s).astype(np.float32) for s in ((2, 5, 3, 4), (2, 5, 4)))
    w, rstd, ids = np.ones(4, np.float32), np.ones((2, 5), np.float32), np.arange(3)
    saved = (
        Saved.of((x,), (w, rstd)),
        (qkv[:, :, 1], [x[:, :2], None], ids),
        Saved.of((qkv[0], (x,)), (7,)),
    )
    kept = round_saved(ops, saved)
    assert [h.shape for h in kept.halves] == [x.shape, qkv.shape]
    norm, (k, (part, nothing), same), mixed = expand_saved(ops, kept)
    xs, qkvs = (reference.from_bfloat16(reference.to_bfloat16(a)) for a in (x, qkv))
    np.testing.assert_array_equal(norm[0], xs)
    np.testing.assert_array_equal(part, xs[:, :2])
    np.testing.assert_array_equal(k, qkvs[:, :, 1])
    np.testing.assert_array_equal(mixed[0], qkvs[0])
    assert norm[1] is w and norm[2] is rstd and same is ids and nothing is None
    assert np.shares_memory(k, mixed[0]) and np.shares_memory(part, norm[0])
    assert isinstance(norm, Saved) and norm.activations == 1
    assert mixed[1][0].shape == x.shape and mixed[2] == 7


def kept_arrays(node):
    """Arrays in a nest of tuples."""
    if isinstance(node, np.ndarray):
        return [node]
    return [a for x in node for a in kept_arrays(x)] if isinstance(node, tuple | list) else []


@pytest.mark.parametrize("name", MODELS)
def test_of_a_block_every_activation_and_nothing_else(name, rng):
    model = MODELS[name]
    params = random_weights(model, rng, np.float32)
    _, (plain, _), _ = step(fast.Fast(threads=1), model, params)
    _, (kept, _), _ = step(fast.Fast(threads=1), rounding(model), params)
    B, T, H, M = 2, 9, 4, 2 * 9 * 2  # M: of experts, pairs of token and place
    weights = {w.ctypes.data for w in params.values()}
    for block, rounded in zip(plain[1:-1], kept[1:-1], strict=True):
        sizes = []
        for a in kept_arrays(rounded.tree):
            statistic = a.shape in ((B, T), (B, T, H), (B, T, H // 2), (B, H, T))
            routing = a.shape in ((B, T, 3), (B, T, 2), (B, T, 1), (3,))
            angles = a.ndim == 2 and len(a) == T
            assert a.ctypes.data in weights or statistic or routing or angles, a.shape
        for a in kept_arrays(block):
            if a.ctypes.data not in weights and (a.shape[:2] == (B, T) or len(a) == M):
                sizes.append(a.shape)
        assert len(rounded.halves) >= 7 and len(sizes) > len(rounded.halves)
        for h in rounded.halves:  # and no weight
            assert h.dtype == np.uint16 and (h.shape[:2] == (B, T) or len(h) == M), h.shape


# What that does


def rounding(model, **more):
    return replace(model, saved_bfloat16=True, **more)


def step(ops, model, params, rng=None, seed=5):
    """loss, what was kept (before the backward), gradients; the same batch at each call."""
    tokens, targets = our_batch(np.random.default_rng(seed), model, 2, 9)
    grads = Weights(params.table)
    more = (Dropout(3, 1),) if isinstance(model, GPT2) else ()
    loss, saved = model.forward(ops, params, tokens, targets, grads, *more)
    before = (list(saved[0]), saved[1])
    model.backward(ops, params, saved, grads)
    return loss, before, grads


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_the_same_and_gradients_are_near(name, recompute, rng):
    """With `recompute` a block's input alone is kept and rounded."""
    model = MODELS[name]
    params = random_weights(model, rng, np.float32)
    ops = fast.Fast(threads=2)
    loss, _, grads = step(ops, model, params)
    again, _, rounded = step(ops, rounding(model, recompute=recompute), params)
    assert again == loss
    error = relative(rounded.flat, grads.flat)
    assert 1e-4 < error < TOLERANCE, error
    for p in params.table:  # a view that went astray spoils one weight more than the whole
        a, b = rounded[p.name], grads[p.name]
        least = 1e-5 * np.linalg.norm(grads.flat)  # some are 0 but for rounding
        assert np.linalg.norm(a - b) < 4 * TOLERANCE * np.linalg.norm(b) + least, p.name


def test_the_reference_refuses():
    with pytest.raises(TenaraiError, match="for the kernels"):
        round_saved(reference, ())


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("name", ["gpt2", "plain", "gemma", "experts"])
def test_a_step_in_an_arena_has_the_same_bits(name, recompute, rng):
    model = rounding(MODELS[name], recompute=recompute)
    params = random_weights(model, rng, np.float32)
    loss, _, grads = step(fast.Fast(threads=2), model, params)

    def run(ops):
        loss, before, grads = step(ops, model, params)
        del before
        return loss, grads

    ops = fast.Fast(threads=2, arena=Arena())
    plan = ops.arena.plan(lambda: run(ops))
    ops.arena.allocate(plan)
    for _ in range(2):
        ops.arena._memory[...] = 0xFF  # NaNs, wherever a step reads what it has not written
        with ops.arena.use(plan):
            again, grads_again = run(ops)
        assert again == loss
        np.testing.assert_array_equal(grads_again.flat, grads.flat)


def activations(model, B, T):
    """Bytes of the plan of a step."""
    ops = fast.Fast(threads=1, arena=Arena())
    params, tokens = Weights(model.table()), np.zeros((B, T), np.int32)

    def run():
        _, saved = model.forward(ops, params, tokens, tokens, params)
        model.backward(ops, params, saved, params)

    return ops.arena.plan(run).bytes


def test_the_plan_is_smaller_by_half_of_what_blocks_keep():
    """GPT-2 keeps 12 C numbers a token and block: two inputs of norms, two outputs of them, 3 C of
    q, k, v, one of attention, 4 C of the MLP. Of all of that half is saved, but for the one block
    that is float32 while it runs."""
    L, B, T, C = 12, 4, 256, 128
    model = GPT2(GPT2Config(vocab_size=64, context=T, layers=L, heads=4, width=C))
    unit = 4 * B * T * C
    saving = activations(model, B, T) - activations(rounding(model), B, T)
    assert 6 * (L - 2) <= saving / unit < 6 * L


def test_adapters_too(rng):
    """What LoRA keeps lies between the op and the model; A and B stay as they are."""
    model = MODELS["gpt2"]
    base = random_weights(model, rng, np.float32)
    config = LoraConfig(3, 7.0, 0.1)
    adapter = Weights(adapter_table(chosen_layers(model.table(), "all"), 3))
    adapter.flat[:] = 0.3 * rng.standard_normal(adapter.flat.size)
    weights = Adapted(base, adapter, config)
    tokens, targets = our_batch(rng, model, 2, 9)
    losses, all_grads = [], []
    for m in (model, rounding(model)):
        ops = Tuning(fast.Fast(threads=2))
        ops.seed = 7
        grads = Weights(adapter.table)
        wanted = AdapterGradients(grads, frozenset(weights))
        loss, saved = m.forward(ops, weights, tokens, targets, wanted, Dropout(3, 1))
        m.backward(ops, weights, saved, wanted)
        losses.append(loss)
        all_grads.append(grads.flat)
    assert losses[0] == losses[1]
    assert 1e-4 < relative(all_grads[1], all_grads[0]) < TOLERANCE


# Runs


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        write_text(folder / "text.txt")
        yield folder


def go(place, name, report=None, saved="bfloat16", **changes):
    settings = TINY | {"source": str(place / "text.txt"), "saved_activations": saved} | changes
    return train(out=place / name, report=report or Quiet(), **settings)


def test_going_on_gives_the_same_bits(place):
    """With dropout and two micro-batches a step; and what is told of the memory is less."""
    reports = {saved: Quiet() for saved in ("float32", "bfloat16")}
    for saved, report in reports.items():
        go(place, saved, report, saved)
    assert go(place, "resumed", Stops(7)).step == 7
    settings = {k: v for k, v in TINY.items() if k != "preset"}
    assert train(out=place / "resumed", report=Quiet(), resume=True, **settings).step == 12
    whole, resumed = trained(place / "bfloat16"), trained(place / "resumed")
    assert whole == resumed
    plain = trained(place / "float32")["records"]
    assert whole["records"][1]["loss"] == plain[1]["loss"]  # of the first step
    assert whole["records"][1]["grad_norm"] != plain[1]["grad_norm"]
    assert whole["records"][-1]["loss"] == pytest.approx(plain[-1]["loss"], rel=1e-2)
    told = [
        float(re.search(r"activations ([\d.]+) kB", "\n".join(r.said))[1]) for r in reports.values()
    ]
    assert told[1] < told[0]


def test_a_run_may_change_it_when_it_goes_on(place):
    assert go(place, "changed", Stops(5), saved="float32").step == 5
    assert go(place, "changed", resume=True).step == 12


def test_other_types_are_refused(place):
    with pytest.raises(TenaraiError, match="it may be float32, bfloat16"):
        go(place, "other", saved="float16")
