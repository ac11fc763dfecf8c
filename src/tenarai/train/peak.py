"""This machine's best float32 matrix product, by NumPy's BLAS: what a training's MFU is of.

BLAS has threads of its own, whose number is fixed when NumPy is imported; so the measurement is
a process of its own, which runs this file as a program.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np

SIZE = 512  # large enough for the full rate, short enough to fall between other work
SECONDS = 0.3
_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")


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
    best, start = np.inf, time.perf_counter()
    while True:
        before = time.perf_counter()
        np.matmul(a, b, out=out)
        now = time.perf_counter()
        best = min(best, now - before)
        if now - start > seconds:
            return 2 * size**3 / best / 1e9


if __name__ == "__main__":
    print(measure())
