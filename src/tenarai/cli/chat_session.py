"""A talk at the command line: messages and commands in, answers and their cost out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from tenarai.errors import TenaraiError
from tenarai.infer.conversation import Conversation, Encode

from .chat_input import Input
from .prompt import write

if TYPE_CHECKING:
    from tenarai.infer.timings import Timings

HELP = """\
/help         this list
/reset        forget what was said; the system message stays
/system TEXT  say what the model is told before all else (without TEXT: show it)
/regen        another answer to the last message
/save FILE    write the conversation to a file
/load FILE    go on with one from a file
/exit         leave (also Ctrl-D, or Ctrl-C twice)
A line that ends in \\ goes on in the next; lines between two \"\"\" are one message."""

# ids of the prompt, tokens at most, seed, timings → tokens
Generate = Callable[[list[int], int, int, "Timings"], Iterator[int]]


@dataclass
class Talker:
    """The model as a conversation needs it."""

    encode: Encode
    generate: Generate
    decoder: Callable[[], Any]  # a new StreamDecoder
    context: int
    longest: int  # tokens of an answer; below 0: as many as there is room for
    about: dict[str, Any]  # for saved files


class Session:
    """Reads messages until the end; `run` gives the exit status."""

    def __init__(self, talker: Talker, conversation: Conversation, seed: int):
        self.talker, self.talk, self.seed = talker, conversation, seed
        self.answers = 0  # each has a seed of its own
        self.interrupted = False  # Ctrl-C came after the last message

    def run(self, messages: Input) -> int:
        while True:
            try:
                text = messages.message()
                self.interrupted = False
                if not self.take(text):
                    return 0
            except EOFError:
                return 0
            except KeyboardInterrupt:
                if self.interrupted:
                    return 130
                self.interrupted = True
                _tell("Ctrl-C again, or /exit, to leave")
            except TenaraiError as error:
                if not messages.terminal:
                    raise
                _tell(f"error: {error}")

    def take(self, text: str) -> bool:
        """Does what a message or a command asks for; False where it is to leave."""
        if not text.strip():
            return True
        if not text.startswith("/"):
            self.talk.say(text)
            self.answer()
            return True
        name, _, rest = text[1:].partition(" ")
        rest = rest.strip()
        commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: _tell(HELP),
            "reset": self._reset,
            "system": self._system,
            "regen": self._again,
            "save": self._save,
            "load": self._load,
        }
        if name in ("exit", "quit", "bye"):
            return False
        if name not in commands:
            _tell(f"no command /{name}; /help lists them (put a space before a message with /)")
            return True
        commands[name](rest)
        return True

    def answer(self) -> None:
        """Lets the model answer the last message, and says what it cost."""
        from tenarai.infer.timings import Timings

        talker, timings = self.talker, Timings()
        try:
            ids, dropped = self.talk.fit(talker.encode, self._room())
        except TenaraiError:
            self.talk.turns.pop()  # it cannot be answered
            raise
        if dropped:
            _tell(f"the context is full: the oldest {_turns(dropped)} dropped")
        limit = talker.context - len(ids)
        if talker.longest >= 0:
            limit = min(limit, talker.longest)
        decoder, text, count = talker.decoder(), "", 0
        try:
            for token in talker.generate(ids, limit, self.seed + self.answers, timings):
                count += 1
                text += (piece := decoder.push(token))
                write(piece)
        except KeyboardInterrupt:
            self.interrupted = True
        text += (piece := decoder.flush())
        write(piece + "\n")
        self.talk.answer(text)
        self.answers += 1
        _tell(_cost(timings, count, self.interrupted, count >= limit))

    def _room(self) -> int:
        """For what stands before an answer: a quarter of the context, at most, is kept for it."""
        longest = self.talker.longest
        quarter = max(1, self.talker.context // 4)
        return self.talker.context - (quarter if longest < 0 else min(quarter, max(1, longest)))

    def _reset(self, rest: str) -> None:
        self.talk.turns.clear()
        _tell("forgotten")

    def _system(self, rest: str) -> None:
        if rest:
            self.talk.system = rest
        _tell(f"system message: {self.talk.system or '(none)'}")

    def _again(self, rest: str) -> None:
        if self.talk.take_back():
            self.answer()
        else:
            _tell("nothing was said yet")

    def _save(self, rest: str) -> None:
        if not rest:
            return _tell("/save needs the name of a file")
        self.talk.save(rest, self.talker.about)
        _tell(f"saved: {rest}")

    def _load(self, rest: str) -> None:
        if not rest:
            return _tell("/load needs the name of a file")
        self.talk = Conversation.load(rest)
        _tell(f"loaded: {_turns((len(self.talk.turns) + 1) // 2)}")


def _turns(n: int) -> str:
    return "turn" if n == 1 else f"{n} turns"


def _cost(timings: Timings, count: int, interrupted: bool, full: bool) -> str:
    found = timings.as_json()
    parts = [f"{count} tokens"]
    if rate := found["decode_tokens_per_s"]:
        parts[0] += f", {rate:.1f} tokens per second"
    parts.append(f"prompt {found['prompt_tokens']} tokens")
    if rate := found["prompt_tokens_per_s"]:
        parts[-1] += f", {rate:.1f} per second"
    if interrupted:
        parts.append("stopped")
    elif full:
        parts.append("ended by the limit of tokens")
    return f"[{'; '.join(parts)}]"


def _tell(text: str) -> None:
    click.echo(text, err=True)
