"""The filters and checks of the sandbox: what is looked at before a library's function runs.

Each check has the size of what would come out, before it is made. See sandbox.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from jinja2 import pass_environment
from jinja2.runtime import Undefined

from .budget import MAX_BITS, MAX_WIDTH, Budget, Limit

_FORMAT = re.compile(r"%(?:\([^)]*\))?[#0\- +]*(\*|\d*)(?:\.(\*|\d*))?")


def items(value: Any) -> list[tuple[Any, Any]]:
    return [] if isinstance(value, Undefined) else list(value.items())


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it: Jinja's own escapes HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


@pass_environment
def join(environment: Any, values: Iterable[Any], d: str = "", attribute: Any = None) -> str:
    if attribute is not None:
        values = (environment.getitem(value, attribute) for value in values)
    return joined(environment, str(d), values)


def joined(environment: Any, between: str, values: Iterable[Any]) -> str:
    """`between.join(values)`, ended where it grows too long."""
    texts, size = [], 0
    for value in values:
        texts.append(environment.text(value))
        size += len(texts[-1]) + len(between)
        environment.budget.fits(size)
    return between.join(texts)


@pass_environment
def total(environment: Any, values: Iterable[Any], attribute: Any = None, start: Any = 0) -> Any:
    for value in values:
        number = value if attribute is None else environment.getitem(value, attribute)
        if not isinstance(start, (int, float)) or not isinstance(number, (int, float)):
            raise Limit("it sums what are no numbers")
        start += number
    return start


def no_check(budget: Budget, *arguments: Any, **options: Any) -> None:
    pass


def check_replace(budget: Budget, text: Any, old: Any, new: Any = "", *_: Any, **__: Any) -> None:
    text, old, new = str(text), str(old), str(new)
    budget.fits(len(text) + text.count(old) * len(new))


def check_indent(budget: Budget, text: Any, width: Any = 4, *_: Any, **__: Any) -> None:
    width = len(width) if isinstance(width, str) else width
    if width > MAX_WIDTH:
        raise Limit(f"it indents by more than {MAX_WIDTH}")
    budget.fits(len(str(text)) + (str(text).count("\n") + 1) * width)


def check_json(budget: Budget, value: Any, *_: Any, **options: Any) -> None:
    if len(_) > 1 or not all(len(str(option)) < 16 for option in options.values()):
        raise Limit("its tojson has strange options")
    indent = options.get("indent") or 0
    if not isinstance(indent, int) or indent > 16:
        raise Limit("its tojson indents by more than 16")
    budget.fits(budget.weigh(value) * (1 + indent))


def check_round(budget: Budget, value: Any, precision: Any = 0, *_: Any, **__: Any) -> None:
    if abs(precision) > 20:
        raise Limit("it rounds to more than 20 digits")


def check_format(budget: Budget, text: Any, *values: Any, **named: Any) -> None:
    text = str(text)
    if re.search(r"%\([^)]*\(", text):
        raise Limit("its format has brackets in a name")
    for width in (w for match in _FORMAT.finditer(text) for w in match.groups() if w):
        if width == "*" or len(width) > 3 or int(width) > MAX_WIDTH:
            raise Limit(f"its format has a width above {MAX_WIDTH}")
    budget.fits(len(text) + text.count("%") * (budget.weigh([*values, *named.values()])))


def check_power(left: Any, right: Any) -> None:
    whole = isinstance(left, int) and isinstance(right, int)
    if whole and (right > MAX_BITS or left.bit_length() * right > MAX_BITS):
        raise Limit(f"it computes with numbers of more than {MAX_BITS} bits")


# By the name of the function: filters of Jinja, ours, and methods of strings.
CHECKS: dict[str, Callable[..., None]] = {
    "do_replace": check_replace,
    "replace": check_replace,
    "do_indent": check_indent,
    "do_round": check_round,
    "do_format": check_format,
    "to_json": check_json,
}
