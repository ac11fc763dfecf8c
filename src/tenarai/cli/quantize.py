"""`tenarai quantize`: a GGUF file into one of fewer bits a weight."""

from __future__ import annotations

import json
from typing import Any

import click

EXAMPLES = """
\b
Examples:
  tenarai quantize model-f16.gguf model-q4.gguf Q4_K_M
      4.8 bits a weight, more for the tensors that need them: the usual choice
  tenarai quantize model-f16.gguf model-q3.gguf Q3_K_M --imatrix model.imatrix
      an importance matrix (`tenarai imatrix`) matters most below 4 bits
  tenarai quantize model-f16.gguf model-q8.gguf Q8_0
      next to no loss, half of the size

\b
Types: F32 F16 BF16, Q4_0 Q4_1 Q5_0 Q5_1 Q8_0, Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S
Q5_K_M Q6_K, IQ4_NL IQ4_XS. Which tensor gets which format: docs/quantisation.md.
"""


@click.command(epilog=EXAMPLES)
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@click.argument("kind", metavar="TYPE")
@click.option("--imatrix", metavar="FILE", help="An importance matrix, .gguf or llama.cpp's .dat.")
@click.option("--pure", is_flag=True, help="Every matrix in the one format, output too.")
@click.option("--requantize", is_flag=True, help="Also from weights that are quantised already.")
@click.option("--force", is_flag=True, help="Overwrite OUT where it exists.")
@click.option("--threads", metavar="N", type=click.IntRange(1, 1024), help="One a core by default.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, with each tensor.")
def quantize(
    source: str,
    target: str,
    kind: str,
    imatrix: str | None,
    pure: bool,
    requantize: bool,
    force: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Write the GGUF file IN (or a name of `tenarai pull`) as OUT with weights of TYPE."""
    from tqdm import tqdm

    from tenarai.io.named_models import model_path
    from tenarai.models.gguf_quantize import quantize_file, total_weights
    from tenarai.quant.mixes import mix_of

    mix_of(kind)  # a mistyped name is told before a bar is drawn
    path = model_path(source)
    with tqdm(total=total_weights(path), unit="", unit_scale=True, disable=None) as bar:
        done = quantize_file(
            path,
            target,
            kind,
            importance=imatrix,
            pure=pure,
            requantize=requantize,
            overwrite=force,
            threads=threads,
            progress=bar.update,
        )
    click.echo(json.dumps(done, ensure_ascii=False) if as_json else _said(done))


def _said(done: dict[str, Any]) -> str:
    kinds: dict[str, int] = {}
    for t in done["tensors"]:
        kinds[t["to"]] = kinds.get(t["to"], 0) + 1
    tensors = ", ".join(f"{n} {name}" for name, n in sorted(kinds.items(), key=lambda k: -k[1]))
    return (
        f"wrote {done['target']}: {done['type']}, {done['weights']:,} weights\n"
        f"{_size(done['bytes_before'])} to {_size(done['bytes_after'])}, "
        f"{done['bits_before']:.2f} to {done['bits_after']:.2f} bits a weight, "
        f"{done['seconds']:.1f} s\n"
        f"tensors: {tensors}\n"
        f"rounding: {100 * done['relative_rms_error']:.2f} % of the weights' own size (RMS)"
    )


def _size(n: int) -> str:
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"
