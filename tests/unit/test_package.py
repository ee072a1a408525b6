"""The shape of the package: sizes, names, import rules, and what an installation contains.

The rules are those of ARCHITECTURE.md; each failure text says what to do.
"""

import ast
import itertools
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "spectral_dist"
MODULES = sorted(PACKAGE.rglob("*.py"))
BESIDE = sorted(p for name in ("benchmarks", "recipes") for p in (ROOT / name).rglob("*.py"))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_TRAIN_STEP_LINES = 40
FORBIDDEN_STEMS = {"utils", "util", "common", "helpers", "helper", "misc"}


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def imports(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the import in full"
            yield str(node.module), node.lineno


def imported_names(path: Path) -> Iterator[str]:
    """Give what a file imports, `from a import b` as `a` and as `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


# ---- sizes and names ----


@pytest.mark.parametrize("path", [*MODULES, *BESIDE], ids=dotted)
def test_sizes_and_names(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines < MAX_FILE_LINES, f"{path.name} has {lines} lines: split off a second noun"
    assert path.stem not in FORBIDDEN_STEMS, "a helper lives in the module whose noun it serves"
    for node in functions(path):
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        limit = MAX_TRAIN_STEP_LINES if node.name == "train_step" else MAX_FUNCTION_LINES
        assert length < limit, f"{path.name}:{node.lineno} {node.name} has {length} lines"


@pytest.mark.parametrize("path", [*MODULES, *BESIDE], ids=dotted)
def test_modules_say_what_they_own(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "say what it owns, and what to read first"


@pytest.mark.parametrize("path", [*MODULES, *BESIDE], ids=dotted)
def test_every_function_is_annotated(path: Path) -> None:
    for node in functions(path):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
        assert not bare, f"{path.name}:{node.lineno} {node.name}: {bare}"
        assert node.returns is not None, f"{path.name}:{node.lineno} {node.name}: its result"


@pytest.mark.parametrize("path", [*MODULES, *BESIDE], ids=dotted)
def test_no_code_from_data(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec"), f"{path.name}:{node.lineno}"
    for name, line in imports(path):
        assert name.split(".")[0] not in ("pickle", "dill"), f"{path.name}:{line}"


def test_every_module_has_its_tests() -> None:
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    named = tuple(path.stem.removeprefix("test_") for path in tests)
    imported = {name for path in tests for name in imported_names(path)}
    missing = [
        dotted(path)
        for path in MODULES
        # turkish_lexicon is tested through turkish, and array_typing is the legend of every shape.
        if path.stem not in ("__init__", "array_typing")
        and not path.stem.startswith(named)
        and dotted(path) not in imported
    ]
    assert not missing, f"no test imports {', '.join(missing)}"


# ---- imports ----


def layers() -> list[str]:
    contract = PROJECT["tool"]["importlinter"]["contracts"][0]
    return [name for layer in contract["layers"] for name in re.split(r"[\s|:]+", layer)]


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_every_module_has_a_layer(path: Path) -> None:
    name = dotted(path)
    if name in ("spectral_dist", "spectral_dist.training"):  # folders, empty but for a docstring
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert len(tree.body) == 1, "what is here is imported by every module below it"
        return
    assert any(name == layer or name.startswith(f"{layer}.") for layer in layers()), (
        f"{name}: give it a place in the layers of pyproject.toml"
    )


def test_wandb_is_imported_in_one_place() -> None:
    found = {dotted(p) for p in MODULES for name, _ in imports(p) if name.split(".")[0] == "wandb"}
    assert found <= {"spectral_dist.outputs.wandb_mirror"}


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("spectral_dist", ["jax", "numpy", "yaml"]),
        ("spectral_dist.settings", ["jax", "numpy", "grain", "wandb", "rich"]),
        ("spectral_dist.command_line", ["jax", "numpy", "grain", "wandb", "rich"]),
        ("spectral_dist.data.text", ["jax"]),
        ("spectral_dist.data.tokens", ["jax"]),
        ("spectral_dist.train", ["jax", "numpy", "grain", "wandb", "rich"]),
        ("spectral_dist.run", ["spectral_dist.planning", "wandb"]),
    ],
)
def test_light_modules_load_nothing_heavy(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print(sorted(set({absent!r}) & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


# ---- what is shipped ----


def test_the_wheel_holds_the_package_its_configs_and_launch_files_alone() -> None:
    targets = PROJECT["tool"]["hatch"]["build"]["targets"]
    assert targets["wheel"]["only-include"] == ["configs", "launch", "spectral_dist"]
    # Benchmarks and tests need a checkout, or the archive of the sources.
    assert {"/benchmarks", "/recipes", "/tests"} <= set(targets["sdist"]["include"])
    assert all((ROOT / name.strip("/")).exists() for name in targets["sdist"]["include"])


def test_dependencies_have_lower_bounds_and_tested_versions() -> None:
    bounds = {
        re.split(r"[>=\[]", line)[0].lower(): line for line in PROJECT["project"]["dependencies"]
    }
    assert all(re.fullmatch(r"[\w.-]+>=[\d.]+", line) for line in bounds.values())
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    pins = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pins), "names and versions only"
    tested = dict(line.lower().split("==") for line in pins)
    assert tested.keys() == bounds.keys()
    for name, line in bounds.items():
        lower = [int(part) for part in line.split(">=")[1].split(".")]
        assert lower <= [int(part) for part in tested[name].split(".")], name


def test_every_third_party_import_is_declared() -> None:
    # Import names that differ from the names of their distributions.
    distributions = {"yaml": "pyyaml", "orbax": "orbax-checkpoint", "lm_eval": "lm-eval"}
    ours = {"spectral_dist", *sys.stdlib_module_names}
    roots = {name.split(".")[0] for path in MODULES for name, _ in imports(path)} - ours
    project = PROJECT["project"]
    # Extras, for some users alone: the import says so where one is missing.
    extras = [project["optional-dependencies"][name] for name in ("eval", "store", "tensorboard")]
    listed = [*project["dependencies"], *itertools.chain(*extras)]
    declared = {re.split(r"[>=]", d)[0].lower() for d in listed}
    assert {distributions.get(root, root).lower() for root in roots} <= declared


def test_the_package_is_typed_and_licensed() -> None:
    assert (PACKAGE / "py.typed").exists()
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in licence
    assert "The spectral_dist authors" in licence


def test_the_ci_script_runs_what_the_readme_says() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text(encoding="utf-8")
    commands = ["ruff", "pyright", "lint-imports", "-m pytest", "'.[test]'", "'.[test,dryrun]'"]
    commands += ["chromium", "slurmctld", "shellcheck"]
    assert all(command in text for command in commands)


# ---- ARCHITECTURE.md and the README ----

ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return ARCHITECTURE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_architecture_names_every_module_and_no_other() -> None:
    """In a row of the table a bare name lies in the folder of the row's first one."""
    named: list[Path] = []
    for row in section("The folders").splitlines():
        names = re.findall(r"`([\w/]+\.py)`", row.split(" | ")[0])
        for name in names:
            folder = ROOT if names[0].startswith(("benchmarks/", "recipes/")) else PACKAGE
            named.append(folder / name if "/" in name else (folder / names[0]).parent / name)
    assert [path for path in named if not path.is_file()] == []
    there = {path for path in [*MODULES, *BESIDE] if path.stem != "__init__"}
    missing = sorted(str(path.relative_to(ROOT)) for path in there - set(named))
    assert not missing, f"ARCHITECTURE.md, The folders: add {', '.join(missing)}"
    assert len(named) == len(set(named))


def test_architecture_has_the_layers_of_the_contract() -> None:
    block = "".join(re.findall(r"^    (.*\n)", section("Layers of imports"), flags=re.MULTILINE))
    drawn = [set(layer.split()) for layer in block.split(">")]
    contract = PROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    wanted = [set(re.findall(r"spectral_dist\.([\w.]+)", layer)) for layer in contract]
    assert drawn == wanted


def test_architecture_speaks_of_files_that_exist() -> None:
    """Paths with a slash lie in the package or beside it; of folders too."""
    paths = set(re.findall(r"`((?:[\w]+/)+[\w.]*)`", ARCHITECTURE))
    gone = [p for p in paths if not ((ROOT / p).exists() or (PACKAGE / p).exists())]
    assert not gone, gone


def test_architecture_names_things_that_exist() -> None:
    """Every `name` in code style is a word of the source; paths have a test of their own."""
    files = [*MODULES, *BESIDE]
    words = {path.stem for path in files} | {"pyproject", "toml", "tests", "golden"}
    for path in files:
        words |= set(re.findall(r"\w+", path.read_text(encoding="utf-8")))
    quoted = [name for name in re.findall(r"`([^`\n]+)`", ARCHITECTURE) if "/" not in name]
    unknown = [name for name in quoted if set(re.findall(r"[A-Za-z_]\w+", name)) - words]
    assert not unknown, unknown


def test_the_settings_shown_in_the_readme_are_a_valid_file(tmp_path: Path) -> None:
    from spectral_dist.settings import from_flat, resolve
    from spectral_dist.settings.files import read_yaml
    from spectral_dist.settings.schema import json_schema

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```yaml\n(.*?)^```$", readme, flags=re.MULTILINE | re.DOTALL)
    assert shown
    for text in shown:
        (tmp_path / "shown.yaml").write_text(text, encoding="utf-8")
        values = read_yaml(tmp_path / "shown.yaml")
        numbers = {"optimizer": values["optimizer"] | {"lr": 3e-3, "adam_lr": 1e-3}}  # of YAML 1.2
        jsonschema.Draft202012Validator(json_schema()).validate(values | numbers)
        config = resolve(from_flat(values))
        assert config.datasets
        assert config.phases


def test_the_commands_of_the_door_in_the_readme_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that train are left to tests/end_to_end/test_readme.py: here are the quick ones."""
    from spectral_dist.__main__ import COMMANDS, main

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"^```yaml\n(.*?)^```$", readme, flags=re.MULTILINE | re.DOTALL)
    assert shown
    (tmp_path / "run.yaml").write_text(shown[1], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^    spectral-dist ([^>\n]*)", readme, flags=re.MULTILINE)
    assert {command.split()[0] for command in commands} >= {"train", "schema"}
    for command in commands:
        words = command.split()
        assert words[0] in COMMANDS
        try:
            code = main(words)
        except SystemExit as ended:
            code = ended.code
        assert code == 0, command
        assert capsys.readouterr().out


# ---- the tests themselves ----


def test_eight_devices_and_no_network() -> None:
    import socket

    import jax

    assert len(jax.devices()) == 8
    with (
        pytest.raises(OSError, match="a test tried to reach"),
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection,
    ):
        connection.connect(("192.0.2.1", 80))  # an address kept for documentation


def test_shapes_in_annotations_are_checked() -> None:
    import jax.numpy as jnp

    from spectral_dist.model.layers import rms_norm

    assert rms_norm(jnp.ones((2, 3))).shape == (2, 3)
    with pytest.raises(Exception, match="Type-check error"):
        rms_norm(jnp.ones((2, 3), jnp.int32))
