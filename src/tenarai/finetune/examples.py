"""Records as tokens, and which of them the loss is on: the assistant's answers, or a text's all.

An answer's tokens are found by the template itself. The conversation before it, with the words that
ask for an answer, and the conversation with it are both encoded: what the second has more than the
first is the answer. It ends with the token that ends the turn, which is learned too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tenarai.data.packing import Example
from tenarai.data.records import Message, Record
from tenarai.errors import TenaraiError
from tenarai.tokenizers import Tokenizer
from tenarai.tokenizers.chat import ChatTemplate, encode_chat


@dataclass(frozen=True)
class Encoder:
    """From records to examples of at most `longest` tokens; longer ones are cut with `truncate`.

    Without a template (a model that was not taught to converse) only a prompt with its completion
    and texts can be learned.
    """

    tokenizer: Tokenizer
    template: ChatTemplate | None
    longest: int
    truncate: bool = False

    def __call__(self, record: Record) -> Example:
        """Raises TenaraiError, which names the line: too long, or refused by the template."""
        if record.text:
            ids = self.text(record.text)
            return self._example(record.where, ids, [True] * len(ids))
        return self.conversation(record, record.messages)

    def text(self, text: str) -> list[int]:
        """A whole text, between the tokens that begin and end one."""
        return self._ended(self.tokenizer.with_bos(self.tokenizer.encode(text)))

    def pair(self, record: Record) -> tuple[Example, Example]:
        """The conversation with the chosen and with the rejected answer: the last turn counts."""
        return (
            self.conversation(record, record.messages, last_only=True),
            self.conversation(record, record.rejected, last_only=True),
        )

    def conversation(
        self, record: Record, messages: Sequence[Message], last_only: bool = False
    ) -> Example:
        if self.template is None:
            return self._plain(record, messages)
        try:
            ids, counts = self._templated(self.template, messages, last_only)
        except TenaraiError as error:
            raise TenaraiError(f"{record.where}: {error}") from error
        return self._example(record.where, ids, counts)

    def _templated(
        self, template: ChatTemplate, messages: Sequence[Message], last_only: bool
    ) -> tuple[list[int], list[bool]]:
        whole = encode_chat(self.tokenizer, template, messages, False)
        counts = [False] * len(whole)
        answers = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        for i in answers[-1:] if last_only else answers:
            asked = encode_chat(self.tokenizer, template, messages[:i], True) if i else []
            told = encode_chat(self.tokenizer, template, messages[: i + 1], False)
            if whole[: len(asked)] != asked or whole[: len(told)] != told:
                raise TenaraiError(
                    f"the model's template writes message {i + 1} otherwise in a longer "
                    "conversation, so its tokens cannot be told: give conversations of one answer"
                )
            end = next(
                (n for n in range(len(asked), len(told)) if told[n] in self.tokenizer.end_tokens),
                len(told) - 1,
            )
            counts[len(asked) : end + 1] = [True] * (end + 1 - len(asked))
        return whole, counts

    def _plain(self, record: Record, messages: Sequence[Message]) -> Example:
        if not record.plain:
            raise TenaraiError(
                f"{record.where}: is a conversation, and this model has no chat template: give "
                'lines of {"prompt": ..., "completion": ...} or {"text": ...}'
            )
        question, answer = (str(m["content"]) for m in messages)
        before = self.tokenizer.with_bos(self.tokenizer.encode(question))
        ids = self._ended([*before, *self.tokenizer.encode(answer)])
        return self._example(record.where, ids, [i >= len(before) for i in range(len(ids))])

    def _ended(self, ids: list[int]) -> list[int]:
        return ids if self.tokenizer.eot is None else [*ids, self.tokenizer.eot]

    def _example(self, where: str, ids: list[int], counts: list[bool]) -> Example:
        if len(ids) > self.longest and not self.truncate:
            raise TenaraiError(
                f"{where}: has {len(ids):,} tokens, the longest that is learned from has "
                f"{self.longest:,}: raise --context, shorten the line, or cut such lines with "
                "--truncate"
            )
        example = Example(
            where, np.array(ids[: self.longest], np.int32), np.array(counts[: self.longest])
        )
        if not example.counts[1:].any():
            raise TenaraiError(
                f"{where}: no token of its answer is within the first {self.longest:,}: raise "
                "--context or shorten the question"
            )
        return example
