"""The engine: several texts at once are what each is alone, however they are written."""

from dataclasses import replace

import numpy as np
import pytest

from tenarai.errors import TenaraiError
from tenarai.infer.engine import Engine
from tenarai.infer.sampler import Sampler, Sampling
from tenarai.infer.speculative import DraftModel, PromptLookup
from tenarai.models.gpt2 import GPT2, GPT2Config
from tenarai.models.llama import Llama, LlamaConfig
from tenarai.models.rope import Rope
from tenarai.models.table import Weights

pytest.importorskip("tenarai._kernels", reason="the compiled core is not built")
from tenarai.ops.fast import Fast

V = 61


def build(model, seed=5):
    params = Weights(model.table()).initialise(seed)
    params.flat *= 8  # so that the most probable token depends on the text
    return model, params


@pytest.fixture(scope="module")
def ops():
    return Fast(threads=2)


LLAMA = LlamaConfig(
    vocab_size=V, context=96, layers=2, heads=4, kv_heads=2, head_size=6, width=24,
    hidden=20, rope=Rope(6), windows=(7, None),
)  # fmt: skip
MODELS = {
    "gpt2": build(GPT2(GPT2Config(vocab_size=V, context=96, layers=2, heads=2, width=24))),
    "llama": build(Llama(LLAMA)),
}


@pytest.fixture(params=MODELS, scope="module")
def model(request):
    return MODELS[request.param]


def prompts(n, rng, low=1, high=40):
    return [rng.integers(0, V, rng.integers(low, high)).tolist() for _ in range(n)]


def engine_of(ops, model, **how):
    return Engine(ops, *model, dtype="float32", **how)


def alone(ops, model, prompt, n, sampler=None, **how):
    """The text that the whole of it, read anew for every token, gives."""
    gpt, params = model
    ids = list(prompt)
    for _ in range(n):
        logits = gpt.logits(ops, params, np.array([ids], np.int32))[0, -1]
        token = int(logits.argmax()) if sampler is None else sampler.sample(logits)
        if sampler is not None:
            sampler.accept(token)
        ids.append(token)
    return ids[len(prompt) :]


def sampler(seed, prompt):
    made = Sampler(Sampling(temperature=1.5, top_k=20), seed=seed)
    made.begin(prompt)
    return made


@pytest.mark.parametrize("rows", [8, 512])
def test_texts_written_together_are_those_written_alone(ops, model, rng, rows):
    """Seven texts of different lengths in three slots: they wait, join, and leave."""
    engine = engine_of(ops, model, slots=3, rows=rows)
    asked = prompts(7, rng)
    lengths = [9, 3, 20, 1, 12, 5, 7]
    texts = [engine.submit(p, n) for p, n in zip(asked[:5], lengths, strict=False)]
    for _ in range(4):
        engine.step()
    texts += [engine.submit(p, n) for p, n in zip(asked[5:], lengths[5:], strict=True)]
    while engine.step():
        assert len(engine.running) <= 3
    for text, prompt, n in zip(texts, asked, lengths, strict=True):
        assert text.finish_reason == "length" and text.slot is None
        assert text.tokens == alone(ops, model, prompt, n)


def test_sampled_texts_are_the_same_together(ops, model, rng):
    engine = engine_of(ops, model, slots=2)
    asked = prompts(3, rng)
    texts = [engine.submit(p, 12, sampler(i, p)) for i, p in enumerate(asked)]
    while engine.step():
        pass
    for i, (text, prompt) in enumerate(zip(texts, asked, strict=True)):
        assert text.tokens == alone(ops, model, prompt, 12, sampler(i, prompt))


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_rounded_caches_write_the_same_text_twice(ops, model, dtype):
    texts = [list((e := Engine(ops, *model, dtype=dtype)).follow(e.submit([3, 1], 30)))
             for _ in "ab"]  # fmt: skip
    assert texts[0] == texts[1] and len(texts[0]) == 30


