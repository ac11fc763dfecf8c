"""Our side of `bench infer`: a prompt, and greedy tokens of one or more sequences.

Run as a program it serves measurements (see `peer.py`), as `llama_cpp_peer.py` does.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from ..api import load
from ..infer.batch import Batch
from ..infer.decoder import Decoder
from ..infer.kv_cache import KVCache
from .peer import Answer, serve


def configure(request: dict[str, Any]) -> Answer:
    """{"path", "threads", "context", "sequences", "activations"}; then {"prompt": [ids],
    "generate": n, "sequences": s}: seconds of the prompt, and of n greedy tokens of s sequences."""
    begin = time.perf_counter()
    opened = load(
        request["path"],
        threads=request["threads"],
        context=request["context"],
        activations=request["activations"],
    )
    model, params, ops = opened.model, opened.params, opened.ops
    load_seconds = time.perf_counter() - begin

    def rows(cache: KVCache, tokens: list[int], parts: list[tuple[int, int]]) -> np.ndarray:
        batch = Batch(cache, parts)
        logits = model.decode(ops, params, np.asarray(tokens, np.int32), batch)
        batch.finish()
        return logits

    def answer(ask: dict[str, Any]) -> dict[str, Any]:
        slots = range(ask["sequences"])
        cache = KVCache(model.cache_layers(), len(slots), request["context"])
        start = time.perf_counter()
        for slot in slots:
            for at in range(0, len(ask["prompt"]), cache.rows):
                part = ask["prompt"][at : at + cache.rows]
                logits = rows(cache, part, [(slot, len(part))])
        prompt = time.perf_counter() - start
        tokens = [int(logits[0].argmax())] * len(slots)
        written = [tokens[0]]
        start = time.perf_counter()
        decoder = Decoder(ops, model, params, cache, slots)
        for _ in range(ask["generate"]):
            logits = decoder(tokens)
            tokens = [int(row.argmax()) for row in logits]
            written.append(tokens[0])
        decode = time.perf_counter() - start
        return {"prompt": prompt, "decode": decode, "load": load_seconds, "tokens": written}

    return answer


if __name__ == "__main__":
    sys.exit(serve(configure, "ours"))
