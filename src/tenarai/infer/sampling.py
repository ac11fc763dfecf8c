"""How tokens are chosen: every setting of the chain, declared once with its bounds and its words.

The command line makes its options of this table (`cli/sampling_options.py`), the chain itself
stands in sampler.py, each link in samplers/. Nothing heavy is imported here, so that `--help`
answers at once.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from math import inf
from typing import Any

from tenarai.errors import TenaraiError

ORDER = ("penalties", "dry", "top_k", "tfs_z", "typical_p", "top_p", "min_p", "xtc", "temperature")
ALWAYS = ("penalties", "dry")  # they stand first where an order does not name them
SHOWN = {"penalties": "Penalties"}  # names that are printed otherwise than typed


def _setting(
    default: Any,
    help: str,
    *,
    least: float = -inf,
    most: float = inf,
    above: float = -inf,
    usual: Any = None,
    flag: str | None = None,
) -> Any:
    """A field with its bounds: least ≤ value ≤ most and value > above."""
    usual = default if usual is None else usual
    about = {"help": help, "least": least, "most": most, "above": above, "usual": usual}
    return field(default=default, metadata=about | {"flag": flag})


@dataclass(frozen=True)
class Sampling:
    """Settings of the chain from logits to a token. The defaults draw from the model's own
    distribution; `Sampling.usual()` has what people start from.

    Raises TenaraiError: a value out of its bounds, an unknown link.
    """

    temperature: float = _setting(
        1.0, "Below 1 surer, above 1 wilder; 0 always the most probable token.",
        least=0, most=1e6, usual=0.8, flag="temp",
    )  # fmt: skip
    top_k: int = _setting(0, "Choose among the N most probable tokens; 0: all.", least=0, usual=40)
    top_p: float = _setting(
        1.0, "Choose among the fewest tokens that are this probable together; 1: all.",
        above=0, most=1, usual=0.95,
    )  # fmt: skip
    min_p: float = _setting(
        0.0, "Drop tokens less probable than X times the most probable one; 0: none.",
        least=0, most=1, usual=0.05,
    )  # fmt: skip
    tfs_z: float = _setting(
        1.0, "Tail-free: cut where the curve of probabilities has flattened; 1: nowhere.",
        above=0, most=1, flag="tfs",
    )  # fmt: skip
    typical_p: float = _setting(
        1.0, "Locally typical: tokens about as surprising as expected, X together; 1: all.",
        above=0, most=1, flag="typical",
    )  # fmt: skip
    xtc_probability: float = _setting(
        0.0, "XTC: how often all but the least of the good tokens are dropped.", least=0, most=1
    )
    xtc_threshold: float = _setting(
        0.1, "XTC: a good token is at least this probable; above 0.5 none is dropped.",
        least=0, most=1,
    )  # fmt: skip
    dynatemp_range: float = _setting(
        0.0, "Let the temperature follow the entropy, from temp - X to temp + X; 0: fixed.",
        least=0, most=1e6,
    )  # fmt: skip
    dynatemp_exponent: float = _setting(
        1.0, "How the temperature follows the entropy's share of its maximum: share^X.",
        above=0, most=100, flag="dynatemp-exp",
    )  # fmt: skip
    repeat_penalty: float = _setting(
        1.0, "Divide logits of tokens that stood there lately by X (times X below 0); 1: off.",
        above=0, most=1e6,
    )  # fmt: skip
    repeat_last_n: int = _setting(64, "How many tokens back is lately; 0: none, -1: all.", least=-1)
    presence_penalty: float = _setting(
        0.0, "Subtract X from logits of tokens that stood there lately.", least=-1e6, most=1e6
    )
    frequency_penalty: float = _setting(
        0.0, "Subtract X for each time that a token stood there lately.", least=-1e6, most=1e6
    )
    dry_multiplier: float = _setting(
        0.0, "DRY: X · base^(n - allowed length) off what would repeat n + 1 tokens; 0: off.",
        least=0, most=1e6,
    )  # fmt: skip
    dry_base: float = _setting(1.75, "DRY: the base.", least=1, most=1e6)
    dry_allowed_length: int = _setting(2, "DRY: repetitions this long cost nothing.", least=1)
    dry_penalty_last_n: int = _setting(-1, "DRY: how many tokens back; 0: none, -1: all.", least=-1)
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    mirostat: int = _setting(
        0, "1 or 2: hold the surprise at a level (Mirostat, Mirostat 2) instead of cutting.",
        least=0, most=2,
    )  # fmt: skip
    mirostat_tau: float = _setting(
        5.0, "Mirostat: the level, in bits a token.", above=0, most=1e6, flag="mirostat-ent"
    )
    mirostat_eta: float = _setting(
        0.1, "Mirostat: how fast it is approached.", above=0, most=1e6, flag="mirostat-lr"
    )
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token, what is added); -inf forbids
    grammar: str | None = None  # Lark, or llama.cpp's GBNF
    json_schema: str | None = None
    order: tuple[str, ...] = ORDER

    def __post_init__(self) -> None:
        for f in self.numbers():
            _check(f.name, getattr(self, f.name), f.metadata)
        _check_order(self.order)
        for token, bias in self.logit_bias:
            if token < 0 or not -inf <= bias < inf:
                raise TenaraiError(
                    f"logit_bias gives token {token} the bias {bias}: "
                    "tokens are at least 0, a bias is a number, or -inf to forbid the token"
                )
        if self.grammar is not None and self.json_schema is not None:
            raise TenaraiError("grammar and json_schema are both set: a text can obey one of them")

    @classmethod
    def numbers(cls) -> list[Field]:
        """The settings that are numbers with bounds."""
        return [f for f in fields(cls) if "help" in f.metadata]

    @classmethod
    def usual(cls, **changes: Any) -> Sampling:
        """What people start from: top_k 40, top_p 0.95, min_p 0.05, temperature 0.8."""
        return cls(**{f.name: f.metadata["usual"] for f in cls.numbers()} | changes)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def constrained(self) -> bool:
        """Whether a grammar or a schema must be obeyed."""
        return self.grammar is not None or self.json_schema is not None

    def links(self) -> tuple[str, ...]:
        """The names of the chain's links in the order in which they are applied.

        Those that `order` names, whether or not their settings change anything; DRY, XTC, bias and
        grammar only where they are on. Temperature 0 ends in `greedy`, Mirostat replaces the cuts.
        """
        first = tuple(name for name in ALWAYS if name not in self.order)
        names = first + self.order
        if self.greedy:
            names = tuple(name for name in names if name in ALWAYS) + ("greedy",)
        elif self.mirostat:
            names = tuple(name for name in names if name in ALWAYS)
            names += ("temperature", "mirostat" if self.mirostat == 1 else "mirostat_v2")
        on = {"dry": self.dry_multiplier > 0, "xtc": self.xtc_probability > 0}
        before = ("grammar",) * self.constrained + ("logit_bias",) * bool(self.logit_bias)
        return before + tuple(name for name in names if on.get(name, True))

    def __str__(self) -> str:
        return " -> ".join(SHOWN.get(name, name) for name in self.links())

    def values(self) -> str:
        """The numbers on a few lines, those of DRY, XTC and Mirostat only where they are on."""
        rows = [
            ["repeat_last_n", "repeat_penalty", "frequency_penalty", "presence_penalty"],
            ["top_k", "tfs_z", "top_p", "min_p", "typical_p", "temperature"],
        ]
        if self.dry_multiplier:
            names = "multiplier", "base", "allowed_length", "penalty_last_n"
            rows.append([f"dry_{name}" for name in names])
        if self.xtc_probability:
            rows.append(["xtc_probability", "xtc_threshold"])
        if self.dynatemp_range:
            rows.append(["dynatemp_range", "dynatemp_exponent"])
        if self.mirostat:
            rows.append(["mirostat", "mirostat_tau", "mirostat_eta"])
        return "\n".join(", ".join(self._shown(name) for name in row) for row in rows)

    def _shown(self, name: str) -> str:
        value = getattr(self, name)
        shown = str(value) if isinstance(value, int) else f"{value:.3f}"
        return f"{'temp' if name == 'temperature' else name} = {shown}"


def _check(name: str, value: Any, about: Any) -> None:
    if about["least"] <= value <= about["most"] and value > about["above"]:  # false for NaN
        return
    bounds = [f"at least {about['least']:g}"] if about["least"] > -inf else []
    bounds += [f"above {about['above']:g}"] if about["above"] > -inf else []
    bounds += [f"at most {about['most']:g}"] if about["most"] < inf else []
    raise TenaraiError(f"{name} is {value}, it must be {' and '.join(bounds)}")


def _check_order(order: tuple[str, ...]) -> None:
    if unknown := [name for name in order if name not in ORDER]:
        raise TenaraiError(
            f"the order of samplers names {unknown[0]!r}, there are {', '.join(ORDER)}"
        )
    if repeated := [name for name in order if order.count(name) > 1]:
        raise TenaraiError(f"the order of samplers names {repeated[0]} twice: name it once")


def parse_order(text: str) -> tuple[str, ...]:
    """The links that `top_k;top_p;temperature` names, in any case, with `-` for `_` if you like.

    llama.cpp's other spellings are understood. Raises TenaraiError for an unknown one.
    """
    also = {"temp": "temperature", "tfs": "tfs_z", "typical": "typical_p", "typ_p": "typical_p"}
    words = [word.strip().lower().replace("-", "_") for word in text.split(";")]
    order = tuple(also.get(word, word) for word in words if word)
    _check_order(order)
    return order


def parse_bias(text: str) -> tuple[int, float]:
    """A token and what is added to its logit: `15043+1`, `15043-1.5`, `15043=-2`, `15043-inf`.

    Raises TenaraiError for anything else.
    """
    digits = len(text) - len(text.lstrip("0123456789"))
    token, bias = text[:digits], text[digits:].removeprefix("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise TenaraiError(
            f"logit bias {text!r}: write a token's id and what is added, such as 15043+1 or "
            "15043-inf (`tenarai tokenize` shows ids)"
        ) from None
