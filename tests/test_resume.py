"""Going on gives the bits of a run that was never stopped, whatever stopped it.

TENARAI_KILLS=10 kills ten times instead of twice.
"""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tenarai.config import from_values, override, resolve
from tenarai.errors import TenaraiError
from tenarai.io.checkpoint_folder import list_checkpoints
from tenarai.train.interrupt import Interrupt
from tenarai.train.run import train
from tiny import TINY, Quiet, flags, trained, write_text


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a text, and the run that was never stopped in whole/."""
    folder = tmp_path_factory.mktemp("resume")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        write_text(folder / "text.txt")
        go(folder, "whole")
        yield folder


def go(place, name, report=None, **changes):
    settings = TINY | {"source": str(place / "text.txt")} | changes
    return train(out=place / name, report=report or Quiet(), **settings)


class Stops(Quiet):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, step, number=signal.SIGINT):
        super().__init__()
        self.at, self.number = step, number

    def step(self, record, steps, left):
        if record["step"] == self.at:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("step", [1, 4, 7, 11])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_first(place, step, number):
    name = f"signal-{step}-{number}"
    report = Stops(step, number)
    result = go(place, name, report)
    assert result.signal == number and result.step == step
    assert any("--resume" in line for line in report.said)
    assert f"{step:08d}" in list_checkpoints(place / name / "checkpoints")[0].name
    assert go(place, name, resume=True).signal == 0
    assert same(place, name)


def same(place, name):
    a, b = trained(place / "whole"), trained(place / name)
    assert a["records"] == b["records"]
    assert a["samples"] == b["samples"]
    return a == b


def test_twice_stopped(place):
    go(place, "twice", Stops(3))
    go(place, "twice", Stops(9), resume=True)
    go(place, "twice", resume=True)
    assert same(place, "twice")


def test_killed_at_any_moment(place):
    """kill -9 of the program: before, in and between steps, and while it writes."""
    rng = random.Random(int.from_bytes(os.urandom(4), "little"))
    kills = int(os.environ.get("TENARAI_KILLS", "2"))
    command = [sys.executable, "-m", "tenarai", "train", str(place / "text.txt"), "--resume",
               *flags(), "--out", str(place / "killed")]  # fmt: skip
    for _ in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        wait_for_steps(process, rng.choice([0, 1, 3]), rng)
        process.kill()
        process.communicate()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert same(place, "killed")


def wait_for_steps(process, steps, rng):
    """Until so many lines of steps came, and then a little."""
    seen = 0
    while seen < steps and (line := process.stdout.readline()):
        seen += line.startswith(b"step ")
    time.sleep(rng.uniform(0, 0.1))


def test_a_broken_newest_checkpoint_is_told_and_the_one_before_is_used(place):
    go(place, "broken", Stops(10))
    newest, before = list_checkpoints(place / "broken" / "checkpoints")[:2]
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    report = Quiet()
    go(place, "broken", report, resume=True)
    assert any(newest.name in s and "checksum" in s for s in report.said)
    assert any(before.name in s and "going on" in s for s in report.said)
    assert same(place, "broken")


def test_all_checkpoints_broken(place):
    go(place, "hopeless", Stops(6))
    for path in list_checkpoints(place / "hopeless" / "checkpoints"):
        path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(TenaraiError, match="none of 2 checkpoints is whole"):
        go(place, "hopeless", resume=True)


def test_nothing_to_resume_begins(place):
    assert go(place, "fresh", resume=True).step == 12
    assert same(place, "fresh")


def test_a_finished_run_does_nothing(place):
    go(place, "done")
    before = trained(place / "done")
    assert go(place, "done", resume=True).step == 12
    assert trained(place / "done") == before


def test_a_changed_text_is_refused(place):
    other = write_text(place / "other.txt")
    go(place, "changed", Stops(5), source=str(other))
    other.write_text("something else. " * 500)
    with pytest.raises(TenaraiError, match="go on in the data|another tokenizer"):
        go(place, "changed", resume=True, source=str(other))


def test_what_may_change_when_a_run_goes_on():
    settings = resolve("char")
    assert override(settings, given={"steps": 3000, "lr": 1e-4}).schedule.steps == 3000
    assert override(settings, "char") == settings
    for given in ({"width": 64}, {"batch": 3}, {"seed": 9}, {"source": "x"}):
        with pytest.raises(TenaraiError, match="cannot become"):
            override(settings, given=given)
    with pytest.raises(TenaraiError, match="cannot become"):
        override(settings, "gpt2")
    assert from_values({}) == resolve("small")


def test_the_second_interrupt_stops_at_once():
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
