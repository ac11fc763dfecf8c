"""A training run of a second and a model without training, for the tests."""

import json
import random
from pathlib import Path

import tokenizers

from tenarai.io.checkpoint import Checkpoint
from tenarai.io.checkpoint_folder import list_checkpoints
from tenarai.models import snapshot
from tenarai.models.gpt2 import GPT2, GPT2Config
from tenarai.models.table import Weights
from tenarai.tokenizers import ByteTokenizer, HFTokenizer
from tenarai.train.report import Report

# Dropout, accumulation and samples, so that every random stream has to be the right one.
TINY = {
    "preset": "char",
    "tokenizer": "byte",
    "layers": 2,
    "heads": 2,
    "width": 32,
    "context": 16,
    "dropout": 0.1,
    "batch": 4,
    "accumulate": 2,
    "steps": 12,
    "warmup": 2,
    "val_every": 4,
    "val_batches": 2,
    "sample_every": 6,
    "sample_tokens": 8,
    "checkpoint_every": 4,
    "log_every": 1,
    "threads": 2,
    "tensorboard": False,
}


def write_model(path: Path, context: int = 64, seed: int = 3, tokenizer=None) -> Path:
    """A GPT-2 over bytes with random weights, as a checkpoint: enough for the command line."""
    tokenizer = tokenizer or ByteTokenizer()
    size = {"vocab_size": tokenizer.vocab_size, "context": context}
    model = GPT2(GPT2Config(**size, layers=2, heads=2, width=32))
    params = Weights(model.table()).initialise(seed)
    params.flat *= 5
    snapshot.write(path, model, params, tokenizer.to_json())
    return path


def chat_tokenizer() -> HFTokenizer:
    """Bytes, and the special tokens of ChatML: 256 and 257 begin and end a turn."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    hf = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(letters)}, []))
    hf.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    hf.decoder = tokenizers.decoders.ByteLevel()
    hf.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return HFTokenizer(json.loads(hf.to_str()))


def write_text(path: Path, words: int = 1500) -> Path:
    """A text with something to learn in it."""
    rng = random.Random(7)
    nouns, verbs = ["cat", "dog", "bird", "child"], ["sees", "hears", "follows"]
    lines = [
        f"the {rng.choice(nouns)} {rng.choice(verbs)} the {rng.choice(nouns)}.\n"
        for _ in range(words // 5)
    ]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def flags(**changes) -> list[str]:
    """TINY as a command line."""
    words = []
    for name, value in (TINY | changes).items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-"))
        else:
            words += [flag, str(value)]
    return words


def trained(folder: Path, step: int | None = None):
    """Everything that must be the same in two runs that are the same."""
    folder = Path(folder)
    path = next(
        p
        for p in list_checkpoints(folder / "checkpoints")
        if step is None or f"{step:08d}" in p.name
    )
    with Checkpoint(path) as c:
        arrays = {name: c.read(name).tobytes() for name in c.entries}
        meta = {k: v for k, v in c.meta.items() if k != "seconds"}
    timing = ("seconds", "tokens_per_s", "mfu")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [{k: v for k, v in json.loads(x).items() if k not in timing} for x in lines]
    samples = (folder / "samples.txt").read_text(encoding="utf-8")
    return {"arrays": arrays, "meta": meta, "records": records, "samples": samples}


class Quiet(Report):
    """Keeps what would be shown."""

    def __init__(self):
        super().__init__(quiet=True)
        self.said = []

    def say(self, text=""):
        self.said.append(text)
