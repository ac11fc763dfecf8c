"""Grammars and JSON schemas in the chain of samplers."""

import builtins
import json

import numpy as np
import pytest

from tenarai.errors import TenaraiError
from tenarai.infer.sampler import Sampler, Sampling
from tenarai.infer.samplers.candidates import (
    Candidates,
)
from tenarai.infer.samplers.grammar import Grammar, Vocabulary
from tenarai.tokenizers import ByteTokenizer, HFTokenizer
from test_samplers import kept


class EndedBytes(ByteTokenizer):
    """Bytes and a token that ends the text."""

    vocab_size, eot = 257, 256

    def token_bytes(self, token):
        return b"" if token == 256 else super().token_bytes(token)


def written(sampling, tokenizer, logits, limit=60):
    """The text that the chain writes on the same logits until it ends."""
    sampler = Sampler(sampling, seed=2, tokenizer=tokenizer)
    tokens = []
    for _ in range(limit):
        token = sampler.sample(logits)
        sampler.accept(token)
        if token == tokenizer.eot:
            break
        tokens.append(token)
    return tokenizer.decode(tokens), sampler


def test_a_grammar_lets_nothing_else_through():
    pytest.importorskip("llguidance")
    logits = np.zeros(257, np.float32)
    logits[ord("x")] = 50.0  # what the model wants most
    gbnf = 'root ::= ("yes" | "no") " 猫"'
    for temp in (0.0, 1.0):
        text, sampler = written(Sampling(temp, top_k=5, grammar=gbnf), EndedBytes(), logits)
        assert text in ("yes 猫", "no 猫") and sampler.grammar.complete
    assert str(sampler).startswith("grammar -> Penalties -> top_k")
    text, _ = written(Sampling(grammar="start: /[0-9]{3}/"), EndedBytes(), logits)  # Lark
    assert len(text) == 3 and text.isdigit()


def test_a_json_schema_gives_json():
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}},
              "required": ["n"], "additionalProperties": False}  # fmt: skip
    logits = np.zeros(257, np.float32)
    logits[[*b'{}:"n5']] = 9.0
    for seed_text in (json.dumps(schema), json.dumps(schema, indent=2)):
        text, _ = written(Sampling(json_schema=seed_text), EndedBytes(), logits, 400)
        assert set(json.loads(text)) == {"n"}


def test_a_grammar_over_byte_level_bpe(shared_data):
    """Pieces that are parts of characters, longer than characters, and special tokens."""
    pytest.importorskip("llguidance")
    from tenarai.tokenizers import train_bpe

    texts = [(shared_data / "text/wagahaiwa_nekodearu.txt").read_text("utf-8")[:20000]]
    tokenizer = train_bpe(texts, 400)
    assert isinstance(tokenizer, HFTokenizer)
    rng = np.random.default_rng(0)
    logits = rng.normal(size=tokenizer.vocab_size).astype(np.float32)
    text, _ = written(Sampling(grammar='root ::= "吾輩は猫である" [。！]'), tokenizer, logits)
    assert text in ("吾輩は猫である。", "吾輩は猫である！")


def test_masks_of_candidates_and_of_padded_vocabularies():
    pytest.importorskip("llguidance")
    grammar = Grammar(Vocabulary(EndedBytes(), 300), "root ::= [ab]")
    assert kept(grammar.mask(Candidates(np.zeros(300)))) == [97, 98]
    assert kept(grammar.mask(Candidates(np.zeros(1000)))) == [97, 98]
    assert kept(grammar.mask(Candidates(np.zeros(3), np.array([5, 98, 999])))) == [98]
    grammar.accept(97)
    assert kept(grammar.mask(Candidates(np.zeros(300)))) == [256] and grammar.complete
    grammar.reset()
    assert kept(grammar.mask(Candidates(np.zeros(300)))) == [97, 98]
    with pytest.raises(TenaraiError, match="token 99"):
        grammar.accept(99)


@pytest.mark.parametrize(
    "settings, message",
    [({"grammar": "root ::= ("}, "grammar is not valid"), ({"grammar": ""}, "grammar is not valid"),
     ({"json_schema": "{"}, "schema is not valid"), ({"json_schema": "[1]"}, "schema is not valid"),
     ({"json_schema": '{"type": "nothing"}'}, "schema is not valid")],
)  # fmt: skip
def test_bad_grammars_are_one_line(settings, message):
    pytest.importorskip("llguidance")
    with pytest.raises(TenaraiError, match=message) as caught:
        Sampler(Sampling(**settings), tokenizer=EndedBytes())
    assert "\n" not in str(caught.value)


def test_a_grammar_without_the_library_or_an_end(monkeypatch):
    with pytest.raises(TenaraiError, match="tokenizer has none|llguidance"):
        Sampler(Sampling(grammar='root ::= "a"'), tokenizer=ByteTokenizer())
    importing = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "llguidance":
            raise ImportError(name)
        return importing(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(TenaraiError, match=r"pip install 'tenarai\[grammar\]'"):
        Sampler(Sampling(grammar='root ::= "a"'), tokenizer=EndedBytes())
