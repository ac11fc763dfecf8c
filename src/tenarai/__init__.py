"""Tenarai: train, explain and run language models on CPUs, every gradient by hand."""

__version__ = "0.1.0"
