"""The settings: types, ranges, relations, derived defaults, YAML files and the presets."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from spectral_dist.flags import configs_folder, load_config
from spectral_dist.settings import (
    AUTO_MESH,
    LIST_FLAGS,
    LISTS,
    PATHS,
    SETTINGS,
    Config,
    from_flat,
    from_layers,
    resolve,
    with_values,
)
from spectral_dist.settings.declare import LIMIT, plain, split_list, value_at
from spectral_dist.settings.files import read_yaml, to_yaml
from spectral_dist.settings.mixers import MixersConfig, check_heads
from spectral_dist.settings.optimizers import OPTIMIZER_KINDS
from spectral_dist.settings.relations import mixer_names
from spectral_dist.settings.rules import nearest
from spectral_dist.settings.sections import MeshConfig, ModelConfig

PRESETS = sorted(path.name for path in configs_folder().glob("*.yaml"))


def resolved(**values: Any) -> Config:
    return resolve(from_flat(values))


def write(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# ---- declarations ----


def test_fewer_than_80_settings_and_each_explained() -> None:
    assert len(SETTINGS) < 80
    for name, setting in SETTINGS.items():
        assert re.fullmatch(r"[a-z][a-z0-9_.]*", name)
        assert len(setting.help) > 10, name


def test_every_setting_has_one_path_and_one_name() -> None:
    assert len(PATHS) == len(SETTINGS)
    for setting in SETTINGS.values():
        assert setting.name in (setting.path, setting.path.rpartition(".")[2], setting.traits.flag)
    for kind in OPTIMIZER_KINDS:  # together they are all
        names = {s.path for s in SETTINGS.values() if not s.kinds or kind in s.kinds}
        nested = from_flat({"optimizer.name": kind}).nested()
        assert all(value_at(nested, path) is not ... for path in names)


def test_the_guide_s_names_exist() -> None:
    promised = """mesh run_name data_paths data_weights hidden_dim num_layers seq_len batch_size
        accum_steps lr steps warmup_steps compute_dtype seed log_every eval_every save_every keep
        remat layer_pattern max_bad_steps"""
    assert set(promised.split()) <= {*SETTINGS, *LIST_FLAGS}


CHOICES = [n for n, s in SETTINGS.items() if s.choices and n != "optimizer.name"]


@pytest.mark.parametrize("name", CHOICES)
def test_choices_hold_the_default_and_refuse_others(name: str) -> None:
    setting = SETTINGS[name]
    assert str(setting.field.default).lower() in setting.choices
    for choice in setting.choices:
        from_flat({name: choice})
    rule = "true or false" if setting.field.annotation is bool else "one of"
    with pytest.raises(ValueError, match=f"{name}='neither': must be {rule}"):
        from_flat({name: "neither"})


def test_configurations_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().run.steps = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_a_mesh_that_is_still_to_be_chosen() -> None:
    config = resolved(mesh="auto", batch_size=3, head_dim=64, num_kv_heads=1)
    assert config.mesh.mesh == AUTO_MESH
    assert config.mixers.spectral.tau_max is not None
    with pytest.raises(ValueError, match="num_kv_heads=3: must divide"):
        resolved(mesh="auto", num_kv_heads=3)
    with pytest.raises(ValueError, match="mesh='auto': must be DATAxFSDPxTENSOR"):
        _ = config.mesh.shape
    with pytest.raises(ValueError, match="mesh='Auto': must be"):
        resolved(mesh="Auto")


# ---- how a setting is declared ----


def test_every_number_has_a_limit_above() -> None:
    for setting in SETTINGS.values():
        bounds = {
            name
            for item in setting.field.metadata
            for name in ("lt", "le", "gt", "ge")
            if getattr(item, name, None) is not None
        }
        assert not bounds or bounds & {"lt", "le"}, setting.name
    assert LIMIT == 2**31


def test_lists_and_sections_become_plain() -> None:
    assert split_list(" a, b,,c ") == ("a", "b", "c")
    assert split_list(3) == (3,)
    assert plain(MixersConfig())["window"] == {"window": 512}


def test_attention_asks_for_heads_that_divide() -> None:
    check_heads(ModelConfig(hidden_dim=128, num_kv_heads=2), MeshConfig(mesh="1x1x2"))
    with pytest.raises(ValueError, match="tensor=4 must divide the 2 heads"):
        check_heads(ModelConfig(hidden_dim=128, num_kv_heads=2), MeshConfig(mesh="1x1x4"))
    assert mixer_names() == ("spectral", "window", "attention", "ssd")


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
        ("eval_lengths", "1,2,4", (1, 2, 4)),
        ("eval_lengths", [1, 8], (1, 8)),
    ],
)
def test_values_become_their_type(name: str, given: Any, expected: Any) -> None:
    value: Any = from_flat({name: given})
    for part in SETTINGS[name].path.split("."):
        value = getattr(value, part)
    assert value == expected
    assert type(value) is type(expected)
    if isinstance(value, tuple):
        assert [type(v) for v in value] == [type(e) for e in expected]


@pytest.mark.parametrize(
    ("paths", "weights", "expected"),
    [
        ("a.txt,b.txt", "0.8,0.2", {"a.txt": 0.8, "b.txt": 0.2}),
        (" a.txt , b.txt ", None, {"a.txt": None, "b.txt": None}),
        (["a, b.txt", "c.txt"], [1, "2e-1"], {"a, b.txt": 1.0, "c.txt": 0.2}),
        ("a.txt", 1, {"a.txt": 1.0}),
        ("", None, {}),
        ([], None, {}),
    ],
)
def test_two_lists_fill_the_datasets(paths: Any, weights: Any, expected: dict[str, Any]) -> None:
    given = {"data_paths": paths} | ({} if weights is None else {"data_weights": weights})
    assert {d.paths[0]: d.weight for d in from_flat(given).datasets} == expected


@pytest.mark.parametrize(
    ("name", "given", "rule"),
    [
        ("steps", "many", "must be an integer"),
        ("steps", "1.5", "must be an integer"),
        ("steps", 1.5, "must be an integer"),
        ("steps", True, "must be an integer"),
        ("batch_size", None, "must be an integer"),
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
        ("data_paths", [1], "must be text"),
        ("data_paths", None, "must be text"),
        ("datasets", 3, "must be a list"),
        ("model", 3, "must be a mapping of settings to values"),
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
    *("num_kv_heads", "window", "num_poles", "conv_width", "eval_every"),
    *("eval_windows", "extrapolation_windows", "tau_min", "tau_max", "lr", "adam_eps"),
    *("clip_norm", "start_timeout", "hang_timeout", "attention_conv_width"),
    *("ssd_tau_max", "ssd_conv_width", "ngram_rows"),
]
NOT_NEGATIVE = [
    *("seed", "chunk_size", "weight_decay", "z_loss", "warmup_steps", "save_minutes"),
    *("keep_every", "final_lr_fraction", "max_failed_starts", "ssd_chunk_size"),
]
SHARES = ["beta1", "beta2", "decay_fraction", "validation_fraction"]


def test_every_number_has_a_range() -> None:
    numbers = {n for n, s in SETTINGS.items() if s.traits.flag != "" and s.field.metadata}
    texts = {"run_name", "checkpoint_dir", "compilation_cache", "mesh", "layer_pattern"}
    texts |= {"wandb_project", "eval_lengths", "sequence_parallel", "document_mask", "profile"}
    texts |= {"init_from", "init_names", "allow_replaced", "lock", "store", "tokenizer"}
    texts |= {"data_cache", "ssd_decay", "ngrams"}
    assert set(POSITIVE) | set(NOT_NEGATIVE) | set(SHARES) == numbers - texts


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
    assert config.mixers.spectral.tau_max == 128  # seq_len / 4
    assert config.model.mlp_dim == 704  # 8/3 x 256 = 682.7, up to a multiple of 64
    assert config.model.num_kv_heads == 2  # half of 256 / 64
    assert None not in config.flat().values()
    paths = {s.path for s in SETTINGS.values() if s.traits.derive and s.belongs_to(config)}
    assert set(config.derived) == paths - {"run.steps"}  # which was given
    assert resolved(data_paths="a.txt").run.steps == 10_000


def test_small_models_and_short_runs_have_derived_defaults_too() -> None:
    config = resolved(steps=1, seq_len=1, hidden_dim=64)
    assert config.optimizer.warmup_steps == 1
    assert config.model.num_kv_heads == 1
    assert config.mixers.spectral.tau_max is not None
    assert config.mixers.spectral.tau_max > config.mixers.spectral.tau_min


def test_given_values_are_not_replaced() -> None:
    given = {"warmup_steps": 0, "tau_max": 33.0, "mlp_dim": 100, "num_kv_heads": 8}
    assert given.items() <= resolved(**given).flat().items()


def test_resolving_twice_changes_nothing() -> None:
    config = resolved(data_paths="a.txt,b.txt,c.txt", data_weights="1,1,5")
    assert resolve(config) == config


def test_what_follows_is_derived_again() -> None:
    """From a run's file: what was derived follows what is overridden, what was given stays."""
    run = resolved(hidden_dim=128, num_kv_heads=1, seq_len=64, steps=20).flat()
    changed = resolve(from_layers([run, {"hidden_dim": 512, "seq_len": 512, "steps": 1000}]))
    assert changed.model.mlp_dim == 1408
    assert changed.model.num_kv_heads == 1
    assert changed.mixers.spectral.tau_max == 128
    assert changed.optimizer.warmup_steps == 50
    assert resolve(from_layers([run, {"hidden_dim": "128"}])) == resolve(from_flat(run))
    assert with_values(resolve(from_flat(run)), {"seq_len": 32}).mixers.spectral.tau_max == 8
    given = resolve(from_layers([run, {"hidden_dim": 512, "mlp_dim": 99}]))
    assert given.model.mlp_dim == 99


