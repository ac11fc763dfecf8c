"""Settings: where their values come from, and what is said about wrong ones."""

import pytest

from tenarai import config
from tenarai.config import PRESETS, resolve
from tenarai.errors import TenaraiError


def test_later_layers_win(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('preset = "char"\n[optimiser]\nlr = 5e-4\nbatch = 3\n')
    settings = resolve(None, file, {"batch": 7, "optimiser.beta2": 0.9})
    assert settings.model.width == PRESETS["char"]["model"]["width"]  # preset over default
    assert settings.optimiser.lr == 5e-4  # file over preset
    assert settings.optimiser.batch == 7  # flag over file
    assert settings.optimiser.beta2 == 0.9
    assert settings.run.keep == config.Run.keep
    assert resolve("gpt2", file).model.layers == 12  # the argument wins over the file's preset


@pytest.mark.parametrize("preset", PRESETS)
def test_toml_comes_back(preset, tmp_path):
    settings = resolve(preset, given={"prompt": 'a "b"\n# 手', "beta1": 0.5})
    file = tmp_path / "c.toml"
    file.write_text(config.to_toml(settings), encoding="utf-8")
    assert resolve("small", file) == settings
    assert config.from_values(config.to_values(settings)) == settings


def test_published_recipes():
    gpt2 = resolve("gpt2")
    tokens = gpt2.optimiser.batch * gpt2.optimiser.accumulate * gpt2.model.context
    assert tokens == 524_288 and gpt2.schedule.steps == 18_865 and gpt2.optimiser.lr == 6e-4
    char = resolve("char")
    assert (char.model.layers, char.model.heads, char.model.width) == (4, 4, 128)
    assert (char.model.context, char.optimiser.batch, char.schedule.steps) == (64, 12, 2000)
    assert char.optimiser.beta2 == 0.99 and char.schedule.min_lr == 1e-4
    assert not char.model.bias and char.model.gelu == "exact" and char.model.dropout == 0


def test_every_setting_has_a_name_of_its_own_and_a_description():
    rows = config.all_settings()
    assert len({row.name for row in rows}) == len(rows)
    assert all(row.help for row in rows)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"lrr": 1}, "no setting is called lrr: the nearest is optimiser.lr"),
        ({"optimizer.lr": 1}, "the nearest is optimiser.lr"),
        ({"model.lr": 1}, "the nearest is optimiser.lr"),
        ({"zzzzqq": 1}, "--help"),
        ({"heads": 5}, r"5 do not divide model.width = 192.*4, 6.*width of 195"),
        ({"batch": 0}, "optimiser.batch is 0, it must be at least 1"),
        ({"batch": 2.5}, "optimiser.batch is 2.5, it must be a whole number"),
        ({"batch": True}, "must be a whole number"),
        ({"lr": float("nan")}, "optimiser.lr is nan"),
        ({"lr": "1e-3"}, "must be a number"),
        ({"dropout": 1}, "at least 0 and below 1"),
        ({"kind": "cos"}, "cosine, wsd, constant"),
        ({"steps": 50, "warmup": 60}, "a warm-up of at most 50"),
        ({"kind": "wsd", "steps": 50, "warmup": 10, "decay": 45}, "a decay of at most 40"),
        ({"min_lr": 0.1}, "from 0 to 0.002"),
        ({"prompt": 3}, "must be text"),
    ],
)
def test_wrong_settings(given, message):
    with pytest.raises(TenaraiError, match=message):
        resolve(given=given)


@pytest.mark.parametrize(
    "text, message",
    [
        ("[optimizer]\nlr = 1", r"c.toml: no setting is called optimizer: the nearest is \[opt"),
        ("[optimiser]\nlearning = 1", "c.toml: no setting is called optimiser.learning"),
        ("[optimiser]\nlr = 'x'", "c.toml: optimiser.lr is 'x'"),
        ("[optimiser]\nlr = [1]", "must be a number"),
        ("optimiser = 1", "c.toml: no setting"),
        ("preset = 3", "c.toml: preset is 3"),
        ("preset = 'gpt-2'", "did you mean gpt2"),
        ("= =", "c.toml is not a TOML file"),
        (b"\xff\xfe", "c.toml is not a TOML file"),
    ],
)
def test_wrong_files(text, message, tmp_path):
    file = tmp_path / "c.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(TenaraiError, match=message):
        resolve(None, file)


def test_missing_file(tmp_path):
    with pytest.raises(TenaraiError, match="cannot read the settings"):
        resolve(None, tmp_path / "missing.toml")


def test_a_short_run_of_a_preset_fits_itself():
    settings = resolve("gpt2", given={"steps": 20, "lr": 1e-5})
    assert settings.schedule.warmup == 2
    assert resolve("small", given={"lr": 1e-5}).schedule.min_lr == 1e-5
    assert resolve("small", given={"steps": 10**6}).schedule.warmup == config.Schedule.warmup
