"""`tenarai chat`: messages and commands, what fits the context, files, pipes and a terminal."""

import io
import json
import os
import re
import select
import subprocess
import sys
import time

import pytest

from tenarai import cli
from tenarai.cli.chat_input import Input
from tenarai.cli.chat_session import Session, Talker
from tenarai.errors import TenaraiError
from tenarai.infer.conversation import Conversation
from tenarai.tokenizers import ByteTokenizer
from tenarai.tokenizers.chat import chat_template, encode_chat
from tiny import chat_tokenizer, write_model

JAPANESE = "吾輩は猫である"


def encode(messages):
    """A template of one letter a role."""
    text = "".join(f"[{m['role'][0]}]{m['content']}" for m in messages)
    return ByteTokenizer().encode(text + "[a]")


def prompt_of(ids):
    return ByteTokenizer().decode(ids)


# What is said and what fits


def test_messages_stand_in_their_order():
    talk = Conversation("be brief")
    talk.say("hi")
    talk.answer("hello")
    talk.say("what")
    assert prompt_of(encode(talk.messages())) == "[s]be brief[u]hi[a]hello[u]what[a]"
    talk.say("now")  # the last one was not answered
    assert talk.turns[-1]["content"] == "what\nnow" and len(talk.turns) == 3


def test_the_oldest_turns_are_dropped():
    talk = Conversation("S")
    for question, answer in ("11", "22", "33"):
        talk.say(question)
        talk.answer(answer)
    talk.say("4")
    whole = "[s]S[u]1[a]1[u]2[a]2[u]3[a]3[u]4[a]"
    assert talk.fit(encode, len(whole)) == (encode(talk.messages()), 0)
    ids, dropped = talk.fit(encode, len(whole) - 1)
    assert prompt_of(ids) == "[s]S[u]2[a]2[u]3[a]3[u]4[a]" and dropped == 1
    ids, dropped = talk.fit(encode, 13)
    assert prompt_of(ids) == "[s]S[u]4[a]" and dropped == 2
    with pytest.raises(TenaraiError, match="11 tokens.*room for 10"):
        talk.fit(encode, 10)


def test_take_back():
    talk = Conversation()
    assert not talk.take_back()
    talk.say("a")
    assert talk.take_back() and len(talk.turns) == 1
    talk.answer("b")
    assert talk.take_back() and talk.turns == [{"role": "user", "content": "a"}]


def test_files(tmp_path):
    talk = Conversation("短く")
    talk.say(JAPANESE)
    talk.answer("にゃあ")
    talk.save(tmp_path / "c.json", {"model": "m"})
    assert Conversation.load(tmp_path / "c.json") == talk
    document = json.loads((tmp_path / "c.json").read_text("utf-8"))
    assert document["model"] == "m" and document["messages"][1]["content"] == "にゃあ"
    with pytest.raises(TenaraiError, match="cannot write"):
        talk.save(tmp_path / "none" / "c.json", {})


GOOD = {"tenarai_chat": 1, "system": "", "messages": []}


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "no JSON"), ("[" * 100000, "no JSON"), ("[]", "no saved"), ("{}", "no saved"),
        (json.dumps(GOOD | {"tenarai_chat": 2}), "no saved"),
        (json.dumps(GOOD | {"system": 3}), "system message is no text"),
        (json.dumps(GOOD | {"messages": 3}), "message 1"),
        (json.dumps(GOOD | {"messages": [{"role": "assistant", "content": "a"}]}), "message 1"),
        (json.dumps(GOOD | {"messages": [{"role": "user", "content": ["a"]}]}), "message 1"),
        (json.dumps(GOOD | {"messages": [{"role": "user", "content": "a"}] * 2}), "message 2"),
    ],
)  # fmt: skip
def test_bad_files(tmp_path, content, message):
    (tmp_path / "c").write_text(content)
    with pytest.raises(TenaraiError, match=message):
        Conversation.load(tmp_path / "c")


def test_no_file(tmp_path):
    with pytest.raises(TenaraiError, match="cannot read"):
        Conversation.load(tmp_path / "c")


# A session, with a model that answers by rote


class Fake:
    """Answers with the number of its prompt's tokens and its seed; stops where it is told to."""

    def __init__(self, context=100, longest=-1):
        self.prompts, self.limits = [], []
        self.interrupt_after = None
        self.talker = Talker(
            encode, self.generate, ByteTokenizer().stream, context, longest, {"model": "m"}
        )

    def generate(self, ids, limit, seed, timings):
        self.prompts.append(prompt_of(ids))
        self.limits.append(limit)
        for i, token in enumerate(ByteTokenizer().encode(f"{len(ids)}/{seed}")[:limit]):
            if i == self.interrupt_after:
                raise KeyboardInterrupt
            with timings.evaluating():
                yield token


