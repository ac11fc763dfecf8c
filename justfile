# `just` lists the recipes; `pip install rust-just` brings the program.

default:
    @just --list

# What the README's second command does
test:
    pip install '.[test]' && pytest -n auto

# Every check that CI makes besides the tests
check: format lint types layers docs

format:
    ruff format --check .
    clang-format --dry-run --Werror kernels/*.cc kernels/*.h kernels/tests/*.cc

lint:
    ruff check .

types:
    mypy

# Import directions, as docs/design.md draws them
layers:
    pytest -q tests/test_layers.py

# Code in the pages runs, their numbers hold, their links lead somewhere
docs:
    pytest -q tests/test_docs.py

# Rewrites what the format recipe would refuse
fix:
    ruff check --fix .
    ruff format .
    clang-format -i kernels/*.cc kernels/*.h kernels/tests/*.cc

# The kernels' own tests, on every instruction set of this CPU
kernels:
    cmake -S . -B build/kernels -DTENARAI_PYTHON=OFF -DTENARAI_KERNEL_TESTS=ON
    cmake --build build/kernels --parallel
    ctest --test-dir build/kernels --output-on-failure
