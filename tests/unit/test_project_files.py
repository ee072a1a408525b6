"""Files for people and services beside the code: well-formed, and true of this project."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(
    "name", ["CITATION.cff", "launch/skypilot.yaml", ".github/workflows/ci.yml"]
)
def test_yaml_is_a_mapping(name: str) -> None:
    assert isinstance(yaml.safe_load((ROOT / name).read_text(encoding="utf-8")), dict)


def test_the_citation_is_of_this_version() -> None:
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert found["version"] == PROJECT["version"]
    assert found["license"] == PROJECT["license"]


@pytest.mark.parametrize("name", ["Dockerfile", "launch/skypilot.yaml"])
def test_extras_and_commands_that_are_named_are_there(name: str) -> None:
    from spectral_dist.__main__ import COMMANDS

    text = (ROOT / name).read_text(encoding="utf-8")
    (extras,) = re.findall(r"\[([a-z0-9,]+)\]'", text)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    commands = re.findall(r"spectral(?:-dist|_dist) ([a-z]+) --", text)
    assert commands
    assert set(commands) <= set(COMMANDS)


def test_links_of_documents_lead_somewhere() -> None:
    for name in ("CONTRIBUTING.md", "SECURITY.md", "README.md", "launch/README.md"):
        path = ROOT / name
        for link in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / link).exists(), f"{name}: {link}"