class Said:
    """Messages as Input gives them; an exception among them is raised."""

    def __init__(self, *messages, terminal=True):
        self.messages, self.terminal = list(messages), terminal

    def message(self):
        if not self.messages:
            raise EOFError
        said = self.messages.pop(0)
        if isinstance(said, type):
            raise said
        return said


def session(*messages, fake=None, terminal=True):
    fake = fake or Fake()
    talk = Session(fake.talker, Conversation(), seed=7)
    return talk.run(Said(*messages, terminal=terminal)), fake, talk


def test_history_and_seeds(capsys):
    status, fake, _ = session("one", "two")
    assert status == 0
    assert fake.prompts == ["[u]one[a]", "[u]one[a]9/7[u]two[a]"]
    shown = capsys.readouterr()
    assert shown.out == "9/7\n21/8\n"
    assert shown.err.count("tokens per second") == 2


def test_commands(capsys, tmp_path):
    file = tmp_path / "c.json"
    status, fake, talk = session(
        "/system S", "one", "/regen", f"/save {file}", "/reset", "two", f"/load {file}", "three",
        "/help", "/nonsense", "/save", "/load", " ", "/exit", "never",
    )  # fmt: skip
    assert status == 0
    assert fake.prompts == [
        "[s]S[u]one[a]", "[s]S[u]one[a]", "[s]S[u]two[a]", "[s]S[u]one[a]13/8[u]three[a]",
    ]  # fmt: skip
    told = capsys.readouterr().err
    for part in ("/regen        another", "no command /nonsense", "/save needs", "saved: "):
        assert part in told
    assert "never" not in str(talk.talk.turns)
    session("/regen")
    assert "nothing was said yet" in capsys.readouterr().err


def test_an_overflow_is_told_and_leaves_room_for_an_answer(capsys):
    _, fake, talk = session("a" * 30, "b" * 30, "c" * 30, fake=Fake(context=80))
    assert fake.prompts[1] == f"[u]{'b' * 30}[a]"
    told = capsys.readouterr().err
    assert told.count("the context is full: the oldest turn dropped") == 2
    assert all(limit >= 20 for limit in fake.limits)
    assert len(talk.talk.turns) == 2


def test_a_message_that_cannot_fit(capsys):
    status, fake, _ = session("x" * 200, "one")
    assert status == 0 and fake.prompts == ["[u]one[a]"]
    assert "error: this message makes 206 tokens" in capsys.readouterr().err
    with pytest.raises(TenaraiError, match="206 tokens"):  # a script is told by its status
        session("x" * 200, terminal=False)


def test_an_answers_limit(capsys):
    _, fake, _ = session("one", fake=Fake(longest=2))
    assert fake.limits == [2]
    shown = capsys.readouterr()
    assert shown.out == "9/\n" and "ended by the limit" in shown.err


def test_ctrl_c_stops_an_answer_and_twice_leaves(capsys):
    fake = Fake()
    fake.interrupt_after = 2
    status, _, talk = session("one", "two", fake=fake)
    assert status == 0 and [t["content"] for t in talk.talk.turns[1::2]] == ["9/", "20"]
    assert capsys.readouterr().err.count("stopped]") == 2
    assert session("one", KeyboardInterrupt, fake=fake)[0] == 130
    assert session(KeyboardInterrupt, "x", KeyboardInterrupt, KeyboardInterrupt)[0] == 130
    assert session(KeyboardInterrupt, "x", KeyboardInterrupt)[0] == 0
    assert "again" in capsys.readouterr().err


# Messages of several lines


def typed(monkeypatch, data, encoding="utf-8"):
    stdin = io.TextIOWrapper(io.BytesIO(data), encoding=encoding)
    monkeypatch.setattr(sys, "stdin", stdin)
    messages, found = Input(), []
    while True:
        try:
            found.append(messages.message())
        except EOFError:
            return found


def test_lines(monkeypatch):
    assert typed(monkeypatch, b"one\r\ntwo") == ["one", "two"]
    assert typed(monkeypatch, b"a\\\nb\\\nc\nd\n") == ["a\nb\nc", "d"]
    assert typed(monkeypatch, b"a\\") == ["a\n"]
    assert typed(monkeypatch, b'"""\na\n\n b\\\n"""\nc') == ["a\n\n b\\", "c"]
    assert typed(monkeypatch, b'"""a\nb"""\nc') == ["a\nb", "c"]
    assert typed(monkeypatch, b'"""a"""\nc') == ["a", "c"]
    assert typed(monkeypatch, b'"""a\nb') == ["a\nb"]


