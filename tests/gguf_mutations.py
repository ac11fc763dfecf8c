"""GGUF files for the fuzzer: small whole ones, and ways to damage them.

A file is a list of Parts with a kind each, so that a mutation knows what it changes. What damaged
files do to the program is fuzz_gguf.py's matter.
"""

import functools
import random
import struct
from dataclasses import dataclass, replace
from typing import NamedTuple

from gguf_bytes import ARRAY, NUMBERS, Entry, value
from tenarai.quant import FORMATS

KINDS = ("magic", "version", "count", "length", "text", "type", "value", "dim", "offset", "data")


class Part(NamedTuple):
    """Bytes of a file; what they are is one of KINDS."""

    kind: str
    data: bytes


@dataclass(frozen=True)
class Seed:
    """A whole file before it is put together."""

    name: str
    pairs: tuple  # (key, type, content)
    tensors: tuple  # Entry

    @functools.cached_property
    def parts(self):
        return tuple(parts_of(self))

    @functools.cached_property
    def bytes(self):
        return _joined(self.parts)


def parts_of(seed):
    """The file's parts in their order; joined, their data are the file."""
    counts = struct.pack("<Q", len(seed.tensors)), struct.pack("<Q", len(seed.pairs))
    parts = [Part("magic", b"GGUF"), Part("version", struct.pack("<I", 3))]
    parts += [Part("count", c) for c in counts]
    for name, kind, content in seed.pairs:
        parts += [*_text(name), *_value(kind, content)]
    data = b""
    for t in seed.tensors:
        offset = len(data) if t.offset is None else t.offset
        parts += [*_text(t.name), Part("type", struct.pack("<I", len(t.dims)))]
        parts += [Part("dim", struct.pack("<Q", d)) for d in t.dims]
        parts.append(Part("type", struct.pack("<I", t.type)))
        parts.append(Part("offset", struct.pack("<Q", offset)))
        data += t.data + bytes(-len(t.data) % 32)
    if seed.tensors:
        parts.append(Part("data", bytes(-sum(len(p.data) for p in parts) % 32)))
    return [*parts, Part("data", data)]


def _text(text):
    data = text if isinstance(text, bytes) else text.encode()
    return [Part("length", struct.pack("<Q", len(data))), Part("text", data)]


def _value(kind, content):
    number = NUMBERS[kind.strip("[]")]
    parts = [Part("type", struct.pack("<I", number))]
    if kind.startswith("["):
        parts.insert(0, Part("type", struct.pack("<I", ARRAY)))
        parts.append(Part("length", struct.pack("<Q", len(content))))
        if kind == "[string]":
            return parts + [part for text in content for part in _text(text)]
        return [*parts, Part("value", value(kind, content)[16:])]
    if kind == "string":
        return parts + _text(content)
    return [*parts, Part("value", value(kind, content)[4:])]


# Whole files


def _weights(name, rows, width, format):
    format = FORMATS[format]
    return Entry(name, (width, rows), format.number, bytes(rows * format.row_bytes(width)))


def _llama_tensors(vocabulary):
    norm = FORMATS["F32"].number
    rows = [_weights("token_embd.weight", vocabulary, 32, "Q8_0")]
    rows += [Entry(f"{n}.weight", (32,), norm, bytes(128)) for n in ("output_norm",)]
    for name in ("attn_norm", "ffn_norm"):
        rows.append(Entry(f"blk.0.{name}.weight", (32,), norm, bytes(128)))
    for name, O, I in (
        ("attn_q", 32, 32), ("attn_k", 16, 32), ("attn_v", 16, 32), ("attn_output", 32, 32),
        ("ffn_gate", 64, 32), ("ffn_up", 64, 32), ("ffn_down", 32, 64),
    ):  # fmt: skip
        rows.append(_weights(f"blk.0.{name}.weight", O, I, "Q4_1"))
    return tuple(rows)


_LLAMA = (
    ("general.architecture", "string", "llama"),
    ("llama.block_count", "uint32", 1),
    ("llama.context_length", "uint32", 64),
    ("llama.embedding_length", "uint32", 32),
    ("llama.feed_forward_length", "uint32", 64),
    ("llama.attention.head_count", "uint32", 2),
    ("llama.attention.head_count_kv", "uint32", 1),
    ("llama.attention.layer_norm_rms_epsilon", "float32", 1e-5),
    ("llama.rope.dimension_count", "uint32", 16),
    ("llama.rope.freq_base", "float32", 1e4),
)
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
    "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
