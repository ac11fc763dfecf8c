"""Training: it learns, it repeats itself, and what goes wrong is said and loses nothing."""

import errno
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from filelock import FileLock

import tenarai
from tenarai.config import Optimiser
from tenarai.errors import TenaraiError
from tenarai.io.atomic import WriteError
from tenarai.io.checkpoint import Checkpoint
from tenarai.io.checkpoint_folder import list_checkpoints
from tenarai.models.table import Param, Weights
from tenarai.ops import Fast, reference
from tenarai.train import memory, peak, state
from tenarai.train.metrics import read_metrics
from tenarai.train.optim import AdamW, clip_scale, global_norm
from tenarai.train.run import train
from tiny import TINY, Quiet, trained, write_text


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_text(tmp_path / "text.txt")


@pytest.fixture
def run(text, tmp_path):
    """A tiny run into tmp_path/NAME with changes to TINY; → its result, its report beside."""

    def run(name="run", **changes):
        report = Quiet()
        settings = TINY | {"source": str(text)} | changes
        result = train(out=tmp_path / name, report=report, **settings)
        return result, report

    return run


def test_learns(run, tmp_path):
    result, report = run(steps=60, lr=1e-2, dropout=0.0, sample_every=30, tensorboard=True)
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert records[0]["step"] == 0 and records[0]["val_loss"] == pytest.approx(math.log(256), 0.02)
    assert result.val_loss < 2.5 < records[0]["val_loss"]
    assert result.step == 60 and result.best_val_loss <= result.val_loss
    assert result.memory_taken is None or result.tokens_per_s > 0
    assert [r["step"] for r in records] == list(range(61))
    assert set(records[-1]) >= {"loss", "lr", "grad_norm", "tokens", "tokens_per_s", "val_loss"}
    assert (tmp_path / "run" / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "run" / "samples.txt").read_text().count("--- step ") == 2  # 0 and 30
    assert any((tmp_path / "run" / "tensorboard").iterdir())
    assert any("memory:" in line for line in report.said)


def test_public_function_and_reference_ops(text, tmp_path):
    """tenarai.train itself; in NumPy, the first loss is the kernels' to their precision."""
    settings = TINY | {"source": str(text), "steps": 2, "dropout": 0.1}
    slow = tenarai.train(out=tmp_path / "slow", report=Quiet(), ops=reference, **settings)
    fast = tenarai.train(out=tmp_path / "fast", report=Quiet(), **settings)
    assert slow.loss == pytest.approx(fast.loss, rel=1e-5)


def test_mfu_is_of_the_faster_product(run, tmp_path, monkeypatch):
    """Beside a slow BLAS alone, the kernels would use more than the machine has."""
    monkeypatch.setattr(peak, "gemm_peak", lambda threads: 1e-3)
    result, report = run(steps=3)
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert all(0 < r["mfu"] < 1 for r in records if "mfu" in r) and 0 < result.mfu < 1
    assert any("MFU is of it" in line for line in report.said)
    monkeypatch.setattr(peak, "gemm_peak", lambda threads: 1e6)
    assert peak.best_product(Fast(1)) == 1e6
    assert peak.best_product(reference) == 1e6  # which has no kernels
    monkeypatch.setattr(peak, "gemm_peak", lambda threads: None)
    assert peak.best_product(reference) is None and peak.best_product(Fast(1)) > 0


def test_a_peak_measured_beside_other_programs_is_taken_again(run, tmp_path, monkeypatch):
    """Else a step that they leave alone would use more than the machine has."""
    monkeypatch.setattr("tenarai.train.build.best_product", lambda ops: 1e-3)
    result, _ = run(steps=3)
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert all(0 < r["mfu"] <= 1 for r in records if "mfu" in r) and 0 < result.mfu <= 1
    assert peak.exceeded(1.0, 2.0, reference) == 2.0  # which has no kernels to measure
    assert peak.exceeded(1.0, 1e-3, Fast(1)) > 1.0


def test_the_rate_of_a_product(monkeypatch):
    """All of its multiplications and additions, over the shortest call."""

    class Slow:
        now, times = 0.0, iter([3.0, 1.0, 2.0])

        def linear_forward(self, x, w, *, out):
            self.now += next(self.times)

    ops = Slow()
    monkeypatch.setattr(peak, "time", SimpleNamespace(perf_counter=lambda: ops.now))
    assert peak.kernels_peak(ops, size=100, seconds=5.0) == 2 * 100**3 / 1.0 / 1e9


def test_same_bits_twice(run, tmp_path):
    run("a")
    run("b")
    assert trained(tmp_path / "a") == trained(tmp_path / "b")
    run("c", seed=2)
    assert trained(tmp_path / "a") != trained(tmp_path / "c")


def test_accumulation_is_a_larger_batch(run):
    """Means of means: equal but for the order of float32 sums."""
    small = run("small", batch=2, accumulate=4, steps=4, dropout=0.0)[0]
    large = run("large", batch=8, accumulate=1, steps=4, dropout=0.0)[0]
    assert small.loss == pytest.approx(large.loss, rel=1e-5)
    other = run("other", batch=2, accumulate=1, steps=4, dropout=0.0)[0]
    assert other.loss != pytest.approx(large.loss, rel=1e-5)


def test_keeps_the_newest_and_the_best(run, tmp_path):
    run(keep=1, checkpoint_every=2, val_every=2, steps=8)
    steps = [int(p.stem[5:]) for p in list_checkpoints(tmp_path / "run" / "checkpoints")]
    losses = {r["step"]: r["val_loss"] for r in read_metrics(tmp_path / "run/metrics.jsonl")
              if r.get("val_loss") and r["step"]}  # fmt: skip
    assert set(steps) == {8, min(losses, key=losses.get)}


