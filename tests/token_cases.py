"""Texts and small vocabularies that the tokenizers' tests and goldens share."""

import json
import random
import struct

from tenarai.tokenizers import train_bpe

MIXED = (
    "the cat sat, the cat's hat; 吾輩は猫である。名前はまだ無い。\n\n  two\tspaces 🐈‍⬛ é\r\n" * 30
)
GOLDEN_TEXTS = [
    "",
    " ",
    "  ",
    "Hello world",
    " Hello  world   ",
    "\n",
    "\n\n\n a\n\n b \n",
    "\t\tx = 1;\t\t\t# y\r\n\r\n",
    "I'm you're WE'LL they'D I'Ve 'tis 'S",
    "3 33 333 3333 33333 3.14159 1,234,567 ½ ² ٣٤٥ Ⅻ",
    "吾輩は猫である。名前はまだ無い。",
    "C'est déjà l'été, où ça? ¿Qué? Größe Ελλάδα Привет",
    "🐈‍⬛ 🚀🚀 👨‍👩‍👧 e\u0301 a\u0300\u0301",
    "مرحبا بالعالم नमस्ते दुनिया 안녕하세요 สวัสดี",
    "def f(x):\n    return {'a': x[0]**2, \"b\": `y`}  # <b>ok</b> -> ~$^|\\",
    "<|im_start|>user<|im_end|></s><s><end_of_turn><bos><eos>",
    "https://example.org/a/b?c=d&e=f//g\n/*--==--*/ ... !!! ?!",
    "CamelCaseWordsAndABBRs iPhoneX МОСКВАгород ǅungla",
    "\u00a0\u3000wide\u2003spaces\u200bzero\u2028line",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" + " " * 40 + "-" * 40 + "\n" * 40,
]
_LINES = GOLDEN_TEXTS[3:15] + ["the cat sat on the mat and the dog's hat 123 456 \n\n"] * 3


def streamed(tokenizer, ids, start=True):
    stream = tokenizer.stream(start=start)
    return "".join(map(stream.push, ids)) + stream.flush()


def small_vocabulary():
    """(tokens, merges) of a byte-level BPE with some words, digits and signs in it."""
    model = train_bpe(["\n".join(_LINES)], 700).to_json()["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return tokens, [" ".join(pair) for pair in model["merges"]]


def vectors(shared_data, name):
    """(text, ids) of the texts and ids that others recorded beside a vocabulary."""
    base = shared_data / "gguf-vocab" / f"ggml-vocab-{name}.gguf"
    inputs = base.with_name(base.name + ".inp").read_bytes().decode()
    outputs = base.with_name(base.name + ".out").read_text().split("\n")
    texts = inputs.split("\n__ggml_vocab_test__\n")
    pairs = [(t, [int(i) for i in o.split()]) for t, o in zip(texts, outputs, strict=False)]
    assert len(pairs) > 40
    return pairs


def random_texts(count, seed=0):
    """Unicode of every kind: scripts mixed, planes beyond the first, signs, runs, white space."""
    rng = random.Random(seed)
    ranges = [(32, 127), (0xA0, 0x250), (0x370, 0x600), (0x3000, 0x3100), (0x4E00, 0x9FFF)]
    ranges += [(0x1F300, 0x1F700), (1, 0xD7FF), (0xE000, 0xFDD0), (0x10000, 0x40000)]
    words = ["the", "cat's", "hat", "123", "<s>", "</s>", "ab\n", "x\t\r\n", "", "▁", "猫", "🐈"]
    words += ["é", "don't", "3.14", "!!!"]
    for n in range(count):
        if n % 4 == 0:
            yield "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(40)))
        elif n % 4 == 1:
            yield " ".join(rng.choice(words) for _ in range(rng.randrange(30)))
        elif n % 4 == 2:
            yield "".join(rng.choice("aab  \n\t'.0猫s") for _ in range(rng.randrange(60)))
        else:
            at = rng.randrange(len(MIXED) - 300)
            yield MIXED[at : at + rng.randrange(300)] + rng.choice("aeo -=_ \n") * rng.randrange(50)


# llm.c's file

BYTES = [bytes([b]) for b in range(256)]


def small_bin(pieces, magic=20240328, version=2, count=None, eot=None):
    count = len(pieces) if count is None else count
    eot = len(pieces) - 1 if eot is None else eot
    header = struct.pack("<256i", magic, version, count, eot, *[0] * 252)
    return header + b"".join(bytes([len(p)]) + p for p in pieces)


GOOD_BIN = small_bin([*BYTES, b"ab", b"abc", b"<|endoftext|>"])


def changed(document, path, value):
    """A document as JSON with one part replaced; `path` like "model.vocab"."""
    document = json.loads(json.dumps(document))
    *parents, last = path.split(".")
    inner = document
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return json.dumps(document)
