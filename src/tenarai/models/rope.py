"""The angles of rotary position embedding, and the ways of stretching them to longer texts.

Pair i of a head's R turned channels turns by t θ_i at position t; plainly θ_i = base^(−2i/R).
How the op turns them stands in ops/reference/rope.py. A scaling changes θ, and for some all
cosines and sines are multiplied by an attention factor m besides. With s the factor and L the
context of the pre-training ("original"):

    linear     θ_i / s                                                          (Chen et al. 2023)
    dynamic    base · (s T/L − s + 1)^(R/(R−2)) for base, T the context in use, where T > L
               ("NTK-aware", bloc97 and emozilla 2023)
    yarn       γ_i θ_i + (1 − γ_i) θ_i / s, with γ falling from 1 to 0 between the pairs that turn
               beta_fast and beta_slow times within L; m = 0.1 ln s + 1           (Peng et al. 2023)
    llama3     θ_i where the wavelength λ_i = 2π/θ_i < L/high; θ_i / s where λ_i > L/low; between
               them (1 − σ) θ_i / s + σ θ_i, σ = (L/λ_i − low) / (high − low)    (Llama 3.1's code)
    longrope   θ_i / f_i with a factor for each pair, `long` where the context in use T > L, else
               `short`; m = √(1 + ln s / ln L), s = largest context / L           (Ding et al. 2024)
    factors    θ_i / f_i, one list for all contexts: how GGUF files hold llama3's

"The context in use" is the one that the model was opened with, so that a text's first tokens are
not turned otherwise than its last: a Phi-3 of 128k opened with context 4096 takes the short
factors, opened as it is the long ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
SCALINGS = ("none", "linear", "dynamic", "yarn", "llama3", "longrope", "factors")


@dataclass(frozen=True)
class Rope:
    """How a layer's heads are turned. Raises ValueError for what cannot be."""

    size: int  # R: the first channels of a head turn, the rest stay
    base: float = 10000.0
    scaling: str = "none"
    factor: float = 1.0  # s
    original_context: int = 0  # L
    attention_factor: float | None = None  # m, where it is given
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0
    truncate: bool = True  # yarn: pairs in whole numbers
    low: float = 1.0  # llama3
    high: float = 4.0
    short: tuple[float, ...] = ()  # longrope's, and those of "factors"
    long: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.size < 2 or self.size % 2:
            raise ValueError(f"RoPE turns {self.size} channels of a head, expected an even number")
        if self.scaling not in SCALINGS:
            raise ValueError(
                f"RoPE scaling {self.scaling!r} is unknown, expected one of {', '.join(SCALINGS)}"
            )
        for name in ("base", "factor"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"RoPE's {name} is {getattr(self, name)}, expected more than 0")
        for name, needed in (("short", ("longrope", "factors")), ("long", ("longrope",))):
            f = getattr(self, name)
            if self.scaling in needed and len(f) != self.size // 2:
                raise ValueError(f"RoPE has {len(f)} {name} factors, expected {self.size // 2}")
            if not all(0 < x < math.inf for x in f):
                raise ValueError(f"RoPE's {name} factors must be more than 0")
        needs_original = self.scaling in ("dynamic", "yarn", "llama3", "longrope")
        if needs_original and self.original_context < 2:
            raise ValueError(f"RoPE scaling {self.scaling} needs the original context")
        if self.scaling == "llama3" and not 0 < self.low < self.high:
            raise ValueError(f"RoPE's low and high are {self.low} and {self.high}")
        if self.scaling == "dynamic" and self.size < 4:
            raise ValueError("RoPE scaling dynamic needs 4 channels or more")

    def angles(self, context: int) -> tuple[Array, float]:
        """θ (R/2,) float64 and m, for a context of that length in use."""
        base, long_text = self.base, context > self.original_context
        if self.scaling == "dynamic" and long_text:
            stretch = self.factor * context / self.original_context - self.factor + 1
            base *= stretch ** (self.size / (self.size - 2))
        theta = base ** (-np.arange(0, self.size, 2) / self.size)  # (R/2,)
        if self.scaling == "linear":
            theta = theta / self.factor
        elif self.scaling == "yarn":
            keep = 1 - self._yarn_ramp()
            theta = keep * theta + (1 - keep) * theta / self.factor
        elif self.scaling == "llama3":
            theta = self._llama3(theta)
        elif self.scaling in ("longrope", "factors"):
            use_long = self.scaling == "longrope" and long_text
            theta = theta / np.asarray(self.long if use_long else self.short)
        return theta, self.attention_scale()

    def tables(self, length: int, context: int) -> tuple[Array, Array]:
        """cos, sin (length, R/2) float32 of positions 0 to length − 1, times m."""
        theta, m = self.angles(context)
        turns = np.arange(length)[:, None] * theta  # (length, R/2) float64
        return (m * np.cos(turns)).astype(np.float32), (m * np.sin(turns)).astype(np.float32)

    def attention_scale(self) -> float:
        """m, given or by the formula above."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.factor <= 1:
            return 1.0
        if self.scaling == "yarn":
            return 0.1 * math.log(self.factor) + 1
        if self.scaling == "longrope":
            return math.sqrt(1 + math.log(self.factor) / math.log(self.original_context))
        return 1.0

    def _yarn_ramp(self) -> Array:
        """0 for pairs that turn fast, 1 for slow ones. (R/2,)"""

        def pair(turns: float) -> float:
            """The pair, as a fraction, that turns so often within the original context."""
            return (
                self.size
                * math.log(self.original_context / (turns * 2 * math.pi))
                / (2 * math.log(self.base))
            )

        first, last = pair(self.beta_fast), pair(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, self.size - 1)
        last = last + 0.001 if first == last else last
        return np.clip((np.arange(self.size // 2) - first) / (last - first), 0, 1)

    def _llama3(self, theta: Array) -> Array:
        turns = self.original_context * theta / (2 * math.pi)  # L/λ (R/2,)
        smooth = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return (1 - smooth) * theta / self.factor + smooth * theta
