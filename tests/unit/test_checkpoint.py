"""Checkpoints: bitwise round trips on any mesh, retention, links, and every kind of damage."""

import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from spectral_dist.training import checkpoint
from spectral_dist.training.checkpoint import Checkpoints
from spectral_dist.training.checkpoint_folder import resolve
from spectral_dist.training.manifest import write_manifest

Save = Callable[..., None]


def make_state(seed: int = 0, shape: tuple[int, int, int] = (2, 2, 2)) -> Any:
    """Return a state of every type that a training holds, on a mesh of `shape`."""
    mesh = jax.make_mesh(shape, ("data", "fsdp", "tensor"))
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((8, 64)).astype(np.float32)
    weight[0, :3] = [np.nan, -0.0, np.inf]
    params = {
        "layer": {"weight": weight, "scale": np.asarray(jnp.asarray(weight[1], jnp.bfloat16))},
        "bytes": rng.integers(0, 256, 7).astype(np.uint8),
    }
    state = {
        "params": params,
        "opt_state": optax.adamw(1e-3).init(jax.tree.map(jnp.asarray, params)),
        "step": np.int32(seed),
    }

    def place(array: Any) -> jax.Array:
        sharded = np.shape(array) == (8, 64)
        spec = PartitionSpec("fsdp", "tensor") if sharded else PartitionSpec()
        return jax.device_put(array, NamedSharding(mesh, spec))

    return jax.tree.map(place, state)


def abstract(state: Any) -> Any:
    """Return the shapes, types and shardings of `state`."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_same(found: Any, wanted: Any) -> None:
    """Compare structure, types and bits."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def accept(description: dict[str, Any]) -> None:
    """Accept any checkpoint."""


@pytest.fixture
def warnings() -> list[str]:
    """Return the list that `open_folder`'s checkpoints warn into."""
    return []


@pytest.fixture
def open_folder(tmp_path: Path, warnings: list[str]) -> Callable[..., Checkpoints]:
    """Return a function that opens the run's folder anew, as another process would."""
    return lambda keep=2, keep_every=0: Checkpoints(
        tmp_path / "run", keep=keep, keep_every=keep_every, warn=warnings.append
    )


def save_all(checkpoints: Checkpoints, values: dict[int, float | None]) -> None:
    """Save the state of seed `step` at each step, with its validation value, and close."""
    for step, validation in values.items():
        checkpoints.save(step, make_state(step), {"step": step}, validation=validation)
    checkpoints.close()


def links(folder: Path) -> list[str]:
    """Return the targets of checkpoint_0 and checkpoint_1, as far as they are there."""
    names = ("checkpoint_0", "checkpoint_1")
    return [os.readlink(folder / name) for name in names if (folder / name).is_symlink()]


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 4, 1), (1, 1, 1)])
def test_round_trip_is_bitwise_on_any_mesh(
    shape: tuple[int, int, int], open_folder: Callable[..., Checkpoints], warnings: list[str]
) -> None:
    save_all(open_folder(), {3: 1.5})
    wanted = make_state(3, shape)
    checkpoints = open_folder()
    found = checkpoints.restore_latest(abstract(wanted), accept)
    assert found is not None
    assert_same(found[0], wanted)
    assert found[1] == {"step": 3} == checkpoints.describe(3)
    pairs = zip(jax.tree.leaves(found[0]), jax.tree.leaves(wanted), strict=True)
    assert all(a.sharding == b.sharding for a, b in pairs)
    again, _ = checkpoints.restore(abstract(wanted), 3)
    assert_same(again, wanted)
    checkpoints.close()
    assert warnings == []


def test_arrays_may_be_donated_as_soon_as_save_returns(
    open_folder: Callable[..., Checkpoints],
) -> None:
    state = {"x": jnp.arange(1 << 20, dtype=jnp.float32)}
    wanted = np.array(state["x"])
    target = abstract(state)
    overwrite = jax.jit(lambda s: {"x": s["x"] * 0 - 1}, donate_argnums=0)
    checkpoints = open_folder()
    checkpoints.save(1, state, {})
    state = overwrite(state)
    jax.block_until_ready(state)
    found, _ = checkpoints.restore(target, 1)
    checkpoints.close()
    np.testing.assert_array_equal(np.asarray(found["x"]), wanted)
    assert checkpoints.wait_seconds > 0


def test_no_checkpoints_is_none_and_writes_nothing(
    tmp_path: Path, open_folder: Callable[..., Checkpoints]
) -> None:
    checkpoints = open_folder()
    assert checkpoints.restore_latest(abstract(make_state()), accept) is None
    assert checkpoints.steps() == []
    checkpoints.close()
    assert not (tmp_path / "run").exists()


