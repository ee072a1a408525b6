"""The one door: every command, its help without JAX, the version, shells that complete."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from spectral_dist import __main__ as door
from spectral_dist.flags import configs_folder, load_config
from spectral_dist.schema import main as schema
from spectral_dist.settings import SETTINGS
from spectral_dist.settings.schema import json_schema

HEAVY = {"jax", "jaxlib", "flax", "numpy", "grain", "orbax", "wandb", "optax"}


def run(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    code = (
        "import sys\nfrom spectral_dist.__main__ import console_script\n"
        f"try: console_script()\nfinally: print('HEAVY', sorted({HEAVY!r} & set(sys.modules)))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", list(door.COMMANDS))
def test_every_command_helps_at_once_and_without_jax(name: str) -> None:
    before = os.times()
    result = run(name, "--help")
    after = os.times()
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("usage: ")
    assert result.stdout.endswith("HEAVY []\n")
    # Alone on two cores 0.7 s of `train`, whose settings are many; JAX would add two. The
    # processor's time, because others may be busy; beside them it is up to 1.2.
    assert after.children_user - before.children_user < 1.6


def test_help_lists_the_commands_and_version_says_which() -> None:
    listed = run("--help")
    assert listed.returncode == 0
    assert all(f"\n  {name} " in listed.stdout for name in door.COMMANDS)
    assert run().stdout == listed.stdout
    assert run("--version").stdout.startswith("spectral-dist ")


def test_an_unknown_command_is_one_line() -> None:
    result = run("trian")
    assert result.returncode == 2
    assert result.stderr == (
        "error: unknown command 'trian'; did you mean train?; --help lists them\n"
    )


def test_a_shell_completes_commands_and_flags(tmp_path: Path) -> None:
    def completed(line: str) -> set[str]:
        said = tmp_path / "said"
        run(
            **{"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(said)},
            **{"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"},
        )
        return {word.strip() for word in said.read_text().split("\n")}

    assert "evaluate" in completed("spectral-dist eva")
    assert {"--hidden_dim", "--hang_timeout"} <= completed("spectral-dist train --h")


# ---- what prints the settings ----


def test_printed_settings_give_the_same_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = ["--data_paths", "a.txt,b.txt", "--hidden_dim", "128", "--optimizer.name", "lion"]
    with pytest.raises(SystemExit) as exited:
        load_config([*flags, "--print_config"])
    assert exited.value.code == 0
    printed = capsys.readouterr().out
    path = tmp_path / "printed.yaml"
    path.write_text(printed, encoding="utf-8")
    assert load_config(["--config", str(path)]) == load_config(flags)
    for setting in SETTINGS.values():
        if not setting.kinds or "lion" in setting.kinds:
            assert f"# {setting.help}\n" in printed, setting.name


def test_the_schema_accepts_every_preset_and_refuses_mistakes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert schema([]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json_schema()
    check = jsonschema.Draft202012Validator(printed)
    for path in configs_folder().glob("*.yaml"):
        # 3e-4 is a number to editors (YAML 1.2) and to us, but text to PyYAML (YAML 1.1).
        text = re.sub(r"(?<![\d.])(\d)e-(\d)", r"\1.0e-\2", path.read_text(encoding="utf-8"))
        check.validate(yaml.safe_load(text))
    check.validate({"mesh": {"mesh": "1x1x1"}, "optimizer": {"name": "lion", "lr": 1e-3}})
    for wrong in ({"hiden_dim": 1}, {"steps": 0}, {"remat": "some"}, {"mixers": {"spectral": 3}}):
        assert not check.is_valid(wrong), wrong
