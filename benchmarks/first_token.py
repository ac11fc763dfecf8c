"""From the command to the first token: `tenarai run` beside a script for llama.cpp.

    python benchmarks/first_token.py smollm2
    python benchmarks/first_token.py phi3.gguf --prompt "Tell me how a violin is made." --runs 5

Each run is a process of its own: the interpreter starts, the model is opened, the prompt read, a
token written. The clock stops at the first byte of the text. Sides take turns; a first run of each
brings the file into memory and does not count; medians. llama.cpp comes through llama-cpp-python,
in the fewest lines that do the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tenarai.io.named_models import model_path

LLAMA_CPP = """
import sys
from llama_cpp import Llama
path, prompt, threads, context = sys.argv[1:]
model = Llama(path, n_ctx=int(context), n_threads=int(threads), verbose=False)
for piece in model(prompt, max_tokens=2, temperature=0, stream=True):
    print(piece["choices"][0]["text"], end="", flush=True)
"""


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("model", metavar="MODEL", help="a GGUF file or a name that is known")
    p.add_argument("--prompt", default="Hi", help="(%(default)s)")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--context", type=int, default=4096)
    p.add_argument("--runs", type=int, default=9, help="of each side (%(default)s)")
    p.add_argument("--vs", choices=("none", "llama-cpp"), default="llama-cpp")
    p.add_argument("--json", action="store_true")
    return p.parse_args()


def first_byte(command: list[str]) -> tuple[float, float]:
    """Seconds to the first byte on its stdout, and to its end."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        begun = process.stdout.read(1)
        first = time.perf_counter() - start
        process.stdout.read()
    if process.returncode or not begun:
        raise SystemExit(f"no text came of {' '.join(command[:4])} ...: run it by hand")
    return first, time.perf_counter() - start


def main() -> None:
    a = arguments()
    path = str(Path(model_path(a.model)))
    python, threads, context = sys.executable, str(a.threads), str(a.context)
    ours = ["run", "-m", path, "-p", a.prompt, "-n", "2", "--temp", "0", "--no-echo"]
    sides = {"tenarai": [python, "-m", "tenarai", *ours, "-t", threads, "-c", context]}
    if a.vs == "llama-cpp":
        sides["llama.cpp"] = [python, "-c", LLAMA_CPP, path, a.prompt, threads, context]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for run in range(1 + a.runs):
        for name, command in sides.items():
            seconds = first_byte(command)
            found[name] += [seconds] if run else []
    result = {
        "benchmark": "first_token", "model": Path(path).name, "prompt": a.prompt,
        "threads": a.threads, "context": a.context, "runs": a.runs,
        "seconds": {n: statistics.median(first for first, _ in s) for n, s in found.items()},
        "seconds_to_the_end": {n: statistics.median(end for _, end in s) for n, s in found.items()},
        "all_seconds": {n: [first for first, _ in s] for n, s in found.items()},
    }  # fmt: skip
    if not a.json:
        for name, seconds in result["seconds"].items():
            end = result["seconds_to_the_end"][name]
            print(f"{name:10} first token {seconds:.3f} s, ended {end:.3f} s")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