def test_lines_in_other_encodings(monkeypatch):
    line = JAPANESE.encode("cp932")
    assert typed(monkeypatch, line, "cp932") == [JAPANESE]
    assert typed(monkeypatch, line, "utf-8") == [JAPANESE]
    assert typed(monkeypatch, JAPANESE.encode(), "ascii") == [JAPANESE]
    assert typed(monkeypatch, b"a\xff", "ascii") == ["a\ufffd"]


# The program


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("chat") / "model.tenarai"
    return write_model(path, context=256, tokenizer=chat_tokenizer())


def chat(model, *arguments, given=b"", **environment):
    return subprocess.run(
        [sys.executable, "-m", "tenarai", "chat", "-m", str(model), *arguments],
        input=given, capture_output=True, timeout=120, env=os.environ | environment,
    )  # fmt: skip


def test_piped_messages(model, tmp_path):
    file = tmp_path / "talk.json"
    lines = f"{JAPANESE}\n/save {file}\n".encode("cp932")
    done = chat(model, "-n", "5", "--seed", "1", "--system", "S", given=lines,
                PYTHONIOENCODING="cp932")  # fmt: skip
    assert done.returncode == 0, done.stderr
    saved = json.loads(file.read_text("utf-8"))
    assert saved["system"] == "S" and saved["messages"][0]["content"] == JAPANESE
    answer = saved["messages"][1]["content"]
    assert done.stdout.decode("cp932") == answer.encode("cp932", "replace").decode("cp932") + "\n"
    assert b"5 tokens, " in done.stderr and b"> " not in done.stdout
    again = chat(model, "-n", "5", "--seed", "1", "--load", str(file), "-p", "/regen")
    assert again.returncode == 0 and again.stdout.decode() == answer + "\n"


def test_a_turn_reads_only_what_is_new(model):
    done = chat(model, "-n", "3", "--temp", "0", given=b"hi\nhi\n")
    first, second = [int(n) for n in re.findall(rb"; prompt (\d+) tokens", done.stderr)]
    assert second < first + 8  # all of it again would be twice as many and more
    alone = chat(model, "-n", "3", "--temp", "0", "--lookup", given=b"hi\nhi\n")
    assert alone.stdout == done.stdout


def test_every_end_of_turn_stops(model):
    done = chat(model, "-l", "257+1000", given=b"hi\n")
    assert done.stdout == b"\n" and b"[0 tokens" in done.stderr
    done = chat(model, "-l", "257+1000", "--ignore-eos", "-n", "3", given=b"hi\n")
    assert b"[3 tokens" in done.stderr


def test_a_model_that_was_not_taught_to_converse(tmp_path, capsys):
    path = write_model(tmp_path / "m.tenarai")
    assert cli.main(["chat", "-m", str(path)]) == 1
    assert "tenarai run" in capsys.readouterr().err
    talk = ["chat", "-m", str(path), "-p", "the ", "-n", "3"]
    assert cli.main([*talk, "--style", "verse"]) == 1
    assert "no style is called 'verse': there are plain, chatml" in capsys.readouterr().err


def test_it_goes_on_after_a_message_in_the_plain_style():
    tokenizer = ByteTokenizer()
    template = chat_template({}, tokenizer, "plain")
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    ids = encode_chat(tokenizer, template, [*turns, {"role": "user", "content": "three"}])
    assert tokenizer.decode(ids) == "one\ntwo\nthree\n"


@pytest.mark.skipif(os.name == "nt", reason="a pseudo-terminal")
def test_ctrl_c_in_a_terminal(model):
    import pty

    ours, theirs = pty.openpty()
    arguments = ["chat", "-m", str(model), "-l", "257-inf", "--seed", "1"]
    program = subprocess.Popen(
        [sys.executable, "-m", "tenarai", *arguments],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(theirs)
    shown = b""

    def until(*words):
        nonlocal shown
        end = time.monotonic() + 60
        while not any(word in shown for word in words):
            assert time.monotonic() < end, shown
            if select.select([ours], [], [], 1)[0]:
                shown += os.read(ours, 1000)

    until(b"> ")
    os.write(ours, b"hi\n")

    def interrupt_after(words):
        """At the next prompt: readline shows it just before it listens for signals."""
        nonlocal shown
        until(words)
        shown = shown.partition(words)[2]
        until(b"> ")
        time.sleep(0.5)
        os.write(ours, b"\x03")

    interrupt_after(b"tokens per second")  # stopped by the context
    interrupt_after(b"Ctrl-C again")
    assert program.wait(timeout=60) == 130
    os.close(ours)
    assert b"Traceback" not in shown
