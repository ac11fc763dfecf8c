"""What each format of weights costs: bits a weight, perplexity, KL divergence from the source.

    python benchmarks/quantisation.py smollm2 text.txt
    python benchmarks/quantisation.py model-f16.gguf text.txt --imatrix m.imatrix

The source, expanded to float32, is the truth; each type is made of that by `tenarai quantize` and
measured by `tenarai perplexity` with float32 activations, so that only the weights' rounding
counts. Prints the table of docs/quantisation.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TYPES = (
    "F16 Q8_0 Q6_K Q5_1 Q5_K_M Q5_0 Q4_1 Q4_K_M Q4_K_S IQ4_NL IQ4_XS Q4_0 Q3_K_L Q3_K_M Q3_K_S Q2_K"
)


def tenarai(*arguments: object) -> Any:
    """The JSON document of a verb."""
    command = [sys.executable, "-m", "tenarai", *map(str, arguments), "--json"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def measure(model: Path, truth: Path, text: str, chunks: int) -> Any:
    how = ("-f", text, "--chunks", chunks, "--activations", "float32", "--kl-vs", truth)
    return tenarai("perplexity", "-m", model, *how)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a GGUF file or a name that `tenarai pull` knows")
    parser.add_argument("text", help="a text file")
    parser.add_argument("--types", nargs="+", default=TYPES.split())
    parser.add_argument("--chunks", type=int, default=4, help="windows of 512 tokens")
    parser.add_argument("--imatrix", help="an importance matrix")
    flags = parser.parse_args()
    print(
        "| type | MB | bits a weight | perplexity | KL divergence | same token |"
        "\n|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        truth, target = Path(folder, "f32.gguf"), Path(folder, "quantised.gguf")
        tenarai("convert", flags.model, truth, "--type", "F32")
        for kind in flags.types:
            more = ("--imatrix", flags.imatrix) if flags.imatrix else ()
            made = tenarai("quantize", truth, target, kind, "--force", *more)
            found = measure(target, truth, flags.text, flags.chunks)
            bits = made["bits_after"]
            print(
                f"| {kind} | {target.stat().st_size / 1e6:.0f} | {bits:.2f} "
                f"| {found['perplexity']:.3f} | {found['kl']['mean']:.2g} "
                f"| {100 * found['kl']['same_most_probable']:.1f} % |",
                flush=True,
            )
        print(f"| F32, the source | {truth.stat().st_size / 1e6:.0f} | 32 "
              f"| {found['kl']['base_perplexity']:.3f} | 0 | 100 % |")  # fmt: skip


if __name__ == "__main__":
    main()
