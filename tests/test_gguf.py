"""GGUF files: read as the `gguf` package writes them, written as it reads them, damage refused."""

import numpy as np
import pytest

from gguf_bytes import Entry, build, key, save, value
from tenarai.errors import TenaraiError
from tenarai.io import formats, gguf
from tenarai.io.gguf_types import FLOATS, INTEGERS, OTHERS
from tenarai.io.gguf_write import Tensor, write
from tenarai.quant import FORMATS, QuantTensor

SCALARS = {
    "uint8": [0, 255],
    "int8": [-128, 127],
    "uint16": [0, 65535],
    "int16": [-32768, 32767],
    "uint32": [0, 2**32 - 1],
    "int32": [-(2**31), 2**31 - 1],
    "uint64": [0, 2**64 - 1],
    "int64": [-(2**63), 2**63 - 1],
    "float32": [-1.5, float(np.float32(1e-5)), float("inf")],
    "float64": [1e-300, np.pi],
    "bool": [True, False],
}


def random_blocks(rng, format, rows, width):
    """Bytes of a matrix in `format`; any bytes are blocks, but floats should be finite."""
    w = rng.standard_normal((rows, width))
    if format.name == "F32":
        return w.astype("<f4")
    if format.name in ("F16", "F64"):
        return w.astype("<f2" if format.name == "F16" else "<f8")
    return rng.integers(0, 60, (rows, format.row_bytes(width)), np.uint8)


# What the package writes, we read


@pytest.fixture
def peer():
    return pytest.importorskip("gguf")


