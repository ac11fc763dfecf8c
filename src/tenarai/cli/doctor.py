"""`tenarai doctor`: what this machine and this installation can do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import sys
from typing import Any

import click

EXAMPLES = """
\b
Examples:
  tenarai doctor
      everything that can be said about this machine, with its speed limits
  tenarai doctor --no-measure
      the same without the measurements, at once
  tenarai doctor --json
      for a program, or for a report of a bug
"""

# Package: what it is for. Those that tenarai itself needs come with it.
OPTIONAL = {
    "torch": "the peer of `tenarai bench`, and a witness in the tests",
    "transformers": "a witness in the tests of Hugging Face folders",
    "tensorboard": "shows the event files of a run",
}


@click.command(epilog=EXAMPLES)
@click.option("--measure/--no-measure", default=True, help="Measure matrix products and memory.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def doctor(measure: bool, as_json: bool) -> int:
    """Show instruction sets, threads, speed limits, memory, packages, and what is missing.

    The exit status is 1 where training cannot work.
    """
    found = examine(measure)
    click.echo(json.dumps(found, ensure_ascii=False) if as_json else in_words(found))
    return 0 if found["core"]["present"] else 1


def examine(measure: bool) -> dict[str, Any]:
    """Everything, as JSON can hold it."""
    import psutil

    from tenarai import __version__
    from tenarai.data import cache_folder
    from tenarai.ops.fast import default_threads
    from tenarai.train import memory

    threads = default_threads()
    found: dict[str, Any] = {
        "tenarai": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu(),
        "core": _core(),
        "threads": threads,
        "memory_bytes": psutil.virtual_memory().total,
        "memory_free_bytes": memory.available(),
        "cache": str(cache_folder()),
        "console_encoding": sys.stdout.encoding,
        "optional": {name: _version(name) for name in OPTIONAL},
    }
    if measure:
        from tenarai.bench.limits import read_bandwidth
        from tenarai.train.peak import gemm_peak

        found["gemm_gflops"] = gemm_peak(threads)
        found["gemm_gflops_one_thread"] = gemm_peak(1)
        found["read_gb_per_s"] = read_bandwidth(1 << 28, 5)
    return found


def _core() -> dict[str, Any]:
    """The compiled core: its instruction sets that this CPU runs, or why it is missing."""
    from tenarai.errors import TenaraiError
    from tenarai.ops.fast import Fast, available_isas

    try:
        return {"present": True, "instruction_sets": available_isas(), "used": Fast().isa}
    except TenaraiError as error:
        return {"present": False, "why": str(error)}


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as f:
            names = [line.split(":", 1)[1].strip() for line in f if line.startswith("model name")]
        return names[0] if names else platform.machine()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    if importlib.util.find_spec(name) is None:
        return None
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def in_words(found: dict[str, Any]) -> str:
    """The same for people."""
    core = found["core"]
    lines = [
        f"tenarai {found['tenarai']}, Python {found['python']}, {found['system']}",
        f"CPU      {found['cpu']}",
        f"threads  {found['threads']} cores that this process may use",
        f"memory   {found['memory_bytes'] / 1e9:.1f} GB, "
        f"{found['memory_free_bytes'] / 1e9:.1f} GB free",
    ]
    if core["present"]:
        sets = ", ".join(core["instruction_sets"])
        lines.append(f"kernels  {core['used']} in use; this build has for this CPU: {sets}")
    else:
        lines.append(f"kernels  MISSING: {core['why']}")
    if found.get("gemm_gflops"):
        lines.append(
            f"limits   float32 matrix product {found['gemm_gflops']:.0f} GFLOP/s "
            f"(one thread {found['gemm_gflops_one_thread'] or 0:.0f}), by NumPy's BLAS"
        )
    if "read_gb_per_s" in found:
        lines.append(f"         memory is read at {found['read_gb_per_s']:.0f} GB/s")
    lines.append(f"cache    {found['cache']}")
    for name, version in found["optional"].items():
        state = version or f"not here (pip install {name})"
        lines.append(f"optional {name} {state}: {OPTIONAL[name]}")
    return "\n".join(lines)
