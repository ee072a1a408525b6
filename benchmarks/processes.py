"""Programs that write their findings as JSON, each run in a process of its own.

Owns what becomes of their errors. A process of its own begins with no memory in use and with its
own environment, which JAX reads only once. Imports no JAX.
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
      accept: exit codes that are no failure.

    Raises:
      ValueError: with the last line that it wrote to stderr, if it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "written.json"
        with ModuleProcess(module, [*words, f"--json={path}"], environment=environment) as process:
            code = process.wait()
        if code not in accept or not path.is_file():
            reason = process.last_line or f"exit code {code}"
            raise ValueError(f"{module} {' '.join(words)}: {reason.removeprefix('error: ')}")
        return json.loads(path.read_text(encoding="utf-8"))


def dry_run(words: Sequence[str]) -> dict[str, Any]:
    """Return the report of a dry run as docs/formats.md describes it, whether it fits or not.

    Raises:
      ValueError: if it could not be made.
    """
    return run_module("spectral_dist.dryrun", words, accept=(0, 3))
