"""Jinja2 for templates that strangers wrote: nothing to reach, and little to use up.

A chat template is a program in a model's file. Jinja's own sandbox keeps it from Python's
internals, given that it only ever sees plain data, which chat.py sees to. Here it is also kept
from running or growing without end: every call, filter, comparison, output and turn of a loop
takes from a Budget of steps, time and characters, no string or list outgrows it, and nothing is
computed before it runs. What a template can call is a short list.
"""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Iterable, Iterator
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension
from jinja2.runtime import LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace

from . import sandbox_filters as ours
from .budget import MAX_BITS, MAX_RANGE, MAX_WIDTH, Budget, Limit

_STRING = (
    "capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit "
    "islower isnumeric isspace istitle isupper join lower lstrip partition removeprefix "
    "removesuffix replace rfind rindex rpartition rsplit rstrip split splitlines startswith strip "
    "swapcase title upper"
)
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(_STRING.split()),
    dict: frozenset(["get", "items", "keys", "values"]),
    list: frozenset(["count", "index"]),
    tuple: frozenset(["count", "index"]),
}
_FILTERS = (
    "abs capitalize count d default dictsort e escape first float format groupby indent int items "
    "join last length list lower map max min reject rejectattr replace reverse round safe select "
    "selectattr sort string sum title trim unique upper wordcount"
)
_OBJECTS = (Namespace, LoopContext, Macro, Undefined, Cycler, Joiner)


class _Generator(CodeGenerator):
    """Nothing is computed while compiling, and what would go unseen at run time is announced."""

    def _output_child_to_const(self, *arguments: Any) -> str:
        raise nodes.Impossible

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:
        self.write("environment.concatenated((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Any) -> None:
        self.write("(environment.budget.step() or ")
        super().visit_Compare(node, frame)
        self.write(")")

    def visit_List(self, node: nodes.List, frame: Any) -> None:
        self._made(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Any) -> None:
        self._made(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Any) -> None:
        if node.ctx == "load":
            self._made(super().visit_Tuple, node, frame)
        else:  # what is assigned to
            super().visit_Tuple(node, frame)

    def _made(self, visit: Any, node: nodes.Expr, frame: Any) -> None:
        self.write("environment.made(")
        visit(node, frame)
        self.write(")")

    def visit_For(self, node: nodes.For, frame: Any) -> None:
        counted = nodes.EnvironmentAttribute("counted", lineno=node.lineno)
        node.iter = nodes.Call(counted, [node.iter], [], None, None, lineno=node.lineno)
        super().visit_For(node, frame)


class _GenerationBlock(Extension):
    """`{% generation %}`, which marks answers for training: here only what it encloses."""

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


@pass_context
def _finalize(context: Any, value: Any) -> str:
    return context.environment.written(value)


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment as chat templates expect it. `budget` is set anew for each rendering."""

    code_generator_class = _Generator
    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            finalize=_finalize,
            cache_size=0,
            extensions=["jinja2.ext.loopcontrols", _GenerationBlock],
        )
        self.budget = Budget(0)
        functions = (_dict, raise_exception, strftime_now, _Namespace, Cycler, Joiner)
        names = ("dict", "raise_exception", "strftime_now", "namespace", "cycler", "joiner")
        self.globals.clear()
        self.globals.update(zip(names, functions, strict=True), range=_range)
        filters = {**self.filters, "items": ours.items, "join": ours.join, "sum": ours.total}
        self.filters = {name: self._filter(filters[name]) for name in _FILTERS.split()}
        self.filters["tojson"] = self._filter(ours.to_json)

    def _filter(self, function: Any) -> Any:
        kind = getattr(function, "__name__", "")

        @functools.wraps(function)
        def limited(*arguments: Any, **options: Any) -> Any:
            data = [a for a in (*arguments, *options.values()) if not _is_jinja(a)]
            self.budget.step(sum(len(a) for a in data if isinstance(a, (str, list, dict))))
            ours.CHECKS.get(kind, ours.no_check)(self.budget, *data, **options)
            return self.made(function(*arguments, **options))

        return limited

    # what compiled templates call

    def made(self, value: Any) -> Any:
        """A new value, weighed."""
        if isinstance(value, str):
            self.budget.fits(len(value))
        elif isinstance(value, (list, dict, tuple)):
            self.budget.step(self.budget.weigh(value))
        return value

    def counted(self, things: Iterable[Any]) -> Iterator[Any]:
        for thing in things:
            self.budget.step()
            yield thing

    def concatenated(self, parts: tuple[Any, ...]) -> str:
        texts = [self.text(part) for part in parts]
        self.budget.step(sum(map(len, texts)))
        return "".join(texts)

    def written(self, value: Any) -> str:
        text = self.text(value)
        self.budget.step()
        self.budget.write(len(text))
        return text

    def text(self, value: Any) -> str:
        if isinstance(value, str):
            return value
        self.budget.weigh(value)
        return str(value)

    def call(self, context: Any, function: Any, *arguments: Any, **options: Any) -> Any:  # type: ignore[override]
        self.budget.step(sum(len(a) for a in arguments if isinstance(a, (str, list))))
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if isinstance(owner, str):
            self.budget.step(len(owner))
            if name == "join":
                return ours.joined(self, owner, *arguments)
            ours.CHECKS.get(name, ours.no_check)(self.budget, owner, *arguments, **options)
        return self.made(super().call(context, function, *arguments, **options))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.budget.step()
        sizes = [len(v) if isinstance(v, (str, list, tuple)) else -1 for v in (left, right)]
        if operator == "+":
            self.budget.fits(max(sizes[0], 0) + max(sizes[1], 0))
        elif operator == "*":
            times = max((v for v in (left, right) if isinstance(v, int)), default=1)
            self.budget.fits(max(sizes) * max(times, 1))
        elif operator == "%" and isinstance(left, str):
            ours.check_format(self.budget, left, right)
        elif operator == "**":
            ours.check_power(left, right)
        for value in (left, right):
            if isinstance(value, int) and value.bit_length() > MAX_BITS:
                raise Limit(f"it computes with numbers of more than {MAX_BITS} bits")
        return self.made(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> None:
        """No str.format: `%` and the filter do, and their widths are checked."""

    def is_safe_attribute(self, owner: Any, name: str, value: Any) -> bool:
        for kind, methods in _METHODS.items():
            if isinstance(owner, kind):
                return name in methods
        return isinstance(owner, _OBJECTS) and super().is_safe_attribute(owner, name, value)


def _is_jinja(value: Any) -> bool:
    return type(value).__module__.startswith("jinja2.")


class _Namespace(Namespace):
    """Jinja's own writes out what it holds, and namespaces can hold each other without end."""

    def __repr__(self) -> str:
        return "<namespace>"


# What templates may call


class Refusal(TemplateError):
    """A template's own objection, such as to two questions in a row."""


def raise_exception(message: Any) -> None:
    raise Refusal(str(message)[:500])


def strftime_now(format: str) -> str:
    if len(format) > MAX_WIDTH or re.search(r"\d", format):
        raise Limit("its format of a date is too long")
    return datetime.datetime.now().strftime(format)


def _dict(*arguments: Any, **items: Any) -> dict[Any, Any]:
    return dict(*arguments, **items)


def _range(*arguments: int) -> range:
    numbers = range(*arguments)
    if len(numbers) > MAX_RANGE:
        raise Limit(f"it counts {len(numbers):,} numbers, at most {MAX_RANGE:,} are allowed")
    return numbers
