"""Several texts written at once: continuations of one prompt or of several (`run --samples`, `-p`
more than once). A prompt is read once; each text is shown when all are done, for they grow side by
side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tenarai.errors import TenaraiError

if TYPE_CHECKING:
    from tenarai.api import Model
    from tenarai.infer.engine import Engine
    from tenarai.infer.sampling import Sampling
    from tenarai.infer.sequence import Sequence


def write_samples(
    model: Model, engine: Engine, prompts: list[list[int]], seeds: list[int], sampling: Sampling,
    keeps: list[int], **asked: Any,
) -> tuple[dict[tuple[int, int], Sequence], bool]:  # fmt: skip
    """A finished sequence for each (prompt's number, seed), in order, and whether Ctrl-C ended
    them. keeps: of each prompt. asked: max_tokens, shift.

    Raises TenaraiError: what `Engine.submit` does, or a text's own error.
    """
    assert model.tokenizer is not None
    stop = model.tokenizer.end_tokens
    sequences: dict[tuple[int, int], Sequence] = {}

    def submit(which: int, seed: int) -> Sequence:
        sampler = model.sampler(sampling, seed)
        sampler.begin(prompts[which])
        try:
            sequence = engine.submit(
                prompts[which], sampler=sampler, stop=stop, keep=keeps[which], **asked
            )
        except TenaraiError as error:
            if len(prompts) == 1:
                raise
            raise TenaraiError(f"prompt {which + 1}: {error}") from error
        sequences[which, seed] = sequence
        return sequence

    from tqdm import tqdm

    stopped = False
    # disable=None: silent where stderr is no terminal
    with tqdm(unit=" tokens", disable=None, leave=False) as bar:
        try:
            firsts = [submit(which, seeds[0]) for which in range(len(prompts))]
            # The others take the prompts over from these.
            while len(seeds) > 1 and not all(s.tokens for s in firsts) and engine.step():
                pass
            for which in range(len(prompts)):
                for seed in seeds[1:]:
                    submit(which, seed)
            while engine.step():
                bar.update(sum(len(s.tokens) for s in sequences.values()) - bar.n)
        except KeyboardInterrupt:
            stopped = True
    for sequence in sequences.values():
        if sequence.error is not None:
            raise sequence.error
    return dict(sorted(sequences.items())), stopped


def text_of(model: Model, sequence: Sequence, start: bool) -> str:
    """What was written; `start`: nothing stands before it."""
    assert model.tokenizer is not None
    stream = model.tokenizer.stream(start=start)
    return "".join(stream.push(token) for token in sequence.tokens) + stream.flush()
