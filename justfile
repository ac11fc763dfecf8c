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
    clang-format --dry-run --Werror kernels/*.cc kernels/*.h kernels/tests/*.cc kernels/tests/*.h

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

# Damaged GGUF files by the thousand: no crash, no hang, no memory beyond the file
fuzz cases="20000" seed="1":
    python tests/fuzz_gguf.py --cases {{cases}} --seed {{seed}}

# Rewrites what the format recipe would refuse
fix:
    ruff check --fix .
    ruff format .
    clang-format -i kernels/*.cc kernels/*.h kernels/tests/*.cc kernels/tests/*.h

# The kernels' own tests, on every instruction set of this CPU
kernels:
    cmake -S . -B build/kernels -DTENARAI_PYTHON=OFF -DTENARAI_KERNEL_TESTS=ON
    cmake --build build/kernels --parallel
    ctest --test-dir build/kernels --output-on-failure

# The same for 64-bit ARM under qemu: with SVE of 512 bits, and with NEON alone
kernels-arm:
    cmake -S . -B build/kernels-arm -DTENARAI_PYTHON=OFF -DTENARAI_KERNEL_TESTS=ON \
        -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
        -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
        -DCMAKE_CROSSCOMPILING_EMULATOR="qemu-aarch64;-L;/usr/aarch64-linux-gnu;-cpu;max,sve512=on"
    cmake --build build/kernels-arm --parallel
    ctest --test-dir build/kernels-arm --output-on-failure
    qemu-aarch64 -L /usr/aarch64-linux-gnu -cpu cortex-a72 build/kernels-arm/test_kernels
