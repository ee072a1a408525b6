"""Runs modules that write their results as JSON, each in a process of its own.

Owns what becomes of their errors. Such a process starts with no memory in use and with its own
environment, which JAX reads only once. Imports no JAX. Read `run_module`.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spectral_dist.subprocesses import ModuleProcess


def run_module(
    module: str,
    words: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    accept: Sequence[int] = (0,),
) -> dict[str, Any]:
    """Run `python -m module words --json FILE` and return what it wrote there.

    Args:
      module: dotted name.
      words: of its command line.
      environment: variables that differ from this process's own.
      accept: exit codes that count as success.

    Raises:
      ValueError: with the last line that it wrote to stderr, if it fails.
    """
    # A file and not stdout, which libraries may write to.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "written.json"
        with ModuleProcess(module, [*words, f"--json={path}"], environment=environment) as process:
            code = process.wait()
        if code not in accept or not path.is_file():
            # A killed process writes nothing.
            reason = process.last_line or f"exit code {code}"
            raise ValueError(f"{module} {' '.join(words)}: {reason.removeprefix('error: ')}")
        return json.loads(path.read_text(encoding="utf-8"))


def dry_run(words: Sequence[str]) -> dict[str, Any]:
    """Return the JSON report of a dry run, as docs/formats.md describes it.

    Raises:
      ValueError: if the dry run fails.
    """
    # Exit code 3 is a result too: the run does not fit.
    return run_module("spectral_dist.dryrun", words, accept=(0, 3))