RICH = (
    "{%- macro turn(m, depth=0) -%}{{ '<|' ~ m.role | upper ~ '|>' }}{% if m.content is string %}"
    "{{ m.content | trim | replace('\\n', ' ') }}{% else %}{% for c in m.content %}{{ c.text }}"
    "{% endfor %}{% endif %}{%- endmacro -%}{% set ns = namespace(n=0, text='') %}"
    "{% for m in messages if m.role in ['user', 'assistant'] %}{% set ns.n = ns.n + 1 %}"
    "{% set ns.text = ns.text + turn(m) %}{% if not loop.last %}{{ bos_token }}{% endif %}"
    "{% endfor %}{% if ns.n % 2 == 0 %}{{ raise_exception('odd turns') }}{% endif %}{{ ns.text }}"
    "{% if tools is not none and tools is iterable %}{{ tools | tojson(indent=2) }}{% endif %}"
    "{{ messages[-1:][0].content[:10] | length }}{{ strftime_now('%d %b') }}{{ eos_token }}"
)
_BYTES = [f"<0x{i:02X}>" for i in range(256)]
_PIECES = ["<unk>", "<s>", "</s>", *_BYTES, "▁", "a", "b", "▁a", "ab", "▁ab", "犬", "<|im_end|>"]
_LETTERS = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256))]
_LETTERS += [chr(256 + i) for i in range(68)]  # byte-level BPE's letters for the other bytes
_BPE = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_LETTERS, "he", "ll", "hell", "hello", "Ġt"]


@functools.cache
def seeds():
    """Seeds by name: every value type and format, and two models with tokenizer and template."""
    scalars = {
        "uint8": 7, "int8": -7, "uint16": 7, "int16": -7, "uint32": 7, "int32": -7, "uint64": 7,
        "int64": -7, "float32": 0.5, "float64": 0.5, "bool": True,
    }  # fmt: skip
    types = [(f"k.{kind}", kind, v) for kind, v in scalars.items()]
    types += [(f"a.{kind}", f"[{kind}]", [v] * 5) for kind, v in scalars.items()]
    types += [("text", "string", "手習い"), ("texts", "[string]", ["", "a", "犬" * 9])]
    types += [("general.alignment", "uint32", 32)]
    tensors = [_weights(f"w.{f}", 3, 256, f) for f in FORMATS]
    tensors.append(Entry("deep", (2, 3, 4, 5), 0, bytes(480)))
    pieces = (
        *_LLAMA,
        ("tokenizer.ggml.model", "string", "llama"),
        ("tokenizer.ggml.pre", "string", "default"),
        ("tokenizer.ggml.tokens", "[string]", _PIECES),
        ("tokenizer.ggml.scores", "[float32]", [-float(i) for i in range(len(_PIECES))]),
        ("tokenizer.ggml.token_type", "[int32]", [2, 3, 3, *[6] * 256, *[1] * 7, 3]),
        ("tokenizer.ggml.bos_token_id", "uint32", 1),
        ("tokenizer.ggml.eos_token_id", "uint32", 2),
        ("tokenizer.ggml.unknown_token_id", "uint32", 0),
        ("tokenizer.ggml.add_bos_token", "bool", True),
        ("tokenizer.ggml.add_space_prefix", "bool", True),
        ("tokenizer.chat_template", "string", CHATML),
    )
    letters = (
        *_LLAMA,
        ("tokenizer.ggml.model", "string", "gpt2"),
        ("tokenizer.ggml.pre", "string", "smollm"),
        ("tokenizer.ggml.tokens", "[string]", _BPE),
        ("tokenizer.ggml.token_type", "[int32]", [3, 3, 3, *[1] * (len(_BPE) - 3)]),
        ("tokenizer.ggml.merges", "[string]", ["h e", "l l", "he ll", "hell o", "Ġ t"]),
        ("tokenizer.ggml.bos_token_id", "uint32", 1),
        ("tokenizer.ggml.eos_token_id", "uint32", 2),
        ("tokenizer.ggml.eot_token_id", "int32", 2),
        ("tokenizer.chat_template", "string", RICH),
    )
    return [
        Seed("types", tuple(types), tuple(tensors)),
        Seed("pieces", pieces, _llama_tensors(len(_PIECES))),
        Seed("letters", letters, _llama_tensors(len(_BPE))),
    ]


# Damage

