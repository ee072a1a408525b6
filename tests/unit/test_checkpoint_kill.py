"""A training killed in the middle of a save: the checkpoint before it is whole."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from spectral_dist.training.checkpoint import Checkpoints
from tests.warm import start_warm

KILLED = """
import time
from pathlib import Path
import sys
import jax
from spectral_dist.training import checkpoint

def fail(*_):
    raise OSError("no space left")

def stop(*_):
    print("all but committed", flush=True)
    time.sleep(600)

checkpoints = checkpoint.Checkpoints(Path(sys.argv[1]), keep=2, warn=print)
state = {"x": jax.numpy.arange(100_000)}
checkpoints.save(1, state, {"step": 1})
checkpoints.wait()
checkpoint.write_manifest = fail
checkpoints.save(2, state, {"step": 2})
checkpoints.wait()
checkpoint.write_manifest = stop
checkpoints.save(2, state, {"step": 2})
time.sleep(600)
"""


def test_a_kill_in_the_middle_of_a_save_leaves_the_previous_one(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    warnings: list[str] = []
    process = start_warm(
        [sys.executable, "-c", KILLED, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    failure = process.stdout.readline()
    line = process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate()
    assert line == "all but committed\n", err
    assert "checkpoint 2 could not be saved" in failure
    assert "(no space left)" in failure
    assert err == ""  # Orbax would report the failure three times, with tracebacks
    assert any("tmp" in name for name in os.listdir(folder))
    checkpoints = Checkpoints(folder, keep=2, warn=warnings.append)
    assert checkpoints.steps() == [1]
    wanted = jnp.arange(100_000)
    target = {"x": jax.ShapeDtypeStruct(wanted.shape, wanted.dtype, sharding=wanted.sharding)}
    found = checkpoints.restore_latest(target, lambda description: None)
    assert found is not None
    np.testing.assert_array_equal(np.asarray(found[0]["x"]), np.asarray(wanted))
    checkpoints.close()
    assert sorted(os.listdir(folder)) == ["1", "checkpoint_0"]
    assert warnings == []
