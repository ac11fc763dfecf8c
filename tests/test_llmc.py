"""llm.c's model file against a reader of its own, written here from the format's description."""

import struct

import numpy as np
import pytest

from tenarai.errors import TenaraiError
from tenarai.io import llmc
from tenarai.io.bfloat16 import narrow, widen

HEADER = llmc.Header(
    max_seq_len=7, vocab_size=130, num_layers=3, num_heads=2, channels=6, padded_vocab_size=256
)


def random_arrays(rng, header=HEADER):
    arrays = {}
    for name, shape in header.shapes().items():
        array = rng.standard_normal(shape, dtype=np.float32)
        arrays[name] = array[: header.vocab_size] if name == "wte" else array
    return arrays


# In the order of train_gpt2.c's struct ParameterTensors
NAMES = "wte wpe ln1w ln1b qkvw qkvb attprojw attprojb ln2w ln2b fcw fcb fcprojw fcprojb lnfw lnfb"


def independent_read(path):
    """The file, read field by field with struct alone."""
    raw = path.read_bytes()
    magic, version, T, V, L, H, C, Vp = struct.unpack_from("<8i", raw)
    sizes = [Vp * C, T * C, L * C, L * C, L * 3 * C * C, L * 3 * C, L * C * C, L * C]
    sizes += [L * C, L * C, L * 4 * C * C, L * 4 * C, L * 4 * C * C, L * C, C, C]
    at, tensors = 1024, []
    for size in sizes:
        if version == 3:
            tensors.append(struct.unpack_from(f"<{size}f", raw, at))
            at += 4 * size
        else:
            halves = struct.unpack_from(f"<{size}H", raw, at)
            tensors.append(
                struct.unpack(f"<{size}f", struct.pack(f"<{size}I", *(h << 16 for h in halves)))
            )
            at += 2 * size
    assert at == len(raw)
    return (
        magic,
        version,
        (T, V, L, H, C, Vp),
        dict(zip(NAMES.split(), (np.array(t, np.float32) for t in tensors), strict=True)),
    )


@pytest.mark.parametrize("dtype, version", [("float32", 3), ("bfloat16", 5)])
def test_another_reader_finds_what_was_written(tmp_path, dtype, version):
    path = tmp_path / "gpt2.bin"
    arrays = random_arrays(np.random.default_rng(0))
    llmc.write(path, HEADER, arrays, dtype)
    magic, got_version, fields, tensors = independent_read(path)
    assert (magic, got_version, fields) == (20240326, version, (7, 130, 3, 2, 6, 256))
    for name, got in tensors.items():
        array = arrays[name]
        expected = array if dtype == "float32" else widen(narrow(array))
        np.testing.assert_array_equal(got[: array.size], expected.reshape(-1), err_msg=name)
        assert not got[array.size :].any(), name  # only wte has any, its padding


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_read_returns_what_was_written(tmp_path, dtype):
    path = tmp_path / "gpt2.bin"
    arrays = random_arrays(np.random.default_rng(1))
    llmc.write(path, HEADER, {n: list(a) if a.ndim > 2 else a for n, a in arrays.items()}, dtype)
    header, got = llmc.read(path)
    assert header == HEADER and list(got) == list(arrays)
    for name, array in arrays.items():
        expected = array if dtype == "float32" else widen(narrow(array))
        np.testing.assert_array_equal(llmc.to_float32(got[name]), expected, err_msg=name)
        assert not got[name].flags.writeable


def test_a_vocabulary_without_padding(tmp_path):
    header = llmc.Header(4, 128, 1, 1, 2, 128)
    llmc.write(tmp_path / "m.bin", header, random_arrays(np.random.default_rng(2), header))
    assert llmc.read(tmp_path / "m.bin")[1]["wte"].shape == (128, 2)
    assert [llmc.pad_vocabulary(v) for v in (1, 128, 129, 50257)] == [128, 128, 256, 50304]


