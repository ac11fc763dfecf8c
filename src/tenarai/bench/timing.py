"""Wall-clock time of a call."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def call_seconds(call: Callable[[], Any], seconds: float, at_least: int = 3) -> list[float]:
    """Times of as many calls as fit in `seconds`, and of `at_least` so many, but of one where a
    call alone takes longer; one call before them does not count."""
    begin = time.perf_counter()
    call()
    if time.perf_counter() - begin > seconds:
        at_least = 1
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < at_least or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times
