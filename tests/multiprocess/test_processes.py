"""Several processes are one run: the same batches, losses and parameters as one process gives."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from spectral_dist.data.tokens import prepare
from spectral_dist.flags import load_config
from spectral_dist.mesh import make_mesh
from spectral_dist.settings import DatasetConfig
from spectral_dist.training.checkpoint import Checkpoints
from spectral_dist.training.checkpoint_folder import complete_steps
from spectral_dist.training.resume import resume
from spectral_dist.training.state import abstract_state
from tests.multiprocess.local import Local, Own, Run, local_runs, losses, stored

STEPS, ROWS = 12, 8
FLAGS = f"--steps {STEPS} --save_every 4 --keep 3 --batch_size {ROWS}".split()
# Each process tells the checksum of every row of its shards, by step and place in the batch.
TELL_ROWS = """
import zlib
import numpy as np
from spectral_dist import assembly
_batches = assembly.token_batches
def _tell(*args, **kwargs):
    for batch in _batches(*args, **kwargs):
        for shard in batch.tokens.addressable_shards:
            first = shard.index[1].start or 0
            for number, row in enumerate(np.asarray(shard.data)[0]):
                print(f"row {batch.step} {first + number} {zlib.crc32(row.tobytes())}", flush=True)
        yield batch
assembly.token_batches = _tell
"""
SHAPES = {  # processes, devices of each, mesh
    "pair": (2, 2, "2x2x1"),
    "single": (1, 4, "2x2x1"),
    "alone": (1, 1, "1x1x1"),
    "pair on another mesh": (2, 2, "1x2x2"),
}
MOVES = ((4, "alone"), (8, "pair on another mesh"))  # after which step, to what
TORN = ("cut", "deleted")

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


def rows(run: Run) -> dict[tuple[int, int], int]:
    """Return the checksum of each row that the processes saw, by step and place."""
    found: dict[tuple[int, int], int] = {}
    for rank in run.ranks:
        for step, place, crc in re.findall(r"row (\d+) (\d+) (\d+)", rank.out):
            assert found.setdefault((int(step), int(place)), int(crc)) == int(crc)
    return found


def train(local: Local, shape: str, name: str) -> dict[tuple[int, int], int]:
    """Train to the end in some shape; return the rows that were seen."""
    processes, devices, mesh = SHAPES[shape]
    run = local.start(
        *[*FLAGS, "--mesh", mesh, "--run_name", name],
        processes=processes,
        devices=devices,
        own={i: Own(TELL_ROWS) for i in range(processes)},
    )
    assert run.wait() == [0] * processes, run.told()
    assert all(rank.err == "" for rank in run.ranks), run.told()
    assert all("step" not in rank.out for rank in run.ranks[1:])  # one console
    assert "some sequences may come twice" not in run.ranks[0].out
    return rows(run)


def as_if_killed_after(folder: Path, last: int) -> None:
    for step in complete_steps(folder):
        if step > last:
            shutil.rmtree(folder / str(step))


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    with local_runs(tmp_path_factory.mktemp("processes")) as local:
        yield local


@pytest.fixture(scope="module")
def seen(local: Local) -> dict[tuple[int, int], int]:
    """The rows of the run called `pair`, which has run to its end."""
    return train(local, "pair", "pair")


def test_two_processes_are_one(local: Local, seen: dict[tuple[int, int], int]) -> None:
    assert seen.keys() == {(step, place) for step in range(STEPS) for place in range(ROWS)}
    assert train(local, "single", "single") == seen
    pair, single = local.run_folder("pair"), local.run_folder("single")
    assert list(losses(pair)) == list(range(1, STEPS + 1))
    np.testing.assert_allclose([*losses(pair).values()], [*losses(single).values()], rtol=1e-5)
    for mine, theirs in zip(
        jax.tree.leaves(stored(pair, STEPS)), jax.tree.leaves(stored(single, STEPS)), strict=True
    ):
        np.testing.assert_allclose(np.asarray(mine), np.asarray(theirs), rtol=1e-3, atol=1e-6)


def test_a_run_moves_to_fewer_processes_and_back(
    local: Local, seen: dict[tuple[int, int], int]
) -> None:
    """Two processes, then one on another mesh, then two again on a third."""
    pair, moved = local.run_folder("pair"), local.run_folder("moved")
    shutil.copytree(pair, moved, symlinks=True)
    for last, shape in MOVES:
        as_if_killed_after(moved, last)
        later = train(local, shape, "moved")
        assert later == {place: crc for place, crc in seen.items() if place[0] >= last}
        assert list(losses(moved)) == list(range(1, STEPS + 1))
        np.testing.assert_allclose([*losses(moved).values()], [*losses(pair).values()], rtol=1e-4)


def test_every_file_torn_in_turn(local: Local, seen: dict[tuple[int, int], int]) -> None:
    """Of the newest checkpoint of two processes: the one before is taken, and never step 0."""
    assert seen
    whole, folder = local.run_folder("pair"), local.folder / "torn"
    config = load_config(["--config", str(whole / "config.yaml"), "--mesh", "1x1x1"])
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    abstract = abstract_state(config, mesh)
    paths = [str(local.folder / path) for dataset in config.datasets for path in dataset.paths]
    datasets = [DatasetConfig(paths=(path,)) for path in paths]
    files = prepare(datasets, validation_fraction=0.1, min_tokens=33, report=lambda line: None)
    names = [p.relative_to(whole) for p in (whole / str(STEPS)).rglob("*") if p.is_file()]
    assert len({name.parts[1] for name in names if "process" in name.parts[1]}) == 2
    # Orbax writes these after the commit's manifest, and reads without them.
    unneeded = {"_CHECKPOINT_METADATA", "commit_success.txt"}
    for name in names:
        for how in TORN:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(whole, folder, symlinks=True)
            if how == "deleted":
                (folder / name).unlink()
            else:
                (folder / name).write_bytes((whole / name).read_bytes()[:-1])
            warnings: list[str] = []
            checkpoints = Checkpoints(folder, keep=3, warn=warnings.append)
            found = resume(checkpoints, abstract, config, files, lambda line: None)
            checkpoints.close()
            wanted = STEPS if name.name in unneeded else STEPS - 4
            assert found is not None
            assert found[1:] == (wanted, wanted * ROWS), (name, how)
            assert len(warnings) == (wanted != STEPS)
            assert all("\n" not in warning for warning in warnings)
