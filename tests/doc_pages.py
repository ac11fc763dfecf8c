"""Reads the project's Markdown pages: their code, what it should print, links and headings.

A page's ```python blocks are one program. A ```text block that follows one directly is what it
prints, character for character. A block that is only to be read stands under the line

    <!-- not run: the reason -->

Where the text or a block without a language says that one sum equals another,
0.75·4 + 0.25·8 = 5, both are worked out (see `sums`).

`python tests/doc_pages.py PAGE...` runs pages and writes what their code prints into them.
"""

import ast
import contextlib
import io
import re
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import numpy as np

ROOT = Path(__file__).resolve().parents[1]

FENCE = re.compile(r"^( *)(`{3,}|~{3,})\s*([^\s`]*)[^`]*$")
NOT_RUN = re.compile(r"^\s*<!-- not run: \S.*-->\s*$")
LINKS = (
    re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)"),  # [text](target), ![alt](target)
    re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?([^\s>]+)", re.M),  # [name]: target
    re.compile(r"\b(?:src|href|srcset)=\"([^\"\s]+)"),  # <img src="target">
)
ELSEWHERE = re.compile(r"^(?:[a-z][a-z0-9+.-]*:|//)", re.I)  # https:, mailto:

# What a sum is written with. A space belongs to it; letters only in these.
SUM = r"(?:[\d.,()+−·/^½²³\- ]|\bln |\blog₂ |\be\^)*"
SUM_AT_END, SUM_AT_START = re.compile(SUM + "$"), re.compile(SUM)
AS_PYTHON = str.maketrans({"−": "-", "·": "*", "^": "**", "½": "0.5", "²": "**2", "³": "**3"})


@dataclass
class Block:
    """A fenced block: its language, its text, and the 0-based line where the text begins."""

    lang: str
    text: str
    line: int
    end: int  # the line of the closing fence
    runs: bool = True
    output: "Block | None" = None  # the text block directly below a Python block


def pages(root: Path = ROOT) -> list[Path]:
    """Every page that people read: README and its like, and docs/."""
    return sorted([*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("lessons/**/*.md")])


def blocks(text: str) -> list[Block]:
    """All fenced blocks of a page, in order. Raises ValueError if one is never closed."""
    lines, i = text.split("\n"), 0
    found: list[Block] = []
    while i < len(lines):
        opening = FENCE.match(lines[i])
        i += 1
        if not opening:
            continue
        indent, fence, lang = len(opening[1]), opening[2], opening[3].lower()
        start = i
        while i < len(lines) and not re.match(rf"^ *{fence[0]}{{{len(fence)},}}\s*$", lines[i]):
            i += 1
        if i == len(lines):
            raise ValueError(f"line {start}: the block that opens here is never closed")
        body = "".join(re.sub(rf"^ {{0,{indent}}}", "", s) + "\n" for s in lines[start:i])
        runs = lang == "python" and not (start > 1 and NOT_RUN.match(lines[start - 2]))
        block = Block(lang, body, start, i, runs)
        if lang == "text" and found and found[-1].runs:
            between = lines[found[-1].end + 1 : start - 1]
            if not "".join(between).strip():
                found[-1].output = block
        found.append(block)
        i += 1
    return found


def run(page: Path) -> list[tuple[Block, str]]:
    """Runs a page's Python blocks in one namespace: each block with what it printed.

    What a block raises, assertions too, comes out with the page's own file name and lines.
    """
    scope: dict[str, object] = {"__name__": page.stem}
    printed = []
    for block in blocks(page.read_text("utf-8")):
        if not block.runs:
            continue
        code = compile("\n" * block.line + block.text, str(page), "exec")
        stdout = io.StringIO()
        with contextlib.redirect_stdout(stdout):
            exec(code, scope)
        printed.append((block, "".join(s.rstrip() + "\n" for s in stdout.getvalue().splitlines())))
    return printed


def same_code(text: str) -> str:
    """What must not differ between languages: the code without comments and docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def prose(text: str) -> str:
    """The page without fenced blocks and code in the line; what is cut leaves its newlines."""
    lines = text.split("\n")
    for block in blocks(text):
        lines[block.line - 1 : block.end + 1] = [""] * (block.end + 2 - block.line)
    return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", "\n".join(lines))


def links(text: str) -> list[str]:
    """Targets of a page's links and pictures that lead to the project's own files."""
    found = [m[1] for pattern in LINKS for m in pattern.finditer(prose(text))]
    return [unquote(target) for target in found if not ELSEWHERE.match(target)]


def anchors(text: str) -> set[str]:
    """The names by which a page's headings can be linked to, as GitHub makes them."""
    lines = text.split("\n")
    for block in blocks(text):
        lines[block.line - 1 : block.end + 1] = [""] * (block.end + 2 - block.line)
    names, seen = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text)), Counter[str]()
    for line in lines:
        heading = re.match(r"^ {0,3}#{1,6}\s+(.*?)\s*#*$", line)
        if heading:
            plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
            name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
            names.add(f"{name}-{seen[name]}" if seen[name] else name)
            seen[name] += 1
    return names


