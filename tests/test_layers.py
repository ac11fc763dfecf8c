"""The direction of imports: docs/design.md's picture, read from the source and enforced."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "tenarai"

# Who may import whom, by part (the first name below tenarai). An arrow's head may import its tail.
BASE = {"errors"}
FILES = BASE | {"io"}  # `io` below: what writes and reads files without knowing a model
ALLOWED = {
    "errors": set(),
    "quant": BASE,
    "ops": BASE | {"quant"},
    "io": BASE | {"quant"},
    "tokenizers": FILES,
    "data": FILES | {"tokenizers"},
    "models": FILES | {"ops", "quant"},
    "config": FILES,
    "train": FILES | {"config", "data", "infer", "models", "ops", "tokenizers"},
    "infer": FILES | {"models", "ops", "quant", "tokenizers"},
    "bench": FILES | {"api", "config", "infer", "models", "ops", "quant", "train"},
    "finetune": FILES
    | {"api", "config", "data", "infer", "models", "ops", "quant", "tokenizers", "train"},
    "opening": FILES | {"models", "ops", "quant", "tokenizers"},
    "export": FILES | {"models", "ops", "quant", "tokenizers"},
    "api": FILES | {"export", "opening", "infer", "models", "ops", "quant", "tokenizers"},
    "files": FILES | {"api", "opening", "models", "ops", "quant", "tokenizers"},
    "cli": FILES
    | {"bench", "config", "data", "files", "infer", "api", "models", "ops", "quant"}
    | {"finetune", "tokenizers", "train"},
    "eval_harness": FILES | {"api", "infer"},
    "__init__": {"api", "errors", "train"},
    "__main__": {"cli"},
}
KERNELS = "_kernels"  # the compiled extensions: tenarai._kernels...
KERNELS_HOME = "ops/fast.py"  # the only file that imports them


def imports(file, package):
    """Dotted names below the package that a file imports, relative ones resolved, with lines."""
    parts = file.relative_to(package).with_suffix("").parts
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                here = ("tenarai", *parts)[: len(parts) + 1 - node.level]
                base = ".".join((*here, *filter(None, [node.module])))
            else:
                base = node.module
            # `from tenarai import x` and `from . import x` import the part x
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith("import_module")
            and node.args
        ):
            text = ast.unparse(node.args[0])
            names = [text.strip("f'\"")] if "tenarai" in text else []
        else:
            continue
        yield from ((n.split(".")[1:], node.lineno) for n in names if n.split(".")[0] == "tenarai")


def violations(package):
    found = []
    for file in sorted(package.rglob("*.py")):
        inside = file.relative_to(package).as_posix()
        part = inside.split("/")[0].removesuffix(".py")
        for target, line in imports(file, package):
            if not target or target[0] in ("__version__", part):
                continue
            if target[0].startswith(KERNELS):
                if inside != KERNELS_HOME:
                    found.append(f"{inside}:{line}: only {KERNELS_HOME} may import the kernels")
            elif part not in ALLOWED:
                found.append(f"{inside}:{line}: {part} is in no row of the table: add one")
            elif target[0] not in ALLOWED[part]:
                found.append(f"{inside}:{line}: {part} may not import {target[0]}")
    return found


def test_imports_follow_the_picture():
    assert violations(SOURCE) == []


def test_every_part_has_a_row_and_every_row_names_parts():
    parts = {p.stem for p in SOURCE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert parts <= set(ALLOWED)
    assert set().union(*ALLOWED.values()) <= set(ALLOWED)


def test_io_tokenizers_and_data_know_no_model():
    for part in ("io", "tokenizers", "data"):
        assert not ALLOWED[part] & {"models", "ops", "train", "infer"}


def test_no_two_parts_import_each_other():
    def reach(part, seen):
        for other in ALLOWED[part] - seen:
            reach(other, seen | {other})
            assert other != part
        return seen

    for part in ALLOWED:
        below, new = set(), set(ALLOWED[part])
        while new:
            below |= new
            new = set().union(*(ALLOWED[p] for p in new)) - below
        assert part not in below, part


@pytest.mark.parametrize(
    "file, line, found",
    [
        ("io/bad.py", "from tenarai.models.gpt2 import GPT2", "io may not import models"),
        ("io/bad.py", "from ..models import gpt2", "io may not import models"),
        ("data/bad.py", "from .. import train", "data may not import train"),
        ("ops/deep/bad.py", "from ...models.table import Param", "ops may not import models"),
        ("ops/bad.py", "import tenarai.infer.sampler as s", "ops may not import infer"),
        ("models/bad.py", "def f():\n    from tenarai import train", "models may not import train"),
        ("models/bad.py", "from tenarai._kernels_avx2 import gemm", "only ops/fast.py"),
        ("tokenizers/bad.py", "import_module('tenarai.cli')", "tokenizers may not import cli"),
        ("new/bad.py", "from tenarai.io import atomic", "new is in no row"),
    ],
)
def test_a_planted_violation_is_found(tmp_path, file, line, found):
    package = tmp_path / "tenarai"
    (package / file).parent.mkdir(parents=True)
    (package / file).write_text(line)
    (message,) = violations(package)
    assert message.startswith(f"{file}:") and found in message


def test_what_is_allowed_is_let_through(tmp_path):
    package = tmp_path / "tenarai"
    (package / "ops").mkdir(parents=True)
    (package / "ops" / "fast.py").write_text(
        "import numpy\nfrom tenarai import _kernels\nfrom . import dry\nfrom ..errors import E"
    )
    assert violations(package) == []