def test_a_file_from_before_sections_is_derived_again_too(tmp_path: Path) -> None:
    """Such a file holds every setting by its short name, and nothing says which were given."""
    run = resolved(hidden_dim=128, num_kv_heads=2, seq_len=64, data_paths="a.txt")
    old = {k: v for k, v in run.flat().items() if "." not in k and k not in LISTS}
    del old["derived"]
    path = write(tmp_path, yaml.safe_dump(old | {"data_paths": ["a.txt"], "data_weights": [1.0]}))
    changed = resolve(from_layers([read_yaml(path), {"hidden_dim": "512"}]))
    assert changed.model.mlp_dim == 1408
    assert changed.model.num_kv_heads == 2  # was given: derived it would have been 1
    # In a file of today what was derived is a comment: one may also change the file itself.
    text = to_yaml(run)
    assert "# mlp_dim: 384  # follows from model.hidden_dim\n" in text
    assert "  num_kv_heads: 2\n" in text
    path = write(tmp_path, text.replace("  hidden_dim: 128\n", "  hidden_dim: 512\n"))
    assert resolve(from_flat(read_yaml(path))).model.mlp_dim == 1408
    # A file that somebody wrote leaves settings out; what is in it was meant.
    path = write(tmp_path, "hidden_dim: 128\nmlp_dim: 384\n")
    assert resolve(from_layers([read_yaml(path), {"hidden_dim": "512"}])).model.mlp_dim == 384


