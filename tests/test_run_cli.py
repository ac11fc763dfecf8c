"""`tenarai run` as people and programs meet it: prompts in any encoding, options, what it says."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tenarai import cli
from tenarai.ops import fast
from tiny import flags, write_model, write_text

JAPANESE = "吾輩は猫である。名前はまだ無い。"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("run") / "model.tenarai")


def tenarai(*arguments, **environment):
    """The program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tenarai", *[a if type(a) is bytes else str(a) for a in arguments]],
        capture_output=True,
        env=os.environ | {"PYTHONUTF8": "0"} | environment,
        timeout=120,
    )


def run(model, *arguments, **environment):
    done = tenarai("run", "-m", model, "-n", 6, "--seed", 1, *arguments, **environment)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert b"Traceback" not in done.stderr
    return done


def test_a_shift_jis_prompt_on_a_shift_jis_console(model, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_bytes((JAPANESE + "\r\n").encode("cp932"))
    done = run(model, "-ngl", 20, "-f", file, PYTHONIOENCODING="cp932")
    assert done.stdout.startswith(JAPANESE.encode("cp932"))
    said = done.stderr.decode("cp932")
    assert f"{file}: 17 characters, read as Shift_JIS" in said
    assert said.count("-ngl 20: no GPU is used here") == 1
    assert "Penalties -> top_k -> tfs_z -> typical_p -> top_p -> min_p -> temperature" in said
    assert "n_ctx = 64, n_batch = 512, n_predict = 6, n_keep = 0" in said


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp932"])
def test_the_encoding_of_a_prompt_is_recognised_and_said(model, tmp_path, encoding):
    file = tmp_path / "prompt.txt"
    file.write_bytes(JAPANESE.encode(encoding))
    done = run(model, "-f", file, PYTHONIOENCODING="utf-8")
    assert done.stdout.decode().startswith(JAPANESE)
    label = {"utf-8": "UTF-8", "utf-8-sig": "UTF-8 with mark", "utf-16": "UTF-16"}
    assert f"read as {label.get(encoding, 'Shift_JIS')}" in done.stderr.decode()


@pytest.mark.parametrize("encoding", ["ascii", "cp932", "latin-1"])
def test_a_console_shows_what_it_can(model, encoding):
    done = run(model, "-p", "a猫é😀", PYTHONIOENCODING=encoding)
    assert done.stdout.startswith("a猫é😀".encode(encoding, "replace"))


def test_an_argument_that_is_not_in_the_locales_encoding(model):
    done = run(model, "-p", JAPANESE.encode("cp932"), PYTHONIOENCODING="utf-8", LC_ALL="C.UTF-8")
    assert done.stdout.decode().startswith(JAPANESE)
    assert b"-p: read as Shift_JIS" in done.stderr
    done = run(model, "-p", b"a\xff\xfeb", PYTHONIOENCODING="utf-8", LC_ALL="C.UTF-8")
    assert done.stdout.decode().startswith("a\ufffd\ufffdb")


def test_half_of_a_surrogate_pair_in_an_argument(model, capsys):
    assert cli.main(["run", "-m", str(model), "-n", "2", "-p", "a\ud83db"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("a\ufffdb") and "U+FFFD" in shown.err


def test_the_timings_are_aligned_and_add_up(model):
    done = run(model, "-p", "abc")
    lines = done.stderr.decode().splitlines()[-5:]
    names = [line.split(" = ")[0].strip() for line in lines]
    assert names == ["load time", "sample time", "prompt eval time", "eval time", "total time"]
    assert len({line.index("=") for line in lines}) == 1
    assert len({line.index(" ms") for line in lines}) == 1
    assert "6 runs" in lines[1] and "3 tokens" in lines[2] and "5 runs" in lines[3]
    for line in lines[1:4]:
        assert re.search(r"\d ms per token, +\d+\.\d\d tokens per second\)$", line)
    found = json.loads(run(model, "-p", "abc", "--json").stdout)
    parts = found["load_s"] + found["prompt_s"] + found["evaluation_s"] + found["sample_s"]
    assert found["total_s"] == pytest.approx(parts)
    assert found["prompt_tokens"] == 3 and found["samples"] == found["tokens"] == 6


def test_options_change_the_chain_and_the_text(model):
    done = run(model, "-p", "ab", "--samplers", "top_k;temperature", "--top-k", 1, "--no-echo")
    assert b"sampling order: Penalties -> top_k -> temperature\n" in done.stderr
    assert not done.stdout.startswith(b"ab")

    def ids(*arguments):
        return json.loads(run(model, "-p", "ab", "--json", *arguments).stdout)["token_ids"]

    greedy = ids("--temp", 0)
    assert ids("--top-k", 1) == greedy != ids("--temp", 50, "--top-k", 0, "--min-p", 0)
    assert ids("--temp", 0, "-l", f"{greedy[0]}-inf")[0] != greedy[0]
    assert ids("--temp", 0, "-l", "65+1e6") == [65] * 6
    assert len(set(ids("--temp", 0, "-l", "65+1000", "--presence-penalty", 2000))) == 6
    for option in ("--mirostat 2", "--mirostat 1", "--dry-multiplier 1", "--xtc-probability 0.5",
                   "--dynatemp-range 0.5", "--tfs 0.9 --typical 0.9"):  # fmt: skip
        assert len(ids(*option.split())) == 6


def test_guesses_and_the_caches_type(model):
    def document(*arguments):
        done = run(model, "-p", "abababab", "--temp", 0, "-n", 40, "--json", *arguments)
        return json.loads(done.stdout)

    alone = document()
    assert alone["guessed"] == 0 and document("--cache-type", "float32")["tokens"] == 40
    for guesses in (["--lookup"], ["--draft", model]):
        found = document(*guesses)
        assert found["token_ids"] == alone["token_ids"], guesses
        assert found["guessed"] >= found["accepted"] > 0, guesses
    done = tenarai("run", "-m", model, "-p", "a", "--lookup", "--draft", model)
    assert done.returncode == 2 and b"not both" in done.stderr


def test_a_full_context_ends_the_text_or_shifts(model):
    done = run(model, "-p", "abcd", "-n", 100, "--temp", 0)
    assert b"ended: the context of 64 tokens is full" in done.stderr
    assert b"   61 runs" in done.stderr  # samples: the last one's token has no room any more
    done = run(model, "-p", "abcd", "-n", 100, "--temp", 0, "--context-shift")
    assert b"is full" not in done.stderr and b"  100 runs" in done.stderr
    done = tenarai("run", "-m", model, "-p", "abcd" * 20)
    assert done.returncode == 1 and b"the prompt has 80 tokens, the context holds 64" in done.stderr


def test_a_new_seed_each_time_unless_one_is_given(model):
    arguments = ["run", "-m", model, "-p", "ab", "-n", 3, "--json"]
    seeds = {json.loads(tenarai(*arguments).stdout)["seed"] for _ in range(2)}
    assert len(seeds) == 2


@pytest.mark.parametrize(
    "arguments, status, message",
    [
        (["--top-p", "2"], 1, "top_p is 2.0, it must be above 0 and at most 1"),
        (["--samplers", "top_q"], 1, "top_q"),
        (["-l", "x"], 1, "15043+1"),
        (["-f", "/nowhere"], 1, "/nowhere: is not there"),
        (["-f", "/tmp"], 1, "/tmp: is a folder"),
        (["-c", "100000"], 1, "context is 100000"),
        (["--grammar", 'root ::= "a"'], 1, "ends the text"),
        (["--grammar", "a", "--json-schema", "{}"], 2, "not both"),
        (["--activations", "int9"], 2, "float32"),
    ],
)
def test_bad_options_are_one_line(model, arguments, status, message, capsys):
    if "--grammar" in arguments:
        pytest.importorskip("llguidance")
    assert cli.main(["run", "-m", str(model), *arguments]) == status
    shown = capsys.readouterr()
    assert message in shown.err and "Traceback" not in shown.err and not shown.out


def test_nothing_is_printed_where_the_core_is_missing(model, monkeypatch, capsys):
    monkeypatch.setattr(fast, "_kernels", None)
    monkeypatch.setattr(fast, "_why_missing", "not built", raising=False)
    assert cli.main(["run", "-m", str(model), "-p", "the prompt"]) == 1
    shown = capsys.readouterr()
    assert not shown.out and "compiled core" in shown.err and "the prompt" not in shown.err


def test_a_broken_newest_checkpoint_is_told(tmp_path):
    text = write_text(tmp_path / "text.txt")
    assert tenarai("train", text, *flags(), "--out", tmp_path / "run",
                   XDG_CACHE_HOME=str(tmp_path)).returncode == 0  # fmt: skip
    newest = max((tmp_path / "run/checkpoints").glob("*.tenarai"))
    newest.write_bytes(newest.read_bytes()[:-100])
    done = run(tmp_path / "run", "-p", "the")
    warnings = [x for x in done.stderr.decode().splitlines() if x.startswith("warning: ")]
    assert (
        len(warnings) == 1
        and newest.name in warnings[0]
        and warnings[0].endswith("is used instead")
    )


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_prints_the_timings_and_is_130(model):
    program = subprocess.Popen(
        [sys.executable, "-m", "tenarai", "run", "-m", model, "-p", "ab", "-n", "-1",
         "--context-shift"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert program.stdout.read(40)  # it writes
    time.sleep(0.2)
    program.send_signal(signal.SIGINT)
    _, said = program.communicate(timeout=60)
    assert program.returncode == 130
    assert b"total time" in said and b"Traceback" not in said


def test_the_help_is_in_groups(capsys):
    assert cli.main(["run", "--help"]) == 0
    shown = capsys.readouterr().out
    heads = ["The text:", "The model and the machine:", "Which token comes next:", "Examples:"]
    assert [shown.index(h) for h in heads] == sorted(shown.index(h) for h in heads)
    assert "[default: 0.95]" in shown and "-ngl" in shown


def test_samples_are_what_their_seeds_write_alone(model):
    prompt = "a prompt of more than thirty-two tokens, which is read once"
    arguments = ["-p", prompt, "--json"]
    several = json.loads(run(model, *arguments, "--samples", 3).stdout)["samples"]
    assert [s["seed"] for s in several] == [1, 2, 3]
    assert sum(s["prompt_tokens"] for s in several) < len(prompt) + 5
    for sample in several:
        alone = json.loads(run(model, *arguments, "--seed", sample["seed"]).stdout)
        assert sample["token_ids"] == alone["token_ids"]
    shown = run(model, "-p", "ab", "--samples", 2)
    assert re.search(rb"^# seed 1\nab.*^# seed 2\nab", shown.stdout, re.S | re.M)
    assert b"tokens of 2 texts" in shown.stderr
    refused = tenarai("run", "-m", model, "-p", "a", "--samples", 2, "--lookup")
    assert refused.returncode == 2 and b"several texts take no guesses" in refused.stderr


def test_several_prompts_are_each_written_as_alone(model, tmp_path):
    prompts = ["a first prompt", "b", "a first prompt and more"]
    several = run(model, *(a for p in prompts for a in ("-p", p)), "--samples", 2, "--json")
    found = json.loads(several.stdout)["samples"]
    assert [(s["prompt"], s["seed"]) for s in found] == [(p, n) for p in prompts for n in (1, 2)]
    for sample in found:
        alone = run(model, "-p", sample["prompt"], "--seed", sample["seed"], "--json")
        assert sample["token_ids"] == json.loads(alone.stdout)["token_ids"]
    shown = run(model, "-p", "ab", "-p", "ba")
    assert re.search(rb"^# prompt 1\nab.*^# prompt 2\nba", shown.stdout, re.S | re.M)
    long = tenarai("run", "-m", model, "-p", "ab", "-p", "ab" * 400)
    assert long.returncode == 1 and b"error: prompt 2: the prompt has" in long.stderr
    files = [tmp_path / name for name in ("one.txt", "two.txt")]
    for file in files:
        file.write_text(file.name)
    shown = run(model, "-f", files[0], "-f", files[1], "--samples", 2).stdout
    assert re.search(rb"^# prompt 2, seed 1\ntwo.txt", shown, re.M) and shown.count(b"# ") == 4


def test_a_shorter_context_is_honoured_by_learned_positions(model):
    done = run(model, "-p", "abcd", "-n", 100, "-c", 20, "--temp", 0)
    assert b"n_ctx = 20," in done.stderr and b"the context of 20 tokens is full" in done.stderr
