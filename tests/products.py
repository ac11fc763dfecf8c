"""Inputs of a linear layer, what its three products should be, and what ops make of them."""

from typing import Any

import numpy as np

from tenarai.ops.gradient import Unwritten

NARROW = 14  # columns left out where dw is written: rows of whole vectors then


def inputs(M: int, I: int, O: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    shapes = {"x": (M, I), "w": (O, I), "b": (O,), "residual": (M, O), "dy": (M, O), "dw": (O, I)}
    return {name: rng.standard_normal(s, dtype=np.float32) for name, s in shapes.items()}


def aligned_nan(shape: tuple[int, ...]) -> np.ndarray:
    """NaNs; the first begins a cache line, so that they may be written over past the caches."""
    memory = np.full(int(np.prod(shape)) + 16, np.nan, np.float32)
    start = -memory.ctypes.data % 64 // 4
    return memory[start : start + int(np.prod(shape))].reshape(shape)


def truths(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What `results` should be, in float64."""
    a = {name: array.astype(np.float64) for name, array in arrays.items()}
    dw = a["dy"].T @ a["x"]
    return {
        "y": a["x"] @ a["w"].T + a["b"] + a["residual"],
        "dx": a["dy"] @ a["w"],
        "dw": dw + a["dw"],
        "db": a["dy"].sum(axis=0),
        "written": dw[:, :-NARROW],
    }


def results(ops: Any, a: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    O, I = a["w"].shape
    y, saved = ops.linear_forward(a["x"], a["w"], a["b"], a["residual"])
    dw, db = a["dw"].copy(), np.zeros(O, np.float32)
    dx = ops.linear_backward(a["dy"], saved, dw, db)
    written = aligned_nan((O, I - NARROW))
    narrow = tuple(np.ascontiguousarray(a[name][:, :-NARROW]) for name in ("x", "w"))
    ops.linear_backward(a["dy"], (*narrow, "off"), Unwritten(written))
    return {"y": y, "dx": dx, "dw": dw, "db": db, "written": written}
