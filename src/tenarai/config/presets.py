"""Presets: published recipes, and small ones that a CPU trains in minutes.

Only what differs from the defaults of settings.py, whose defaults are the preset `small`.
"""

from typing import Any

_GPT2_DATA = {"source": "pydoc", "tokenizer": "gpt2"}
_GPT2_RUN = {
    "val_every": 250,
    "val_batches": 20,
    "sample_every": 1000,
    "checkpoint_every": 50,
    "log_every": 1,
}


def _gpt2(layers: int, heads: int, width: int, lr: float, steps: int, accumulate: int = 128) -> Any:
    """GPT-2 as llm.c trains it: AdamW (0.9, 0.95), decay 0.1, clip 1, warm-up 700, cosine.

    The published micro-batch is that of a large GPU. Here it is 4 sequences, and more of them
    make a step: 4 × 1,024 × 128 = 524,288 tokens, the same gradient in a twentieth of the memory.
    """
    return {
        "model": {
            "layers": layers,
            "heads": heads,
            "width": width,
            "context": 1024,
            "dropout": 0.0,
        },  # fmt: skip
        "data": _GPT2_DATA,
        "optimiser": {
            "batch": 4,
            "accumulate": accumulate,
            "lr": lr,
            "beta1": 0.9,
            "beta2": 0.95,
            "weight_decay": 0.1,
            "clip": 1.0,
        },
        "schedule": {"kind": "cosine", "steps": steps, "warmup": 700, "min_lr": 0.0},
        "run": _GPT2_RUN,
    }


_gpt2_xl = _gpt2(48, 25, 1600, 6e-4, 32_000, accumulate=256)  # 1,048,576 tokens a step
_gpt2_xl["schedule"]["min_lr"] = 6e-5

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # English prose from CPython's own documentation, in about two minutes on two cores.
    "small": {},
    # nanoGPT's character-level recipe for a CPU, number for number. The text is the user's: name
    # tinyshakespeare's file to compare with nanoGPT's own run.
    "char": {
        "model": {
            "layers": 4,
            "heads": 4,
            "width": 128,
            "context": 64,
            "bias": False,
            "gelu": "exact",
            "dropout": 0.0,
        },
        "data": {"tokenizer": "char"},
        "optimiser": {"batch": 12, "lr": 1e-3, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1},
        "schedule": {"kind": "cosine", "steps": 2000, "warmup": 100, "min_lr": 1e-4},
        "run": {"val_every": 250, "val_batches": 20, "sample_tokens": 300},
    },
    # 124M, 350M, 774M and 1558M parameters; llm.c's learning rates and steps.
    "gpt2": _gpt2(12, 12, 768, 6e-4, 18_865),
    "gpt2-medium": _gpt2(24, 16, 1024, 3e-4, 60_000),
    "gpt2-large": _gpt2(36, 20, 1280, 2.5e-4, 286_102),
    "gpt2-xl": _gpt2_xl,
}
