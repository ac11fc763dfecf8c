"""The benchmarks: what they print, and that both sides do the same work. No time is asserted."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tenarai.bench import limits, ops, ops_ours, train
from tenarai.bench.peer import Peer, PeerError
from tenarai.cli import main
from tenarai.errors import TenaraiError
from tenarai.models.gpt2 import GPT2, GPT2Config
from tenarai.models.llama import Llama, LlamaConfig
from tenarai.models.rope import Rope

kernels = pytest.mark.skipif(
    importlib.util.find_spec("tenarai._kernels") is None, reason="needs the compiled core"
)
torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="needs the peer: pip install torch"
)
TINY = GPT2Config(vocab_size=61, context=24, layers=2, heads=2, width=32)


@pytest.fixture(autouse=True)
def small_limits(monkeypatch):
    """Measured memory stays small: the figure does not matter here."""
    monkeypatch.setattr(limits, "BANDWIDTH_BYTES", 1 << 16)
    monkeypatch.setattr(ops, "BANDWIDTH_BYTES", 1 << 16)


def tiny(**options):
    return train.TrainBenchmark(
        TINY, **({"batch": 2, "time": 8, "threads": 1, "steps": 1} | options)
    )


@kernels
def test_command_prints_json_last(capsys):
    shape = ["--preset", "char", "-b", "1", "-T", "8"]
    arguments = ["bench", "train", *shape, "--threads", "1", "--steps", "1"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    result = json.loads(text.strip().splitlines()[-1])
    assert "s/step" in text and result["preset"] == "char"
    assert main([*arguments, "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    result = json.loads(lines[0])
    assert result["config"]["width"] == 128 and result["config"]["vocab_size"] == 65
    assert result["batch"] == 1 and result["time"] == 8 and result["threads"] == 1
    assert result["tokens_per_s"] == pytest.approx(8 / result["seconds"])
    assert result["speedup_vs_eager"] is None and result["speedup_vs_compile"] is None


@kernels
def test_figures_hang_together():
    result = train.run(tiny(steps=3))
    weights = sum(param.size for param in GPT2(TINY).table())
    flop = 16 * (6 * weights + 12 * 2 * 32 * 8)
    assert result["gflop_per_step"] == pytest.approx(flop / 1e9)
    assert len(result["all_seconds"]) == 3 and len(result["losses"]) == 4
    assert result["seconds"] == sorted(result["all_seconds"])[1]
    assert result["gflops"] == pytest.approx(flop / result["seconds"] / 1e9)
    limit = result["limit"]["gemm_gflops"]
    assert result["fraction_of_limit"] == pytest.approx(result["gflops"] / limit)
    assert result["peak_bytes"] > 16 * weights
    assert {"linear_forward", "attention_backward", "adamw_step"} <= set(result["where"])


@kernels
@torch
@pytest.mark.parametrize("recompute", [False, True])
def test_pytorch_does_the_same_work(recompute):
    result = train.run(tiny(steps=4, peers=("eager",), recompute=recompute))
    peer = result["peers"]["eager"]
    assert peer["loss_difference"] < 1e-5
    assert np.allclose(result["losses"], peer["losses"], rtol=1e-5)
    assert len(set(result["losses"])) == 5  # steps change the weights
    assert result["speedup_vs_eager"] == pytest.approx(peer["seconds"] / result["seconds"])


@kernels
@torch
def test_pytorch_in_bfloat16_rounds_and_does_the_same_work():
    peer = train.run(tiny(steps=3, peers=("eager-bfloat16",)))["peers"]["eager-bfloat16"]
    assert 1e-6 < peer["loss_difference"] < 1e-3


@kernels
@torch
def test_pytorchs_gpt2_of_the_character_recipe_does_the_same_work():
    config = replace(TINY, bias=False, gelu="none")
    result = train.run(replace(tiny(steps=3, peers=("eager",)), config=config))
    assert result["peers"]["eager"]["loss_difference"] < 1e-5


@kernels
@torch
def test_the_character_recipe_is_measured(tmp_path, rng):
    """Both sides begin at the same weights and see the same batches: two steps on, one loss."""
    text = tmp_path / "text.txt"
    text.write_text("".join(map(chr, rng.integers(97, 123, 20_000))))
    script = Path(__file__).parents[1] / "benchmarks/nanogpt_recipe.py"
    command = [sys.executable, script, text, "--steps", "2", "--every", "1", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    curves = json.loads(done.stdout.splitlines()[-1])["curves"]
    losses = [[p["val_loss"] for p in curves[side]] for side in ("ours", "torch")]
    assert len(losses[0]) == 2 and np.allclose(losses[0], losses[1], rtol=1e-5)


@kernels
@torch
@pytest.mark.parametrize("tied", [False, True])
def test_pytorchs_llama_does_the_same_work(tied):
    config = LlamaConfig(
        vocab_size=61, context=24, layers=2, heads=4, kv_heads=2, head_size=8, width=32, hidden=64,
        rope=Rope(8, 500.0), tied=tied,
    )  # fmt: skip
    shape = {"batch": 2, "time": 8, "threads": 1, "steps": 3}
    result = train.run(train.TrainBenchmark(config, **shape, peers=("eager",)))
    assert result["peers"]["eager"]["loss_difference"] < 1e-5
    assert result["model"] == "Llama" and result["limit"]["gemm_gflops"] > 0
    other = replace(config, qk_norm=True)
    with pytest.raises(TenaraiError, match="plain Llama"):
        train.run(train.TrainBenchmark(other, **shape, peers=("eager",)))


@kernels
@torch
def test_a_peer_that_does_other_work_gets_no_speed(monkeypatch):
    def other(module, threads, configuration, **options):
        if module.endswith("torch_peer"):
            configuration["optimiser"] = configuration["optimiser"] | {"lr": 1e-3}
        return Peer(module, threads, configuration, **options)

    monkeypatch.setattr(train, "Peer", other)
    with pytest.raises(TenaraiError, match="did not do the same work"):
        train.run(tiny(steps=3, peers=("eager",)))


@kernels
@torch
@pytest.mark.parametrize("op", ["linear M=256 I=768 O=768", "layer_norm M=256", "gelu M=256"])
def test_ops_beside_pytorch(op, monkeypatch):
    monkeypatch.setattr(ops, "SECONDS", 0.0)
    monkeypatch.setattr(ops, "ROUNDS", 1)
    result = ops.run(1, op, torch=True)
    (row,) = result["ops"]
    for kind in ("forward", "backward"):
        d = row[kind]
        assert d["rate"] > 0 and d["fraction_of_limit"] == pytest.approx(d["rate"] / d["limit"])
        assert d["speedup"] == pytest.approx(d["torch_seconds"] / d["seconds"])
    assert op.split()[0] in ops.table(result)


@torch
@pytest.mark.parametrize("op", ["gated_linear_attention", "delta_rule"])
def test_pytorchs_linear_attention_does_the_same_work(op, rng):
    from torch import from_numpy

    from tenarai.bench.ops_torch import chunked
    from tenarai.ops import reference

    q, k, v = rng.standard_normal((3, 2, 128, 3, 5))  # (B, T, H, D)
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    beta, g = rng.random((2, 128, 3)), -rng.random((2, 128, 3))
    gates = [beta, g] if op == "delta_rule" else [g]
    y = getattr(reference, op + "_forward")(q, k, v, *gates, scale=1)[0]
    theirs = chunked(*(from_numpy(a.swapaxes(1, 2).copy()) for a in (q, k, v, *gates[::-1])))
    assert np.abs(theirs.numpy().swapaxes(1, 2) - y).max() < 1e-12


@kernels
@torch
def test_linear_attention_beside_pytorch(monkeypatch):
    monkeypatch.setattr(ops, "SECONDS", 0.0)
    monkeypatch.setattr(ops, "ROUNDS", 1)
    (row,) = ops.run(1, "delta_rule", torch=True)["ops"]
    for kind in ("forward", "backward"):
        assert row[kind]["rate"] > 0 and row[kind]["limit"] is None
        assert row[kind]["speedup"] == row[kind]["torch_seconds"] / row[kind]["seconds"]


@kernels
@pytest.mark.parametrize("products", ["plain", "words"])
def test_ops_make_their_products_as_asked(products, monkeypatch):
    monkeypatch.setattr(ops, "SECONDS", 0.0)
    monkeypatch.setattr(ops, "ROUNDS", 1)
    asked = []

    def peer(module, threads, settings):
        asked.append(settings)
        return Peer(module, threads, settings)

    monkeypatch.setattr(ops, "Peer", peer)
    result = ops.run(1, "attention B=4 T=64", products=products)
    assert f"products: {products}" in ops.table(result)
    assert ops_ours.kernels(asked[0]).products == products


def test_work_of_a_step_is_counted_once_per_product():
    """The products' operations are 6·N a token, but for embeddings that multiply nothing."""
    rows, c = 256, GPT2Config()
    products = limits.gpt2_products(rows, c.layers, c.width, c.vocab_size)
    matrices = sum(p.size for p in GPT2(c).table() if len(p.shape) == 2 and p.name != "wpe.weight")
    assert sum(3 * p.count * p.flops for p in products) == 6 * rows * matrices