def test_every_value_type_of_the_package(peer, tmp_path):
    writer = peer.GGUFWriter(tmp_path / "m.gguf", "llama")
    names = {t.name.lower(): t for t in peer.GGUFValueType}
    for kind, values in SCALARS.items():
        for i, v in enumerate(values):
            writer.add_key_value(f"{kind}.{i}", v, names[kind])
        writer.add_key_value(f"{kind}.all", values, names["array"], names[kind])
    writer.add_string("text", "手習い\n")
    writer.add_array("texts", ["", "a", "犬", "x" * 1000])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = gguf.read(tmp_path / "m.gguf")
    for kind, values in SCALARS.items():
        for i, v in enumerate(values):
            found = file.metadata[f"{kind}.{i}"]
            assert (found, file.metadata.types[f"{kind}.{i}"], type(found)) == (v, kind, type(v))
        array = file.metadata[f"{kind}.all"]
        assert array.dtype == kind and not array.flags.writeable
        np.testing.assert_array_equal(array, np.array(values, kind))
        assert file.metadata.types[f"{kind}.all"] == f"[{kind}]"
    assert file.metadata["text"] == "手習い\n" and file.metadata.types["texts"] == "[string]"
    assert file.metadata.length("texts") == 4  # before it is decoded
    assert file.metadata["texts"] == ["", "a", "犬", "x" * 1000]
    assert file.metadata.length("texts") == 4
    assert file.metadata["general.architecture"] == "llama"
    assert set(file.metadata) >= {"text", "texts"} and "text" in file.metadata
    assert (file.version, file.alignment, len(file.tensors)) == (3, 32, 0)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_of_the_package(peer, tmp_path, rng, name):
    format = FORMATS[name]
    data = random_blocks(rng, format, 3, 512)
    number = peer.GGMLQuantizationType[name]
    writer = peer.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("odd", rng.standard_normal(5).astype(np.float32))
    writer.add_tensor("w", data, raw_dtype=number)
    writer.add_tensor("deep", data.reshape(3, 1, -1), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = gguf.read(tmp_path / "m.gguf")
    w = file.tensors["w"]
    assert (w.shape, w.format, w.nbytes, w.size) == ((3, 512), format, data.nbytes, 1536)
    assert w.raw().tobytes() == data.tobytes() and w.offset % 32 == 0
    array = w.array()
    assert isinstance(array, np.ndarray if name == "F32" else QuantTensor)
    assert not (array if name == "F32" else array.data).flags.writeable
    try:
        wanted = peer.dequantize(data.view(np.uint8), number).reshape(3, 512)
    except NotImplementedError:  # Q8_K, which the package does not expand
        wanted = w.float32()
    np.testing.assert_array_equal(w.float32(), wanted)
    deep = file.tensors["deep"]
    assert deep.shape == (3, 1, 512)
    np.testing.assert_array_equal(deep.float32(), wanted.reshape(3, 1, 512))
    if name != "F32":
        with pytest.raises(TenaraiError, match=r"deep is stored as .*\(3, 1, 512\), no matrix"):
            deep.array()
    assert file.tensors["odd"].array().shape == (5,)


@pytest.mark.parametrize("format", OTHERS, ids=lambda f: f.name)
def test_types_that_are_not_computed_with_are_named(peer, tmp_path, format):
    assert peer.GGMLQuantizationType[format.name] == format.number
    assert peer.GGML_QUANT_SIZES[format.number] == (format.block, format.bytes)
    data = build(tensors=[Entry("w", (256, 2), format.number, bytes(format.row_bytes(512)))])
    w = gguf.read(save(tmp_path / "m.gguf", data)).tensors["w"]
    assert w.nbytes == format.row_bytes(512)
    for call in (w.array, w.float32):
        with pytest.raises(TenaraiError, match=f"w is stored as {format.name}, which tenarai does"):
            call()


def test_the_tables_are_the_package_s(peer):
    ours = {f.number: (f.name, f.block, f.bytes) for f in (*FORMATS.values(), *OTHERS)}
    for number in peer.GGMLQuantizationType:
        if number.name != "Q8_1":  # an activation's, in no file
            assert ours[int(number)] == (number.name, *peer.GGML_QUANT_SIZES[number])


@pytest.mark.parametrize("name", ["gpt-2", "phi-3", "starcoder"])
def test_vocabulary_files(peer, shared_data, name):
    path = shared_data / "gguf-vocab" / f"ggml-vocab-{name}.gguf"
    file, theirs = gguf.read(path), peer.GGUFReader(path)
    assert not file.tensors and formats.detect(path) == formats.GGUF
    fields = {k: f for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert list(file.metadata) == list(fields)
    for k, f in fields.items():
        found = file.metadata[k]
        assert (found.tolist() if isinstance(found, np.ndarray) else found) == f.contents()


# What we write, the package reads


def everything(rng):
    metadata = {f"{k}.{i}": v for k, values in SCALARS.items() for i, v in enumerate(values)}
    types = {name: name.split(".")[0] for name in metadata}
    metadata |= {f"{k}.all": np.array(values, k) for k, values in SCALARS.items()}
    metadata |= {"text": "手習い", "texts": ["", "犬", "x" * 99], "general.architecture": "llama"}
    metadata |= {"no texts": [], "no numbers": np.zeros(0, np.int16)}
    types["no texts"] = "[string]"
    tensors, data = [], {}
    for i, format in enumerate(FORMATS.values()):
        name = f"blk.{i}.w"
        data[name] = random_blocks(rng, format, 2 + i, 256)
        tensors.append(Tensor(name, (2 + i, 256), format, lambda name=name: data[name]))
    data["norm"] = rng.standard_normal(7).astype("<f4")
    tensors.append(Tensor("norm", (7,), FORMATS["F32"], lambda: data["norm"]))
    return metadata, types, tensors, data


@pytest.mark.parametrize("alignment", [32, 8, 256])
def test_what_is_written_is_read_back_by_both(peer, tmp_path, rng, alignment):
    metadata, types, tensors, data = everything(rng)
    size = write(tmp_path / "m.gguf", metadata, tensors, types, alignment)
    assert size == (tmp_path / "m.gguf").stat().st_size
    file, theirs = gguf.read(tmp_path / "m.gguf"), peer.GGUFReader(tmp_path / "m.gguf")
    assert file.alignment == theirs.alignment == alignment
    for name, wanted in metadata.items():
        np.testing.assert_array_equal(file.metadata[name], wanted)
        field, kind = theirs.fields[name], file.metadata.types[name]
        said = [t.name.lower() for t in field.types]
        if len(wanted) if kind.startswith("[") else True:  # it tells no type of an empty array
            assert said == (["array", kind.strip("[]")] if kind.startswith("[") else [kind])
        np.testing.assert_array_equal(field.contents(), wanted)
    assert {t.name for t in theirs.tensors} == set(file.tensors) == set(data)
    for t in theirs.tensors:
        ours = file.tensors[t.name]
        assert (ours.format.number, ours.offset) == (t.tensor_type, t.data_offset)
        assert ours.shape == tuple(t.shape[::-1].tolist())
        assert t.data.tobytes() == ours.raw().tobytes() == data[t.name].tobytes()


def test_a_file_written_from_a_file_is_the_same_bytes(tmp_path, rng):
    metadata, types, tensors, _ = everything(rng)
    write(tmp_path / "a.gguf", metadata, tensors, types)
    a = gguf.read(tmp_path / "a.gguf")
    again = [Tensor(t.name, t.shape, t.format, t.raw) for t in a.tensors.values()]
    write(tmp_path / "b.gguf", a.metadata, again)
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()
    write(tmp_path / "c.gguf", dict(a.metadata), again, a.metadata.types)
    assert (tmp_path / "c.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()


def test_types_follow_from_values(tmp_path):
    given = {
        "a": (3, "uint32"), "b": (-3, "int32"), "c": (2**40, "uint64"), "d": (-(2**40), "int64"),
        "e": (0.5, "float32"), "f": (True, "bool"), "g": (np.int8(1), "int8"), "h": ("x", "string"),
        "i": ([1, -2], "[int32]"), "j": ([0.5], "[float32]"), "k": ([True], "[bool]"),
        "l": (np.zeros(2, np.uint16), "[uint16]"), "m": (("x",), "[string]"),
    }  # fmt: skip
    write(tmp_path / "m.gguf", {k: v for k, (v, _) in given.items()}, [])
    assert gguf.read(tmp_path / "m.gguf").metadata.types == {k: t for k, (_, t) in given.items()}


def test_bytes_may_come_in_pieces_and_are_made_in_turn(tmp_path):
    order = []

    def make(name, pieces):
        order.append(name)
        return pieces

    f32 = FORMATS["F32"]
    one = Tensor("one", (2, 2), f32, lambda: make("one", iter([b"\1" * 8, bytearray(8)])))
    two = Tensor("two", (1,), f32, lambda: make("two", memoryview(b"abcd")))
    write(tmp_path / "m.gguf", {}, [one, two])
    assert order == ["one", "two"]
    file = gguf.read(tmp_path / "m.gguf")
    assert file.tensors["one"].raw().tobytes() == b"\1" * 8 + bytes(8)
    assert file.tensors["two"].raw().tobytes() == b"abcd"


def test_how_a_file_was_split_is_not_written(tmp_path):
    write(tmp_path / "m.gguf", {"split.count": 3, "general.alignment": 64, "x": 1}, [])
    assert list(gguf.read(tmp_path / "m.gguf").metadata) == ["x"]


F32 = FORMATS["F32"]


@pytest.mark.parametrize(
    "metadata, tensors, types, said",
    [
        ({"": 1}, [], {}, "has 0 bytes"),
        ({"k" * 70000: 1}, [], {}, "70000 bytes"),
        ({"k": []}, [], {}, "no GGUF type"),
        ({"k": None}, [], {}, "no GGUF type"),
        ({"k": 2**70}, [], {}, "no GGUF type"),
        ({"k": np.zeros((2, 2))}, [], {}, "no GGUF type"),
        ({"k": np.zeros(2, np.complex64)}, [], {}, "no GGUF type"),
        ({"k": 300}, [], {"k": "uint8"}, "does not fit into uint8"),
        ({"k": -1}, [], {"k": "uint32"}, "does not fit into uint32"),
        ({"k": 0.5}, [], {"k": "uint32"}, "is no uint32"),
        ({}, [Tensor("", (1,), F32, lambda: b"1234")], {}, "has 0 bytes"),
        ({}, [Tensor("n" * 64, (1,), F32, lambda: b"1234")], {}, "has 64 bytes"),
        ({}, [Tensor("w", (1,), F32, lambda: b"1234")] * 2, {}, "the same name"),
        ({}, [Tensor("w", (0, 2), F32, lambda: b"")], {}, "expected 1 to 4 dims"),
        ({}, [Tensor("w", (), F32, lambda: b"1234")], {}, "expected 1 to 4 dims"),
        ({}, [Tensor("w", (1, 33), FORMATS["Q8_0"], lambda: b"")], {}, "no multiple of 32"),
        ({}, [Tensor("w", (2,), F32, lambda: b"1234")], {}, "4 bytes made, F32 .* has 8"),
        ({}, [Tensor("w", (2,), F32, lambda: b"1" * 9)], {}, "9 bytes made"),
    ],
)
def test_what_no_file_can_hold_is_refused(tmp_path, metadata, tensors, types, said):
    (tmp_path / "m.gguf").write_bytes(b"the old file")
    with pytest.raises(ValueError, match=said):
        write(tmp_path / "m.gguf", metadata, tensors, types)
    assert (tmp_path / "m.gguf").read_bytes() == b"the old file"
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize("alignment", [0, 4, 24])
def test_alignments_that_are_none(tmp_path, alignment):
    with pytest.raises(ValueError, match="power of two"):
        write(tmp_path / "m.gguf", {}, [], alignment=alignment)


# Split files


def write_parts(folder, count=3, **changes):
    """A model of one tensor a part, the metadata in the first; → the paths."""
    paths = []
    for i in range(count):
        said = {"split.no": ("uint16", i), "split.count": ("uint16", count)}
        said["split.tensors.count"] = ("int32", count)
        said |= {k: v for k, v in changes.get(f"part{i}", {}).items()}
        pairs = [key(k, value(t, v)) for k, (t, v) in said.items()]
        if i == 0:
            pairs.append(key("name", value("string", "whole")))
        name = changes.get("names", "w0 w1 w2").split()[i]
        tensors = [Entry(name, (4,), 0, bytes([i]) * 16)]
        paths.append(folder / f"m-{i + 1:05}-of-{count:05}.gguf")
        save(paths[-1], build(pairs, tensors))
    return paths


def test_split_files_are_opened_through_any_part(tmp_path):
    paths = write_parts(tmp_path)
    for path in paths:
        file = gguf.read(path)
        assert (file.path, file.paths) == (path, tuple(paths))
        assert file.metadata["name"] == "whole" and list(file.tensors) == ["w0", "w1", "w2"]
        assert [t.raw()[0, 0] for t in file.tensors.values()] == [0, 1, 2]
        assert file.size == sum(p.stat().st_size for p in paths)
        assert file.tensors["w2"].path == str(paths[2])


def test_split_files_of_the_package(peer, tmp_path, rng):
    writer = peer.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    arrays = {f"w{i}": rng.standard_normal((2, 3)).astype(np.float32) for i in range(5)}
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.add_uint32("llama.block_count", 1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    paths = sorted(tmp_path.glob("*.gguf"))
    assert len(paths) == 3
    file = gguf.read(paths[1])
    assert file.metadata["llama.block_count"] == 1
    for name, array in arrays.items():
        np.testing.assert_array_equal(file.tensors[name].array(), array)


def test_one_part_of_one_is_a_file(tmp_path):
    (path,) = write_parts(tmp_path, 1)
    assert gguf.read(path.rename(tmp_path / "any.gguf")).paths == (tmp_path / "any.gguf",)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"part1": {"split.no": ("uint16", 2)}}, "m-00002-of-00003.gguf: says it is part 3 of 3"),
        ({"part1": {"split.count": ("uint16", 1)}}, "says it is part 2 of 1"),
        ({"part2": {"split.no": ("string", "2")}}, "split.no has type string, expected"),
        ({"part0": {"split.tensors.count": ("int32", 9)}}, "have 3 tensors, expected 9"),
        ({"names": "w0 w1 w0"}, "m-00003-of-00003.gguf: the tensor w0 stands in another part"),
    ],
)
def test_parts_that_do_not_belong_together(tmp_path, changes, said):
    paths = write_parts(tmp_path, **changes)
    with pytest.raises(TenaraiError, match=said) as caught:
        gguf.read(paths[0])
    assert "\n" not in str(caught.value)


