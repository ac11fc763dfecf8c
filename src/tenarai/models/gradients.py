"""Where the micro-batches of a step put their gradients.

The first one writes matrices' gradients, the others add to them (ops/gradient.py says why), and
no model knows the difference: what it asks for is given as `Unwritten` once, and after that as
the array that holds something.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tenarai.ops.gradient import Gradient, Unwritten

from .table import Weights


@contextmanager
def micro_batch(grads: Weights, index: int) -> Iterator[Mapping[str, Gradient]]:
    """Within it, what micro-batch `index` of a step adds its gradients to.

    Before the first (index 0) `grads` may hold anything; after it they are its gradients alone,
    zero where the model asked for none. Weights are asked for in the order in which their
    gradients are added to; one that is asked for is added to.
    """
    if index:
        yield grads
        return
    first = _First(grads)
    yield first
    first.clear_the_rest()


class _First(Mapping[str, Gradient]):
    """Gradients of which each matrix is handed out as `Unwritten` once. Vectors, which are
    small, hold zeros."""

    def __init__(self, grads: Weights):
        self._grads = grads
        self._unwritten = {name for name, dw in grads.items() if dw.ndim == 2}
        for name, dw in grads.items():
            if name not in self._unwritten:
                dw[...] = 0

    def __getitem__(self, name: str) -> Gradient:
        dw = self._grads[name]
        if name in self._unwritten:
            self._unwritten.remove(name)
            return Unwritten(dw)
        return dw

    def __iter__(self) -> Iterator[str]:
        return iter(self._grads)

    def __len__(self) -> int:
        return len(self._grads)

    def scope(self, prefix: str) -> Mapping[str, Gradient]:
        return _Scope(self, prefix)

    def clear_the_rest(self) -> None:
        for name in self._unwritten:
            self._grads[name][...] = 0


class _Scope(Mapping[str, Gradient]):
    """The gradients whose names begin with a prefix, by the rest of their names."""

    def __init__(self, grads: _First, prefix: str):
        self._grads, self._prefix = grads, prefix

    def __getitem__(self, name: str) -> Gradient:
        return self._grads[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        n = len(self._prefix)
        return (name[n:] for name in self._grads if name.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)
