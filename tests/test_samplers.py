"""Each link of the sampler's chain, on numbers small enough to see the answer; the chain's order,
its seeds, its bounds; grammars over our tokenizers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenarai.errors import TenaraiError
from tenarai.infer.sampler import Sampler, Sampling
from tenarai.infer.samplers import mirostat, repetition, temperature, truncation
from tenarai.infer.samplers.candidates import (
    Candidates,
    descending,
    largest,
    probabilities,
)
from tenarai.infer.sampling import parse_bias, parse_order

P = np.array([0.1, 0.4, 0.2, 0.3])  # tokens 1, 3, 2, 0 by probability
C = Candidates(np.log(P))


def kept(c):
    """The ids that are left, in any order."""
    return sorted(range(len(c.logits)) if c.ids is None else c.ids.tolist())


def spread(**settings):
    return Sampler(Sampling(**settings)).distribution(np.log(P)).tolist()


# Links that drop


def test_top_k_keeps_the_k_most_probable():
    assert truncation.top_k(C, 2).ids.tolist() == [1, 3]
    assert truncation.top_k(C, 99).ids.tolist() == [1, 3, 2, 0]
    assert truncation.top_k(Candidates(np.zeros(4)), 2).ids.tolist() == [0, 1]  # ties: the first


def test_top_p_keeps_the_fewest_that_reach_p():
    assert kept(truncation.top_p(C, 0.4)) == [1]
    assert kept(truncation.top_p(C, 0.41)) == [1, 3]
    assert kept(truncation.top_p(C, 0.7)) == [1, 3]
    assert kept(truncation.top_p(C, 0.71)) == [1, 2, 3]
    assert kept(truncation.top_p(C, 1e-9)) == [1]


@pytest.mark.parametrize("scale", [0.5, 3.0, 30.0])
def test_top_p_of_many_is_top_p_by_sorting(rng, scale):
    logits = (rng.normal(size=6000) * scale).astype(np.float32)
    p = np.exp(logits - logits.max().astype(np.float64))
    order = np.argsort(-p, kind="stable")
    before = np.cumsum(p[order]) - p[order]
    expected = order[before < 0.9 * p.sum()]
    assert truncation.top_p(Candidates(logits), 0.9).ids.tolist() == expected.tolist()


def test_min_p_is_relative_to_the_most_probable():
    assert kept(truncation.min_p(C, 0.5)) == [1, 2, 3]  # 0.5 · 0.4 = 0.2
    assert kept(truncation.min_p(C, 0.51)) == [1, 3]
    assert kept(truncation.min_p(C, 1.0)) == [1]
    assert kept(truncation.min_p(C, 0.0)) == [0, 1, 2, 3]


def test_tail_free_cuts_where_the_curve_stops_bending():
    # 7 4 2 1 1 of 15: falls by 3 2 1 0, so it bends by 1 1 1, a third each
    c = Candidates(np.log(np.array([1, 4, 7, 2, 1]) / 15))
    assert kept(truncation.tail_free(c, 0.99)) == [1, 2]
    assert kept(truncation.tail_free(c, 0.67)) == [1, 2]
    assert kept(truncation.tail_free(c, 0.66)) == [2]
    assert kept(truncation.tail_free(c, 0.01)) == [2]
    assert kept(truncation.tail_free(c, 1.0)) == [0, 1, 2, 3, 4]
    # flat for three, then a fall: 0 of the bend, then all of it
    plateau = Candidates(np.log([0.3, 0.3, 0.3, 0.1]))
    assert kept(truncation.tail_free(plateau, 0.9)) == [0]
    for n in (1, 2, 5):  # nothing bends
        assert len(truncation.tail_free(Candidates(np.zeros(n)), 0.5).logits) == n


def test_locally_typical_keeps_what_surprises_as_expected():
    # Nine tokens: one of 1/2, eight of 1/16: H = (1 + 4) / 2 bits = 2.5; 1 bit is 1.5 off, 4 bits
    # are 1.5 off. Made a little less even, the improbable ones are the typical ones.
    p = np.array([0.46, *[0.0675] * 8])
    assert kept(truncation.typical(Candidates(np.log(p)), 0.5)) == [1, 2, 3, 4, 5, 6, 7, 8]
    # 0.6 and 0.4: H = 0.673; surprises 0.511 and 0.916: the first is nearer
    assert kept(truncation.typical(Candidates(np.log([0.4, 0.6])), 0.5)) == [1]
    assert kept(truncation.typical(Candidates(np.log([0.4, 0.6])), 0.7)) == [0, 1]


def test_xtc_drops_the_top_choices_but_the_last_good_one():
    assert kept(truncation.xtc(C, 1.0, 0.15, u=0.0)) == [0, 2]  # of 0.4, 0.3, 0.2 the last stays
    assert kept(truncation.xtc(C, 1.0, 0.35, u=0.0)) == [0, 1, 2, 3]  # only one is good
    assert kept(truncation.xtc(C, 0.5, 0.15, u=0.5)) == [0, 1, 2, 3]  # the die says no
    assert kept(truncation.xtc(C, 0.5, 0.15, u=0.49)) == [0, 2]


# Links that change logits


def test_temperature_is_a_power():
    squared = np.array([0.01, 0.16, 0.04, 0.09]) / 0.3  # p^(1/T) at T = 1/2
    assert probabilities(temperature.temperature(C, 0.5).logits) == pytest.approx(squared)
    high = Candidates(C.logits + 1e6)
    assert probabilities(temperature.temperature(high, 1e-3).logits) == pytest.approx([0, 1, 0, 0])
    tiny = temperature.temperature(Candidates(np.float32([1, 2])), 1e-30)
    assert probabilities(tiny.logits).tolist() == [0, 1]


def test_dynamic_temperature_follows_the_entropy():
    even = Candidates(np.log([0.5, 0.5]))  # H = ln 2, its maximum: T = 1 + 0.5
    assert temperature.dynamic_temperature(even, 1.0, 0.5, 1.0).logits.tolist() == [0, 0]
    sure = Candidates(np.array([0.0, -50.0]))  # H = 0: T = 0.5
    assert temperature.dynamic_temperature(sure, 1.0, 0.5, 1.0).logits == pytest.approx([0, -100])
    p = np.array([0.25, 0.75])
    T = 0.5 + 1.0 * (-(p * np.log(p)).sum() / np.log(2)) ** 2
    changed = temperature.dynamic_temperature(Candidates(np.log(p)), 1.0, 0.5, 2.0).logits
    assert changed[0] == pytest.approx(np.log(1 / 3) / T)


def test_penalties_hit_what_stood_there():
    c = Candidates(np.array([2.0, -2.0, 2.0, 2.0]))
    repeat = repetition.penalties(c, [0, 1, 0], 2.0, 0.0, 0.0)
    assert repeat.logits.tolist() == [1.0, -4.0, 2.0, 2.0]  # once, however often it stood there
    counted = repetition.penalties(c, [0, 1, 0], 1.0, 0.5, 0.0)
    assert counted.logits.tolist() == [1.0, -2.5, 2.0, 2.0]
    present = repetition.penalties(c, [0, 1, 0], 1.0, 0.0, 0.5)
    assert present.logits.tolist() == [1.5, -2.5, 2.0, 2.0]
    assert c.logits.tolist() == [2.0, -2.0, 2.0, 2.0]  # the argument is as it was
    some = repetition.penalties(Candidates(np.array([2.0, 2.0]), np.array([7, 3])), [3], 2, 0, 0)
    assert some.logits.tolist() == [2.0, 1.0]
    assert repetition.penalties(c, [99], 2.0, 1.0, 1.0).logits.tolist() == c.logits.tolist()


def test_last_n():
    assert repetition.last([1, 2, 3], 2) == [2, 3]
    assert repetition.last([1, 2, 3], 9) == [1, 2, 3]
    assert repetition.last([1, 2, 3], 0) == []
    assert repetition.last([1, 2, 3], -1) == [1, 2, 3]


def test_repetitions_are_measured_backwards_from_the_end():
    assert repetition.repetitions([1, 2, 3, 9, 1, 2]) == {3: 2}
    assert repetition.repetitions([2, 7, 1, 2, 8, 1, 2]) == {7: 1, 8: 2}
    assert repetition.repetitions([5, 5, 5]) == {5: 2}
    assert repetition.repetitions([1, 2, 3]) == {}
    assert repetition.repetitions([]) == {}
    # the longest copy counts: 3 followed `1 2` and also `0 1 2`
    assert repetition.repetitions([1, 2, 3, 0, 1, 2, 3, 0, 1, 2]) == {3: 6}
    assert repetition.repetitions([0, 1, 2, 3, 9, 0, 1, 2], longest=2) == {3: 2}


def test_no_repetition_reaches_across_a_breaker():
    assert repetition.repetitions([4, 0, 1, 2, 3, 9, 4, 0, 1, 2], breakers={0}) == {3: 2}
    assert repetition.repetitions([1, 0, 1, 0], breakers={0}) == {}
    assert repetition.repetitions([1, 0, 1], breakers={0}) == {}


@given(st.lists(st.integers(0, 2), max_size=30), st.integers(1, 8))
def test_repetitions_as_defined(h, longest):
    expected = {}
    for i in range(len(h) - 1):
        n = 0
        while n <= i and h[i - n] == h[-1 - n]:
            n += 1
        if n:
            expected[h[i + 1]] = max(expected.get(h[i + 1], 0), min(n, longest))
    assert repetition.repetitions(h, longest=longest) == expected


def test_dry_grows_with_the_length():
    zeros = Candidates(np.zeros(10))
    changed = repetition.dry(zeros, [2, 7, 1, 2, 8, 1, 2], 0.5, 2.0, 1).logits
    assert changed[[7, 8]].tolist() == [-0.5, -1.0] and np.count_nonzero(changed) == 2
    assert not repetition.dry(zeros, [1, 2, 3, 9, 1, 2], 0.5, 2.0, 3).logits.any()
    endless = repetition.dry(zeros, [1] * 5000, 1.0, 2.0, 2).logits
    assert -1e9 < endless[1] < -1e5 and np.count_nonzero(endless) == 1


def test_logit_bias_adds_and_forbids():
    c = repetition.logit_bias(Candidates(np.zeros(4)), [(1, 2.0), (2, -np.inf), (1, 1.0), (9, 1.0)])
    assert c.logits.tolist() == [0.0, 3.0, -np.inf, 0.0]


# Mirostat


def test_mirostat_2_cuts_what_surprises_more_than_mu():
    c = Candidates(np.log([0.5, 0.25, 0.125, 0.125]))  # 1, 2, 3 and 3 bits
    assert kept(mirostat.mirostat_v2(c, 2.01)) == [0, 1]
    assert kept(mirostat.mirostat_v2(c, 3.01)) == [0, 1, 2, 3]
    assert kept(mirostat.mirostat_v2(c, 0.5)) == [0]
    assert mirostat.updated(10.0, 0.25, tau=5.0, eta=0.1) == pytest.approx(10.0 - 0.1 * (2 - 5))


def test_mirostat_1_finds_the_exponent_of_zipf():
    """Of p_i ∝ 1/i², s is 2, ε is 1, and k = √(2^μ / (1 − 1/V))."""
    V = 1000
    c = Candidates(np.log(1.0 / np.arange(1, V + 1) ** 2))
    assert len(mirostat.mirostat_v1(c, 6.0, V).logits) == 8
    assert len(mirostat.mirostat_v1(c, 0.0, V).logits) == 1
    assert len(mirostat.mirostat_v1(c, 100.0, V).logits) == V
    assert len(mirostat.mirostat_v1(Candidates(np.zeros(50)), 3.0, 50).logits) == 50


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("tau", [2.0, 4.0])
def test_mirostat_reaches_its_level(rng, version, tau):
    logits = np.log(1.0 / np.arange(1, 2001) ** 1.1)
    sampler = Sampler(Sampling(mirostat=version, mirostat_tau=tau))
    surprises = []
    for _ in range(600):
        token = sampler.sample(logits)
        surprises.append(-np.log2(sampler.distribution(logits)[token]))
        sampler.accept(token)
    # the standard deviation of such a mean is below 0.1
    assert np.mean(surprises[100:]) == pytest.approx(tau, abs=0.4)


# Helpers


@given(
    st.lists(st.sampled_from([0.0, 1.0, -1.0, 2.5, -np.inf]), min_size=1, max_size=40),
    st.integers(1, 45),
)
def test_largest_of_few(logits, k):
    l = np.array(logits)
    assert largest(l, k).tolist() == np.argsort(-l, kind="stable")[:k].tolist()


@pytest.mark.parametrize("n", [1024, 1025, 1535, 5000, 49152])
@pytest.mark.parametrize("k", [1, 40, 255, 600])
def test_largest_of_many(rng, n, k):
    for l in (rng.normal(size=n), rng.integers(0, 9, n), np.zeros(n), np.arange(n), -np.arange(n)):
        l = l.astype(np.float32)
        assert largest(l, k).tolist() == np.argsort(-l, kind="stable")[:k].tolist()


@pytest.mark.parametrize("n", [1, 511, 512, 4000])
def test_descending(rng, n):
    special = np.array([0.0, -0.0, np.inf, -np.inf, 1e-45, -1e-45, 3e38, -3e38], np.float32)
    for l in (rng.normal(size=n), rng.integers(-2, 3, n), rng.choice(special, n), np.full(n, -0.0)):
        l = l.astype(np.float32)
        assert descending(l).tolist() == np.argsort(-l, kind="stable").tolist()


# The chain


def test_the_printed_chain():
    usual = "Penalties -> top_k -> tfs_z -> typical_p -> top_p -> min_p -> temperature"
    assert str(Sampler(Sampling.usual())) == usual
    assert str(Sampler(Sampling(0.0))) == "Penalties -> greedy"
    assert str(Sampling(mirostat=2)) == "Penalties -> temperature -> mirostat_v2"
    order = parse_order("top_k;temp; Top-P ")
    assert str(Sampling(order=order)) == "Penalties -> top_k -> temperature -> top_p"
    full = Sampling(logit_bias=((1, 1.0),), dry_multiplier=1, xtc_probability=1)
    assert str(full).startswith("logit_bias -> Penalties -> dry -> top_k")
    assert str(full).endswith("min_p -> xtc -> temperature")
    assert str(Sampling(order=parse_order("min_p;penalties"))) == "min_p -> Penalties"
    assert "top_k = 40, tfs_z = 1.000, top_p = 0.950, min_p = 0.050" in Sampling.usual().values()


def test_the_chain_is_applied_in_its_order():
    assert spread() == pytest.approx(P)
    assert spread(top_k=2) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    assert spread(top_p=0.35) == [0, 1, 0, 0]
    assert spread(temperature=0.0) == [0, 1, 0, 0]
    # of the top 3, 0.9 together, the first two reach 0.75
    both = {"top_k": 3, "top_p": 0.75}
    assert spread(**both) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    # the other way round 0.4 and 0.3 do not reach it, so 0.2 comes along
    reverse = spread(**both, order=("top_p", "top_k"))
    assert reverse == pytest.approx([0, 4 / 9, 2 / 9, 3 / 9])
    # temperature 1/2 gives 16/30, 9/30, 4/30, 1/30: before min-p 0.5 it drops 0.2 (4 < 16 / 2)
    first = spread(temperature=0.5, min_p=0.5, order=("temperature", "min_p"))
    assert first == pytest.approx([0, 16 / 25, 0, 9 / 25])
    last = spread(temperature=0.5, min_p=0.5, order=("min_p", "temperature"))
    assert last == pytest.approx([0, 16 / 29, 4 / 29, 9 / 29])


def test_links_left_out_are_not_applied_but_penalties_are():
    assert spread(top_k=1, order=("temperature",)) == pytest.approx(P)
    sampler = Sampler(Sampling(0.0, frequency_penalty=9, order=("top_k",)))
    sampler.begin([1])
    assert sampler.sample(np.log(P)) == 3


def test_draws_follow_the_distribution():
    sampler = Sampler(Sampling(top_k=3), seed=5)
    draws = []
    for _ in range(5000):
        draws.append(sampler.sample(np.log(P)))
        sampler.accept(draws[-1])
    shares = np.bincount(draws, minlength=4) / 5000
    # Standard deviation of a share: below 0.0071; five of them.
    assert np.abs(shares - np.array([0, 4, 2, 3]) / 9).max() < 0.036
    assert shares[0] == 0


def test_the_same_seed_and_place_give_the_same_token(rng):
    logits = rng.normal(size=(30, 500)).astype(np.float32)

    def text(seed, again=False):
        sampler = Sampler(Sampling(xtc_probability=0.5, xtc_threshold=0.001), seed=seed)
        tokens = []
        for row in logits:
            if again:  # asking does not change the answer
                sampler.sample(row), sampler.distribution(row)
            tokens.append(sampler.sample(row))
            sampler.accept(tokens[-1])
        return tokens

    assert text(1) == text(1) == text(1, again=True) != text(2)


def test_begin_starts_again():
    sampler = Sampler(Sampling(2.0, repeat_penalty=1.5, mirostat=2), seed=3)
    rows = np.random.default_rng(1).normal(size=(10, 50))

    def text():
        sampler.begin([4, 5])
        return [sampler.accept(t) or t for row in rows for t in [sampler.sample(row)]]

    assert text() == text()


def test_bad_logits_are_an_error():
    for bad in (np.nan, np.inf):
        logits = np.zeros(3000, np.float32)
        logits[2999] = bad
        for sampling in (Sampling(), Sampling(0.0), Sampling.usual()):
            with pytest.raises(TenaraiError, match="NaN or infinity"):
                Sampler(sampling).sample(logits)
    none_left = Sampling(logit_bias=((0, -np.inf), (1, -np.inf)))
    with pytest.raises(TenaraiError, match="no token is left"):
        Sampler(none_left).sample(np.zeros(2))


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0},
        {"top_p": 1.1}, {"min_p": -0.1}, {"tfs_z": 0}, {"typical_p": 2}, {"repeat_penalty": 0},
        {"repeat_last_n": -2}, {"mirostat": 3}, {"mirostat_tau": 0}, {"xtc_probability": 1.5},
        {"dry_base": 0.5}, {"order": ("top_q",)}, {"order": ("top_k", "top_k")},
        {"logit_bias": ((-1, 0.0),)}, {"logit_bias": ((1, float("inf")),)},
        {"grammar": "a", "json_schema": "{}"},
    ],
)  # fmt: skip
def test_impossible_settings(settings):
    with pytest.raises(TenaraiError, match=next(iter(settings))):
        Sampling(**settings)


def test_texts_of_options():
    assert parse_bias("15043+1") == (15043, 1.0)
    assert parse_bias("15043-inf") == (15043, -np.inf)
    assert parse_bias("7=-2.5") == (7, -2.5)
    for bad in ("", "x+1", "5", "5+", "+5", "5+x"):
        with pytest.raises(TenaraiError, match="15043"):
            parse_bias(bad)
    with pytest.raises(TenaraiError, match="top_q.*top_k"):
        parse_order("top_k;top_q")