def test_the_last_ones_and_the_best_are_kept_also_after_a_restart(
    tmp_path: Path, open_folder: Callable[..., Checkpoints], warnings: list[str]
) -> None:
    folder = tmp_path / "run"
    save_all(open_folder(), {1: 2.0, 2: 1.0, 3: float("nan"), 4: None, 5: 1.5})
    assert open_folder().steps() == [2, 4, 5]
    assert links(folder) == ["5", "4"]
    save_all(open_folder(), {6: 1.2, 7: 0.9})  # a better one: the old best goes
    assert open_folder().steps() == [6, 7]
    assert links(folder) == ["7", "6"]
    save_all(open_folder(keep=1), {8: 3.0})
    assert open_folder().steps() == [7, 8]
    assert links(folder) == ["8", "7"]
    save_all(open_folder(keep=1), {9: 0.1})
    assert open_folder().steps() == [9]
    assert links(folder) == ["9"]
    assert sorted(os.listdir(folder)) == ["9", "checkpoint_0"]
    assert warnings == []


def test_permanent_ones_stay(open_folder: Callable[..., Checkpoints]) -> None:
    save_all(open_folder(keep_every=3), dict.fromkeys(range(1, 9)))
    assert open_folder().steps() == [3, 6, 7, 8]


def test_the_best_has_a_name(open_folder: Callable[..., Checkpoints]) -> None:
    save_all(open_folder(), {1: 2.0, 2: 1.5, 3: 1.5, 4: None, 5: None})
    found = open_folder()
    assert (found.find("best"), found.find("checkpoint_0"), found.find("4")) == (3, 5, 4)
    with pytest.raises(ValueError, match="there: checkpoint_0, checkpoint_1, 3, 4, 5"):
        found.find("6")


def test_none_is_the_best_without_an_evaluation(open_folder: Callable[..., Checkpoints]) -> None:
    save_all(open_folder(), {1: None})
    with pytest.raises(ValueError, match=r"'best' is not in .*; there: checkpoint_0, 1"):
        open_folder().find("best")


def test_a_part_is_read_alone(open_folder: Callable[..., Checkpoints]) -> None:
    state = {"params": {"a": jnp.arange(4.0), "b": jnp.ones(3)}, "opt_state": jnp.zeros(1000)}
    saved = open_folder()
    saved.save(1, state, {})
    saved.close()
    wanted = {"params": {"a": abstract(state)["params"]["a"]}}
    found = open_folder().restore_part(wanted, 1)
    assert_same(found, {"params": {"a": state["params"]["a"]}})
    other = {"params": {"a": abstract({"a": jnp.zeros(5)})["a"]}}
    with pytest.raises(
        ValueError, match=r"params/a is float32\[4\], but this run has float32\[5\]"
    ):
        open_folder().restore_part(other, 1)
    with pytest.raises(ValueError, match="params/c is not there"):
        open_folder().restore_part({"params": {"c": wanted["params"]["a"]}}, 1)


