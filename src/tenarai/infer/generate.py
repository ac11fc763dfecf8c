"""Text from a model, token by token, over the engine."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from tenarai.errors import TenaraiError
from tenarai.infer.engine import Engine
from tenarai.infer.sampler import Sampler, Sampling
from tenarai.infer.sequence import Guesses
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
    shift: bool = True,
    guesser: Guesses | None = None,
    engine: Engine | None = None,
) -> Iterator[int]:
    """The tokens after `prompt` (at least one id), one at a time, at most `max_tokens`.

    The prompt is read `batch` tokens at a time. Ends before a token of `stop`. Where prompt and
    continuation outgrow the model's context, the first `keep` tokens and the newer half of the
    rest stay and are read again; without `shift` the text ends there. `guesser` guesses tokens,
    which changes the speed alone. An `engine` of this model that wrote before reads only what is
    new in the prompt. The sampler begins anew; what is spent is added to `timings`.
    Raises TenaraiError for an empty prompt, an id outside the vocabulary, or, without `shift`, a
    prompt longer than the context.
    """
    sampler = sampler or Sampler()
    sampler.begin([int(i) for i in prompt])
    engine = engine or Engine(ops, model, params, rows=batch)
    yield from engine.follow(
        engine.submit(
            prompt,
            max_tokens,
            sampler,
            stop,
            shift=shift,
            keep=keep,
            guesser=guesser,
            timings=timings,
        )  # fmt: skip
    )


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
