"""The settings: types, ranges, relations, derived defaults, YAML files and the presets."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from spectral_dist.command_line import configs_folder, nearest, read_yaml
from spectral_dist.config import AUTO_MESH, SETTINGS, Config, from_flat, resolve

PRESETS = sorted(path.name for path in configs_folder().glob("*.yaml"))


def resolved(**values: Any) -> Config:
    return resolve(from_flat(values))


def write(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# ---- declarations ----


def test_fewer_than_70_settings_and_each_explained() -> None:
    assert len(SETTINGS) < 70
    for name, (_, declared) in SETTINGS.items():
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
        assert len(declared.metadata["help"]) > 10, name


def test_names_are_one_flat_set() -> None:
    groups = [getattr(Config(), f.name) for f in dataclasses.fields(Config)]
    names = [f.name for group in groups for f in dataclasses.fields(group)]
    assert sorted(names) == sorted(SETTINGS), "two concerns declare one name"


def test_the_guide_s_names_exist() -> None:
    promised = """mesh run_name data_paths data_weights hidden_dim num_layers seq_len batch_size
        accum_steps lr steps warmup_steps compute_dtype seed log_every eval_every save_every keep
        remat layer_pattern max_bad_steps"""
    assert set(promised.split()) <= set(SETTINGS)


@pytest.mark.parametrize("name", [n for n, (_, f) in SETTINGS.items() if f.metadata["choices"]])
def test_choices_hold_the_default_and_refuse_others(name: str) -> None:
    declared = SETTINGS[name][1]
    assert declared.default in declared.metadata["choices"]
    for choice in declared.metadata["choices"]:
        from_flat({name: choice})
    with pytest.raises(ValueError, match=f"{name}='neither': must be one of"):
        from_flat({name: "neither"})


def test_configurations_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().run.steps = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_a_mesh_that_is_still_to_be_chosen() -> None:
    config = resolved(mesh="auto", batch_size=3, head_dim=64, num_kv_heads=1)
    assert config.mesh.mesh == AUTO_MESH
    assert config.model.tau_max is not None
    with pytest.raises(ValueError, match="num_kv_heads=3: must divide"):
        resolved(mesh="auto", num_kv_heads=3)
    with pytest.raises(ValueError, match="mesh='auto': must be DATAxFSDPxTENSOR"):
        _ = config.mesh.shape
    with pytest.raises(ValueError, match="mesh='Auto': must be"):
        resolved(mesh="Auto")


# ---- types ----


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("lr", "3e-4", 3e-4),  # YAML's own reading of 3e-4 is text
        ("lr", 3e-4, 3e-4),
        ("lr", 1, 1.0),
        ("steps", "50000", 50000),
        ("steps", "50_000", 50000),
        ("steps", 2e3, 2000),
        ("warmup_steps", None, None),
        ("warmup_steps", "0", 0),
        ("tau_max", "64", 64.0),
        ("run_name", "scale_phase_1", "scale_phase_1"),
        ("data_paths", "a.txt,b.txt", ("a.txt", "b.txt")),
        ("data_paths", " a.txt , b.txt ", ("a.txt", "b.txt")),
        ("data_paths", ["a, b.txt", "c.txt"], ("a, b.txt", "c.txt")),
        ("data_paths", "", ()),
        ("data_paths", [], ()),
        ("data_weights", "0.8,0.2", (0.8, 0.2)),
        ("data_weights", [1, "2e-1"], (1.0, 0.2)),
        ("data_weights", 1, (1.0,)),
        ("eval_lengths", "1,2,4", (1, 2, 4)),
        ("eval_lengths", [1, 8], (1, 8)),
    ],
)
def test_values_become_their_type(name: str, given: Any, expected: Any) -> None:
    config = from_flat({name: given})
    value = getattr(getattr(config, SETTINGS[name][0]), name)
    assert value == expected
    assert type(value) is type(expected)
    if isinstance(value, tuple):
        assert [type(v) for v in value] == [type(e) for e in expected]


@pytest.mark.parametrize(
    ("name", "given", "rule"),
    [
        ("steps", "many", "must be an integer"),
        ("steps", "1.5", "must be an integer"),
        ("steps", 1.5, "must be an integer"),
        ("steps", True, "must be an integer"),
        ("steps", None, "must be an integer"),
        ("steps", "", "must be an integer"),
        ("steps", "inf", "must be an integer"),
        ("steps", float("inf"), "must be an integer"),
        ("steps", float("nan"), "must be an integer"),
        ("steps", [1], "must be an integer"),
        ("lr", "fast", "must be a number"),
        ("lr", {"peak": 1}, "must be a number"),
        ("lr", False, "must be a number"),
        ("run_name", 3, "must be text"),
        ("run_name", None, "must be text"),
        ("mesh", 1, "must be text"),
        ("data_weights", "0.8;0.2", "must be a number"),
        ("data_weights", [[1]], "must be a number"),
        ("data_paths", [1], "must be text"),
        ("data_paths", None, "must be text"),
        ("eval_lengths", "1,2.5", "must be an integer"),
    ],
)
def test_wrong_types_name_the_setting(name: str, given: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}=.*: {rule}$"):
        from_flat({name: given})


# ---- ranges ----

POSITIVE = [
    *("steps", "log_every", "save_every", "keep", "max_bad_steps", "seq_len", "batch_size"),
    *("accum_steps", "prefetch_steps", "hidden_dim", "num_layers", "mlp_dim", "head_dim"),
    *("num_kv_heads", "window", "num_poles", "conv_width", "chunk_size", "eval_every"),
    *("eval_windows", "extrapolation_windows", "tau_min", "tau_max", "lr", "adam_eps"),
    *("clip_norm", "start_timeout", "hang_timeout"),
]
NOT_NEGATIVE = ["seed", "weight_decay", "z_loss", "warmup_steps"]
SHARES = ["beta1", "beta2", "final_lr_fraction", "decay_fraction", "validation_fraction"]


def test_every_number_has_a_range() -> None:
    texts = {n for n, (_, f) in SETTINGS.items() if "str" in str(f.type) or "tuple" in str(f.type)}
    assert set(POSITIVE) | set(NOT_NEGATIVE) | set(SHARES) == set(SETTINGS) - texts


@pytest.mark.parametrize("name", [*POSITIVE, *NOT_NEGATIVE, *SHARES])
@pytest.mark.parametrize("value", [-1, 2**31])
def test_numbers_out_of_range_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"^{name}={value}(\\.0)?: must (be|not be) "):
        resolved(**{name: value})


@pytest.mark.parametrize("name", [*POSITIVE, "validation_fraction"])
def test_zero_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}=0(\\.0)?: must be "):
        resolved(**{name: 0})


@pytest.mark.parametrize("name", [*NOT_NEGATIVE, *SHARES[:-1]])
def test_zero_is_accepted(name: str) -> None:
    assert resolved(**{name: 0}).flat()[name] == 0


@pytest.mark.parametrize("name", SHARES)
def test_one_is_no_share(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}=1.0: must be (at least|above) 0 and below 1"):
        resolved(**{name: 1})


@pytest.mark.parametrize("name", ["lr", "weight_decay", "tau_max", "beta1"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_numbers_must_be_finite(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}={value}: must be finite"):
        resolved(**{name: value})


def test_numbers_beyond_every_float_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^seed=1000.*: must be below 2\*\*31$"):
        resolved(seed="1" + "0" * 400)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/tmp", "a\\b", "a\0", "a\nb"])
def test_run_names_are_one_folder(name: str) -> None:
    with pytest.raises(ValueError, match=r"^run_name=.*: must name one folder$"):
        resolved(run_name=name)


@pytest.mark.parametrize("lengths", ["", "0", "1,-2"])
def test_evaluation_lengths_are_positive(lengths: str) -> None:
    with pytest.raises(ValueError, match=r"^eval_lengths=.*: must be positive integers$"):
        resolved(eval_lengths=lengths)


# ---- the mesh ----


@pytest.mark.parametrize(
    ("mesh", "shape"), [("1x1x1", (1, 1, 1)), ("4x8x1", (4, 8, 1)), ("2X2X2", (2, 2, 2))]
)
def test_the_mesh_is_read(mesh: str, shape: tuple[int, int, int]) -> None:
    assert resolved(mesh=mesh, batch_size=32).mesh.shape == shape


@pytest.mark.parametrize(
    "mesh", ["", "8", "2x2", "2x2x2x2", "0x1x1", "-1x1x1", "ax1x1", "1 x1x1", "1x1x1x", "²x1x1"]
)
def test_a_wrong_mesh_is_refused(mesh: str) -> None:
    with pytest.raises(ValueError, match=r"^mesh=.*: must be DATAxFSDPxTENSOR"):
        resolved(mesh=mesh)


# ---- relations between settings ----


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"mesh": "2x2x1", "batch_size": 6},
            "batch_size=6: must be a multiple of data x fsdp = 4 of mesh=2x2x1",
        ),
        ({"hidden_dim": 100}, "hidden_dim=100: must be a multiple of head_dim=64"),
        ({"hidden_dim": 63, "head_dim": 7}, "head_dim=7: must be even"),
        ({"num_kv_heads": 3}, "num_kv_heads=3: must divide the 8 heads"),
        ({"tau_min": 9, "tau_max": 8}, "tau_max=8.0: must be above tau_min=9.0"),
        ({"num_poles": 65}, "num_poles=65: must be at most 64"),
        ({"warmup_steps": 11, "steps": 10}, "warmup_steps=11: must be at most steps=10"),
        ({"layer_pattern": "spectral,fourier"}, "'fourier' is not one of spectral, window"),
        ({"layer_pattern": ""}, "layer_pattern='': '' is not one of"),
        ({"layer_pattern": "spectral,"}, "'' is not one of"),
        ({"data_paths": "a.txt", "data_weights": "1,2"}, "data_weights=1,2"),
        ({"data_paths": "a.txt,b.txt", "data_weights": "1,-1"}, "b.txt"),
        ({"data_paths": "a.txt,b.txt", "data_weights": "0,0"}, "data_weights=0,0"),
        ({"data_paths": "a.txt", "data_weights": "nan"}, "data_weights=nan"),
    ],
)
def test_settings_that_contradict_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        resolved(**values)
    assert "\n" not in str(caught.value)


def test_tensor_does_not_divide_the_batch() -> None:
    assert resolved(mesh="1x2x4", batch_size=2).mesh.shape == (1, 2, 4)


# ---- derived defaults ----


def test_derived_defaults_are_filled_in() -> None:
    config = resolved(steps=1000, seq_len=512, hidden_dim=256, data_paths="a.txt,b.txt")
    assert config.optimizer.warmup_steps == 50  # 5% of steps
    assert config.model.tau_max == 128  # seq_len / 4
    assert config.model.mlp_dim == 704  # 8/3 x 256 = 682.7, up to a multiple of 64
    assert config.model.num_kv_heads == 2  # half of 256 / 64
    assert None not in config.flat().values()


def test_small_models_and_short_runs_have_derived_defaults_too() -> None:
    config = resolved(steps=1, seq_len=1, hidden_dim=64)
    assert config.optimizer.warmup_steps == 1
    assert config.model.num_kv_heads == 1
    assert config.model.tau_max is not None
    assert config.model.tau_max > config.model.tau_min


def test_given_values_are_not_replaced() -> None:
    given = {"warmup_steps": 0, "tau_max": 33.0, "mlp_dim": 100, "num_kv_heads": 8}
    assert given.items() <= resolved(**given).flat().items()


def test_resolving_twice_changes_nothing() -> None:
    config = resolved(data_paths="a.txt,b.txt,c.txt", data_weights="1,1,5")
    assert resolve(config) == config


# ---- YAML ----


def test_flat_goes_through_yaml_and_back(tmp_path: Path) -> None:
    config = resolved(
        data_paths="metin ğıİşçöü.txt,b.txt", data_weights="2,1", lr="3e-4", adam_eps="1e-8"
    )
    path = write(tmp_path, yaml.safe_dump(config.flat(), allow_unicode=True))
    assert resolve(from_flat(read_yaml(path))) == config


def test_flat_names_every_setting_with_plain_values() -> None:
    flat = resolved().flat()
    assert list(flat) == list(SETTINGS)
    assert all(isinstance(value, int | float | str | list) for value in flat.values())


def test_an_empty_file_holds_no_settings(tmp_path: Path) -> None:
    assert read_yaml(write(tmp_path, "# nothing\n")) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- steps\n- lr\n", "must be a mapping of settings to values"),
        ("steps\n", "must be a mapping of settings to values"),
        ("stepz: 3\n", "unknown setting 'stepz'; did you mean steps?"),
        ("model:\n  hidden_dim: 3\n", "unknown setting 'model'"),
        ("3: 4\n", "unknown setting 3"),
        ("config: a.yaml\n", "unknown setting 'config'"),
        ("steps: [1\nlr: 2\n", "is not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []\n", "is not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"config={str(path)!r}: ")
    assert "\n" not in str(caught.value)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.yaml.*cannot be read: No such file"):
        read_yaml(tmp_path / "absent.yaml")
    with pytest.raises(ValueError, match=r"cannot be read: Is a directory"):
        read_yaml(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(os.urandom(64) + b"\xff\xfe\x80")
    with pytest.raises(ValueError, match=r"binary\.yaml.*is not valid YAML"):
        read_yaml(binary)


def test_a_setting_given_twice_in_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not valid YAML.*'steps'"):
        read_yaml(write(tmp_path, "steps: 3\nlr: 1\nsteps: 4\n"))


# ---- hints ----


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("hiden_dim", "hidden_dim"),
        ("batchsize", "batch_size"),
        ("acum_steps", "accum_steps"),
        ("confg", "config"),
    ],
)
def test_the_nearest_name_is_suggested(wrong: str, right: str) -> None:
    assert nearest(wrong, [*SETTINGS, "config"]) == f"; did you mean {right}?"


def test_nothing_is_suggested_for_nonsense() -> None:
    assert nearest("qqqqqqqq", SETTINGS) == ""


# ---- the presets ----


def test_the_presets_are_there() -> None:
    promised = ["demo", "level1", "level2", "level3", "phase1", "phase2", "phase3"]
    assert [f"{name}.yaml" for name in promised] == PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_loads_and_says_what_it_needs(name: str) -> None:
    path = configs_folder() / name
    config = resolve(from_flat(read_yaml(path)))
    text = path.read_text(encoding="utf-8")
    header = text[: text.index("\n\n")]
    if name != "demo.yaml":
        assert f"python -m spectral_dist.train --config configs/{name}" in header
    data, fsdp, tensor = config.mesh.shape
    assert f"# devices: {data * fsdp * tensor}\n" in header
    assert "# parameters: " in header
    assert "# memory per device: " in header
    assert all(not Path(p).is_absolute() for p in config.data.data_paths)


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("phase1", {"turkish_academic": 0.8, "github_code": 0.2}),
        ("phase2", {"english": 0.4, "turkish_academic": 0.3, "github_code": 0.3}),
        (
            "phase3",
            {"math": 0.25, "github_code": 0.25, "english": 0.25, "turkish_academic": 0.25},
        ),
    ],
)
def test_the_phases_mix_their_sources(name: str, shares: dict[str, float]) -> None:
    data = resolve(from_flat(read_yaml(configs_folder() / f"{name}.yaml"))).data
    names = [Path(path).stem for path in data.data_paths]
    assert dict(zip(names, data.data_weights, strict=True)) == shares


def test_the_phases_are_one_model() -> None:
    models = [
        resolve(from_flat(read_yaml(configs_folder() / name))).model
        for name in ("level1.yaml", "phase1.yaml", "phase2.yaml", "phase3.yaml")
    ]
    assert all(model == models[0] for model in models)