def test_the_size_of_gpt2(tmp_path):
    header = llmc.Header(1024, 50257, 12, 12, 768, 50304)
    assert header.count() == 124_475_904  # as llm.c prints it


@pytest.mark.parametrize("name, shape", [("wpe", (8, 6)), ("qkvw", (3, 6, 18)), ("fcb", (2, 24))])
def test_a_wrong_shape_is_not_written(tmp_path, name, shape):
    arrays = random_arrays(np.random.default_rng(3)) | {name: np.zeros(shape, np.float32)}
    with pytest.raises(TenaraiError, match=name):
        llmc.write(tmp_path / "m.bin", HEADER, arrays)
    assert list(tmp_path.iterdir()) == []


FIELDS = ["magic", "version", "max_seq_len", "vocab_size", "num_layers", "num_heads", "channels"]
FIELDS += ["padded_vocab_size"]
BAD = [0, -1, -(2**31), 2**31 - 1, 1, 255]


@pytest.mark.parametrize("field", range(8), ids=FIELDS)
@pytest.mark.parametrize("value", BAD)
def test_a_damaged_header_is_one_clear_error(tmp_path, field, value):
    path = tmp_path / "m.bin"
    llmc.write(path, HEADER, random_arrays(np.random.default_rng(4)))
    raw = bytearray(path.read_bytes())
    struct.pack_into("<i", raw, 4 * field, value)
    path.write_bytes(raw)
    if FIELDS[field] == "num_heads" and value == 1:  # divides: another model, but a whole file
        assert llmc.read(path)[0].num_heads == 1
        return
    if FIELDS[field] == "vocab_size" and value in (1, 255):  # fewer or more rows are padding
        assert len(llmc.read(path)[1]["wte"]) == value
        return
    with pytest.raises(TenaraiError) as caught:
        llmc.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_length_but_the_right_one_is_refused(tmp_path, dtype):
    path = tmp_path / "m.bin"
    llmc.write(path, HEADER, random_arrays(np.random.default_rng(5)), dtype)
    raw = path.read_bytes()
    lengths = [0, 1, 4, 1023, 1024, 1025, len(raw) // 2, len(raw) - 1, len(raw) + 1, len(raw) + 4]
    for length in lengths:
        path.write_bytes((raw + bytes(8))[:length])
        with pytest.raises(TenaraiError, match="truncated|longer than it says"):
            llmc.read(path)
    path.write_bytes(raw)
    llmc.read(path)


def test_random_headers_never_do_worse_than_an_error(tmp_path):
    path = tmp_path / "m.bin"
    llmc.write(path, HEADER, random_arrays(np.random.default_rng(6)))
    raw, rng = path.read_bytes(), np.random.default_rng(7)
    for _ in range(300):
        damaged = bytearray(raw)
        for at in rng.integers(0, 32, rng.integers(1, 5)):
            damaged[at] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            header, arrays = llmc.read(path)
        except TenaraiError:
            continue
        assert all(min(vars(header).values()) > 0 and a.size for a in arrays.values())


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.bin", tmp_path):
        with pytest.raises(TenaraiError, match="cannot read"):
            llmc.read(path)


def test_bfloat16_rounds_as_torch_does():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(8)
    bits = rng.integers(0, 2**32, 100_000, dtype=np.uint64).astype(np.uint32)
    edges = [0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x3F808000, 0x3F818000, 0, 0x80000000, 1]
    x = np.concatenate([bits, np.array(edges, np.uint32)]).view(np.float32)
    got = widen(narrow(x))
    expected = torch.from_numpy(x).to(torch.bfloat16).float().numpy()
    nan = np.isnan(x)
    assert nan.any() and np.isnan(got[nan]).all()
    np.testing.assert_array_equal(got[~nan], expected[~nan])
    np.testing.assert_array_equal(narrow(widen(narrow(x))), narrow(x))