def test_a_slow_save_is_waited_for_and_named(
    open_folder: Callable[..., Checkpoints], warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_SLOW_SECONDS", 0.1)
    monkeypatch.setattr(
        checkpoint, "write_manifest", lambda *given: (time.sleep(0.5), write_manifest(*given))
    )
    saved = open_folder()
    saved.save(7, make_state(), {})
    saved.wait()
    assert saved.steps() == [7]
    assert [text.partition(":")[0] for text in warnings] == [
        "training waits for checkpoint 7, which has not been written for 0.1 s"
    ]
    saved.close()


def test_saving_an_existing_step_changes_nothing(open_folder: Callable[..., Checkpoints]) -> None:
    checkpoints = open_folder()
    checkpoints.save(1, make_state(1), {"first": True})
    checkpoints.save(1, make_state(2), {"first": False})
    state, description = checkpoints.restore(abstract(make_state(1)), 1)
    checkpoints.close()
    assert description == {"first": True}
    assert_same(state, make_state(1))


def test_links_and_leftovers_are_put_right_at_the_start(
    tmp_path: Path, open_folder: Callable[..., Checkpoints]
) -> None:
    folder = tmp_path / "run"
    save_all(open_folder(), {1: None, 2: None})
    (folder / "checkpoint_0").unlink()
    (folder / "checkpoint_0").symlink_to("99")
    (folder / "checkpoint_1").unlink()
    for name in ("3.orbax-checkpoint-tmp", "0.deleted"):
        (folder / name).mkdir()
        (folder / name / "file").write_text("half")
    reader = open_folder()
    assert reader.steps() == [1, 2]
    reader.restore(abstract(make_state()), 1)
    reader.close()
    assert (folder / "3.orbax-checkpoint-tmp").exists()  # perhaps of a training that still runs
    trainer = open_folder()
    trainer.restore_latest(abstract(make_state()), accept)
    trainer.close()
    assert sorted(os.listdir(folder)) == ["1", "2", "checkpoint_0", "checkpoint_1"]
    assert links(folder) == ["2", "1"]


def test_resolve(tmp_path: Path, open_folder: Callable[..., Checkpoints]) -> None:
    with pytest.raises(ValueError, match="there: none"):
        resolve(tmp_path / "run", "checkpoint_0")
    save_all(open_folder(), {10: None, 200: None})
    folder = tmp_path / "run"
    assert [resolve(folder, n) for n in ("checkpoint_0", "checkpoint_1", "10")] == [200, 10, 10]
    for name in ("checkpoint_2", "11", "010", "latest", ""):
        with pytest.raises(ValueError, match="there: checkpoint_0, checkpoint_1, 10, 200"):
            resolve(folder, name)
    with pytest.raises(ValueError, match="'11' is not in"):
        open_folder().describe(11)


def test_damage_to_any_file_falls_back_to_the_previous_one(
    tmp_path: Path, open_folder: Callable[..., Checkpoints], warnings: list[str]
) -> None:
    """Cut, empty, delete and flip a bit of every file of the newest; no wrong value ever."""
    folder = tmp_path / "run"
    save_all(open_folder(), {1: None, 2: None})
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole, symlinks=True)
    wanted = {step: make_state(step) for step in (1, 2)}
    checkpoints = open_folder()
    files = [p.relative_to(whole) for p in (whole / "2").rglob("*") if p.is_file()]
    assert len(files) > 10
    unneeded = {"_CHECKPOINT_METADATA", "commit_success.txt"}
    for name in files:
        for damage in ("cut", "empty", "delete", "flip"):
            content = bytearray((whole / name).read_bytes())
            content[len(content) // 2] ^= 4
            half = bytes(content[: len(content) // 2])
            (folder / name).unlink()
            if damage != "delete":
                (folder / name).write_bytes({"cut": half, "empty": b""}.get(damage, content))
            warnings.clear()
            found = checkpoints.restore_latest(abstract(wanted[1]), accept)
            assert found is not None, (name, damage)
            step = found[1]["step"]
            assert step == (2 if name.name in unneeded else 1), (name, damage, warnings)
            assert_same(found[0], wanted[step])
            assert len(warnings) == 2 - step
            if step == 1:
                assert "checkpoint 2 " in warnings[0]
                assert "\n" not in warnings[0]
                assert sorted(os.listdir(folder))[:2] == ["1", "2.unreadable"]
                assert links(folder) == ["1"]
            shutil.rmtree(folder)
            shutil.copytree(whole, folder, symlinks=True)
    checkpoints.close()


def test_a_step_put_aside_can_be_saved_again(
    tmp_path: Path, open_folder: Callable[..., Checkpoints], warnings: list[str]
) -> None:
    folder = tmp_path / "run"
    save_all(open_folder(), {1: None, 2: None})
    for aside in ("2.unreadable", "2.unreadable_2"):
        (folder / "2" / "checkpoint.json").unlink()
        checkpoints = open_folder()
        assert checkpoints.restore_latest(abstract(make_state()), accept) is not None
        save_all(checkpoints, {2: None})
        assert (folder / aside).is_dir()
        assert links(folder) == ["2", "1"]
    state, _ = open_folder().restore(abstract(make_state()), 2)
    assert_same(state, make_state(2))
    assert len(warnings) == 2


def test_none_readable_is_an_error_and_changes_nothing(
    tmp_path: Path, open_folder: Callable[..., Checkpoints], warnings: list[str]
) -> None:
    folder = tmp_path / "run"
    save_all(open_folder(), {1: None, 2: None})
    for step in ("1", "2"):
        (folder / step / "_METADATA").write_text("{")
    before = sorted(os.listdir(folder))
    checkpoints = open_folder()
    with pytest.raises(ValueError, match=r"no checkpoint in .*run can be read .*nothing was chan"):
        checkpoints.restore_latest(abstract(make_state()), accept)
    with pytest.raises(ValueError, match="_METADATA has lost or gained bytes"):
        checkpoints.restore(abstract(make_state()), 2)
    checkpoints.close()
    assert sorted(os.listdir(folder)) == before
    assert len(warnings) == 2


def test_a_refused_description_propagates_and_changes_nothing(
    tmp_path: Path, open_folder: Callable[..., Checkpoints], warnings: list[str]
) -> None:
    folder = tmp_path / "run"
    save_all(open_folder(), {1: None, 2: None, 3: None})
    (folder / "3" / "manifest.ocdbt").unlink()
    (folder / "2" / "d").rename(folder / "2" / "e")  # the arrays cannot be read: check comes first
    before = sorted(os.listdir(folder))
    seen = []

    def refuse(description: dict[str, Any]) -> None:
        seen.append(description["step"])
        if description["step"] == 2:
            raise ValueError("hidden_dim=64 is not the checkpoint's 32")

    checkpoints = open_folder()
    with pytest.raises(ValueError, match="hidden_dim=64"):
        checkpoints.restore_latest(abstract(make_state()), refuse)
    checkpoints.close()
    assert seen == [3, 2]
    assert sorted(os.listdir(folder)) == before


@pytest.mark.parametrize("change", ["shape", "dtype", "missing", "extra"])
def test_another_shape_or_type_is_an_error_that_names_the_array(
    change: str, tmp_path: Path, open_folder: Callable[..., Checkpoints], warnings: list[str]
) -> None:
    save_all(open_folder(), {1: None})
    target = abstract(make_state())
    layer = target["params"]["layer"]
    old = layer["weight"]
    if change == "missing":
        del layer["weight"]
    elif change == "extra":
        layer["gate"] = old
    else:
        shape, dtype = ((8, 32), old.dtype) if change == "shape" else (old.shape, jnp.bfloat16)
        layer["weight"] = jax.ShapeDtypeStruct(shape, dtype, sharding=old.sharding)
    name = "params/layer/gate" if change == "extra" else "params/layer/weight"
    checkpoints = open_folder()
    for restore in (
        lambda: checkpoints.restore(target, 1),
        lambda: checkpoints.restore_latest(target, accept),
    ):
        with pytest.raises(ValueError, match=rf"array {name} is .*, but this run has "):
            restore()
    checkpoints.close()
    assert open_folder().steps() == [1]
    assert warnings == []


def test_a_full_disk_is_one_warning_and_the_next_save_tries_again(
    tmp_path: Path,
    open_folder: Callable[..., Checkpoints],
    warnings: list[str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A limit on the size of a file stands for the full disk: the same error path, no mount."""
    random = np.random.default_rng(0).integers(0, 256, 1 << 20).astype(np.uint8)
    big = {"x": jnp.asarray(random)}
    checkpoints = open_folder()
    checkpoints.save(1, big, {"step": 1})
    checkpoints.restore(abstract(big), 1)  # waits for the commit
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        for step in (2, 3):
            checkpoints.save(step, big, {"step": step})
            checkpoints.wait()
            assert checkpoints.failed_saves == len(warnings) == step - 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(os.listdir(tmp_path / "run")) == ["1", "checkpoint_0"]
    checkpoints.save(3, big, {"step": 3})
    checkpoints.close()
    assert open_folder().steps() == [1, 3]
    assert [w.split(" could not")[0] for w in warnings] == ["checkpoint 2", "checkpoint 3"]
    assert all("\n" not in w for w in warnings)
    assert capfd.readouterr().err == ""


def test_a_folder_that_cannot_be_made_is_a_warning(tmp_path: Path, warnings: list[str]) -> None:
    (tmp_path / "file").write_text("")
    checkpoints = Checkpoints(tmp_path / "file" / "run", keep=2, warn=warnings.append)
    for step in (1, 2):
        checkpoints.save(step, make_state(), {})
    checkpoints.close()
    assert checkpoints.failed_saves == 2
    assert "Not a directory" in warnings[0]


def test_a_description_that_json_cannot_hold_is_a_warning(
    open_folder: Callable[..., Checkpoints], warnings: list[str]
) -> None:
    checkpoints = open_folder()
    checkpoints.save(1, make_state(), {"lr": float("nan")})
    checkpoints.close()
    assert checkpoints.failed_saves == len(warnings) == 1
    assert checkpoints.steps() == []


def test_links_move_before_old_ones_are_deleted(
    tmp_path: Path, open_folder: Callable[..., Checkpoints], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    targets: list[list[str]] = []
    delete = checkpoint.delete

    def look_and_delete(path: Path) -> None:
        targets.append(links(folder))
        delete(path)

    monkeypatch.setattr(checkpoint, "delete", look_and_delete)
    save_all(open_folder(keep=1), {1: None, 2: None, 3: None})
    assert targets == [["2"], ["3"]]


def test_each_save_that_stands_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    warnings: list[str] = []
    run = tmp_path / "run"
    checkpoints = Checkpoints(run, keep=2, warn=warnings.append, report=told.append)
    save_all(checkpoints, {1: None, 2: None})
    assert told == ["checkpoint 1 is saved", "checkpoint 2 is saved"]
    full = tmp_path / "file"
    full.touch()
    save_all(Checkpoints(full / "run", keep=2, warn=warnings.append, report=told.append), {3: None})
    assert len(told) == 2
    assert len(warnings) == 1
