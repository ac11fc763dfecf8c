"""Every family's config.json and GGUF keys with each number missing or absurd: an error of one line
that names it, or a model that runs."""

import numpy as np
import pytest

import tenarai
from family_models import Files
from tenarai.errors import TenaraiError
from tenarai.ops import reference

pytestmark = pytest.mark.usefixtures("no_fsync")

IMPOSSIBLE = [  # for a size
    True, "x", "7", 0, -1, -(2**40), 7.5, -0.5, 2**63, 10**40, 1e308, float("nan"), float("inf"),
    [], [1], {}, {"a": 1}, "\n\x1b[31m",
]  # fmt: skip
POSSIBLE = [None, 1, 3, 5, 2**31 - 1]  # though perhaps not beside the others
SIZES = {
    "gpt2": ["n_embd", "n_head", "n_layer", "n_positions", "vocab_size"],
    "others": [
        "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers",
        "num_key_value_heads", "max_position_embeddings", "vocab_size", "head_dim",
    ],
}  # fmt: skip


def outcome(path):
    """The error's text, or None for a model that runs: nothing else may come of a file."""
    try:
        model = tenarai.load(path, ops=reference)
    except TenaraiError as error:
        assert "\n" not in str(error) and "\x1b" not in str(error)
        assert len(str(error)) < len(str(path)) + 300, str(error)
        return str(error)
    logits = model.logits(np.arange(min(3, model.context), dtype=np.int32))
    assert logits.shape[-1] == model.config.vocab_size
    return None


def test_settings_of_config_json(family, tmp_path):
    """Every setting, each value."""
    files = Files.of(family, "folder", tmp_path)
    sizes = SIZES["gpt2" if family == "gpt2" else "others"]
    if family == "qwen3moe":  # its layers all have experts, so none has an MLP of that size
        sizes = [*sizes, "moe_intermediate_size"]
        sizes.remove("intermediate_size")
    for name, right in files.settings.items():
        for i, value in enumerate(IMPOSSIBLE + POSSIBLE):
            files.edit_json("config.json", lambda d, n=name, v=value: d.update({n: v}))
            error = outcome(files.path)
            if name in sizes and i < len(IMPOSSIBLE):
                assert error and name in error, f"{name} = {value!r}: {error}"
        files.edit_json("config.json", lambda d, n=name, r=right: d.update({n: r}))
    assert outcome(files.path) is None


def test_settings_that_are_missing(family, tmp_path):
    files = Files.of(family, "folder", tmp_path)
    for name, right in files.settings.items():
        files.edit_json("config.json", lambda d, n=name: d.pop(n))
        outcome(files.path)
        files.edit_json("config.json", lambda d, n=name, r=right: d.update({n: r}))
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        if family != "gpt2":
            files.edit_json("config.json", lambda d, n=name: d.pop(n))
            assert f"{name} is missing" in outcome(files.path)
            files.edit_json("config.json", lambda d, n=name: d.update({n: files.settings[n]}))
    assert outcome(files.path) is None


def test_an_unknown_model(tmp_path):
    files = Files.of("llama", "folder", tmp_path)
    for value in ("mamba", "", None, 3, ["llama"], {}, "\n"):
        files.edit_json("config.json", lambda d, v=value: d.update({"model_type": v}))
        error = outcome(files.path)
        assert "config.json" in error and "model_type" in error and "llama" in error
    files.edit_json("config.json", lambda d: d.pop("model_type"))
    assert "model_type" in outcome(files.path)


UNREAD = ("general.architecture", "general.file_type", "qwen3moe.feed_forward_length")
OF_GGUF = [None, 0, 1, 3, 5, 2**31, 2**32 - 1, "x", -1, 0.0, -2.5, float("nan"), float("inf"), True]


def test_keys_of_gguf(family, tmp_path):
    """Every key, each value and without it."""
    files = Files.of(family, "gguf", tmp_path)
    settings, types = dict(files.settings), dict(files.types)
    for key in settings:
        for value in OF_GGUF:
            files.settings = {k: v for k, v in settings.items() if k != key}
            files.types = {k: t for k, t in types.items() if k != key}
            if value is not None:
                files.settings[key] = value
            error = outcome(files.write())
            if value == "x" and key not in UNREAD:
                assert error and key in error, f"{key} = {value!r}: {error}"
    files.settings, files.types = settings, types
    assert outcome(files.write()) is None
