"""Where compiled programs are kept, and what happens where they cannot be."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from spectral_dist.compilation_cache import keep_compilations

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)
COMPILE = """
import sys, jax
from spectral_dist.compilation_cache import keep_compilations
keep_compilations(sys.argv[1], lambda text: sys.exit(text))
print(float(jax.jit(lambda x: x * 3 + 1)(2.0)))
"""


@pytest.fixture(autouse=True)
def no_cache() -> Iterator[None]:
    """The tests' own cache is put back afterwards."""
    before = {name: jax.config.values[name] for name in SETTINGS}
    jax.config.update(SETTINGS[0], None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def _warnings(folder: str) -> list[str]:
    said: list[str] = []
    keep_compilations(folder, said.append)
    return said


def test_auto_is_a_private_folder_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert _warnings("auto") == []
    folder = Path(jax.config.values[SETTINGS[0]])
    assert folder.is_relative_to(tmp_path / "spectral_dist" / "compilations")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert jax.config.values[SETTINGS[1]] == 2 * 2**30


def test_off_and_a_cache_of_the_users_own(tmp_path: Path) -> None:
    assert _warnings("off") == []
    assert jax.config.values[SETTINGS[0]] is None
    jax.config.update(SETTINGS[0], str(tmp_path / "own"))
    assert _warnings(str(tmp_path / "ours")) == []
    assert jax.config.values[SETTINGS[0]] == str(tmp_path / "own")


def test_a_folder_that_cannot_be_used_is_said_once(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    (line,) = _warnings(str(file / "cache"))
    assert line.startswith(f"compilation_cache={file}/cache: ")
    assert line.endswith("every start compiles anew")
    assert jax.config.values[SETTINGS[0]] is None


def test_programs_are_kept_and_damage_is_survived(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

    def start() -> str:
        command = [sys.executable, "-c", COMPILE, str(tmp_path / "cache")]
        return subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True
        ).stdout

    assert start() == "7.0\n"
    kept = [path for path in (tmp_path / "cache").iterdir() if path.name.endswith("-cache")]
    assert kept
    for path in kept:
        path.write_bytes(b"damaged")
    assert start() == "7.0\n"
