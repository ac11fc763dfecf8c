"""Wall-clock time of a call."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def call_seconds(call: Callable[[], Any], seconds: float, at_least: int = 3) -> list[float]:
    """Times of as many calls as fit in `seconds`; one call before them does not count."""
    call()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < at_least or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times
