"""Measurements against the machine's limits and against PyTorch. See benchmarks/README.md."""