def broken_links(page: Path, root: Path = ROOT) -> list[str]:
    """The links of a page that lead nowhere, or out of the project."""
    bad = []
    for target in links(page.read_text("utf-8")):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        found = file.exists() and file.is_relative_to(root.resolve())
        if found and anchor and file.suffix == ".md":
            found = anchor in anchors(file.read_text("utf-8"))
        if not found:
            bad.append(target)
    return bad


def sums(text: str) -> list[tuple[str, str, bool]]:
    """Every `left = right` of a page with numbers on both sides, and whether it is true.

    Numbers, tuples (added and scaled like vectors), + − · / ^, ln, log₂ and e^. A side that
    holds anything else is no claim. The right one may be rounded if the left one is not exact.
    """
    lines = prose(text).split("\n")
    for block in blocks(text):
        if not block.lang:
            lines += block.text.split("\n")
    found = []
    for line in lines:
        sides = line.split("=")
        for left, right in pairwise(sides):
            l, r = _sum_at_end(left), _sum_at_start(right)
            x, y = _value(l), _value(r)
            if x is not None and y is not None:
                digits = max((len(d) for d in re.findall(r"\.(\d+)", r)), default=0)
                inexact = digits and re.search("ln|log|/", l)
                close = 0.5 * 10.0**-digits if inexact else 1e-12
                same = x.shape == y.shape and np.allclose(x, y, rtol=1e-12, atol=close)
                found.append((l, r, bool(same)))
    return found


def _sum_at_end(side: str) -> str:
    """The sum that a text ends with; "" if it hangs on something that is not a number."""
    match = SUM_AT_END.search(side)
    assert match  # the empty one, at least
    before, found = side[: match.start()], match[0]
    if comma := re.match(r"[,.] +", found):  # the sentence's
        before, found = before + ":", found[comma.end() :]
    free = not before or before[-1] in ":、。" or found.startswith(" ")
    found = found.strip()
    if found.count("(") > found.count(")"):  # the text's own parenthesis
        free, found = free or found.startswith("("), found.removeprefix("(")
    elif before and before[-1] not in ":、。" and found[:1] in set("+−-·/^,.)"):
        free = False
    return found if free else ""


def _sum_at_start(side: str) -> str:
    match = SUM_AT_START.match(side)
    assert match
    found = re.split(r" {3,}", match[0].strip())[0].rstrip(" .,")  # a gap: the next column
    return found.removesuffix(")") if found.count(")") > found.count("(") else found


def _value(expression: str) -> "np.ndarray | None":
    """What a sum comes to; None if it is none."""
    python = re.sub(r"(ln|log₂) ([\d.]+)", r"\1(\2)", expression).translate(AS_PYTHON)
    python = re.sub(r"\be\*\*", "np.e**", python.replace("log₂", "np.log2").replace("ln", "np.log"))
    try:
        tree = ast.parse(python, mode="eval")
        tree = ast.fix_missing_locations(_TuplesToVectors().visit(tree))
        return np.asarray(eval(compile(tree, "sum", "eval"), {"np": np}), float)
    except (SyntaxError, TypeError, ValueError, NameError, AttributeError):
        return None


class _TuplesToVectors(ast.NodeTransformer):
    def visit_Tuple(self, node: ast.Tuple) -> ast.AST:
        self.generic_visit(node)
        array = ast.parse("np.array", mode="eval").body
        return ast.Call(array, [ast.List(node.elts, ast.Load())], [])


def fill(page: Path) -> None:
    """Writes what the code of a page prints into the page, in text blocks below the code."""
    lines = page.read_text("utf-8").split("\n")
    for block, printed in reversed(run(page)):
        new = ["```text", *printed.splitlines(), "```"] if printed else []
        if block.output:
            lines[block.output.line - 1 : block.output.end + 1] = new
        elif new:
            lines[block.end + 1 : block.end + 1] = ["", *new]
    page.write_text("\n".join(lines), "utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        fill(Path(name))
