"""Real models, for tests that use one where it has been pulled."""

from pathlib import Path

import pytest

from tenarai.errors import TenaraiError
from tenarai.io.named_models import model_path


def real(name: str) -> Path:
    """The model's file; the test is skipped where it has not been pulled."""
    try:
        return model_path(name)
    except TenaraiError:
        pytest.skip(f"needs the real model {name}: tenarai pull {name}")
