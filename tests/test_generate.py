"""Text from a model: the seeds, the sliding context, where it ends. The sampler: test_samplers."""

import numpy as np
import pytest

import tenarai
from tenarai.errors import TenaraiError
from tenarai.infer.engine import Engine
from tenarai.infer.generate import generate_ids, generate_text
from tenarai.infer.sampler import Sampler, Sampling
from tenarai.infer.timings import Timings
from tenarai.models.gpt2 import GPT2, GPT2Config
from tenarai.models.table import Weights
from tenarai.ops import reference
from tenarai.tokenizers import ByteTokenizer
from tiny import write_model


@pytest.fixture(scope="module")
def model():
    model = GPT2(GPT2Config(vocab_size=256, context=8, layers=2, heads=2, width=16))
    params = Weights(model.table()).initialise(3)
    params.flat *= 10  # so that the most probable token depends on the text
    return model, params


def test_greedy_is_the_argmax_of_the_whole_text(model):
    """The cache gives what computing everything again gives; beyond the context, of its window."""
    gpt, params = model
    ids = [5, 6, 7]
    window = list(ids)
    for token in generate_ids(reference, gpt, params, ids, 12, Sampler(Sampling(0))):
        if len(window) > 8:
            window = window[-4:]
        logits = gpt.logits(reference, params, np.array([window], np.int32))[0, -1]
        assert token == logits.argmax()
        window.append(token)


def test_a_prompt_longer_than_the_context_is_read_from_its_end(model):
    gpt, params = model
    long = list(generate_ids(reference, gpt, params, list(range(50)), 3, Sampler(Sampling(0))))
    assert long == list(
        generate_ids(reference, gpt, params, range(42, 50), 3, Sampler(Sampling(0)))
    )


def test_seeds(model):
    gpt, params = model
    texts = [
        "".join(generate_text(reference, gpt, params, ByteTokenizer(), "a", 9, Sampling(5.0), seed))
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_stops_before_the_end_of_text(model):
    gpt, params = model
    whole = list(generate_ids(reference, gpt, params, [1], 6, Sampler(Sampling(0))))
    stop = whole[3]
    cut = list(generate_ids(reference, gpt, params, [1], 6, Sampler(Sampling(0)), stop=[stop]))
    assert cut == whole[: whole.index(stop)]
    assert not list(generate_ids(reference, gpt, params, [1], 0))


def test_bad_prompts(model):
    gpt, params = model
    with pytest.raises(TenaraiError, match="empty"):
        next(generate_ids(reference, gpt, params, [], 1))
    with pytest.raises(TenaraiError, match="token 256.*ends at 255"):
        next(generate_ids(reference, gpt, params, [256], 1))


def test_an_engine_that_is_kept_reads_a_beginning_once(tmp_path):
    model = tenarai.load(write_model(tmp_path / "model.tenarai"))
    engine = Engine(model.ops, model.model, model.params)
    how = {"temperature": 0, "return_tokens": True}
    said = [*b"the cat sat"]
    answer = model.generate(said, 5, engine=engine, **how)
    more = [*said, *answer, *b" on"]
    timings = Timings()
    again = model.generate(more, 5, engine=engine, timings=timings, **how)
    assert again == model.generate(more, 5, **how)
    assert timings.prompt_tokens == len(b" on") + 1  # the last token of an answer was never read