def test_reasons(ops, model):
    engine = engine_of(ops, model, context=20)
    whole = alone(ops, model, [1, 2, 3], 17)
    text = engine.submit([1, 2, 3], 99)
    assert list(engine.follow(text)) == alone(ops, model, [1, 2, 3], 18)
    assert text.finish_reason == "context"
    stop = whole[5]
    text = engine.submit([1, 2, 3], 99, stop=[stop])
    assert list(engine.follow(text)) == whole[: whole.index(stop)]
    assert text.finish_reason == "stop"
    text = engine.submit([1, 2, 3], 0)
    assert list(engine.follow(text)) == [] and text.finish_reason == "length"
    for prompt, said in (([], "empty"), ([V], f"token {V}"), ([1] * 21, "has 21.*holds 20")):
        with pytest.raises(TenaraiError, match=said):
            engine.submit(prompt, 1)


@pytest.mark.parametrize("keep", [0, 3])
def test_a_context_that_shifts(ops, model, keep):
    engine = engine_of(ops, model, context=20)
    ids = list(range(18))
    expected, window = [], list(ids)
    for _ in range(30):
        if len(window) > 20:
            window = window[:keep] + window[len(window) - (10 - keep) :]
        window += alone(ops, model, window, 1)
        expected.append(window[-1])
    assert list(engine.follow(engine.submit(ids, 30, shift=True, keep=keep))) == expected
    long = engine.submit(list(range(50)), 5, shift=True, keep=keep)
    last = list(range(keep)) + list(range(50 - (20 - keep), 50))
    assert list(engine.follow(long))[0] == alone(ops, model, last, 1)[0]


def test_prefixes_are_reused(ops, model):
    engine = engine_of(ops, model, slots=3)
    head = [int(i) for i in np.random.default_rng(0).integers(0, V, 40)]
    first = engine.submit(head + [1, 2], 4)
    assert list(engine.follow(first)) == alone(ops, model, head + [1, 2], 4)
    assert first.timings.prompt_tokens == 42
    # another turn: begins with all of the first, but for the token that was not read
    turn = head + [1, 2] + first.tokens + [7, 8]
    second = engine.submit(turn, 4)
    assert list(engine.follow(second)) == alone(ops, model, turn, 4)
    assert second.timings.prompt_tokens == len(turn) - 45
    # two at once that share the head: one goes on where it lies, one copies it
    both = [engine.submit(head + [5, i], 4) for i in (6, 7)]
    while engine.step():
        pass
    for i, text in zip((6, 7), both, strict=True):
        assert text.tokens == alone(ops, model, head + [5, i], 4)
        if model is MODELS["gpt2"]:  # llama's window of 7 has lost what 40 tokens back was seen
            assert text.timings.prompt_tokens == 2
    # the very same again: its last token is read once more
    again = engine.submit(head + [5, 6], 4)
    assert list(engine.follow(again)) == both[0].tokens
    engine.forget()
    anew = engine.submit(head + [5, 6], 4)
    assert list(engine.follow(anew)) == both[0].tokens and anew.timings.prompt_tokens == 42


def test_a_prefix_that_a_window_has_lost_is_read_again(ops):
    engine = engine_of(ops, MODELS["llama"], rows=4)  # a ring of 11
    ids = list(range(30))
    list(engine.follow(engine.submit(ids, 2)))
    text = engine.submit(ids[:12] + [50], 3)
    assert list(engine.follow(text)) == alone(ops, MODELS["llama"], ids[:12] + [50], 3)
    assert text.timings.prompt_tokens == 13


def test_cancelling(ops, model, rng):
    engine = engine_of(ops, model, slots=2)
    asked = prompts(4, rng, 20, 40)
    texts = [engine.submit(p, 30) for p in asked]
    engine.step(), engine.step()
    texts[0].cancel()  # running
    texts[3].cancel()  # waiting
    engine.step()
    assert [t.finish_reason for t in texts] == ["cancelled", None, None, "cancelled"]
    assert 1 <= len(texts[0].tokens) < 5 and not texts[3].tokens
    while engine.step():
        pass
    for i in (1, 2):
        assert texts[i].tokens == alone(ops, model, asked[i], 30)
    left = engine.follow(engine.submit(asked[0], 30))
    assert [next(left), next(left)] == alone(ops, model, asked[0], 2)
    left.close()
    assert not engine.running and engine.slots.free == 2


