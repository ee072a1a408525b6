"""The numbers of training and evaluation are those of the golden file.

A change of the code that means to keep them keeps these: bitwise where JAX and the processor are
those that wrote the file, and else within what rounding alone can do. A change that means to move
them rewrites the file with `python -m tests.golden.write` and says so in its commit.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.golden import write
from tests.golden.runs import CASES, DEFAULT_PATTERN, Case, train_and_evaluate, write_text

# Another processor or compiler adds in another order and fuses other operations. Machine code for
# SSE4.2 in place of AVX-512 moved the losses by 9e-8 in float32 (window, 1x1x1) and 2.5e-5 in
# bfloat16 (attention, 1x1x1), whose operands have 8 bits: one rounding the other way is 4e-3 of one
# product. A change of the model moves both types, so the narrow one finds it.
RELATIVE = {"float32": 1e-5, "bfloat16": 1e-4}

# Every value of a setting, and every pair of a pattern, a type and a mesh that can be had within a
# minute of processor time; the others are marked exhaustive.
QUICK = {
    Case(DEFAULT_PATTERN, "none", "float32", "2x2x2"),
    Case(DEFAULT_PATTERN, "dots", "bfloat16", "1x1x1"),
    Case(DEFAULT_PATTERN, "full", "float32", "1x1x1"),
    Case("attention", "dots", "float32", "2x2x2"),
    Case("attention", "full", "bfloat16", "1x1x1"),
    Case("window", "none", "float32", "1x1x1"),
    Case("window", "dots", "bfloat16", "2x2x2"),
}

HELP = (
    "If the change is meant to move them: `python -m tests.golden.write` rewrites"
    " tests/golden/losses.json, and the commit says why. If not, this is a defect: compare the"
    " steps, the first that differs shows where (1: initial values, data or the forward pass; 2:"
    " gradients or the update; later only: accumulation of state, schedule)."
)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(write.PATH.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, golden: dict[str, Any]) -> list[Path]:
    """Return the texts, which are those of the golden file: told apart from a change of numbers."""
    written = write_text(tmp_path_factory.mktemp("golden"))
    assert write.text_hashes(written) == golden["text_sha256"], (
        "the built-in text has changed, so the golden losses say nothing about the model. If it is"
        " meant to: `python -m tests.golden.write`, and the commit says that only the text moved"
    )
    return written


def test_the_file_holds_every_case(golden: dict[str, Any]) -> None:
    assert list(golden["runs"]) == [case.key for case in CASES]
    assert set(CASES) >= QUICK


def differences(found: dict[str, float], expected: dict[str, float]) -> list[str]:
    """Describe each number that differs, with how much."""
    assert found.keys() == expected.keys()
    return [
        f"{name}: {value!r}, golden {expected[name]!r}"
        f" (relative {abs(value - expected[name]) / abs(expected[name]):.1e})"
        for name, value in found.items()
        if value != expected[name]
    ]


def by_name(losses: list[float], bits_per_byte: dict[str, float]) -> dict[str, float]:
    named = {f"loss of step {step}": loss for step, loss in enumerate(losses, 1)}
    return named | {f"bits per byte of {name}": bits for name, bits in bits_per_byte.items()}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.key, marks=[] if case in QUICK else pytest.mark.exhaustive)
        for case in CASES
    ],
)
def test_the_numbers_are_those_of_the_golden_file(
    case: Case, golden: dict[str, Any], texts: list[Path]
) -> None:
    expected = by_name(**golden["runs"][case.key])
    found = by_name(**train_and_evaluate(case, texts, {})._asdict())
    here = write.provenance()
    other = [name for name in write.DECIDES if here[name] != golden["provenance"][name]]
    if other:
        tolerance = RELATIVE[case.compute_dtype]
        close = {name: pytest.approx(value, rel=tolerance) for name, value in expected.items()}
        agree = found == close
        rule = f"within {tolerance:g}, as {', '.join(other)} differ from the file's"
    else:
        agree, rule = found == expected, "to the last bit, as JAX and processor are the file's"
    lines = "\n  ".join(differences(found, expected))
    assert agree, f"{case.key}: these must be the same {rule}:\n  {lines}\n{HELP}"
