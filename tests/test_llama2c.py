"""llama2.c's model files and tokenizer.bin, against a forward pass written from its description."""

import struct

import numpy as np
import pytest

import tenarai
from tenarai import tokenizers
from tenarai.api import Model
from tenarai.errors import TenaraiError, TenaraiWarning
from tenarai.io import formats, llama2c
from tenarai.models.llama import Llama, LlamaConfig
from tenarai.models.rope import Rope
from tenarai.models.table import Weights
from tenarai.ops import reference
from tenarai.tokenizers import sentencepiece_files

NUMBERS = {"dim": 16, "hidden_dim": 24, "layers": 2, "heads": 4, "kv_heads": 2}
SIZES = {"vocab_size": 270, "context": 12, "width": 16, "hidden": 24, "head_size": 4}
LAYERS = {key: NUMBERS[key] for key in ("layers", "heads", "kv_heads")}
TOKENS = np.array([1, 7, 269, 3, 3, 12, 40])


def config(**changes):
    given = {"rope": Rope(4), "pairing": "adjacent", **SIZES, **LAYERS, **changes}
    return LlamaConfig(**given)


def new_model(tokenizer=None, **changes):
    model = Llama(config(**changes))
    params = Weights(model.table()).initialise(3)
    params.flat *= 8
    rng = np.random.default_rng(0)
    for p in params.table:
        params[p.name][...] += 0.1 * rng.standard_normal(p.shape)
    return Model(model, params, tokenizer, ops=reference)


def load(path, **options):
    return tenarai.load(path, ops=reference, **options)


def vocabulary(count=270):
    """tokenizer.bin as llama2.c writes it: the three, the bytes, then pieces by score."""
    names = [b"<unk>", b"\n<s>\n", b"\n</s>\n"] + [b"<0x%02X>" % i for i in range(256)]
    names += [b" ", b"a", b"b", b" a", b"ab", b" ab", b"\xe3\x81\x82", b"c", b"d", b"e", b"f"]
    scores = [0.0] * 259 + [-float(i) for i in range(len(names) - 259)]
    parts = [struct.pack("<fi", s, len(n)) + n for n, s in zip(names[:count], scores, strict=False)]
    return struct.pack("<i", max(map(len, names))) + b"".join(parts)


