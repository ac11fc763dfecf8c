"""Gradients checked by the complex step.

For an analytic f and a step h so small that h² vanishes, f(x + ih) = f(x) + i h f'(x): the
imaginary part over h is the derivative. Unlike a finite difference it subtracts nothing, so h
may be 1e-50 and the derivative has all the digits of complex128. A gradient g of a tensor is
checked along random directions d: Im f(x + ihd)/h must be Σ g·d.

Source: Squire and Trapp, "Using complex variables to estimate derivatives of real functions"
(1998).
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
STEP = 1e-50
TOLERANCE = 1e-12  # 4500 roundings of float64: sums of some hundred terms, a few ops deep


def gradient_errors(
    f: Callable[[dict[str, Array]], complex],
    inputs: Mapping[str, Array],
    gradients: Mapping[str, Array],
    rng: np.random.Generator,
    directions: int = 3,
    floor: float = 0.0,
) -> dict[str, float]:
    """The worst relative error of each input's gradient of the scalar f, over random directions.

    `inputs` are real; f is called with complex128. The error is |Im f(x + ihd)/h - Σ g·d|, d of
    standard normal numbers, relative to the larger of the derivative and the norm of g (which is
    what Σ g·d is on average) and `floor`, for gradients that are 0 but for rounding. It is 0 where
    both are 0, and nan never passes for small.
    """
    missing = set(inputs) ^ set(gradients)
    assert not missing, f"inputs and gradients differ in {sorted(missing)}"
    point = {name: x.astype(np.complex128) for name, x in inputs.items()}
    errors = {}
    for name, g in gradients.items():
        assert g.shape == inputs[name].shape, f"{name}: gradient has shape {g.shape}"
        worst = 0.0
        for _ in range(directions):
            d = rng.standard_normal(g.shape)
            slope = f(point | {name: point[name] + 1j * STEP * d}).imag / STEP
            scale = max(abs(slope), float(np.linalg.norm(g.reshape(-1))), floor)
            difference = abs(slope - (g * d).sum())
            worst = np.maximum(worst, difference / scale if scale else difference)
        errors[name] = float(worst)
    return errors


def assert_gradients(
    f: Callable[[dict[str, Array]], complex],
    inputs: Mapping[str, Array],
    gradients: Mapping[str, Array],
    rng: np.random.Generator,
    tolerance: float = TOLERANCE,
    floor: float = 0.0,
) -> None:
    """Fail, naming every input whose gradient is off by more than `tolerance`."""
    errors = gradient_errors(f, inputs, gradients, rng, floor=floor)
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}
    assert not wrong, f"relative errors above {tolerance}: {wrong} (all: {errors})"
