"""Examples to fine-tune on, one JSON object a line, in the shapes that are in use:

    {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}, ...]}
    {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, ...]}
    {"prompt": ..., "completion": ...}
    {"instruction": ..., "input": ..., "output": ...}          "input" may be missing
    {"text": ...}
    {"prompt": ..., "chosen": ..., "rejected": ...}            of two answers the better one

In the last, the answers may be texts or lists of messages, and the prompt may stand in those. What
becomes of a record (the model's template, which tokens count) is the business of finetune/.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from .encoding import DataError

Message = dict[str, Any]
SUFFIXES = (".jsonl", ".ndjson")
MAX_LINE = 1 << 26  # characters
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
SPEAKERS |= {"system": "system", "tool": "tool"}
SHAPES = "messages, conversations, prompt and completion, instruction and output, or text"


@dataclass(frozen=True)
class Record:
    """One line. Either `messages` (the last is the assistant's), or `text`; in pairs `rejected` is
    the same conversation with the worse answer. `plain`: a prompt and a completion, which a model
    without a chat template can take too."""

    where: str  # "data.jsonl, line 3"
    messages: tuple[Message, ...] = ()
    text: str = ""
    rejected: tuple[Message, ...] = ()
    plain: bool = False


def read_records(path: str | PathLike[str], pairs: bool = False) -> list[Record]:
    """The records of a file, in order; with `pairs`, of preferences. Empty lines are passed over.

    Raises DataError, which names the line: no JSON, of no known shape, an answer that is empty.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: is not UTF-8: save the file as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    records = [
        _record(line, f"{path}, line {n}", pairs) for n, line in enumerate(lines, 1) if line.strip()
    ]
    if not records:
        raise DataError(f"{path}: is empty: give one JSON object a line")
    return records


def _record(line: str, where: str, pairs: bool) -> Record:
    if len(line) > MAX_LINE:
        raise DataError(f"{where}: has {len(line):,} characters, at most {MAX_LINE:,} are read")
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is no JSON ({error}): give one object a line") from error
    if not isinstance(found, dict):
        raise DataError(f"{where}: is {type(found).__name__}, expected a JSON object {{...}}")
    if pairs:
        return _pair(found, where)
    if "chosen" in found and "rejected" in found:
        raise DataError(
            f"{where}: holds a chosen and a rejected answer: learn from them with --dpo"
        )
    return _example(found, where)


def _example(found: Mapping[str, Any], where: str) -> Record:
    if "messages" in found:
        return Record(where, _messages(found["messages"], where))
    if "conversations" in found:
        return Record(where, _messages(_spoken(found["conversations"], where), where))
    for question, answer in (("prompt", "completion"), ("prompt", "response")):
        if question in found and answer in found:
            turns = _turns(_text(found, question, where), _text(found, answer, where))
            return Record(where, _messages(turns, where), plain=True)
    if "instruction" in found and "output" in found:
        asked = _text(found, "instruction", where)
        more = _text(found, "input", where) if found.get("input") is not None else ""
        asked = f"{asked}\n\n{more}" if more.strip() else asked
        return Record(where, _messages(_turns(asked, _text(found, "output", where)), where))
    if "text" in found:
        text = _text(found, "text", where)
        if not text.strip():
            raise DataError(f"{where}: its text is empty: remove the line")
        return Record(where, text=text)
    names = ", ".join(map(str, found)) or "nothing"
    raise DataError(f"{where}: holds {names[:100]}: expected {SHAPES}")


def _pair(found: Mapping[str, Any], where: str) -> Record:
    if "chosen" not in found or "rejected" not in found:
        raise DataError(f"{where}: has no chosen and rejected answer, which --dpo learns from")
    before: list[Message] = []
    if isinstance(found.get("prompt"), str):
        before = [{"role": "user", "content": found["prompt"]}]
    elif found.get("prompt") is not None:
        before = list(_messages(found["prompt"], where, answered=False))
    answers = []
    for name in ("chosen", "rejected"):
        value = found[name]
        turns = _turns("", value)[1:] if isinstance(value, str) else value
        if not isinstance(turns, list):
            raise DataError(f"{where}: {name} is {type(value).__name__}, expected text or messages")
        answers.append(_messages([*before, *turns], where, name))
    chosen, rejected = answers
    if chosen == rejected:
        raise DataError(
            f"{where}: the chosen and the rejected answer are the same: remove the line"
        )
    return Record(where, chosen, rejected=rejected, plain=isinstance(found.get("prompt"), str))


def _turns(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _text(found: Mapping[str, Any], name: str, where: str) -> str:
    if not isinstance(found[name], str):
        raise DataError(f"{where}: {name} is {type(found[name]).__name__}, expected text")
    return found[name]


def _spoken(turns: Any, where: str) -> list[Message]:
    if not isinstance(turns, list) or not all(
        isinstance(t, dict) and isinstance(t.get("value"), str) and t.get("from") in SPEAKERS
        for t in turns
    ):
        raise DataError(
            f'{where}: conversations are a list of {{"from": "human" or "gpt", "value": text}}'
        )
    return [{"role": SPEAKERS[t["from"]], "content": t["value"]} for t in turns]


def _messages(
    turns: Any, where: str, what: str = "messages", answered: bool = True
) -> tuple[Message, ...]:
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{where}: {what} are no list of messages, or an empty one")
    for n, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
            raise DataError(f'{where}: message {n} of {what} is no {{"role": ..., "content": ...}}')
        if not isinstance(turn.get("content"), str):
            raise DataError(f"{where}: the content of message {n} of {what} is no text")
        if turn["role"] == "assistant" and not turn["content"].strip():
            raise DataError(f"{where}: message {n} of {what} is an empty answer: remove the line")
    if answered and turns[-1]["role"] != "assistant":
        raise DataError(
            f"{where}: {what} end with the role {turns[-1]['role'][:40]!r}: the last must be the "
            "assistant's, which is what is learned"
        )
    return tuple(turns)
