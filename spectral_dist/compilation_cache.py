"""Compiled programs kept on disk, so that a run that starts again does not compile them anew.

JAX's own persistent compilation cache, with a folder of the user's and a bound on its size. It is
never a reason to fail: what cannot be read is compiled, and what cannot be written is said once.
Read `keep_compilations`.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax

# Least recently used programs go first. Level 3's training step is 20 MB.
_MAX_BYTES = 2 * 2**30
# The setting that JAX reads; the environment variable and a program of the user's own set it too.
_FOLDER = "jax_compilation_cache_dir"


def keep_compilations(folder: str, warn: Callable[[str], None]) -> None:
    """Keep the programs that this process compiles from now on, and use those kept before.

    Does nothing if JAX has a cache already (JAX_COMPILATION_CACHE_DIR).

    Args:
      folder: the setting `compilation_cache`: a path; "auto" for a folder in the user's cache
        (XDG_CACHE_HOME, or ~/.cache); or "off".
      warn: called with one line if the folder cannot be used.
    """
    if folder == "off" or jax.config.values[_FOLDER]:
        return
    path = _automatic() if folder == "auto" else Path(folder).expanduser()
    try:
        # Of this user alone: a compiled program is code that is run.
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        warn(
            f"compilation_cache={folder}: {path} cannot be written ({error.strerror}); every start"
            " compiles anew"
        )
        return
    jax.config.update(_FOLDER, str(path))
    jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)
    # JAX keeps what took a second and more: a start has some twenty smaller programs.
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _automatic() -> Path:
    """Return this machine's folder in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    cache = Path(base) if base else Path.home() / ".cache"
    return cache / "spectral_dist" / "compilations" / _processor()


def _processor() -> str:
    """Return a name for the processor's instruction sets, which programs for a CPU are made for.

    Hosts of several kinds may share a home folder.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux: no shared homes of other kinds expected
        return "any"
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(flags.encode()).hexdigest()[:12]