_EDGES = [0, 1, 2, 3, 4, 7, 8, 9, 13, 31, 32, 33, 63, 64, 65, 255, 256, 65535, 65536, 1 << 20]
_EDGES += [(1 << n) + d for n in (31, 32, 40, 48, 58, 59, 60, 61, 62, 63, 64) for d in (-1, 0, 1)]
_JINJA = [
    "{{", "}}", "{%", "%}", "{#", "{% for i in range(10000) %}", "{% endfor %}", "{{ messages }}",
    "{% for a in messages %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}",
    "{{ 'x' * 10**9 }}", "{{ 'x' * 999999999 }}", "{{ [0] * 10**9 }}", "{{ 9**9**9 }}",
    "{{ messages.__class__.__mro__ }}", "{{ ''.__class__ }}", "{{ cycler.__init__.__globals__ }}",
    "{{ self }}", "{{ namespace.__init__ }}", "{% include 'a' %}", "{% import 'os' as os %}",
    "{% extends 'a' %}", "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% set x = 'ab' %}{% for i in range(99) %}{% set x = x + x %}{% endfor %}{{ x }}",
    "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{{ 'a' | replace('', 'b' * 9999) }}", "{{ '%9999999999d' % 1 }}", "{{ '%*d' % (10**9, 1) }}",
    "{{ '{:>999999999}'.format(1) }}", "{{ 'a' | center(10**9) }}", "{{ 'a'.ljust(10**9) }}",
    "{{ range(10**9) | list }}", "{{ range(10**18) }}", "{{ messages | map('upper') | list }}",
    "{{ raise_exception('no') }}", "{{ undefined.attribute }}", "{{ 1 / 0 }}", "{{ -1 // 0 }}",
    "{{ messages[10**30] }}", "{{ messages[0][0][0] }}", "{{ bos_token * 3 }}", "{{ lipsum(99) }}",
    "{{ " + "(" * 300 + ")" * 300 + " }}", "{{ " + "-" * 500 + "1 }}", "{% if 1 %}" * 60,
    "{{ [[[[[[1]]]]]] | sum(start=[]) }}", "{{ 'aaaa' | wordwrap(0) }}", "{{ 1 | batch(0) }}",
    "{{ dict(a=1).update(b=2) }}", "{{ messages.append(1) }}", "{% set messages = messages * 99 %}",
    "{{ messages | tojson(indent=10**9) }}", "{{ ('a' * 9999).split('a') | join('b' * 9999) }}",
    "{{ strftime_now('%Y' * 9999) }}", "{% generation %}x{% endgeneration %}", "{{ tools }}",
    "{% break %}", "{% for i in range(3) %}{% continue %}{% endfor %}", "{{ loop.index }}",
    "{{ 'a' is sameas 'a' }}", "{% call f() %}{% endcall %}", "{% filter upper %}a{% endfilter %}",
    "{% raw %}{{{% endraw %}",
    "{{ 2 ** 999999 }}", "{{ 10 ** 400 }}", "{{ 1e999 }}", "\0", "\ud7ff",
]  # fmt: skip
_TEXTS = ["", " ", "a", "▁" * 50, "<0xZZ>", "<0x41>", "<|im_end|>", "</s>", "Ġ", "x" * 2000, "\0",
          "a b", "a  b", " a", "he ll", "\u202e", "\U0010ffff", "e\u0301", "犬" * 400]  # fmt: skip
_TYPES = [*NUMBERS, *(f"[{kind}]" for kind in NUMBERS)]
_PRES = ["default", "llama-bpe", "qwen2", "gpt-2", "smollm", "starcoder", "refact", "tekken", "?"]


def mutate(seed, rng):
    """A damaged file, as bytes, and the name of the way."""
    way = rng.choice(WAYS)
    return way(seed, rng), way.__name__


def fields(seed, rng):
    """Some of the file's numbers, types, lengths, dims, offsets, strings are others."""
    parts = list(seed.parts)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
        i = rng.randrange(len(parts))
        if rng.random() < 0.5:  # most parts are texts and their lengths
            kind = rng.choice(KINDS)
            i = rng.choice([i for i, part in enumerate(parts) if part.kind == kind])
        parts[i] = Part(parts[i].kind, _other(parts[i], parts, rng))
    return _joined(parts)


def _other(part, parts, rng):
    if part.kind == "text":
        return rng.choice([_text_like(part.data, rng), rng.choice(parts).data, part.data * 9])
    if part.kind in ("value", "data", "magic"):
        return _bytes_like(part.data, rng)
    number = int.from_bytes(part.data, "little")
    near = [number - 1, number + 1, number * 2, -number, rng.getrandbits(64), rng.randrange(50)]
    if part.kind == "type":
        near = [rng.randrange(45), rng.randrange(14)]
    number = rng.choice([*near, rng.choice(_EDGES)])
    return (number % (1 << 8 * len(part.data))).to_bytes(len(part.data), "little")


def _text_like(data, rng):
    if rng.random() < 0.5:
        return rng.choice(_TEXTS).encode()
    return _bytes_like(data, rng)


def _bytes_like(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(data) + 1)
        way = rng.randrange(4)
        if way == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif way == 1 and data:
            data[at % len(data)] = rng.choice([0, 1, 2, 127, 128, 255])
        elif way == 2:
            data[at:at] = rng.randbytes(rng.choice([1, 1, 8, 300]))
        else:
            del data[at : at + rng.choice([1, 1, 8, 300])]
    return bytes(data)


