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


def _llama2c(layers: int, heads: int, width: int, context: int, batch: int, accumulate: int) -> Any:
    """llama2.c's shapes and its train.py's settings: AdamW (0.9, 0.95), decay 0.1, clip 1, warm-up
    1,000, cosine to 0. A step is 131,072 tokens, in micro-batches that a CPU holds. The text is
    the user's: theirs was TinyStories, in Llama 2's vocabulary."""
    return {
        "model": {
            "family": "llama", "layers": layers, "heads": heads, "width": width,
            "context": context,
        },
        "data": {"vocab": 32_000},
        "optimiser": {
            "batch": batch, "accumulate": accumulate, "lr": 5e-4, "beta1": 0.9, "beta2": 0.95,
            "weight_decay": 0.1,
        },
        "schedule": {"kind": "cosine", "steps": 100_000, "warmup": 1000, "min_lr": 0.0},
        "run": _GPT2_RUN,
    }  # fmt: skip


# Its own command has other numbers than train.py's.
_stories260k = _llama2c(5, 8, 64, 512, batch=16, accumulate=8)
_stories260k["model"] |= {"kv_heads": 4, "hidden": 172}
_stories260k["data"]["vocab"] = 512
_stories260k["optimiser"] |= {"lr": 1e-3, "beta2": 0.99, "weight_decay": 0.01}

_gpt2_xl = _gpt2(48, 25, 1600, 6e-4, 32_000, accumulate=256)  # 1,048,576 tokens a step
_gpt2_xl["schedule"]["min_lr"] = 6e-5

_char: dict[str, dict[str, Any]] = {
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
}

_char_fast = dict(_char)
_char_fast["optimiser"] = _char["optimiser"] | {
    "algorithm": "muon", "lr": 8e-3, "muon_lr": 0.04, "momentum": 0.9,
}  # fmt: skip
_char_fast["schedule"] = {"kind": "cosine", "steps": 600, "warmup": 60, "min_lr": 0.0}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # English prose from CPython's own documentation, in about two minutes on two cores.
    "small": {},
    # nanoGPT's character-level recipe for a CPU, number for number. The text is the user's: name
    # tinyshakespeare's file to compare with nanoGPT's own run.
    "char": _char,
    # The same model in fewer steps: Muon, a higher learning rate that falls to 0.
    "char-fast": _char_fast,
    # 124M, 350M, 774M and 1558M parameters; llm.c's learning rates and steps.
    "gpt2": _gpt2(12, 12, 768, 6e-4, 18_865),
    "gpt2-medium": _gpt2(24, 16, 1024, 3e-4, 60_000),
    "gpt2-large": _gpt2(36, 20, 1280, 2.5e-4, 286_102),
    "gpt2-xl": _gpt2_xl,
    # The modern twin of `small`: RMS norm, RoPE, two key heads, SwiGLU, no biases.
    "llama-small": {
        "model": {"family": "llama", "kv_heads": 2},
        "schedule": {"steps": 800},
    },
    # Eight experts of which a token takes two: the small model's work, with four times its MLPs.
    "moe-small": {
        "model": {
            "family": "llama", "arch": "mixtral", "kv_heads": 2, "experts": 8, "hidden": 256,
        },
        "schedule": {"steps": 800},
    },
    "llama-260k": _stories260k,
    "llama-15m": _llama2c(6, 6, 288, 256, batch=8, accumulate=64),
    "llama-42m": _llama2c(8, 8, 512, 1024, batch=4, accumulate=32),
    "llama-110m": _llama2c(12, 12, 768, 1024, batch=4, accumulate=32),
    # SmolLM2-135M as it was trained: 1,048,576 tokens a step, a fifth of the steps to cool down.
    "smollm2-135m": {
        "model": {
            "family": "llama", "layers": 30, "heads": 9, "kv_heads": 3, "width": 576,
            "hidden": 1536, "context": 2048, "rope_theta": 1e5,
        },
        "data": {"vocab": 49_152},
        "optimiser": {
            "batch": 1, "accumulate": 512, "lr": 3e-3, "beta1": 0.9, "beta2": 0.95,
            "weight_decay": 0.01,
        },
        "schedule": {
            "kind": "wsd", "steps": 2_000_000, "warmup": 2000, "decay": 400_000, "min_lr": 0.0,
        },
        "run": _GPT2_RUN,
    },
    # Phi-3-mini's shape (3.8 billion weights, 61 GB to train); the recipe is not published.
    "phi3-mini": {
        "model": {
            "family": "llama", "arch": "phi3", "layers": 32, "heads": 32, "width": 3072,
            "hidden": 8192, "context": 4096, "window": 2047, "tied": False, "recompute": True,
        },
        "data": {"vocab": 32_064},
        "optimiser": {
            "batch": 1, "accumulate": 128, "lr": 3e-4, "beta1": 0.9, "beta2": 0.95,
        },
        "schedule": {"kind": "cosine", "steps": 100_000, "warmup": 1000, "min_lr": 3e-5},
        "run": _GPT2_RUN,
    },
}  # fmt: skip
