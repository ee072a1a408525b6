"""A new run with the parameters of another one."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from spectral_dist.flags import load_config
from spectral_dist.mesh import make_mesh
from spectral_dist.params import Params
from spectral_dist.training.init_from import first_state
from spectral_dist.training.state import TrainState
from tests.unit.test_api import SMALL, folder, make  # noqa: F401 - the fixture

pytestmark = pytest.mark.slow

Arrays = dict[str, np.ndarray]


def arrays(params: Params) -> Arrays:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.array(x) for path, x in leaves
    }


@pytest.fixture(scope="module")
def first(folder: Path) -> Arrays:  # noqa: F811
    """The parameters of a run called `first` after 4 steps, of which 2 and 4 are saved."""
    with make(folder, "first", steps=4, save_every=2, eval_every=2) as trainer:
        list(trainer)
        return arrays(trainer.params)


def begun(folder: Path, name: str, **settings: Any) -> tuple[Arrays, TrainState]:  # noqa: F811
    """The parameters before the first step, and the state."""
    values = {**SMALL, "data_paths": "a.txt", "checkpoint_dir": str(folder), "run_name": name}
    config = load_config([f"--{k}={_flag(v)}" for k, v in {**values, **settings}.items()])
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        state, step, sequence = first_state(config, mesh, lambda text: None)
    assert (step, sequence) == (0, 0)
    return arrays(state.params), state


def _flag(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


@pytest.mark.parametrize("source", ["first", "{}/first", "{}/first/4", "{}/first/checkpoint_0"])
def test_all_parameters_and_nothing_else(folder: Path, first: Arrays, source: str) -> None:  # noqa: F811
    name = source.replace("/", "_").replace("{}", "by_path")
    found, state = begun(folder, f"new_{name}", init_from=source.format(folder))
    assert found.keys() == first.keys()
    for key, value in first.items():
        np.testing.assert_array_equal(found[key], value)
    assert all(not np.any(x) for x in jax.tree.leaves((state.step, state.opt_state)))


def test_some_by_name_and_the_others_from_the_seed(folder: Path, first: Arrays) -> None:  # noqa: F811
    fresh, _ = begun(folder, "fresh")
    some = {"init_from": "first", "init_names": ["embed", "*/mlp/*"]}
    found, _ = begun(folder, "some", num_poles=8, **some)
    for name, value in found.items():
        if name == "embed" or "/mlp/" in name:
            np.testing.assert_array_equal(value, first[name])
            assert not np.array_equal(value, fresh[name])
        elif value.shape == fresh[name].shape:
            np.testing.assert_array_equal(value, fresh[name])


def test_the_checkpoint_that_is_named(folder: Path, first: Arrays) -> None:  # noqa: F811
    found, _ = begun(folder, "second", init_from=str(folder / "first" / "2"))
    assert not np.array_equal(found["embed"], first["embed"])
    best, _ = begun(folder, "best", init_from=str(folder / "first" / "best"))
    assert any(np.array_equal(best["embed"], one["embed"]) for one in (found, first))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_from": "nobody"}, "init_from='nobody': .*/nobody is no run with checkpoints"),
        ({"init_from": "first/7"}, "init_from='first/7': "),
        ({"init_from": "{}/first/7"}, "checkpoint '7' is not in .*there: checkpoint_0"),
        ({"init_from": "first", "init_names": "embed,x*"}, r"init_names='x\*': no parameter"),
        ({"init_from": "first", "hidden_dim": 64}, r"parameter embed is float32\[256,32\], but"),
        ({"init_from": "first", "num_layers": 1, "layer_pattern": "spectral"}, "not in this model"),
        ({"init_from": "first", "init_names": ""}, "init_names='': must name at least one"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(
    folder: Path,  # noqa: F811
    first: Arrays,
    settings: dict[str, Any],
    message: str,
) -> None:
    settings = {k: v.format(folder) if isinstance(v, str) else v for k, v in settings.items()}
    with pytest.raises(ValueError, match=message):
        begun(folder, "wrong", **settings)
    assert not list(folder.glob("wrong/[0-9]*"))


def test_a_run_that_goes_on_has_its_own(folder: Path, first: Arrays) -> None:  # noqa: F811
    with make(folder, "goes_on", init_from="first", steps=2) as trainer:
        list(trainer)
    with make(folder, "goes_on", init_from="gone", steps=3) as trainer:
        assert trainer.step == 2
