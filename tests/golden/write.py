"""`python -m tests.golden.write`: make every golden run anew and rewrite the golden file.

For a change that moves the numbers on purpose; its commit says so and why. The runs happen as they
do in the tests (tests/conftest.py sets the compiler's flags before JAX is loaded): machine code of
another optimization level rounds otherwise.
"""

from tests import conftest  # isort: skip - before JAX: sets the environment of the tests

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jaxlib

from tests.golden.runs import CASES, SETTINGS, Numbers, train_and_evaluate, write_text

assert conftest.NUM_DEVICES == 8, "the meshes of the golden runs are of 8 devices"

PATH = Path(__file__).with_name("losses.json")

# What decides the rounding of a result. Where all of it is the golden file's, numbers are the same
# to the last bit: measured over three runs, beside busy processes, on one core and on two, and with
# programs from the compilation cache.
DECIDES = ("jax", "jaxlib", "processor", "xla_flags")


def processor() -> str:
    """Return the processor's name and a hash of its instruction sets: XLA compiles for these."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:  # not Linux
        return f"{platform.machine()} {platform.processor()}"
    facts = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    # "Features" is what ARM calls them.
    sets = sorted((facts.get("flags") or facts.get("Features", "")).split())
    digest = hashlib.sha256(" ".join(sets).encode()).hexdigest()[:16]
    return f"{platform.machine()} {facts.get('model name', '')} {digest}"


def provenance() -> dict[str, str]:
    """Return what the numbers of this process may depend on."""
    return {
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "processor": processor(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "python": platform.python_version(),
    }


def text_hashes(texts: list[Path]) -> dict[str, str]:
    """Return the SHA-256 of each text, by its name."""
    return {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in texts}


def document(runs: dict[str, Numbers], texts: list[Path], commit: str) -> dict[str, Any]:
    """Return what the golden file holds."""
    return {
        "rewrite_with": "python -m tests.golden.write",
        "provenance": {**provenance(), "commit": commit},
        "settings": SETTINGS,
        "text_sha256": text_hashes(texts),
        "runs": {key: numbers._asdict() for key, numbers in runs.items()},
    }


def save(content: dict[str, Any]) -> None:
    """Write the golden file, the numbers of one run on one line; repr keeps every bit."""
    runs = content.pop("runs")
    head = json.dumps(content, indent=2, ensure_ascii=False).removesuffix("\n}")
    lines = ",\n".join(f"    {json.dumps(key)}: {json.dumps(run)}" for key, run in runs.items())
    PATH.write_text(f'{head},\n  "runs": {{\n{lines}\n  }}\n}}\n', encoding="utf-8")


def main() -> None:
    """Make every run and rewrite the file."""
    git = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        texts = write_text(Path(folder))
        runs: dict[str, Numbers] = {}
        for case in CASES:
            runs[case.key] = train_and_evaluate(case, texts, {})
            sys.stdout.write(f"{case.key}: last loss {runs[case.key].losses[-1]}\n")
            sys.stdout.flush()
        save(document(runs, texts, commit))


if __name__ == "__main__":
    main()
