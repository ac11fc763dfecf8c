"""The reference ops against PyTorch's autograd, in float64."""

from typing import Any

import numpy as np
import pytest

import op_cases
from tenarai.ops import reference

torch = pytest.importorskip("torch")

# Both sides are float64 (1e-16) on small cases, but sum in another order and take other
# formulas for tanh, erf and softmax.
TOLERANCE = 1e-10

CASES = [case for case in op_cases.small_cases() if case.torch is not None]


def relative(a: Any, b: Any) -> float:
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(b)), 1e-30)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_against_autograd(case: op_cases.Case, rng: np.random.Generator) -> None:
    y, saved = case.forward(reference, case.inputs)
    dy = rng.standard_normal(np.shape(y))
    grads = {name: np.zeros_like(case.inputs[name]) for name in case.weights}
    grads |= case.backward(reference, dy, saved, grads)

    assert case.torch is not None
    x = {name: torch.tensor(a, requires_grad=True) for name, a in case.inputs.items()}
    y_torch = case.torch(x)
    loss = (y_torch * torch.tensor(dy)).sum()
    loss = loss + sum((x[name] * torch.tensor(g)).sum() for name, g in case.bypass.items())
    loss.backward()

    errors = {"y": relative(y, y_torch.detach())}
    errors |= {name: relative(grads[name], x[name].grad) for name in x}
    assert max(errors.values()) < TOLERANCE, errors


def test_adamw_against_torch(rng: np.random.Generator) -> None:
    p, m, v = rng.standard_normal(37), np.zeros(37), np.zeros(37)
    p_torch = torch.tensor(p, requires_grad=True)
    settings: dict[str, float] = dict(lr=3e-3, eps=1e-8, weight_decay=0.1)
    optimiser = torch.optim.AdamW([p_torch], betas=(0.9, 0.95), **settings)
    for step in range(1, 11):
        g = rng.standard_normal(37)
        p_torch.grad = torch.tensor(g * 0.7)
        optimiser.step()
        reference.adamw_step(
            p, g, m, v, beta1=0.9, beta2=0.95, step=step, grad_scale=0.7, **settings
        )  # fmt: skip
        assert relative(p, p_torch.detach()) < TOLERANCE
