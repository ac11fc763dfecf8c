"""Batches for training: windows of the shards in a shuffled, resumable, ranked order.

One epoch: each shard is cut into windows of T + 1 tokens that begin T apart, from a random first
position which differs from epoch to epoch; the windows of all shards are permuted together.
The epochs follow each other as one endless stream of windows. A global batch is the next
ranks · B windows; rank r has rows r·B ... (r + 1)·B of it. So the stream does not depend on how
many ranks there are, and its place is two numbers: the epoch and the index in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from .encoding import DataError
from .permutation import Permutation, derive, random_u64
from .shards import Shard


class Loader:
    """`next()` gives (tokens, targets), both (B, T) int32, targets being the tokens one on.

    batch: B, of this rank. context: T. vocab_size: where given, a token beyond it is an error.
    shuffle=False gives the windows in order from the start, for validation.
    Raises DataError where no shard is as long as T + 1.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        batch: int,
        context: int,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        shuffle: bool = True,
        vocab_size: int | None = None,
    ):
        if batch < 1 or context < 1:
            raise DataError(f"batch {batch} and context {context} must be at least 1")
        if not 0 <= rank < ranks:
            raise DataError(f"rank {rank} is not one of 0 to {ranks - 1}")
        self.batch, self.context, self.rank, self.ranks = batch, context, rank, ranks
        self.seed, self.shuffle, self.vocab_size = seed, shuffle, vocab_size
        self._all = list(shards)
        self._shards = [s for s in self._all if len(s) > context]
        if not self._shards:
            raise _too_short(self._all, context)
        self._lengths = np.array([len(s) for s in self._shards], np.int64)
        self._fingerprint: str | None = None
        self._index = 0
        self._begin(0)

    @property
    def epoch(self) -> int:
        """The epoch, from 0, of the next window."""
        return self._epoch

    @property
    def windows(self) -> int:
        """How many windows the present epoch has, of all ranks together."""
        return int(self._ends[-1])

    @property
    def batches(self) -> int:
        """How many batches cover the epoch at least once: ⌈windows / (ranks · batch)⌉."""
        return -(-self.windows // (self.batch * self.ranks))

    def _begin(self, epoch: int) -> None:
        """Lay out an epoch: where windows start in each shard, and their order."""
        self._epoch = epoch
        self._starts = np.zeros(len(self._shards), np.int64)
        if self.shuffle:
            # Any start for which a window is left; so also the ends of the shards are seen.
            choices = np.minimum(self.context, self._lengths - self.context)
            draws = random_u64(
                derive(self.seed, epoch, 1), np.arange(len(choices), dtype=np.uint64)
            )
            self._starts = (draws % choices.astype(np.uint64)).astype(np.int64)
        counts = (self._lengths - 1 - self._starts) // self.context
        self._ends = np.cumsum(counts)
        self._order = Permutation(self.windows, derive(self.seed, epoch, 2))

    def next(
        self, out: tuple[np.ndarray, np.ndarray] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The next batch, in new arrays or in `out`, two (B, T) int32 arrays."""
        B, T = self.batch, self.context
        tokens, targets = out or (np.empty((B, T), np.int32), np.empty((B, T), np.int32))
        if tokens.shape != (B, T) or targets.shape != (B, T):
            raise ValueError(f"out has shapes {tokens.shape}, {targets.shape}, expected {(B, T)}")
        skip, row = self.rank * B, 0
        self._skip(skip)
        while row < B:
            n = min(B - row, self.windows - self._index)
            positions = np.arange(self._index, self._index + n)
            self._fill(positions, tokens[row : row + n], targets[row : row + n])
            row += n
            self._skip(n)
        self._skip((self.ranks - 1) * B - skip)
        if self.vocab_size is not None:
            self._check_ids(tokens, targets)
        return tokens, targets

    def _skip(self, n: int) -> None:
        """Move on by n windows, into the next epochs where this one ends."""
        self._index += n
        while self._index >= self.windows:
            self._index -= self.windows
            self._begin(self._epoch + 1)

    def _fill(self, positions: np.ndarray, tokens: np.ndarray, targets: np.ndarray) -> None:
        windows = self._order(positions) if self.shuffle else positions
        which = np.searchsorted(self._ends, windows, side="right")
        within = windows - np.where(which > 0, self._ends[which - 1], 0)
        begins = self._starts[which] + within * self.context
        T = self.context
        for row, (shard, begin) in enumerate(zip(which.tolist(), begins.tolist(), strict=True)):
            source = self._shards[shard].tokens
            tokens[row] = source[begin : begin + T]
            targets[row] = source[begin + 1 : begin + T + 1]

    def _check_ids(self, tokens: np.ndarray, targets: np.ndarray) -> None:
        # A uint32 token ≥ 2^31 is negative by now, and as uint32 again too large.
        highest = max(int(a.view(np.uint32).max()) for a in (tokens, targets))
        if highest >= self.vocab_size:  # type: ignore[operator]
            names = ", ".join(sorted({str(s.path.parent) for s in self._shards}))
            raise DataError(
                f"token {highest} in the shards of {names} is beyond the vocabulary of "
                f"{self.vocab_size}: were they made with another tokenizer?"
            )

    def state(self) -> dict[str, Any]:
        """Where the stream stands, for `restore`; plain JSON. The same on every rank."""
        return {
            "epoch": self._epoch,
            "index": self._index,
            "context": self.context,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "data": self.fingerprint,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state` was taken, even with another batch size or more ranks.

        Raises DataError where the state is of other data, context, seed or order, or damaged.
        """
        if not isinstance(state, dict):
            raise DataError("the saved place in the data is missing: take an earlier checkpoint")
        for key, mine in (
            ("context", self.context),
            ("seed", self.seed),
            ("shuffle", self.shuffle),
            ("data", self.fingerprint),
        ):
            if state.get(key) != mine:
                raise DataError(
                    f"cannot go on in the data: the saved run had {key} {state.get(key)!r}, this "
                    f"one has {mine!r}; resume with the same data and settings, or start anew"
                )
        epoch, index = state.get("epoch"), state.get("index")
        if type(epoch) is int and type(index) is int and epoch >= 0:
            before = self._epoch
            self._begin(epoch)
            if 0 <= index < self.windows:
                self._index = index
                return
            self._begin(before)
        raise DataError(
            f"the saved place in the data (epoch {epoch!r}, window {index!r}) does not exist: "
            "the checkpoint is damaged, take an earlier one"
        )

    def reset(self) -> None:
        """Back to the first window, as a validation run wants it each time."""
        self._index = 0
        self._begin(0)

    @property
    def fingerprint(self) -> str:
        """Tells data apart: lengths, types and some tokens of every shard, not their names."""
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for shard in self._all:
                n = len(shard)
                digest.update(f"{n} {shard.tokens.dtype.str} ".encode())
                for begin in (0, n // 2, max(0, n - 256)):
                    digest.update(shard.tokens[begin : begin + 256].tobytes())
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint


def _too_short(shards: Sequence[Shard], context: int) -> DataError:
    if not shards:
        return DataError("there are no token shards to read: prepare a text with `tenarai data`")
    longest = max(len(s) for s in shards)
    name = shards[0].path
    advice = f"a context of at most {longest - 1} or " if longest > 1 else ""
    return DataError(
        f"the data are too short: the longest of {len(shards)} shards ({name}) has {longest} "
        f"tokens, a context of {context} needs at least {context + 1}; take {advice}more text"
    )
