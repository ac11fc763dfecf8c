"""Text from a model, token by token, over its `decode` and a KV cache."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from tenarai.errors import TenaraiError
from tenarai.infer.batch import Batch
from tenarai.infer.decoder import Decoder
from tenarai.infer.kv_cache import KVCache
from tenarai.infer.sampler import Sampler, Sampling
from tenarai.infer.timings import Timings
from tenarai.tokenizers import Tokenizer


def generate_ids(
    ops: Any,
    model: Any,
    params: Any,
    prompt: Sequence[int],
    max_tokens: int,
    sampler: Sampler | None = None,
    stop: Collection[int] = (),
    timings: Timings | None = None,
    *,
    batch: int = 512,
    keep: int = 0,
) -> Iterator[int]:
    """The tokens after `prompt` (at least one id), one at a time, at most `max_tokens`.

    The prompt is read `batch` tokens at a time. Ends before a token of `stop`. Where prompt and
    continuation outgrow the model's context, the first `keep` tokens and the newer half of the
    rest stay and are read again. The sampler begins anew; what is spent is added to `timings`.
    Raises TenaraiError for an empty prompt or an id outside the vocabulary.
    """
    config = model.config
    ids = _checked(prompt, config.vocab_size)
    sampler, timings = sampler or Sampler(), timings or Timings()
    sampler.begin(ids)
    cache = KVCache(model.cache_layers(), 1, config.context, min(batch, config.context))
    decoder = Decoder(ops, model, params, cache, [0])
    fresh = ids if len(ids) <= config.context else _kept(ids, config.context, keep)
    for i in range(max_tokens):
        if cache.lengths[0] + len(fresh) > config.context:
            cache.clear(0)
            fresh = _kept(ids, max(1, config.context // 2), keep)
        with timings.evaluating() if i else timings.reading(len(fresh)):
            if len(fresh) > 1 or not i:
                logits = _read(ops, model, params, fresh, cache)  # (V,)
            else:
                logits = decoder(fresh)[0]
        with timings.sampling():
            token = sampler.sample(logits)
        if token in stop:
            return
        sampler.accept(token)
        yield token
        ids.append(token)
        fresh = [token]


def _read(ops: Any, model: Any, params: Any, tokens: list[int], cache: KVCache) -> np.ndarray:
    """The logits (V,) after `tokens`, which follow those in the cache."""
    for start in range(0, len(tokens), cache.rows):
        part = np.asarray(tokens[start : start + cache.rows], np.int32)
        batch = Batch(cache, [(0, len(part))])
        logits = model.decode(ops, params, part, batch)  # (1, V)
        batch.finish()
    return logits[0]


def _kept(ids: list[int], room: int, keep: int) -> list[int]:
    """The first `keep` of `ids` and as many of the last as there is room for."""
    first = ids[: min(keep, room - 1)]
    return first + ids[len(ids) - (room - len(first)) :]


def generate_text(
    ops: Any,
    model: Any,
    params: Any,
    tokenizer: Tokenizer,
    prompt: str,
    max_tokens: int,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> Iterator[str]:
    """The text after `prompt` in pieces of whole characters, ending at the end-of-text token.

    Arguments and errors as for `generate_ids`; an empty prompt stands for the start of a text.
    """
    ids = tokenizer.encode(prompt) or start_of_text(tokenizer)
    stream = tokenizer.stream()
    sampler = Sampler(sampling, seed=seed, tokenizer=tokenizer)
    for token in generate_ids(ops, model, params, ids, max_tokens, sampler, tokenizer.end_tokens):
        if piece := stream.push(token):
            yield piece
    if rest := stream.flush():
        yield rest


def start_of_text(tokenizer: Tokenizer) -> list[int]:
    """What stands before a text: the end of the one before, a line's end, or else the first id."""
    if tokenizer.eot is not None:
        return [tokenizer.eot]
    try:
        return tokenizer.encode("\n") or [0]
    except TenaraiError:  # a character tokenizer of a text without line ends
        return [0]


def _checked(prompt: Sequence[int], vocab_size: int) -> list[int]:
    ids = [int(i) for i in prompt]
    if not ids:
        raise TenaraiError("the prompt is empty: give at least one token")
    wrong = [i for i in ids if not 0 <= i < vocab_size]
    if wrong:
        raise TenaraiError(
            f"the prompt holds token {wrong[0]}, the vocabulary ends at {vocab_size - 1}: "
            "is the tokenizer from another model?"
        )
    return ids