def entries(seed, rng):
    """Keys or tensors missing, twice, or in another order; the header's counts right or not."""
    pairs, tensors = list(seed.pairs), list(seed.tensors)
    for _ in range(rng.choice([1, 1, 2, 4])):
        things = rng.choice([pairs, tensors])
        if not things:
            continue
        i, way = rng.randrange(len(things)), rng.randrange(3)
        if way == 0:
            del things[i]
        elif way == 1:
            things.insert(rng.randrange(len(things) + 1), things[i])
        else:
            rng.shuffle(things)
    parts = parts_of(replace(seed, pairs=tuple(pairs), tensors=tuple(tensors)))
    if rng.random() < 0.3:
        i = rng.choice([2, 3])
        parts[i] = Part(parts[i].kind, _other(parts[i], parts, rng))
    return _joined(parts)


def contents(seed, rng):
    """A whole file whose keys hold something else: what reading lets through."""
    pairs = list(seed.pairs)
    for _ in range(rng.choice([1, 1, 2, 3])):
        i = rng.randrange(len(pairs))
        name, kind, content = pairs[i]
        if rng.random() < 0.25:
            kind = rng.choice(_TYPES)
            content = _content(kind, rng)
        else:
            content = _content_like(name, kind, content, rng)
        pairs[i] = (name, kind, content)
    return _joined(parts_of(replace(seed, pairs=tuple(pairs))))


def _content(kind, rng):
    n = rng.choice([0, 1, 5, 300]) if kind.startswith("[") else 1
    one = kind.strip("[]")
    if one == "string":
        listed = [rng.choice(_TEXTS) for _ in range(n)]
    elif one == "bool":
        listed = [rng.random() < 0.5 for _ in range(n)]
    elif one.startswith("float"):
        listed = [rng.choice([0.0, -1.0, 1e30, float("nan"), float("inf")]) for _ in range(n)]
    else:
        bits = int("".join(c for c in one if c.isdigit()))
        low = 0 if one.startswith("u") else -(1 << (bits - 1))
        listed = [rng.choice([low, 0, 1, 3, 6, 100, low + (1 << bits) - 1]) for _ in range(n)]
    return listed if kind.startswith("[") else listed[0]


def _content_like(name, kind, content, rng):
    if kind == "string" and name.endswith("chat_template"):
        return template_like(content, rng)
    if kind == "string" and name.endswith(".pre"):
        return rng.choice(_PRES)
    if not kind.startswith("["):
        return _content(kind, rng)
    listed = list(content)
    for _ in range(rng.choice([1, 1, 4, 40])):
        at, way = rng.randrange(len(listed) + 1), rng.randrange(4)
        new = _content(f"[{kind.strip('[]')}]", rng)[:1]
        if way == 0 and listed:
            listed[at % len(listed)] = new[0] if new else listed[0]
        elif way == 1:
            listed[at:at] = new
        elif way == 2 and listed:
            listed[at % len(listed)] = rng.choice(listed)
        else:
            del listed[at : at + rng.choice([1, 1, 99])]
    return listed


def template_like(source, rng):
    """A chat template with pieces put in, taken out, doubled."""
    for _ in range(rng.choice([1, 1, 2, 5])):
        at, way = rng.randrange(len(source) + 1), rng.randrange(5)
        if way < 2:
            source = source[:at] + rng.choice(_JINJA) + source[at:]
        elif way == 2:
            source = source[:at] + source[at + rng.choice([1, 2, 20]) :]
        elif way == 3:
            end = at + rng.randrange(60)
            source = source[:end] + source[at:end] * rng.choice([1, 2, 50]) + source[end:]
        else:
            source = rng.choice([source, ""]) + rng.choice(_JINJA)
    return source


def templates(seed, rng):
    """A whole file with another chat template alone."""
    pairs = tuple(
        (n, k, template_like(c, rng) if n.endswith("chat_template") else c)
        for n, k, c in seed.pairs
    )
    return _joined(parts_of(replace(seed, pairs=pairs)))


def plain_bytes(seed, rng):
    """Any bytes of the file, without regard to what they mean."""
    return _bytes_like(seed.bytes, rng)


def truncated(seed, rng):
    data = seed.bytes
    return data[: rng.randrange(len(data))]


def spliced(seed, rng):
    """The beginning of one file and the end of another."""
    one, other = seed.bytes, rng.choice(seeds()).bytes
    return one[: rng.randrange(len(one))] + other[rng.randrange(len(other)) :]


def _joined(parts):
    return b"".join(part.data for part in parts)


WAYS = [fields, fields, fields, fields, entries, contents, contents, templates]
WAYS += [plain_bytes, plain_bytes, truncated, spliced]


def case(number, seed_number):
    """Case `number` of a run: the file's bytes, the seed's name and the way of damage."""
    rng = random.Random(f"{seed_number} {number}")
    seed = rng.choice(seeds())
    data, way = mutate(seed, rng)
    return data, seed.name, way
