"""What a layer of a model wants kept of past tokens; how it is kept stands in infer/kv_cache.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CacheLayer:
    """Keys and values of `heads` heads a token, of `head_size` numbers each.

    With `window` W, a token at position p sees only the positions p − W < s ≤ p.
    """

    heads: int  # K
    head_size: int  # D
    window: int | None = None

    def __post_init__(self) -> None:
        if self.heads < 1 or self.head_size < 1 or (self.window is not None and self.window < 1):
            raise ValueError(f"{self}: expected 1 or more everywhere")
