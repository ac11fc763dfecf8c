"""What a training run needs of the machine's memory, told before it takes it."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tenarai.errors import TenaraiError
from tenarai.models.table import ALIGN, Param

# Taken after the plan is made: the plot, the kernels' packing buffers, a sample's KV cache and
# logits, batches of tokens, blocks of a checkpoint under its checksum. Measured: 25 to 40 MB.
LATER = 64 << 20


@dataclass(frozen=True)
class Need:
    """Bytes by what they are for."""

    weights: int
    gradients: int
    moments: int
    activations: int  # the arena, at its peak
    tokens: int  # files of tokens that are mapped; the system takes them back when it must
    process: int  # Python and its libraries, now and later

    @property
    def total(self) -> int:
        return (
            self.weights
            + self.gradients
            + self.moments
            + self.activations
            + self.tokens
            + self.process
        )

    def __str__(self) -> str:
        parts = {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimiser": self.moments,
            "activations": self.activations,
            "tokens": self.tokens,
            "Python": self.process,
        }
        return f"{in_words(self.total)} at most ({', '.join(_listed(parts))})"


def _listed(parts: dict[str, int]) -> list[str]:
    return [f"{name} {in_words(n)}" for name, n in parts.items()]


def in_words(n: int) -> str:
    """Bytes for people, in decimal units."""
    if n < 10**6:
        return f"{n / 1e3:.0f} kB"
    return f"{n / 1e6:.0f} MB" if n < 10**9 else f"{n / 1e9:.2f} GB"


def weights_bytes(table: Sequence[Param]) -> int:
    """Bytes of one `Weights` of the table, as models/table.py lays it out."""
    return sum(-(-param.size // ALIGN) * ALIGN * 4 for param in table)


def resident() -> int:
    """Bytes of memory that this process holds now."""
    return psutil.Process().memory_info().rss


def need(
    table: Sequence[Param],
    activations: int,
    tokens: int,
    process: int,
    optimiser: Any = None,
    threads: int = 1,
) -> Need:
    """What the run will hold, where its arena peaks at `activations` bytes and the process held
    `process` before the weights. The optimiser is AdamW where none is named."""
    one = weights_bytes(table)
    moments = 2 * one
    if optimiser is not None:
        moments = sum(state.flat.nbytes for state in optimiser.states().values())
        moments += optimiser.working_bytes(threads)
    return Need(
        weights=one,
        gradients=one,
        moments=moments,
        activations=activations,
        tokens=tokens,
        process=process + LATER,
    )


def available() -> int:
    """Bytes that this process may still take: what the machine has, within its cgroup's limit."""
    free = psutil.virtual_memory().available
    limit = _cgroup_free()
    return free if limit is None else min(free, limit)


def _cgroup_free(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the container's limit leaves (cgroup 2, then 1); None where there is no limit."""
    for limit, used, stat in (
        ("memory.max", "memory.current", "memory.stat"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
        ),
    ):
        try:
            most = int((root / limit).read_text())
            now = int((root / used).read_text())
            # Pages of files are counted as used, and given back when they are needed.
            files = dict(line.split() for line in (root / stat).read_text().splitlines())
            return most - now + int(files.get("inactive_file", 0))
        except (OSError, ValueError):  # no such file; or "max", no limit
            continue
    return None


def taken(status: Path = Path("/proc/self/status")) -> int | None:
    """The most that this process has held so far, in bytes; None where the system does not say."""
    try:  # Linux: VmHWM begins anew with a program, getrusage's figure is inherited from its parent
        line = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE)
        if line:
            return int(line[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return getattr(psutil.Process().memory_info(), "peak_wset", None)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def check_fits(
    need: Need, free: int, batch: int, recompute: bool, saved_activations: str = "float32"
) -> None:
    """Raise TenaraiError where the machine has less than the run needs, and say what would do."""
    more = need.total - need.tokens - resident()
    if more <= free:
        return
    advice = []
    if batch > 1:
        advice.append(f"a smaller micro-batch (--batch {batch // 2}, with twice the --accumulate)")
    if not recompute:
        advice.append("--recompute, which keeps less for the backward pass")
    if saved_activations == "float32" and not recompute:
        advice.append("--saved-activations bfloat16, which keeps as much in half the memory")
    advice.append("a shorter --context, or a smaller preset")
    raise TenaraiError(
        f"this run needs {need}, and this machine has {in_words(max(free, 0))} free: "
        f"try {'; or '.join(advice)}"
    )