def test_work_of_a_llama_is_counted_once_per_product():
    c = LlamaConfig(61, 24, 3, 4, 2, 8, 40, 64, Rope(8), tied=True)
    matrices = sum(p.size for p in Llama(c).table() if len(p.shape) == 2)
    assert sum(3 * p.count * p.flops for p in limits.llama_products(5, c)) == 30 * matrices


def test_rate_is_all_operations_over_all_seconds():
    times = {"best": 1.0, "median": 2.0}
    answer = {"flops": 10**9, "forward": times, "dx": times, "dw": times}
    answers = [answer | {"count": 1}, answer | {"count": 3, "flops": 2 * 10**9}]
    assert limits.total_rate(answers, "best") == pytest.approx((3 + 18) / 12)
    assert limits.total_rate(answers, "median") == pytest.approx((3 + 18) / 24)


def test_products_of_the_limit_are_the_gradients(rng):
    operands = limits.Operands(limits.Product("x", 1, 5, 3, 4))
    operands.forward(), operands.input_gradient(), operands.weight_gradient()
    assert np.allclose(operands.y, np.einsum("ni,oi->no", operands.x, operands.w))
    assert np.allclose(operands.dx, np.einsum("no,oi->ni", operands.dy, operands.w))
    assert np.allclose(operands.dw, np.einsum("no,ni->oi", operands.dy, operands.x))


def test_a_peer_tells_why_it_failed(tmp_path, monkeypatch):
    (tmp_path / "fails.py").write_text("raise SystemExit('no such luck')")
    (tmp_path / "refuses.py").write_text(
        "from tenarai.bench.peer import serve\n"
        "def configure(request):\n    raise ValueError('no ' + request['what'])\n"
        "raise SystemExit(serve(configure, 'refuses'))"
    )
    monkeypatch.setenv("PYTHONPATH", ":".join([str(tmp_path), *sys.path]))
    with pytest.raises(PeerError, match="fails: the process ended: no such luck"):
        Peer("fails", 1, {})
    with pytest.raises(PeerError, match="refuses: ValueError: no idea"):
        Peer("refuses", 1, {"what": "idea"})


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("train --preset char -T 65", "the model's context is 64"),
        ("train --preset gpt5", "gpt5"),
        ("ops --only knitting", "no op's name contains it"),
    ],
)
def test_wrong_questions(arguments, message, capsys):
    assert main(["bench", *arguments.split()]) == 1
    out = capsys.readouterr()
    assert message in out.err and not out.out
