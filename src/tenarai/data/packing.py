"""Examples of any length in batches of rows: several in a row, each attending to itself alone.

Each epoch has its own order, drawn from the seed. In that order each example goes into the first
of some open rows that has room, or opens one. What is left of a row is padding: no target there
counts. The place in the stream is two numbers, the epoch and the batch in it, as in loader.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .encoding import DataError
from .permutation import Permutation, derive

Array = np.ndarray
IGNORED = -1  # a target that does not count
OPEN = 64  # rows that are kept open


@dataclass(frozen=True, eq=False)
class Example:
    """Tokens of one document, and which of them are to be foretold."""

    where: str  # file and line
    ids: Array  # (n,) int32, n ≥ 2
    counts: Array  # (n,) bool

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def places(self) -> int:
        """What it takes of a row: the last token is only a target."""
        return len(self.ids) - 1


@dataclass(frozen=True, eq=False)
class Rows:
    """A batch: tokens (B, T) int32; documents (B, T) int32, the place where each place's document
    begins, or None where every row is one. share: what its mean loss weighs in the mean over its
    step's batches, so that every target weighs the same; 1 where all batches have as many."""

    tokens: Array
    documents: Array | None
    share: float = 1.0


class PackedLoader:
    """`next()` gives (Rows, targets (B, T) int32, −1 where none counts).

    pack=False puts one example into a row; then `group` examples stay side by side, as pairs do.
    shuffle=False keeps the order, for validation. `together` batches make a step, and the place in
    the stream is taken between steps.
    Raises DataError where there is no example, or one does not fit into a row of `context`.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        batch: int,
        context: int,
        seed: int = 0,
        *,
        pack: bool = True,
        shuffle: bool = True,
        group: int = 1,
        together: int = 1,
    ):
        if group > 1 and (pack or batch % group or len(examples) % group):
            raise ValueError(f"groups of {group} in {len(examples)} examples, batches of {batch}")
        if not examples:
            raise DataError("there is no example to learn from")
        for example in examples:
            if example.places > context:
                raise DataError(
                    f"{example.where}: has {len(example.ids)} tokens, a row takes {context + 1}"
                )
        self.batch, self.context, self.seed = batch, context, seed
        self.pack, self.shuffle, self.group, self.together = pack, shuffle, group, together
        self._step: list[tuple[Rows, Array]] = []  # batches that were made and not given yet
        self._examples = list(examples)
        self._begin(0)

    @property
    def epoch(self) -> int:
        """The epoch, from 0, of the next batch."""
        return self._epoch

    @property
    def batches(self) -> int:
        """How many batches the present epoch has."""
        return -(-len(self._rows) // self.batch)

    def _begin(self, epoch: int) -> None:
        """Lay an epoch's rows out: which examples each holds."""
        self._epoch, self._index = epoch, 0
        n = len(self._examples) // self.group
        order = np.arange(n)
        if self.shuffle:
            order = Permutation(n, derive(self.seed, epoch, 3))(order)
        order = (order[:, None] * self.group + np.arange(self.group)).reshape(-1)
        rows = _first_fit([self._examples[i].places for i in order], self.context, self.pack)
        self._rows = [[int(order[i]) for i in row] for row in rows]

    def next(self) -> tuple[Rows, Array]:
        if not self._step:
            made = [self._batch() for _ in range(self.together)]
            counts = [np.count_nonzero(targets >= 0) for _, targets in made]
            mean = sum(counts) / len(counts)
            self._step = [
                (replace(rows, share=n / mean if mean else 1.0), targets)
                for n, (rows, targets) in zip(counts, made, strict=True)
            ]
        return self._step.pop(0)

    def _batch(self) -> tuple[Rows, Array]:
        B, T = self.batch, self.context
        tokens, targets = np.zeros((B, T), np.int32), np.full((B, T), IGNORED, np.int32)
        documents = np.tile(np.arange(T, dtype=np.int32), (B, 1))  # padding sees itself
        begin = self._index * B
        for row, members in enumerate(self._rows[begin : begin + B]):
            at = 0
            for i in members:
                example, n = self._examples[i], self._examples[i].places
                tokens[row, at : at + n] = example.ids[:-1]
                targets[row, at : at + n] = np.where(example.counts[1:], example.ids[1:], IGNORED)
                documents[row, at : at + n] = at
                at += n
        self._index += 1
        if self._index >= self.batches:
            self._begin(self._epoch + 1)
        return Rows(tokens, documents if self.pack else None), targets

    def reset(self) -> None:
        """Back to the first batch, as a validation run wants it each time."""
        self._step = []
        self._begin(0)

    def state(self) -> dict[str, Any]:
        """Where the stream stands, for `restore`; plain JSON."""
        return {"epoch": self._epoch, "index": self._index, **self._about()}

    def restore(self, state: Any) -> None:
        """Go on where `state` was taken. Raises DataError: of other data or settings, damaged."""
        mine = self._about()
        held = state if isinstance(state, dict) else {}
        for key, value in mine.items():
            if held.get(key) != value:
                raise DataError(
                    f"cannot go on in the data: the saved run had {key} {held.get(key)!r}, this "
                    f"one has {value!r}; resume with the same data and settings, or start anew"
                )
        epoch, index = held.get("epoch"), held.get("index")
        if type(epoch) is int and type(index) is int and epoch >= 0:
            self._begin(epoch)
            if 0 <= index < self.batches:
                self._index = index
                return
        raise DataError(
            f"the saved place in the data (epoch {epoch!r}, batch {index!r}) does not exist: "
            "the checkpoint is damaged, take an earlier one"
        )

    def _about(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for example in self._examples:
            digest.update(len(example.ids).to_bytes(8, "little"))
            digest.update(example.ids.tobytes() + example.counts.tobytes())
        names = ("batch", "context", "seed", "pack", "shuffle")
        return {n: getattr(self, n) for n in names} | {"data": digest.hexdigest()[:16]}


def _first_fit(sizes: Sequence[int], room: int, pack: bool) -> list[list[int]]:
    """Rows of indices into `sizes`, each row's sum at most `room`."""
    rows: list[list[int]] = []
    open_rows: list[tuple[int, list[int]]] = []  # what is left, the row
    for i, size in enumerate(sizes):
        for n, (left, row) in enumerate(open_rows if pack else []):
            if size <= left:
                row.append(i)
                open_rows[n] = (left - size, row)
                break
        else:
            row = [i]
            rows.append(row)
            open_rows.append((room - size, row))
            if len(open_rows) > OPEN:
                open_rows.remove(min(open_rows, key=lambda r: r[0]))
    return rows


def windows_of(ids: Array, context: int, where: str) -> list[Example]:
    """A long text as examples of `context` places that all count."""
    starts = range(0, max(1, len(ids) - 1), context)
    parts = (ids[i : i + context + 1] for i in starts)
    return [Example(where, p, np.ones(len(p), np.bool_)) for p in parts if len(p) > 1]
