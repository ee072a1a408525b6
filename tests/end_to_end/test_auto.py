"""Training with `--mesh=auto`: a mesh is chosen and recorded, and a resumed run finds it again."""

from pathlib import Path

import pytest
import yaml

from tests.end_to_end.conftest import Program

# One head and one layer: no tensor and no loop over blocks, so that there are few ways to run it.
_FLAGS = (
    "--mesh=auto --run_name=chosen --head_dim=32 --num_kv_heads=1 --batch_size=2 --num_layers=1"
)
FLAGS = _FLAGS.split()


@pytest.mark.slow
def test_a_run_chooses_its_mesh_and_chooses_it_again(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = program.run(*FLAGS, "--steps=2", devices=2)
    assert first.returncode == 0, first.stderr
    (told,) = (line for line in first.stdout.splitlines() if line.startswith("mesh=auto: "))
    assert told.endswith("the best of 18 candidates")
    settings = yaml.safe_load((program.run_folder("chosen") / "config.yaml").read_text())
    mesh, data = settings["mesh"]["mesh"], settings["data"]
    assert mesh in ("2x1x1", "1x2x1")
    assert data["batch_size"] * data["accum_steps"] == 2
    assert f"--mesh={mesh} --batch_size={data['batch_size']} " in told

    again = program.run(*FLAGS, "--steps=3", devices=2)
    assert again.returncode == 0, again.stderr
    assert told in again.stdout.splitlines()
    assert "compiled 1, " in first.stdout
    assert "compiled 1, " not in again.stdout, "all of it is known from before"
    assert "resumed from step 2" in again.stdout
