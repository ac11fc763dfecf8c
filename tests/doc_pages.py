"""Reads the project's Markdown pages: their code, what it should print, links and headings.

A page's ```python blocks are one program. A ```text block that follows one directly is what it
prints, character for character. A block that is only to be read stands under the line

    <!-- not run: the reason -->

`python tests/doc_pages.py PAGE...` runs pages and writes what their code prints into them.
"""

import ast
import contextlib
import io
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[1]

FENCE = re.compile(r"^( *)(`{3,}|~{3,})\s*([^\s`]*)[^`]*$")
NOT_RUN = re.compile(r"^\s*<!-- not run: \S.*-->\s*$")
LINKS = (
    re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)"),  # [text](target), ![alt](target)
    re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?([^\s>]+)", re.M),  # [name]: target
    re.compile(r"\b(?:src|href|srcset)=\"([^\"\s]+)"),  # <img src="target">
)
ELSEWHERE = re.compile(r"^(?:[a-z][a-z0-9+.-]*:|//)", re.I)  # https:, mailto:


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
