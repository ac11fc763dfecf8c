"""Fixtures that several test files use."""

import signal
from pathlib import Path

import numpy as np
import pytest

from family_models import FAMILIES

# Started in the background, tests would ignore Ctrl-C, and so would the programs they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of large texts and vocabularies beside the repository, or a skip."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("needs the texts and vocabularies of ../shared/data, which are not here")
    return path


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same at every run."""
    return np.random.default_rng(20240229)


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """For hundreds of files that need not outlive the machine's fall."""
    monkeypatch.setattr("os.fsync", lambda fd: None)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """Every family of models, in turn."""
    return request.param


@pytest.fixture(params=["reference", "fast"])
def ops(request):
    """The reference and the kernels, in turn."""
    from tenarai.ops import reference

    if request.param == "reference":
        return reference
    pytest.importorskip("tenarai._kernels", reason="the compiled core is not built here")
    from tenarai.ops.fast import Fast

    return Fast(threads=2)
