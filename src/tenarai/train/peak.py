"""This machine's best matrix product: of float32 by NumPy's BLAS, or by a run's own kernels.

A training's MFU is of the faster. By Strassen's scheme the kernels' products count as if all
eight multiplications were made, as a step's do: beside BLAS alone a step could exceed 100 %.

BLAS has threads of its own, whose number is fixed when NumPy is imported; so its measurement is
a process of its own, which runs this file as a program.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

SIZE = 512  # large enough for the full rate, short enough to fall between other work
SIZE_OF_KERNELS = 768  # where theirs is fastest
SECONDS = 0.3
_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")


def best_product(ops: Any) -> float | None:
    """GFLOP/s of the faster of NumPy's product and that of `ops` as a run is set; None where
    neither can be taken (the reference ops have no kernels)."""
    threads = getattr(ops, "threads", None)
    rates = [gemm_peak(threads or 1), kernels_peak(ops) if threads else None]
    return max((rate for rate in rates if rate is not None), default=None)


def exceeded(peak: float, rate: float, ops: Any) -> float:
    """The peak, GFLOP/s, taken again for a step that did `rate` and so was above `peak`: other
    programs ran when that was measured. At least `rate`, so that no MFU is above 100 %."""
    again = kernels_peak(ops) if getattr(ops, "threads", None) else peak
    return max(peak, rate, again)


def kernels_peak(ops: Any, size: int = SIZE_OF_KERNELS, seconds: float = SECONDS) -> float:
    """GFLOP/s of the best product of size × size matrices by the kernels within `seconds`."""
    x, w = np.ones((size, size), np.float32), np.ones((size, size), np.float32)
    y = np.empty_like(x)
    return 2 * size**3 / _best(lambda: ops.linear_forward(x, w, out=y), seconds) / 1e9


def gemm_peak(threads: int) -> float | None:
    """GFLOP/s of NumPy's float32 product on `threads` threads; None where it cannot be taken.

    At least what one thread reaches: where other programs run, threads of BLAS that wait for each
    other can do less than one alone.
    """
    rates = [_measured(n) for n in sorted({1, threads})]
    return max((rate for rate in rates if rate is not None), default=None)


def _measured(threads: int) -> float | None:
    environment = os.environ | dict.fromkeys(_VARIABLES, str(threads))
    command = [sys.executable, "-I", __file__]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, check=True
        )
        return float(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def measure(size: int = SIZE, seconds: float = SECONDS) -> float:
    """GFLOP/s of the best product of size × size matrices within `seconds`, in this process."""
    a, b = np.ones((size, size), np.float32), np.ones((size, size), np.float32)
    out = np.empty_like(a)
    return 2 * size**3 / _best(lambda: np.matmul(a, b, out=out), seconds) / 1e9


def _best(call: Callable[[], object], seconds: float) -> float:
    """Seconds of the shortest call within `seconds`, of one at least."""
    best, start = np.inf, time.perf_counter()
    while True:
        before = time.perf_counter()
        call()
        now = time.perf_counter()
        best = min(best, now - before)
        if now - start > seconds:
            return best


if __name__ == "__main__":
    print(measure())