def test_a_missing_part_and_a_part_of_another_name(tmp_path):
    paths = write_parts(tmp_path)
    paths[1].unlink()
    with pytest.raises(TenaraiError, match=r"m-00002-of-00003.gguf: is missing, part 2 of 3"):
        gguf.read(paths[2])
    renamed = paths[0].rename(tmp_path / "model.gguf")
    with pytest.raises(TenaraiError, match="one of 3 parts, but its name does not end in -0000N"):
        gguf.read(renamed)
    many = build([key("split.count", value("uint64", 2**64 - 1))])
    with pytest.raises(TenaraiError, match="one of 18446744073709551615 parts, but its name"):
        gguf.read(save(tmp_path / "m-00001-of-00002.gguf", many))


# `typed`, for whoever reads a model


def test_typed_values(tmp_path):
    data = build([key("n", value("uint16", 3)), key("s", value("[float32]", [0.5]))])
    metadata = gguf.read(save(tmp_path / "m.gguf", data)).metadata
    assert metadata.typed("n", *INTEGERS) == 3 and metadata.typed("x", "bool", default=None) is None
    with pytest.raises(TenaraiError, match=r"m\.gguf: n has type uint16, expected float32 or fl"):
        metadata.typed("n", *FLOATS)
    with pytest.raises(TenaraiError, match=r"s has type \[float32\], expected \[int32\]"):
        metadata.typed("s", "[int32]")
    with pytest.raises(TenaraiError, match=r"m\.gguf: has no x"):
        metadata.typed("x", "bool")
