"""A small model and small questions for the tests of evaluation and for their goldens."""

import json

import numpy as np

from tenarai.api import Model
from tenarai.models.llama import Llama, LlamaConfig
from tenarai.models.rope import Rope
from tenarai.models.table import Weights
from tenarai.tokenizers import HFTokenizer, train_bpe

TEXT = "the cat sat on the mat and the dog ran to the cat; the hat is on the mat of the dog. " * 9
WORDS = sorted(set(TEXT.replace(".", "").replace(";", "").split()))


def small_model(ops, bos=False):
    """Random weights over 300 tokens, context 32. With `bos`, a token before every text."""
    tokenizer = train_bpe([TEXT], 300)
    if bos:
        document = tokenizer.to_json()
        document["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|endoftext|>": {
                "id": "<|endoftext|>", "ids": [tokenizer.eot], "tokens": ["<|endoftext|>"]}},
        }  # fmt: skip
        tokenizer = HFTokenizer(document)
    size = {"vocab_size": tokenizer.vocab_size, "context": 32, "width": 32, "hidden": 48}
    heads = {"layers": 2, "heads": 4, "kv_heads": 2, "head_size": 8, "rope": Rope(8)}
    model = Llama(LlamaConfig(**size, **heads))
    params = Weights(model.table()).initialise(5)
    params.flat *= 6
    return Model(model, params, tokenizer, ops=ops)


def questions(folder):
    """Files of each task: {name: path}. Some contexts are longer than the model's."""
    rng = np.random.default_rng(7)

    def words(n):
        return " ".join(rng.choice(WORDS, n))

    choice = [
        {
            "question": words(rng.integers(3, 45)) + ("  " if i % 5 == 0 else ""),
            "choices": [words(rng.integers(1, 6)) for _ in range(rng.integers(2, 5))]
            + ["あの cat"],
            "answer": int(rng.integers(0, 2)),
        }
        for i in range(24)
    ]
    hellaswag = [
        {"ind": i, "activity_label": "Cat [x]", "ctx_a": words(4) + " [title]", "ctx_b": words(3),
         "endings": [f"{words(3)} [step] {words(n)}" for n in (1, 2, 4, 3)],
         "label": str(rng.integers(0, 4))}
        for i in range(12)
    ]  # fmt: skip
    lambada = [{"text": words(rng.integers(2, 40))} for _ in range(16)]
    pages = [{"page": words(n) + ".\n" + words(n)} for n in (3, 40, 60)]
    files = {}
    for name, rows in (("choice", choice), ("hellaswag", hellaswag), ("lambada", lambada),
                       ("perplexity", pages)):  # fmt: skip
        files[name] = folder / f"{name}.jsonl"
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        files[name].write_text(text, encoding="utf-8")
    return files
