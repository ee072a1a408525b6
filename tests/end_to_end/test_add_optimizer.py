"""Adding an optimizer: its settings, one function and one line of a table; all else follows."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.end_to_end.conftest import ROOT, SMALL

SETTINGS = '''
@dataclass(frozen=True, kw_only=True, config=STRICT)
class ToyConfig(_Common):
    """Plain momentum."""

    name: Literal["toy"] = setting(
        "toy", "which optimizer trains", flag="", resume="same", compiled=True
    )


OptimizerConfig = ToyConfig | '''
FUNCTION = '''
def toy(settings: Any, axes: Params) -> optax.GradientTransformation:
    """Plain momentum, of the matrices alone."""
    return optax.masked(optax.trace(0.9), _each(decays, axes))


OPTIMIZERS'''
LINE = """] = {
    "toy": toy,"""
# A new run, the same command with more steps, a dry run, and another optimizer on the same run.
PROGRAM = """
import sys
from spectral_dist import dryrun, train

flags = sys.argv[1:]
toy = [*flags, "--optimizer.name=toy"]
assert train.main([*toy, "--steps=2"]) == 0
assert train.main([*toy, "--steps=4"]) == 0
assert dryrun.main([*toy, "--gpu=cpu", "--json=dry.json"]) == 0
try:
    train.main(flags)
except ValueError as error:
    print(f"REFUSED {error}")
"""


def edit(path: Path, *changes: tuple[str, str]) -> None:
    text = path.read_text(encoding="utf-8")
    for old, new in changes:
        assert text.count(old) == 1, f"{path.name} has no place for {new!r}"
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


def test_a_toy_optimizer_trains_resumes_and_is_dry_run(texts: Path, tmp_path: Path) -> None:
    package = tmp_path / "spectral_dist"
    shutil.copytree(ROOT / "spectral_dist", package)
    edit(package / "settings" / "optimizers.py", ("\nOptimizerConfig = ", SETTINGS))
    edit(
        package / "training" / "optimizers.py",
        ("\nOPTIMIZERS", FUNCTION),
        ("GradientTransformation]] = {", "GradientTransformation]" + LINE),
    )
    environment: dict[str, Any] = os.environ | {
        "PYTHONPATH": str(tmp_path),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",
    }
    data = ["--data_paths", f"{texts / 'short.txt'},{texts / 'long.txt'}", "--run_name", "toy"]
    model = ["--num_layers", "1", "--mesh", "1x2x1", "--checkpoint_dir", str(tmp_path / "runs")]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *SMALL, *data, *model],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "step 2/2  loss " in done.stdout
    assert "resumed from step 2" in done.stdout
    assert "step 4/4  loss " in done.stdout
    step = json.loads((tmp_path / "dry.json").read_text(encoding="utf-8"))["programs"][0]
    # One momentum, of the matrices alone, sharded like them.
    assert 0 < step["optimizer_state"] < step["parameters"]
    refused = done.stdout.partition("REFUSED ")[2]
    assert refused.startswith("optimizer.name=adamw: run_name='toy' was trained with toy")
