"""Remakes quantisation_errors.json: what llama.cpp's quantisers lose on `samples()`.

    python tests/goldens/quantisation_errors.py            writes the file, prints ours beside it
    python tests/goldens/quantisation_errors.py F16.gguf   compares on that model's matrices

Needs llama-cpp-python, whose library has the quantisers; the tests read the file alone.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

import numpy as np

from tenarai.io import gguf
from tenarai.ops.fast import Fast
from tenarai.quant import FORMATS, QuantTensor

GOLDENS = Path(__file__).with_suffix(".json")
FORMATS_OF_BLOCKS = [f for f in FORMATS.values() if f.block > 1]


def samples() -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Name → weights (48, 1024) float32, and the importance of their columns where it is used."""
    rng = np.random.default_rng(7)
    shape = (48, 1024)
    kinds = {
        "normal": rng.standard_normal(shape) * 0.02,
        "student4": rng.standard_t(4, shape) * 0.02,  # heavy-tailed
        "student2": rng.standard_t(2.2, shape) * 0.02,  # with outliers
        "laplace": rng.laplace(size=shape) * 0.02,
        "shifted": rng.standard_normal(shape) * 0.02 + 0.03,
        "scaled": rng.standard_normal(shape) * np.exp(rng.standard_normal(1024)),  # by column
    }
    importance = (rng.gamma(0.5, 1.0, 1024) + 1e-3).astype(np.float32)
    found: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
    for name, x in kinds.items():
        found[name] = (x.astype(np.float32), None)
        if name in ("normal", "student4"):
            found[name + ", importance"] = (x.astype(np.float32), importance)
    return found


def relative_error(w: QuantTensor, x: np.ndarray, importance: np.ndarray | None) -> float:
    """√(Σ c (w − x)² / Σ c x²), c the importance of columns or 1."""
    c = 1.0 if importance is None else importance.astype(np.float64)
    x = x.astype(np.float64)
    return float(np.sqrt((c * (w.dequantize() - x) ** 2).sum() / (c * x * x).sum()))


def by_llama_cpp(x: np.ndarray, format, importance: np.ndarray | None) -> QuantTensor:
    import llama_cpp

    folder = Path(llama_cpp.__file__).parent / "lib"
    library = ctypes.CDLL(str(next(folder.glob("*ggml-base*"))))
    rows, width = x.shape
    data = np.zeros((rows, format.row_bytes(width)), np.uint8)
    if format.name == "Q8_K":  # for activations there, row by row
        for i in range(rows):
            at = [ctypes.c_void_p(a[i].ctypes.data) for a in (x, data)]
            library.quantize_row_q8_K_ref(*at, ctypes.c_int64(width))
    else:
        given = None if importance is None else ctypes.c_void_p(importance.ctypes.data)
        library.ggml_quantize_chunk.restype = ctypes.c_size_t
        n = library.ggml_quantize_chunk(
            ctypes.c_int(format.number), ctypes.c_void_p(x.ctypes.data),
            ctypes.c_void_p(data.ctypes.data), ctypes.c_int64(0), ctypes.c_int64(rows),
            ctypes.c_int64(width), given,
        )  # fmt: skip
        assert n == data.size, f"{format.name}: {n} bytes"
    return QuantTensor(format, (rows, width), data)


def compare(inputs: dict[str, tuple[np.ndarray, np.ndarray | None]]) -> dict[str, dict[str, float]]:
    """llama.cpp's errors, format → sample → error; ours are printed beside them."""
    ops, found = Fast(), {}
    for f in FORMATS_OF_BLOCKS:
        found[f.name] = {}
        for name, (x, c) in inputs.items():
            if x.shape[1] % f.block:
                continue
            theirs = relative_error(by_llama_cpp(x, f, c), x, c)
            ours = relative_error(ops.quantize(x, f, c), x, c)
            found[f.name][name] = round(theirs, 7)
            print(f"{f.name:<8}{name:<24}{ours:10.5f} {theirs:10.5f}   {ours / theirs:.3f}")
    return found


def main() -> None:
    if len(sys.argv) > 1:
        tensors = gguf.read(sys.argv[1]).tensors.values()
        compare({t.name: (t.float32(), None) for t in tensors if t.ndim == 2})
        return
    GOLDENS.write_text(json.dumps(compare(samples()), indent=1) + "\n")


if __name__ == "__main__":
    main()
