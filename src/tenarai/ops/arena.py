"""One piece of memory for all activations of a step, laid out before the first one runs.

A step is run *dry* once: the model's own code, while `empty` hands out arrays of the right
shape that occupy nothing, and the ops call no kernel. Python's reference counts tell when each
array is born and when the last view of it goes. From these lifetimes every array gets its place;
arrays that never live at the same time share one. Later steps ask for the same arrays in the
same order and get those places, so nothing is allocated and the peak is known in advance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod

import numpy as np

FLOAT32 = np.dtype(np.float32)
ALIGN = 128  # bytes: two cache lines, since the hardware fetches them in pairs


@dataclass
class Plan:
    """Where each array of a step lies, in the order in which they are asked for."""

    shapes: list[tuple[int, ...]]
    dtypes: list[np.dtype]
    offsets: list[int]
    bytes: int  # the peak
    arrays: list[np.ndarray] = field(default_factory=list, repr=False)


class Arena:
    """Activations of one step at a time. Not for two threads at once."""

    def __init__(self) -> None:
        self.dry = False  # a step is being recorded: ops call no kernel
        self._lifetimes: list[list[int]] = []  # [birth, death] by count of births and deaths
        self._shapes: list[tuple[int, ...]] = []
        self._dtypes: list[np.dtype] = []
        self._clock = 0
        self._memory = np.empty(0, np.uint8)
        self._plan: Plan | None = None
        self._next = 0
        self._aside = False

    def plan(self, step: Callable[[], object]) -> Plan:
        """Runs `step` dry and lays its arrays out."""
        if self.dry or self._plan:
            raise RuntimeError("a plan is made between steps, not inside one")
        self._lifetimes, self._shapes, self._dtypes, self._clock = [], [], [], 0
        self.dry = True
        try:
            step()
        finally:
            self.dry = False
        alive = [
            s for s, (_, death) in zip(self._shapes, self._lifetimes, strict=True) if death < 0
        ]
        if alive:
            raise RuntimeError(f"arrays {alive} outlive their step: copy what is to be kept")
        return _lay_out(self._shapes, self._dtypes, self._lifetimes)

    def allocate(self, *plans: Plan) -> None:
        """Takes the memory that the largest plan needs, and gives every plan its arrays."""
        self._memory = np.empty(max(plan.bytes for plan in plans) + ALIGN, np.uint8)
        base = -self._memory.ctypes.data % ALIGN
        for plan in plans:
            plan.arrays = [
                np.asarray(_Place(self._memory, base + offset, shape, dtype))
                for shape, dtype, offset in zip(plan.shapes, plan.dtypes, plan.offsets, strict=True)
            ]

    @contextmanager
    def use(self, plan: Plan) -> Iterator[None]:
        """Within it, `empty` answers from the plan."""
        self._plan, self._next = plan, 0
        try:
            yield
        finally:
            self._plan = None

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Within it `empty` gives ordinary arrays, which the plan does not hold: for small ones
        whose shapes or number differ from step to step."""
        before, self._aside = self._aside, True
        try:
            yield
        finally:
            self._aside = before

    def empty(self, shape: tuple[int, ...], dtype: np.dtype = FLOAT32) -> np.ndarray:
        """An array for this step; outside of `use`, an ordinary one."""
        if self.dry and not self._aside:
            return self._imaginary(shape, dtype)
        plan = self._plan
        if plan is None or self._aside:
            return np.empty(shape, dtype)
        i, self._next = self._next, self._next + 1
        if i >= len(plan.shapes) or plan.shapes[i] != shape or plan.dtypes[i] != dtype:
            raise RuntimeError(f"array {i} of shape {shape} is not in the plan of this step")
        return plan.arrays[i]

    def _imaginary(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        index = len(self._lifetimes)
        self._shapes.append(shape)
        self._dtypes.append(dtype)
        self._lifetimes.append([self._tick(), -1])
        return np.asarray(_Lifetime(self, index, shape, dtype))

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _died(self, index: int) -> None:
        self._lifetimes[index][1] = self._tick()


class _Lifetime:
    """What the views of one imaginary array hold on to: its end is theirs.

    Every element is the same number (strides of 0), so no shape needs memory.
    """

    _number = np.zeros(1, np.float64)  # as large as any

    def __init__(self, arena: Arena, index: int, shape: tuple[int, ...], dtype: np.dtype):
        self.arena, self.index = arena, index
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": dtype.str,
            "data": (self._number.ctypes.data, False),
            "strides": (0,) * len(shape),
        }

    def __del__(self) -> None:
        self.arena._died(self.index)


class _Place:
    """The memory of one array of a plan. It stands between the array and the arena's memory, so
    that a view's `base` is that array, as in a dry run, and not all of the memory."""

    def __init__(self, memory: np.ndarray, offset: int, shape: tuple[int, ...], dtype: np.dtype):
        self.memory = memory
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": dtype.str,
            "data": (memory.ctypes.data + offset, False),
        }


def _lay_out(
    shapes: list[tuple[int, ...]], dtypes: list[np.dtype], lifetimes: list[list[int]]
) -> Plan:
    """Largest first, each at the lowest place that is free for the whole of its life."""
    counts = [dtype.itemsize * prod(shape) for shape, dtype in zip(shapes, dtypes, strict=True)]
    sizes = [-(-count // ALIGN) * ALIGN for count in counts]
    offsets = [0] * len(shapes)
    placed: list[int] = []
    for i in sorted(range(len(shapes)), key=lambda i: (-sizes[i], i)):
        birth, death = lifetimes[i]
        beside = sorted(
            (offsets[j], sizes[j])
            for j in placed
            if lifetimes[j][0] < death and birth < lifetimes[j][1]
        )
        place = 0
        for offset, size in beside:
            if offset - place >= sizes[i]:
                break
            place = max(place, offset + size)
        offsets[i] = place
        placed.append(i)
    peak = max((offsets[i] + sizes[i] for i in range(len(shapes))), default=0)
    return Plan(shapes, dtypes, offsets, peak)
