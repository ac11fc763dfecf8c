"""A digest that two cores share: BLAKE2b over the BLAKE2b digests of 16 MiB blocks.

hashlib lets go of the GIL while it works, so the blocks are hashed on two threads, while a third
reads or writes the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

BLOCK = 16 << 20
DIGEST = 32  # bytes


class BlockDigest:
    """The digest of what `update` was given; for use in a `with`, which ends its threads.

    Data is not copied, so it must not change before `finish`.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(2)
        self._pending: list[bytes | bytearray | memoryview] = []  # parts of the unfinished block
        self._length = 0
        self._digests: list[Future[bytes]] = []

    def __enter__(self) -> BlockDigest:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    def update(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while view:
            part = view[: BLOCK - self._length]
            self._pending.append(part)
            self._length += len(part)
            view = view[len(part) :]
            if self._length == BLOCK:
                self._flush()

    def finish(self) -> bytes:
        if self._pending and not self._digests:  # less than a block needs no thread
            return _blake([_blake(self._pending)])
        if self._pending:
            self._flush()
        return _blake(future.result() for future in self._digests)

    def _flush(self) -> None:
        self._digests.append(self._executor.submit(_blake, self._pending))
        self._pending, self._length = [], 0
        # Two blocks ahead at most: whoever reads a file into blocks would hold all of it.
        if len(self._digests) > 2:
            self._digests[-3].result()


def _blake(parts: Iterable[bytes | bytearray | memoryview]) -> bytes:
    h = hashlib.blake2b(digest_size=DIGEST)
    for part in parts:
        h.update(part)
    return h.digest()