def test_one_texts_error_is_its_own(ops, model, rng):
    class Broken:
        def sample(self, logits):
            raise TenaraiError("no token is left")

        def accept(self, token):
            raise AssertionError

    engine = engine_of(ops, model, slots=2)
    asked = prompts(2, rng)
    good, bad = engine.submit(asked[0], 6), engine.submit(asked[1], 6, Broken())
    assert list(engine.follow(good)) == alone(ops, model, asked[0], 6)
    assert bad.finish_reason == "error"
    with pytest.raises(TenaraiError, match="no token is left"):
        list(engine.follow(engine.submit(asked[1], 6, Broken())))


def test_timings_count_tokens_once(ops, model):
    engine = engine_of(ops, model, rows=8)
    text = engine.submit(list(range(20)), 10, guesser=PromptLookup())
    list(engine.follow(text))
    t = text.timings
    assert (t.prompt_tokens, t.evaluations, t.samples) == (20, 9, 10)
    assert t.prompt_s > 0 and t.evaluation_s > 0 and t.sample_s > 0


# Speculation


def test_prompt_lookup():
    lookup = PromptLookup(3, 2)
    assert lookup.guess([1, 2, 3, 4], 3) == []
    assert lookup.guess([1, 2, 3, 4, 9, 2, 3], 3) == [4, 9, 2]
    assert lookup.guess([1, 2, 3, 4, 9, 2, 3, 7, 2, 3], 2) == [7, 2]  # the newest place
    assert lookup.guess([9, 2, 3, 7, 5, 3, 7], 2) == [5, 3]  # another text
    assert PromptLookup(3, 1).guess([5, 6, 5], 4) == [6, 5]
    assert PromptLookup().guess([5], 4) == []


class Oracle:
    """Guesses right, but for every fifth token."""

    def __init__(self, prompt, tokens):
        self.text = [t if i % 5 else (t + 1) % V for i, t in enumerate([*prompt, *tokens])]

    def guess(self, ids, n):
        return self.text[len(ids) : len(ids) + n]


@pytest.mark.parametrize("how", ["lookup", "draft", "other draft", "oracle"])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_guessing_changes_no_token(ops, model, rng, how, temperature):
    asked = [prompt * 2 for prompt in prompts(3, rng, 3, 12)]
    for i, prompt in enumerate(asked):
        sampling = Sampling(temperature, top_k=5)
        plain = Sampler(sampling, seed=i)
        expected = alone(ops, model, prompt, 40, plain)
        guesser = {
            "lookup": lambda: PromptLookup(3, 1),
            "draft": lambda: DraftModel(ops, *model, V),
            "other draft": lambda: DraftModel(ops, *build(model[0], 6), V),
            "oracle": lambda p=prompt, t=expected: Oracle(p, t),
        }[how]()
        engine = engine_of(ops, model, slots=2)
        beside = engine.submit(asked[0], 15)
        text = engine.submit(prompt, 40, Sampler(sampling, seed=i), guesser=guesser, guesses=6)
        steps = 0
        while engine.step():
            steps += 1
        assert text.tokens == expected, i
        assert beside.tokens == alone(ops, model, asked[0], 15)
        assert text.timings.accepted <= text.timings.guessed
        if how == "oracle" or (how == "draft" and temperature == 0):
            assert text.timings.accepted > 20 and steps < 25


def test_guesses_stop_at_a_stop_token_and_at_the_context(ops, model):
    prompt = [4, 5, 6]
    whole = alone(ops, model, prompt, 30)
    stop = whole[8]
    engine = engine_of(ops, model, context=30)
    oracle = Oracle(prompt, whole)
    text = engine.submit(prompt, 99, stop=[stop], guesser=oracle, guesses=8)
    assert list(engine.follow(text)) == whole[: whole.index(stop)]
    text = engine.submit(prompt, 99, guesser=oracle, guesses=8)
    assert list(engine.follow(text)) == whole[:28] and text.finish_reason == "context"
    text = engine.submit(prompt, 7, guesser=oracle, guesses=8)
    assert list(engine.follow(text)) == whole[:7] and text.finish_reason == "length"


def test_a_draft_of_another_vocabulary_is_refused(ops):
    other, params = build(Llama(replace(LLAMA, vocab_size=V + 1)))
    with pytest.raises(TenaraiError, match=f"{V + 1} tokens, the model {V}"):
        DraftModel(ops, other, params, V)
