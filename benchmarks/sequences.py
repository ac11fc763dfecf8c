"""Tokens a second of several sequences at once, of a reused beginning and of guessed tokens.

    python benchmarks/sequences.py smollm2
    python benchmarks/sequences.py phi3.gguf --generate 16 --draft phi3-2l.gguf

One process, greedy, beside what reading every weight once a step would allow at the bandwidth that
the same run measures. Sequences go through the decoder alone; guesses and beginnings through the
engine. The text for guesses repeats itself, as code and answers about a text do; a last line of
JSON holds every figure.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

from tenarai.api import Model, load
from tenarai.bench.infer import bytes_a_token
from tenarai.bench.limits import read_bandwidth_alone
from tenarai.infer.decoder import Decoder
from tenarai.infer.kv_cache import KVCache
from tenarai.infer.speculative import DraftModel, PromptLookup
from tenarai.io.named_models import model_path

TEXT = "one two three four five six seven eight nine ten. " * 6


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("model", metavar="MODEL")
    p.add_argument("--draft", metavar="MODEL", help="a smaller model of the same vocabulary")
    p.add_argument("--sequences", type=int, nargs="+", default=[1, 2, 4, 8])
    p.add_argument("--generate", type=int, default=32, help="tokens a sequence (%(default)s)")
    p.add_argument("--rounds", type=int, default=3, help="the best counts (%(default)s)")
    p.add_argument("--threads", type=int, default=2)
    return p.parse_args()


def writing(model: Model, sequences: int, tokens: int, rounds: int) -> float:
    """Tokens a second of all sequences together."""
    best = np.inf
    for _ in range(rounds):
        cache = KVCache(model.model.cache_layers(), sequences, tokens + 8)
        decoder = Decoder(model.ops, model.model, model.params, cache, range(sequences))
        next_tokens = list(range(5, 5 + sequences))
        decoder(next_tokens)  # recorded
        start = time.perf_counter()
        for _ in range(tokens):
            next_tokens = [int(row.argmax()) for row in decoder(next_tokens)]
        best = min(best, time.perf_counter() - start)
    return sequences * tokens / best


def guessing(model: Model, guesser: Any, ids: list[int], tokens: int) -> dict[str, float]:
    engine = model.engine()
    for _ in engine.follow(engine.submit(ids, 2)):
        pass  # the prompt is read, the decoders' calls are recorded on the way
    sequence = engine.submit(ids, tokens, guesser=guesser)
    start = time.perf_counter()
    for _ in engine.follow(sequence):
        pass
    t = sequence.timings
    rate = len(sequence.tokens) / (time.perf_counter() - start)
    return {"tokens_per_s": rate, "guessed": t.guessed, "accepted": t.accepted}


def first_token(model: Model, ids: list[int]) -> tuple[float, float]:
    """Seconds to the first token of a text, and of another that begins alike."""
    engine, seconds = model.engine(slots=2), []
    for last in (5, 6):
        start = time.perf_counter()
        next(engine.follow(engine.submit([*ids, last], 1)))
        seconds.append(time.perf_counter() - start)
    return seconds[0], seconds[1]


def main() -> None:
    a = arguments()
    path = str(model_path(a.model))
    model = load(path, threads=a.threads, context=1024)
    bandwidth, weights = read_bandwidth_alone(a.threads), bytes_a_token(path)
    found: dict[str, Any] = {"model": a.model, "read_gb_per_s": bandwidth}
    found["limit_a_sequence"] = limit = 1e9 * bandwidth / weights
    print(f"{weights / 1e6:.0f} MB a step at {bandwidth:.1f} GB/s: {limit:.1f} steps a second")
    for n in a.sequences:
        found[f"sequences_{n}"] = rate = writing(model, n, a.generate, a.rounds)
        one = found[f"sequences_{a.sequences[0]}"] / a.sequences[0]
        print(f"{n} sequences: {rate:7.1f} tokens/s, {rate / one:.2f} x one, "
              f"{rate / n / limit:.0%} of the limit")  # fmt: skip
    assert model.tokenizer is not None
    ids = model.tokenizer.with_bos(model.tokenizer.encode(TEXT))
    guessers: dict[str, Any] = {"alone": None, "look-up": PromptLookup()}
    if a.draft:
        small = load(model_path(a.draft), threads=a.threads)
        how = (small.ops, small.model, small.params, model.config.vocab_size, 1024)
        guessers["draft"] = DraftModel(*how)
    for name, guesser in guessers.items():
        found[name] = g = guessing(model, guesser, ids, 2 * a.generate)
        print(f"{name:9}: {g['tokens_per_s']:7.1f} tokens/s, {g['accepted']} of {g['guessed']} "
              "guesses right")  # fmt: skip
    found["first_token_s"], found["first_token_again_s"] = first_token(model, ids)
    print(f"first token after {len(ids)} tokens: {found['first_token_s']:.3f} s, of a text that "
          f"begins alike {found['first_token_again_s']:.3f} s")  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main()
