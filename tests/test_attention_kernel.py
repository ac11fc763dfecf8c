"""The attention kernels with all options against the reference, on every instruction set."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from attention_cases import Array, Arrays, Case, case, documents, drawn
from tenarai.ops import reference
from tenarai.ops.attention_options import alibi_slopes

pytest.importorskip("tenarai._kernels", reason="the compiled core is not built")
from tenarai.ops import fast

# float32 against float64 from the same inputs: the kernels' own rounding, 6e-8 an operation and
# up to some hundred in a sum; a lost or doubled key is 1e-3 and more.
TOLERANCE = 2e-5

HEADS = (1, 5, 16, 17, 37, 64, 80, 96)
RNG = np.random.default_rng(12)
EDGES = [
    case(RNG, "one", (1, 1, 1, 2, 1, 16), sinks=True, soft_cap=2.0, alibi=alibi_slopes(2)),
    case(RNG, "one-key-documents", (1, 130, 130, 1, 1, 9), prefix=2, off_by_one=True,
         documents=np.arange(130)[None]),
    case(RNG, "documents-and-past", (2, 70, 200, 2, 1, 20), documents=documents(RNG, 2, 200)),
    case(RNG, "two-intervals", (1, 300, 300, 2, 1, 20), window=3, prefix=70, sinks=True),
    case(RNG, "two-intervals-in-documents", (1, 300, 300, 1, 1, 8), window=30, prefix=20,
         documents=documents(RNG, 1, 300)),
    case(RNG, "window-of-one", (1, 100, 100, 2, 2, 33), window=1, sinks=True),
    case(RNG, "cross", (2, 150, 37, 4, 2, 24), causal=False, alibi=alibi_slopes(4)),
    case(RNG, "padded", (3, 66, 70, 2, 1, 16), causal=False, lengths=np.array([70, 3, 0])),
    case(RNG, "padded-window", (2, 140, 140, 2, 1, 16), window=9, lengths=np.array([140, 50])),
    case(RNG, "wide-head", (1, 70, 90, 2, 1, 256), soft_cap=5.0, sinks=True),
    case(RNG, "wide-odd-head", (1, 33, 65, 2, 1, 203), alibi=alibi_slopes(2)),
    case(RNG, "far-alibi", (1, 260, 260, 2, 1, 16), alibi=np.array([4.0, 0.25])),
]  # fmt: skip
CASES = EDGES + [drawn(seed, (1, 2, 9, 33, 64, 65, 127, 200), HEADS) for seed in range(60)]
Results = dict[str, Array]


def results(ops: Any, c: Case, x: Arrays) -> Results:
    y, saved = c.forward(ops, x)
    dy = np.random.default_rng(3).standard_normal(y.shape).astype(np.float32).astype(y.dtype)
    return {"y": y, "lse": saved[4]} | c.backward(ops, dy, saved)


@pytest.fixture(scope="module")
def expected() -> list[Results]:
    return [results(reference, c, c.inputs) for c in CASES]


@pytest.fixture(
    scope="module",
    params=[(isa, threads) for isa in fast.available_isas() for threads in (1, 3)],
    ids=lambda param: f"{param[0]}-{param[1]}threads",
)
def ops(request: pytest.FixtureRequest) -> Iterator[fast.Fast]:
    isa, threads = request.param
    yield fast.Fast(threads=threads, isa=isa)


def view(a: Array) -> Array:
    """A float32 copy with a gap behind each row, at no multiple of 64 bytes."""
    wide = np.full((*a.shape[:-1], a.shape[-1] + 3), np.nan, np.float32)
    wide[..., 1 : a.shape[-1] + 1] = a
    return wide[..., 1 : a.shape[-1] + 1]


def error(got: Array, want: Array) -> float:
    """Relative, where `want` is not 0 but for rounding (one key to see: dq = dk = 0)."""
    norm = float(np.linalg.norm(want))
    return float(np.linalg.norm(got - want)) / max(norm, 0.1 * np.sqrt(want.size))


def test_against_the_reference(ops: fast.Fast, expected: list[Results]) -> None:
    wrong = []
    for c, want in zip(CASES, expected, strict=True):
        x = {n: view(a) if a.ndim == 4 else a.astype(np.float32) for n, a in c.inputs.items()}
        got = results(ops, c, x)
        errors = {n: error(got[n].astype(np.float64), want[n]) for n in want}
        wrong += [(c.name, n, e) for n, e in errors.items() if not e <= TOLERANCE]
    assert not wrong


def test_the_same_bits_again(ops: fast.Fast) -> None:
    for c in CASES[:20]:
        x = {n: a.astype(np.float32) for n, a in c.inputs.items()}
        for a, b in zip(results(ops, c, x).values(), results(ops, c, x).values(), strict=True):
            assert np.array_equal(a, b), c.name


def test_dsinks_may_be_left_out(ops: fast.Fast) -> None:
    c = EDGES[0]
    x = {n: a.astype(np.float32) for n, a in c.inputs.items()}
    y, saved = c.forward(ops, x)
    ops.attention_backward(y, saved)


@pytest.mark.parametrize(
    "bad",
    [
        {"documents": np.array([[0, 0, 3, 3]], np.int32)},
        {"documents": np.zeros((1, 3), np.int32)},
        {"lengths": np.array([5], np.int32)},
        {"lengths": np.array([-1], np.int32)},
        {"prefix": np.array([-1], np.int32)},
        {"alibi": np.ones(3, np.float32)},
        {"sinks": np.ones(3, np.float32)},
        {"sinks": np.ones(2, np.float64)},
        {"window": 0},
        {"products": "int8"},
    ],
)
def test_the_kernel_itself_refuses(bad: dict[str, Any]) -> None:
    """Bounds that the kernel relies on are checked beside it, whoever calls."""
    q = np.zeros((1, 4, 2, 8), np.float32)
    options = dict(sinks=None, scale=1.0, causal=True, window=None, documents=None, lengths=None,
                   prefix=None, soft_cap=0.0, alibi=None, products="plain")  # fmt: skip
    machine = fast.Fast(threads=1).machine
    machine.attention_forward(q, np.zeros((1, 2, 4), np.float32), q, q, q, *options.values())
    with pytest.raises((ValueError, TypeError)):
        values = (options | bad).values()
        machine.attention_forward(q, np.zeros((1, 2, 4), np.float32), q, q, q, *values)


@pytest.mark.parametrize("far", [0, 1, 2, 3, 5, 63, 64, 69])
def test_one_key_far_above_all_others(ops: fast.Fast, far: int) -> None:
    """Its value is the answer. Exponentials of any lesser greatest score would overflow."""
    q = np.zeros((1, 70, 1, 8), np.float32)
    k, v = q.copy(), RNG.standard_normal(q.shape).astype(np.float32)
    q[..., 0] = 20
    k[0, far, 0, 0] = 20  # a score of 400, the others' are 0
    y, _ = ops.attention_forward(q, k, v, scale=1.0, causal=False)
    assert np.array_equal(y[0, :, 0], np.broadcast_to(v[0, far, 0], (70, 8)))
