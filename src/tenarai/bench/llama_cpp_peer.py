"""llama.cpp, through llama-cpp-python's low-level calls: the opponent of `bench infer`.

Given its best: a native build, both of its weight layouts (repacked at load or as they lie), flash
attention as it chooses. Run as a program it serves measurements (see `peer.py`). Not a part of the
product: nothing but benchmarks imports it.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Sequence
from typing import Any

import llama_cpp as api
import numpy as np

from .peer import Answer, serve


class Llama:
    """A model with a context of `sequences` texts of `context` tokens each."""

    def __init__(self, path: str, threads: int, context: int, sequences: int, repack: bool) -> None:
        api.llama_log_set(_silent, ctypes.c_void_p(0))
        api.llama_backend_init()
        model = api.llama_model_default_params()
        model.n_gpu_layers = 0
        model.use_extra_bufts = repack
        self.model = api.llama_model_load_from_file(path.encode(), model)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        settings = api.llama_context_default_params()
        settings.n_ctx = context * sequences
        settings.n_batch = settings.n_ubatch = 512
        settings.n_seq_max = sequences
        settings.n_threads = settings.n_threads_batch = threads
        self.context = api.llama_init_from_model(self.model, settings)
        if not self.context:
            raise RuntimeError("llama.cpp gives no context of this size")
        self.batch = api.llama_batch_init(512, 0, sequences)
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))

    def clear(self) -> None:
        api.llama_memory_clear(api.llama_get_memory(self.context), True)

    def rows(self, tokens: Sequence[int], places: Sequence[int], slots: Sequence[int],
             wanted: Sequence[bool]) -> None:  # fmt: skip
        """One pass over rows: each a token, its place, its sequence, whether its logits count."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i in range(len(tokens)):
            batch.token[i], batch.pos[i] = int(tokens[i]), places[i]
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, slots[i]
            batch.logits[i] = wanted[i]
        if api.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")

    def prompt(self, tokens: Sequence[int], slot: int = 0) -> None:
        """The tokens of a prompt, 512 rows at a time; the logits of the last are kept."""
        n = len(tokens)
        for start in range(0, n, 512):
            part = tokens[start : start + 512]
            places = range(start, start + len(part))
            self.rows(part, places, [slot] * len(part), [place == n - 1 for place in places])

    def logits(self, row: int = -1) -> np.ndarray:
        """The logits (V,) of a row of the last pass, a view."""
        pointer = api.llama_get_logits_ith(self.context, row)
        return np.ctypeslib.as_array(pointer, (self.vocabulary,))


@api.llama_log_callback
def _silent(level: int, text: bytes, data: Any) -> None:
    pass


def configure(request: dict[str, Any]) -> Answer:
    """{"path", "threads", "context", "sequences", "repack"}; then {"prompt": [ids], "generate": n,
    "sequences": s}: seconds of the prompt, and of n greedy tokens of s sequences."""
    begin = time.perf_counter()
    llama = Llama(*(request[k] for k in ("path", "threads", "context", "sequences", "repack")))
    load = time.perf_counter() - begin

    def answer(ask: dict[str, Any]) -> dict[str, Any]:
        slots = range(ask["sequences"])
        llama.clear()
        start = time.perf_counter()
        for slot in slots:
            llama.prompt(ask["prompt"], slot)
        prompt = time.perf_counter() - start
        place = len(ask["prompt"])
        tokens = [int(llama.logits().argmax())] * len(slots)
        written = [tokens[0]]
        start = time.perf_counter()
        for step in range(ask["generate"]):
            llama.rows(tokens, [place + step] * len(slots), slots, [True] * len(slots))
            tokens = [int(llama.logits(i).argmax()) for i in slots]
            written.append(tokens[0])
        decode = time.perf_counter() - start
        return {"prompt": prompt, "decode": decode, "load": load, "tokens": written}

    return answer


if __name__ == "__main__":
    sys.exit(serve(configure, "llama_cpp"))
