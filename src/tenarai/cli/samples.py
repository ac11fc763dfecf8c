"""Several continuations of one prompt, written at once (`run --samples`). The prompt is read once;
each text has a seed of its own, and is shown when all are done, for they grow side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenarai.api import Model
    from tenarai.infer.engine import Engine
    from tenarai.infer.sampling import Sampling
    from tenarai.infer.sequence import Sequence


def write_samples(
    model: Model, engine: Engine, ids: list[int], seeds: list[int], sampling: Sampling,
    **asked: Any,
) -> tuple[list[Sequence], bool]:  # fmt: skip
    """A finished sequence a seed, and whether Ctrl-C ended them. asked: max_tokens, keep, shift.

    Raises TenaraiError: what `Engine.submit` does, or a text's own error.
    """
    sequences: list[Sequence] = []

    def submit(seed: int) -> Sequence:
        sampler = model.sampler(sampling, seed)
        sampler.begin(ids)
        assert model.tokenizer is not None
        sequence = engine.submit(ids, sampler=sampler, stop=model.tokenizer.end_tokens, **asked)
        sequences.append(sequence)
        return sequence

    from tqdm import tqdm

    stopped = False
    # disable=None: silent where stderr is no terminal
    with tqdm(unit=" tokens", disable=None, leave=False) as bar:
        try:
            first = submit(seeds[0])
            while not first.tokens and engine.step():
                pass  # the others take the prompt over from it
            for seed in seeds[1:]:
                submit(seed)
            while engine.step():
                bar.update(sum(len(s.tokens) for s in sequences) - bar.n)
        except KeyboardInterrupt:
            stopped = True
    for sequence in sequences:
        if sequence.error is not None:
            raise sequence.error
    return sequences, stopped


def text_of(model: Model, sequence: Sequence, start: bool) -> str:
    """What was written; `start`: nothing stands before it."""
    assert model.tokenizer is not None
    stream = model.tokenizer.stream(start=start)
    return "".join(stream.push(token) for token in sequence.tokens) + stream.flush()
