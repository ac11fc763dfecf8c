"""A conversation: who said what, what of it fits the model's context, and its file.

How messages become tokens is the chat template's matter (tokenizers/chat.py); it is given here as
`encode`: messages → ids that end where the model's answer begins.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tenarai.errors import TenaraiError
from tenarai.io.atomic import atomic_write

Message = dict[str, str]  # {"role": "system", "user" or "assistant", "content": text}
Encode = Callable[[list[Message]], list[int]]
PathName = str | os.PathLike[str]
KIND = "tenarai_chat"  # the file's mark, with its version
LARGEST = 64 << 20  # bytes of a file that is read


@dataclass
class Conversation:
    """turns: messages of user and assistant, one after the other, the user's first."""

    system: str = ""
    turns: list[Message] = field(default_factory=list)

    def messages(self) -> list[Message]:
        first = [{"role": "system", "content": self.system}] if self.system else []
        return first + self.turns

    def say(self, text: str) -> None:
        """The user says something. What was said and not answered is one message with it."""
        if self.turns and self.turns[-1]["role"] == "user":
            text = self.turns.pop()["content"] + "\n" + text
        self.turns.append({"role": "user", "content": text})

    def answer(self, text: str) -> None:
        self.turns.append({"role": "assistant", "content": text})

    def take_back(self) -> bool:
        """Forgets the last answer; whether there is now something to answer."""
        if self.turns and self.turns[-1]["role"] == "assistant":
            self.turns.pop()
        return bool(self.turns)

    def fit(self, encode: Encode, room: int) -> tuple[list[int], int]:
        """(ids of all messages, how many old turns were dropped so that they are at most `room`).

        The oldest go first, each with its answer; the system's message and the last one stay.
        Raises TenaraiError where these two alone are too long.
        """
        dropped = 0
        while len(ids := encode(self.messages())) > room:
            if len(self.turns) < 3:
                raise TenaraiError(
                    f"this message makes {len(ids)} tokens, with all that stands before it; there "
                    f"is room for {room}: say less, or start with a larger context (-c)"
                )
            del self.turns[:2]
            dropped += 1
        return ids, dropped

    def save(self, path: PathName, about: dict[str, Any]) -> None:
        """Writes a JSON document, whole or not at all. Raises WriteError."""
        document = {KIND: 1, **about, "system": self.system, "messages": self.turns}
        with atomic_write(path, "w") as f:
            json.dump(document, f, ensure_ascii=False, indent=1)
            f.write("\n")

    @classmethod
    def load(cls, path: PathName) -> Conversation:
        """What `save` wrote. Raises TenaraiError: no such file, or no conversation."""
        try:
            if os.path.getsize(path) > LARGEST:
                raise TenaraiError(f"{path}: is too large for a conversation: name another file")
            with open(path, encoding="utf-8") as f:
                document = json.load(f)
        except OSError as error:
            raise TenaraiError(f"cannot read {path}: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise TenaraiError(f"{path}: is no JSON: name a file that /save wrote") from error
        if not isinstance(document, dict) or document.get(KIND) != 1:
            raise TenaraiError(f"{path}: is no saved conversation: name a file that /save wrote")
        return cls(_system(path, document.get("system", "")), _turns(path, document))


def _system(path: PathName, system: Any) -> str:
    if not isinstance(system, str):
        raise TenaraiError(f"{path}: its system message is no text: was it changed by hand?")
    return system


def _turns(path: PathName, document: dict[str, Any]) -> list[Message]:
    turns: list[Message] = []
    messages = document.get("messages")
    for i, m in enumerate(messages if isinstance(messages, list) else [None]):
        role = ("user", "assistant")[i % 2]
        if not isinstance(m, dict) or m.get("role") != role or type(m.get("content")) is not str:
            raise TenaraiError(
                f"{path}: message {i + 1} should be a text of the {role}: was it changed by hand?"
            )
        turns.append({"role": role, "content": m["content"]})
    return turns