# ---- nested settings ----


def test_a_setting_may_be_named_in_three_ways() -> None:
    expected = resolved(num_poles=8)
    assert resolved(**{"mixers.spectral.num_poles": "8"}) == expected
    assert resolved(mixers={"spectral": {"num_poles": 8}}) == expected


def test_later_layers_reach_into_lists() -> None:
    file = {
        "datasets": [{"name": "tr", "paths": "a.txt"}, {"name": "en", "paths": ["b.txt"]}],
        "phases": [
            {"steps": 10, "weights": {"tr": 1}},
            {"steps": 5, "weights": {"tr": 1, "en": 2}},
        ],
        "steps": 15,
    }
    config = resolve(from_layers([file, {"phases.1.weights.en": "0.5", "data_weights": "1,3"}]))
    assert dict(config.phases[1].weights) == {"tr": 1.0, "en": 0.5}
    assert [(d.name, d.weight) for d in config.datasets] == [("tr", 1.0), ("en", 3.0)]
    assert resolve(from_flat(config.nested())) == config


def test_an_optimizer_has_its_own_settings_alone() -> None:
    adamw = resolved(beta1=0.8).flat()
    lion = resolve(from_layers([adamw, {"optimizer.name": "lion"}]))
    assert lion.optimizer.name == "lion"
    assert not hasattr(lion.optimizer, "beta1")
    with pytest.raises(ValueError, match=r"optimizer\.beta1: is no setting of this optimizer; it"):
        resolved(**{"optimizer.name": "lion", "beta1": 0.5})