# The optimiser


def two_weights():
    return Weights([Param("b", (3,), 0.0), Param("w", (2, 4), 0.0, decay=True)])


def test_only_matrices_decay():
    params, grads = two_weights(), two_weights()
    params.flat[...] = 1
    optimiser = AdamW(params.table, Optimiser(weight_decay=0.5))
    optimiser.step(reference, params, grads, lr=0.1, step=1, grad_scale=1.0)
    assert params["w"] == pytest.approx(np.full((2, 4), 0.95))
    assert np.array_equal(params["b"], np.ones(3))


def test_clipping():
    grads = two_weights()
    grads["w"][...] = 3
    grads["b"][...] = -4
    norm = global_norm(reference, grads)
    assert norm == pytest.approx(math.sqrt(8 * 9 + 3 * 16))
    assert clip_scale(norm, 1.0) * norm == pytest.approx(1.0)
    assert clip_scale(0.5, 1.0) == 1.0 and clip_scale(norm, 0) == 1.0


# What goes wrong


def test_not_a_number_stops_and_keeps_the_last_checkpoint(run, tmp_path):
    run(steps=8)
    last = list_checkpoints(tmp_path / "run" / "checkpoints")[0]
    before = last.read_bytes()
    with pytest.raises(TenaraiError, match=f"after step .*{last}.*lower --lr"):
        run(steps=12, resume=True, lr=1e30)
    assert list_checkpoints(tmp_path / "run" / "checkpoints")[0] == last
    assert last.read_bytes() == before


def test_bad_weights_are_never_saved(run, tmp_path):
    with pytest.raises(TenaraiError, match=r"after step 1 .*no checkpoint was written"):
        run(lr=1e30, clip=0.0, warmup=0, val_every=0, sample_every=0, checkpoint_every=1)
    assert not list_checkpoints(tmp_path / "run" / "checkpoints")


def test_full_disk_at_a_checkpoint(run, tmp_path, monkeypatch):
    real, calls = state.write_checkpoint, []

    def full(path, arrays, meta):
        calls.append(path)
        if len(calls) == 2:
            raise WriteError(path, OSError(errno.ENOSPC, "No space left on device"))
        return real(path, arrays, meta)

    monkeypatch.setattr(state, "write_checkpoint", full)
    with pytest.raises(TenaraiError, match=r"step 8: .*disk is full.*last good.*00000004"):
        run()
    assert list_checkpoints(tmp_path / "run" / "checkpoints")[0].name == "step-00000004.tenarai"
    result, _ = run(resume=True)  # the second time there is room
    assert result.step == 12


def test_full_disk_in_the_metrics(run, monkeypatch, tmp_path):
    from tenarai.train import metrics

    def full(record):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(metrics, "_line", full)
    with pytest.raises(WriteError, match="metrics.jsonl: the disk is full"):
        run()


def test_a_folder_that_holds_a_run(run):
    run(steps=4)
    with pytest.raises(TenaraiError, match="already holds a run.*--resume"):
        run(steps=4)


def test_two_processes_in_one_folder(run, tmp_path):
    (tmp_path / "run").mkdir()
    with (
        FileLock(str(tmp_path / "run" / ".lock")),
        pytest.raises(TenaraiError, match="another process is training"),
    ):
        run()


def test_a_folder_that_cannot_be(run, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(TenaraiError, match="cannot write .*file"):
        run("file/run")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "text.txt"),
        (b"short", "too short"),
        (bytes(range(256)) * 20, "text.txt"),
    ],
)
def test_bad_text_leaves_no_folder(run, text, tmp_path, content, message):
    text.write_bytes(content)
    with pytest.raises(TenaraiError, match=message):
        run()
    assert not (tmp_path / "run").exists()


def test_memory_that_the_machine_lacks():
    table = [Param("w", (1000, 1000), 0.0)]
    need = memory.need(table, activations=10**9, tokens=10**12, process=memory.resident())
    assert need.weights == need.gradients == need.moments / 2 == 4 * 10**6
    memory.check_fits(need, 2 * 10**9, batch=8, recompute=False)  # mapped tokens need not fit
    with pytest.raises(TenaraiError, match=r"1\.00 GB.*500 MB free.*--batch 4.*--recompute"):
        memory.check_fits(need, 5 * 10**8, batch=8, recompute=False)
    with pytest.raises(TenaraiError, match=r"try a shorter --context"):
        memory.check_fits(need, 5 * 10**8, batch=1, recompute=True)


def test_a_container_s_limit(tmp_path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 600\ninactive_file 50\n")
    assert memory._cgroup_free(tmp_path) == 350
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._cgroup_free(tmp_path) is None


def test_cut_off_lines_of_metrics_are_left_out(tmp_path):
    file = tmp_path / "m.jsonl"
    file.write_text(json.dumps({"step": 1, "loss": 2.0}) + '\n{"step": 2, "lo')
    assert read_metrics(file) == [{"step": 1, "loss": 2.0}]


def test_the_models_settings_reach_the_model(text, tmp_path):
    tiny = TINY | {"source": str(text), "steps": 1, "warmup": 0, "val_every": 0}
    for name, given in (("plain", {}), ("full", {"bias": True, "gelu": "tanh"})):
        train(out=tmp_path / name, report=Quiet(), **tiny | given)
        with Checkpoint(list_checkpoints(tmp_path / name / "checkpoints")[0]) as c:
            config = c.meta["model"]
            biases = [key for key in c.entries if key.endswith("bias")]
        assert (config["bias"], config["gelu"]) == ((name == "full"), "tanh" if given else "none")
        assert bool(biases) == (name == "full")
