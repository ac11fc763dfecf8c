"""The command line as people and programs meet it: exit statuses, streams, encodings."""

import json
import os
import re
import subprocess
import sys

import click
import pytest

from tenarai import cli
from tenarai.errors import TenaraiError
from tiny import flags, write_text


def tenarai(*arguments, stdout=subprocess.PIPE, **environment):
    """The program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tenarai", *map(str, arguments)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUTF8": "0"} | environment,
        timeout=120,
    )


def without_a_reader(*arguments):
    """The program writing into a pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return tenarai(*arguments, stdout=writer)
    finally:
        os.close(writer)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run in run/ and the JSON that training it printed."""
    folder = tmp_path_factory.mktemp("cli")
    text = write_text(folder / "text.txt")
    done = tenarai("train", text, *flags(), "--out", folder / "run", "--json",
                   XDG_CACHE_HOME=str(folder))  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return folder, done


def test_a_training_says_that_words_are_there(trained):
    from tenarai.ops.fast import Fast

    told = b"(faster with --products words, off by 3e-4)" in trained[1].stderr
    assert told == Fast(1).has_words


VERBS = [verb for verb in cli.VERBS if verb != "bench"] + ["bench ops", "bench train"]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_three_examples(verb, capsys):
    assert cli.main([*verb.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.count(f"  tenarai {verb} ") + shown.count(f"  tenarai {verb}\n") >= 3
    assert "--help" in shown


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from tenarai.cli import main; main(['--help']); main(['train', '--help']);"
        "print([m for m in ('numpy', 'matplotlib', 'tokenizers', 'tqdm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_train_prints_one_json_document(trained):
    folder, done = trained
    result = json.loads(done.stdout)
    assert result["folder"] == str(folder / "run") and result["step"] == 12
    assert result["memory_taken"] <= result["memory_said"]
    shown = done.stderr.decode()
    for part in ("memory:", "step 12/12", "tokens/s", "loss.png", "tenarai run -m"):
        assert part in shown


def test_run_streams_the_text_and_tells_the_cost_apart(trained):
    folder, _ = trained
    done = tenarai("run", "-m", folder / "run", "-p", "the cat", "-n", 8, "--temp", 0)
    assert done.returncode == 0 and done.stdout.startswith(b"the cat")
    told = b"tokens per second"
    assert told in done.stderr and told not in done.stdout
    answers = [
        json.loads(tenarai("run", "-m", model, "-p", "the", "-n", 8, "--seed", 4, "--json").stdout)
        for model in (folder / "run", folder / "run/checkpoints/step-00000012.tenarai")
    ]
    assert answers[0]["token_ids"] == answers[1]["token_ids"]
    assert answers[0]["tokens"] == 8 and answers[0]["decode_tokens_per_s"] > 0


def test_a_prompt_in_shift_jis(trained, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_bytes("手習いの言葉を書いてみる。これは日本語の文章です。".encode("shift_jis"))
    done = tenarai("run", "-m", trained[0] / "run", "-f", file, "-n", 2, "--context-shift",
                   PYTHONIOENCODING="utf-8")  # fmt: skip
    assert done.returncode == 0 and done.stdout.decode().startswith("手習いの")
    assert b"shift" in done.stderr.lower() or b"cp932" in done.stderr.lower()


@pytest.mark.parametrize("encoding", ["ascii", "shift_jis", "utf-8"])
def test_no_console_encoding_ends_the_program(trained, encoding):
    done = tenarai("run", "-m", trained[0] / "run", "-p", "手é", "-n", 4,
                   PYTHONIOENCODING=encoding)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("手é".encode(encoding, errors="replace"))


@pytest.mark.parametrize(
    "arguments",
    [["nothing"], ["train", "--nothing"], ["train", "--steps", "x"], ["run"],
     ["run", "-m", "x", "-p", "a", "-f", "b"]],
)  # fmt: skip
def test_wrong_usage_is_2(arguments, capsys):
    assert cli.main(arguments) == 2
    assert "Usage" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["run", "-m", "/nowhere"], "/nowhere"),
        (["train", "/nowhere.txt", "--out", "{}/a"], "/nowhere.txt"),
        (["train", "--heads", "5", "--out", "{}/a"], "5 do not divide"),
        (["train", "--preset", "gpt3"], "gpt2"),
        (["train", "--config", "/nowhere.toml"], "/nowhere.toml"),
        (["train", "--resume", "--out", "/dev/null/x"], "/dev/null/x"),
    ],
)
def test_what_fails_is_1_and_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cli.main([a.format(tmp_path) for a in arguments]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and message in shown and shown.count("\n") == 1
    assert not (tmp_path / "a").exists()


class Raises(click.Command):
    def __init__(self, error):
        super().__init__("raises")
        self.error = error

    def invoke(self, ctx):
        raise self.error


@pytest.mark.parametrize(
    "error, status, message",
    [
        (TenaraiError("the thing is wrong: do this"), 1, "error: the thing is wrong: do this\n"),
        (KeyboardInterrupt(), 130, "stopped"),
        (ZeroDivisionError("by zero"), 1, "bug in tenarai: ZeroDivisionError: by zero (TENARAI_"),
        (MemoryError(), 1, "too little memory"),
        (PermissionError(13, "Permission denied", "x"), 1, "read or write x: Permission denied\n"),
        (OSError(28, "No space left on device"), 1, "write the output: No space left on device\n"),
    ],
)
def test_errors(error, status, message, capsys, monkeypatch):
    monkeypatch.delenv("TENARAI_DEBUG", raising=False)
    monkeypatch.setattr(cli.Verbs, "get_command", lambda *_: Raises(error))
    assert cli.main(["train"]) == status
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown


def test_debugging_shows_where(capsys, monkeypatch):
    monkeypatch.setenv("TENARAI_DEBUG", "1")
    monkeypatch.setattr(cli.Verbs, "get_command", lambda *_: Raises(ZeroDivisionError()))
    assert cli.main(["train"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_goes_away(trained):
    command = f"{sys.executable} -m tenarai run -m {trained[0] / 'run'} -p the -n 400 | head -c 5"
    done = subprocess.run(command, shell=True, capture_output=True, timeout=120)
    assert len(done.stdout) == 5
    assert b"Traceback" not in done.stderr and b"Exception" not in done.stderr


@pytest.mark.parametrize("arguments", [["run", "-p", "the", "-n", 40], ["run", "--json", "-n", 4],
                                       ["inspect"], ["tokenize", "x"]])  # fmt: skip
def test_a_reader_that_has_gone_is_no_failure(trained, arguments):
    verb, *rest = arguments
    model = [trained[0] / "run"] if verb == "inspect" else ["-m", trained[0] / "run"]
    done = without_a_reader(verb, *model, *rest)
    assert done.returncode == 141
    assert b"Traceback" not in done.stderr and b"rror" not in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"]])
def test_help_without_a_reader(arguments):
    done = without_a_reader(*arguments)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["doctor", "--no-measure"]])
def test_a_full_disk_behind_the_output(arguments):
    with open("/dev/full", "wb") as full:
        done = tenarai(*arguments, stdout=full)
    assert done.returncode == 1
    assert done.stderr == b"error: cannot read or write the output: No space left on device\n"


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed(trained, closed):
    for rest in ("--version", f"run -m {trained[0] / 'run'} -p the -n 2",
                 f"chat --style plain -m {trained[0] / 'run'} </dev/null"):  # fmt: skip
        command = f"{sys.executable} -m tenarai {rest} {closed}"
        done = subprocess.run(command, shell=True, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert b"bug" not in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["run", "-m", "", "-p", "x"], "the model's name is empty"),
        (["run", "-m", "{run}", "-p", "x", "-t", "5000"], "threads = 5000: .*expected 1 to 1024"),
        (["train", "--threads", "5000", "--out", "{new}"], "threads = 5000: .*1 to 1024"),
        (["train", "--seed", "9" * 26, "--out", "{new}"], r"run.seed .*2\^63"),
        (["train", "--steps", "9" * 400, "--out", "{new}"], r"schedule.steps .*2\^63"),
        (["train", "--config", "{toml}", "--out", "{new}"], "long.toml is not a TOML file"),
        (["tokenize", "-m", "/dev/null", "x"], "/dev/null: no ordinary file"),
    ],
)
def test_absurd_values_are_one_line(trained, tmp_path, arguments, message, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(trained[0]))
    toml = tmp_path / "long.toml"
    toml.write_text(f"[schedule]\nsteps = {'9' * 5000}\n")
    places = {"run": trained[0] / "run", "new": tmp_path / "new", "toml": toml}
    assert cli.main([a.format(**places) for a in arguments]) == 1
    shown = capsys.readouterr().err
    assert re.match(f"error: .*{message}", shown) and shown.count("\n") == 1


def test_names_with_control_characters_stay_on_one_line(capsys):
    assert cli.main(["inspect", "a\nb\x1b[31m\udcff　c"]) == 1
    assert capsys.readouterr().err.startswith("error: a\\nb\\x1b[31m\\udcff　c: no such file")


def test_long_values_are_cut_in_the_middle():
    shown = str(TenaraiError("begin " + "x" * 10**6 + " end"))
    assert shown.startswith("begin x") and shown.endswith("x end") and len(shown) < 2100


def test_arguments_that_are_no_unicode(trained):
    done = tenarai("tokenize", "-m", trained[0] / "run", os.fsdecode(b"a\xff"), "--json")
    assert done.returncode == 0 and b"TEXT" in done.stderr
    assert json.loads(done.stdout)["text"].startswith("a")


def test_a_mistyped_verb(capsys):
    assert cli.main(["trian"]) == 2
    assert "Did you mean 'train'" in capsys.readouterr().err


def test_doctor(capsys):
    assert cli.main(["doctor", "--json", "--no-measure"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["core"]["present"] and found["core"]["used"] in found["core"]["instruction_sets"]
    assert found["threads"] >= 1 and found["memory_bytes"] > found["memory_free_bytes"] > 0


def test_without_the_compiled_core(capsys, monkeypatch, tmp_path):
    from tenarai.ops import fast

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fast, "_kernels", None)
    monkeypatch.setattr(fast, "_why_missing", "not built", raising=False)
    assert cli.main(["doctor", "--no-measure"]) == 1
    assert "MISSING" in capsys.readouterr().out
    assert cli.main(["train", "--out", str(tmp_path / "run")]) == 1
    shown = capsys.readouterr().err
    assert "compiled core" in shown and "pip install" in shown
    assert not (tmp_path / "run").exists()


def test_a_message_is_one_line_of_readable_length():
    """Whatever a stranger's file put into it."""
    assert str(TenaraiError("a\nb\x1b[2J手\u2028\ud800")) == r"a\nb\x1b[2J手\u2028\ud800"
    long = str(TenaraiError("x" * 10_000))
    assert len(long) < 2100 and " ... " in long