PHASES = {"data_paths": "a.txt,b.txt", "steps": 10}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"datasets": [{"name": "x"}]}, "datasets.0.paths: must be given"),
        ({"datasets": [{"paths": ""}]}, "datasets.0.paths='': must name at least one file"),
        ({"datasets": [{"paths": "a", "format": "csv"}]}, "datasets.0.format='csv': must be"),
        ({"datasets": [{"paths": "a", "text_field": 3}]}, "datasets.0.text_field=3: must be text"),
        ({"datasets": [{"paths": "a", "name": "x/y"}]}, "datasets.0.name='x/y': must be a name"),
        (
            {"datasets": [{"paths": "a", "name": "x"}, {"paths": "b", "name": "x"}]},
            "datasets.0.name='x': two datasets have it",
        ),
        (
            {"datasets": [{"paths": "a", "weight": 1}, {"paths": "b"}]},
            "datasets.1.weight: must be given",
        ),
        ({"datasets": [{"paths": "a", "weight": -1}]}, "datasets.0.weight=-1: must not be neg"),
        ({"datasets": [{"paths": "a", "wieght": 1}]}, "unknown setting 'datasets.0.wieght'"),
        ({"data_weights": "1,2"}, "data_weights=1,2: needs data_paths"),
        ({"model": {"hiden_dim": 1}}, "'model.hiden_dim'; did you mean model.hidden_dim?"),
        ({"model": {"hidden_dim": -3}}, "model.hidden_dim=-3: must be positive"),
        ({"optimizer": {"name": "adam"}}, "optimizer.name='adam': must be one of adamw, muon"),
        ({"phases": [{"steps": 10, "weights": {"a": "x"}}]}, "phases.0.weights.a='x': must be a"),
        ({"phases": [{"steps": 10, "weights": {"a": -1}}]}, "phases.0.weights.a=-1: must be fin"),
        ({"phases": [{"steps": 10, "weights": {"c": 1}}]}, "phases.0.weights.c: must name one of"),
        ({"phases": [{"steps": 10, "weights": {"a": 0}}]}, "phases.0.weights: at least one"),
        ({"phases": [{"steps": 10, "weights": 3}]}, "phases.0.weights=3: must map names"),
        ({"phases": [{"steps": 9, "weights": {"a": 1}}]}, "phases: their steps sum to 9; must be"),
        ({"derived": 3}, "derived="),
        ({"derived": [{}]}, "derived.0={}: must be text"),
        ({"phases.2.steps": 3}, "phases.2.steps: there is no list of phases"),
    ],
)
def test_a_mistake_in_a_section_names_its_path(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        resolve(from_layers([PHASES if "phases" in str(values) else {}, values]))
    assert "\n" not in str(caught.value)


def test_a_mixer_that_is_not_in_the_pattern_asks_for_nothing() -> None:
    spectral = {"layer_pattern": "spectral", "num_kv_heads": 3, "head_dim": 1}
    assert resolved(**spectral, mesh="1x1x4").model.num_kv_heads == 3
    assert resolved(layer_pattern="window", num_poles=99).mixers.spectral.num_poles == 99


# ---- YAML ----


def test_flat_goes_through_yaml_and_back(tmp_path: Path) -> None:
    config = resolved(
        data_paths="metin ğıİşçöü.txt,b.txt", data_weights="2,1", lr="3e-4", adam_eps="1e-8"
    )
    for text in (yaml.safe_dump(config.flat(), allow_unicode=True), to_yaml(config)):
        assert resolve(from_flat(read_yaml(write(tmp_path, text)))) == config


def test_flat_names_every_setting_with_plain_values() -> None:
    flat = resolved().flat()
    mine = [name for name, s in SETTINGS.items() if not s.kinds or "adamw" in s.kinds]
    assert list(flat) == [*mine, "datasets", "phases", "validation", "derived"]
    assert all(isinstance(value, int | float | str | list) for value in flat.values())


def test_an_empty_file_holds_no_settings(tmp_path: Path) -> None:
    assert read_yaml(write(tmp_path, "# nothing\n")) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- steps\n- lr\n", "must be a mapping of settings to values"),
        ("steps\n", "must be a mapping of settings to values"),
        ("stepz: 3\n", "unknown setting 'stepz'; did you mean steps?"),
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
    promised = ["curriculum", "demo", "level1", "level2", "level3"]
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
    assert all(not Path(d.paths[0]).is_absolute() for d in config.datasets)


def test_the_curriculum_is_three_phases_of_level_1() -> None:
    config, level1 = (
        resolve(from_flat(read_yaml(configs_folder() / f"{name}.yaml")))
        for name in ("curriculum", "level1")
    )
    assert config.model == level1.model
    assert [(phase.steps, dict(phase.weights)) for phase in config.phases] == [
        (50_000, {"turkish_academic": 0.8, "github_code": 0.2}),
        (30_000, {"english": 0.4, "turkish_academic": 0.3, "github_code": 0.3}),
        (
            20_000,
            {"math": 0.25, "github_code": 0.25, "english": 0.25, "turkish_academic": 0.25},
        ),
    ]


def test_a_preset_has_a_name_and_a_file_goes_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("level2", "level2.yaml", "configs/level2.yaml"):
        assert load_config(["--config", name]).model.hidden_dim == 1024
    (tmp_path / "level2").write_text("hidden_dim: 128\n")
    assert load_config(["--config", "level2"]).model.hidden_dim == 128
    with pytest.raises(ValueError, match=r"config='level7': no such file, and no preset; .*level1"):
        load_config(["--config", "level7"])
    with pytest.raises(ValueError, match=r"config='x/level2.yaml': cannot be read"):
        load_config(["--config", "x/level2.yaml"])