def forward(data, tokens):
    """Logits (T, V) of a file of version 0, one token after the other, as run.c goes."""
    dim, hidden, L, H, K, V, context = struct.unpack_from("<7i", data)
    tied, V, D = V > 0, abs(V), dim // H
    rest = np.frombuffer(data, "<f4", offset=28)

    def take(*shape):
        nonlocal rest
        part, rest = rest[: int(np.prod(shape))], rest[int(np.prod(shape)) :]
        return part.reshape(shape).astype(np.float64)

    embedding, norm1 = take(V, dim), take(L, dim)
    wq, wk, wv, wo = (take(L, o, dim) for o in (dim, K * D, K * D, dim))
    norm2, w1 = take(L, dim), take(L, hidden, dim)
    w2, w3 = take(L, dim, hidden), take(L, hidden, dim)
    last = take(dim)
    take(2, context, D // 2)
    out = embedding if tied else take(V, dim)
    assert not rest.size

    def norm(x, w):
        return w * x / np.sqrt(np.mean(x * x) + 1e-5)

    def turned(x, position):  # each pair of neighbours, by an angle that its place in the head has
        x = x.copy()
        for i in range(0, len(x), 2):
            angle = position / 10000.0 ** ((i % D) / D)
            z = (x[i] + 1j * x[i + 1]) * np.exp(1j * angle)
            x[i], x[i + 1] = z.real, z.imag
        return x

    keys, values, logits = [[] for _ in range(L)], [[] for _ in range(L)], []
    for position, token in enumerate(tokens):
        x = embedding[token]
        for i in range(L):
            a = norm(x, norm1[i])
            q = turned(wq[i] @ a, position)
            keys[i].append(turned(wk[i] @ a, position))
            values[i].append(wv[i] @ a)
            mixed = []
            for h in range(H):
                own = slice(h // (H // K) * D, (h // (H // K) + 1) * D)
                scores = np.array([k[own] @ q[h * D : (h + 1) * D] for k in keys[i]]) / np.sqrt(D)
                p = np.exp(scores - scores.max())
                mixed.append(sum(w * v[own] for w, v in zip(p / p.sum(), values[i], strict=True)))
            x = x + wo[i] @ np.concatenate(mixed)
            m = norm(x, norm2[i])
            gate = w1[i] @ m
            x = x + w2[i] @ (gate / (1 + np.exp(-gate)) * (w3[i] @ m))
        logits.append(out @ norm(x, last))
    return np.array(logits)


@pytest.mark.parametrize("pairing", ["adjacent", "half"])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_llama2c(tmp_path, pairing, tied):
    model = new_model(pairing=pairing, tied=tied)
    assert model.save(tmp_path / "m.bin") == []
    expected = forward((tmp_path / "m.bin").read_bytes(), TOKENS)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(model.logits(TOKENS), expected, atol=2e-5 * np.abs(expected).max())
    again = load(tmp_path / "m.bin")
    assert formats.detect(tmp_path / "m.bin") == formats.LLAMA2C
    assert again.config == config(tied=tied)
    np.testing.assert_allclose(again.logits(TOKENS), model.logits(TOKENS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_every_version_holds_the_same_weights(tmp_path, tied):
    model = new_model(tied=tied)
    model.save(tmp_path / "0.bin")
    model.save(tmp_path / "1.bin", target="llama2c-v1")
    model.save(tmp_path / "2.bin", "Q8_0")
    loaded = [load(tmp_path / f"{i}.bin") for i in range(3)]
    for name, w in model.params.items():
        for exact in loaded[:2]:
            np.testing.assert_array_equal(exact.params[name], w)
        # half a step of the largest in a group of 8, and rounding of the scale
        step = np.abs(w.reshape(-1, 8)).max(axis=1).repeat(8).reshape(w.shape) / 127
        error = np.abs(loaded[2].params[name] - w)
        assert (error <= 0.5001 * step).all() if w.ndim == 2 else not error.any()
    assert llama2c.read_header(tmp_path / "2.bin").group == 8  # 16 and 24 have no larger one
    loss, grads = loaded[1].loss_and_grads(TOKENS[:-1], TOKENS[1:])
    assert np.isfinite(loss) and len(grads) == len(model.params)


def test_a_group_of_zeros(tmp_path):
    q, scales = llama2c.quantised(np.zeros((2, 8), np.float32), 4)
    assert not q.any() and not scales.any()


@pytest.mark.parametrize(
    "changes, what",
    [
        ({"qkv_bias": True}, "qkv_bias = True"),
        ({"qk_norm": True, "arch": "qwen3"}, "Qwen3's qk_norm = True"),
        ({"windows": (4, 4), "arch": "mistral"}, "windows = "),
        ({"rope": Rope(4, 1e6)}, "rope = "),
        ({"norm_eps": 1e-6, "gate": "gelu"}, "gate = 'gelu', norm_eps = 1e-06"),
        ({"head_size": 8, "rope": Rope(8)}, "head_size = 8"),
    ],
)
def test_what_it_cannot_hold(tmp_path, changes, what):
    with pytest.raises(TenaraiError, match=what):
        new_model(**changes).save(tmp_path / "m.bin")
    assert not list(tmp_path.iterdir())
    with pytest.raises(TenaraiError, match="GPT-2 only, this is a Llama"):
        new_model().save(tmp_path / "m.bin", target="llmc")


def damaged(data, at, value):
    return data[:at] + struct.pack("<i", value) + data[at + 4 :]


@pytest.mark.parametrize("version", [0, 1, 2])
def test_damaged_files(tmp_path, version):
    path = tmp_path / "m.bin"
    kind = {0: {}, 1: {"target": "llama2c-v1"}, 2: {"dtype": "Q8_0"}}[version]
    new_model().save(path, **kind)
    data = path.read_bytes()
    begin = 8 if version else 0
    cases = [
        data[:-1],
        data + b"\0",
        data[:200],
        *(damaged(data, begin + 4 * i, 0) for i in range(7)),
    ]
    # the longest text changes the size of version 0 alone
    cases += [damaged(data, begin + 4 * i, 2**31 - 1) for i in range(7 if version == 0 else 6)]
    cases += [damaged(data, begin + 12, 3), damaged(data, begin + 16, 3)]
    if version:
        cases += [damaged(data, 4, 7), data[:36] + b"\2" + data[37:]]
    if version == 2:
        cases += [damaged(data, 37, 0), damaged(data, 37, 7), damaged(data, 37, -64)]
    for case in cases:
        path.write_bytes(case)
        with pytest.raises(TenaraiError, match="m.bin"):
            load(path)


def test_a_random_file_is_no_model(tmp_path):
    rng = np.random.default_rng(1)
    for i in range(200):
        (tmp_path / "m.bin").write_bytes(rng.integers(0, 256, 28 + i, np.uint8).tobytes())
        with pytest.raises(TenaraiError):
            load(tmp_path / "m.bin")


def test_the_tokenizer_beside_it(tmp_path):
    (tmp_path / "tokenizer.bin").write_bytes(vocabulary())
    new_model().save(tmp_path / "m.bin")
    model = load(tmp_path / "m.bin")
    assert model.tokenizer.decode(model.tokenizer.encode("ab あ!")) == "ab あ!"
    # written with the model into another folder, the same bytes; and through GGUF and back
    (tmp_path / "other").mkdir()
    assert model.save(tmp_path / "other" / "m.bin") == []
    assert (tmp_path / "other" / "tokenizer.bin").read_bytes() == vocabulary()
    assert model.save(tmp_path / "m.gguf") == []
    again = load(tmp_path / "m.gguf")
    assert sentencepiece_files.to_llama2c(again.tokenizer, 270) == vocabulary()
    assert again.save(tmp_path / "m.bin") == []
    new_model(tokenizer=tokenizers.ByteTokenizer()).save(tmp_path / "x.bin")
    with pytest.raises(TenaraiError, match="has 270 tokens, the model 260"):
        (tmp_path / "small").mkdir()
        new_model(vocab_size=260).save(tmp_path / "small" / "m.bin")
        load(tmp_path / "small" / "m.bin", tokenizer=tmp_path / "tokenizer.bin")
    new_model(vocab_size=260).save(tmp_path / "s.bin")
    with pytest.warns(TenaraiWarning, match="--tokenizer"):
        assert load(tmp_path / "s.bin").tokenizer is None


def test_published_tokenizers(shared_data):
    folder = shared_data / "tokenizer"
    both = [
        tokenizers.load(folder / n) for n in ("llama2_tokenizer.model", "llama2c_tokenizer.bin")
    ]
    data = (folder / "llama2c_tokenizer.bin").read_bytes()
    for tokenizer in both:
        assert sentencepiece_files.to_llama2c(tokenizer, 32000) == data


@pytest.mark.parametrize("other", [tokenizers.ByteTokenizer(), tokenizers.CharTokenizer("ab")])
def test_tokenizers_that_llama2c_does_not_know(tmp_path, other):
    (left_out,) = new_model(tokenizer=other).save(tmp_path / "m.bin")
    assert left_out.startswith("the tokenizer (") and not (tmp_path / "tokenizer.bin").exists()
