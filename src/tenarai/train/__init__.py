"""Training: the schedule, the optimiser, the loop, and what it shows and keeps.

`tenarai.train(...)` is both this package and the function `run.train`: a package of that name
would otherwise hide the function, depending on what was imported first.
"""

from __future__ import annotations

import sys
import types
from typing import Any


class _Callable(types.ModuleType):
    def __call__(self, *args: Any, **settings: Any) -> Any:
        from .run import train

        return train(*args, **settings)


sys.modules[__name__].__class__ = _Callable
