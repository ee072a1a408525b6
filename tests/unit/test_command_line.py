"""The command line: flags, files and defaults, their order, the help, and errors in one line."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

from spectral_dist.command_line import (
    FAULT,
    STOPPED,
    Ending,
    error_code,
    one_line,
    printable,
    run_main,
)
from spectral_dist.flags import configs_folder, load_config
from spectral_dist.settings import LIST_FLAGS, SETTINGS, Config, from_flat

ROOT = Path(__file__).parents[2]
GUIDE = """--mesh=1x1x1 --run_name scale_phase_1
    --data_paths data/turkish_academic.txt,data/github_code.txt --data_weights 0.8,0.2
    --hidden_dim 512 --num_layers 12 --seq_len 2048 --batch_size 16 --accum_steps 4 --lr 3e-4
    --steps 50000"""


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, as a user's shell would."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )


# ---- flags, file, defaults ----


def test_the_guide_s_command() -> None:
    config = load_config(GUIDE.split())
    assert config.run.run_name == "scale_phase_1"
    assert config.run.steps == 50_000
    found = {dataset.paths[0]: dataset.weight for dataset in config.datasets}
    assert found == {"data/turkish_academic.txt": 0.8, "data/github_code.txt": 0.2}
    assert (config.data.batch_size, config.data.accum_steps) == (16, 4)
    assert config.optimizer.lr == 3e-4


def test_hyphens_and_equal_signs_mean_the_same() -> None:
    hyphens = re.sub(r"--\S+", lambda flag: flag[0].replace("_", "-"), GUIDE).split()
    joined = [f"{f}={v}" for f, v in zip(hyphens[1::2], hyphens[2::2], strict=True)]
    assert "--hidden-dim" in hyphens
    assert load_config(GUIDE.split()) == load_config(hyphens)
    assert load_config(GUIDE.split()) == load_config([hyphens[0], *joined])


@pytest.mark.parametrize("name", list(SETTINGS))
def test_every_setting_is_a_flag_in_both_spellings(name: str) -> None:
    kinds = SETTINGS[name].kinds
    own = from_flat({"optimizer.name": kinds[0]} if kinds else {})
    value = own.flat()[name]
    derived = value is None
    value = 2 if derived else value
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    flags = {f"--{name}", f"--{name.replace('_', '-')}", f"--{SETTINGS[name].path}"}
    base = ["--data_paths", "a.txt", *(["--optimizer.name", kinds[0]] if kinds else [])]
    loaded = [load_config([*base, flag, text]) for flag in flags]
    expected = load_config(base)
    if not derived:
        assert all(config == expected for config in loaded)
    else:
        assert all(config == loaded[0] for config in loaded)


def test_flags_override_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("steps: 100\nlr: 3e-4\ndata_paths: [a.txt]\n", encoding="utf-8")
    config = load_config(["--config", str(path), "--steps", "7"])
    assert config.run.steps == 7
    assert config.optimizer.lr == 3e-4
    assert [dataset.paths for dataset in config.datasets] == [("a.txt",)]
    assert config.optimizer.warmup_steps == 1  # derived from the flag, not from the file


def test_the_presets_load_as_in_the_guide() -> None:
    config = load_config(["--config", str(configs_folder() / "level1.yaml"), "--steps", "200"])
    assert (config.run.steps, config.model.hidden_dim, config.model.num_layers) == (200, 512, 12)


def test_without_arguments_it_is_the_demo() -> None:
    demo = load_config(["--config", str(configs_folder() / "demo.yaml")])
    assert load_config([]) == demo
    assert load_config(["--steps", "3"]).model == demo.model
    assert demo.datasets == ()


def test_data_paths_without_a_file_start_from_the_defaults() -> None:
    assert load_config(["--data_paths", "a.txt"]).model.hidden_dim == Config().model.hidden_dim


def test_the_last_of_equal_flags_wins() -> None:
    assert load_config(["--steps", "3", "--steps=4"]).run.steps == 4


def test_the_written_configuration_gives_the_same_run(tmp_path: Path) -> None:
    config = load_config(GUIDE.split())
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.flat()), encoding="utf-8")
    assert load_config(["--config", str(path)]) == config


# ---- errors ----


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--hiden_dim", "3"], "unknown flag '--hiden_dim'; did you mean --hidden_dim?"),
        (["--hidden-dims=3"], "unknown flag '--hidden_dims'; did you mean --hidden_dim?"),
        (["--batch", "3"], "unknown flag '--batch'; did you mean --batch_size?"),
        (["--step", "3"], "unknown flag '--step'; did you mean --steps?"),
        (["--qqqqqq"], "unknown flag '--qqqqqq'; --help lists"),
        (["demo"], "unknown flag 'demo'"),
        (["-s", "3"], "unknown flag '-s'"),
        (["--steps"], "--steps: expected one argument"),
        (["--steps", "--lr", "3"], "--steps: expected one argument"),
        (["--steps", "-5"], "steps=-5: must be positive"),
        (["--lr=-3e-4"], "lr=-0.0003: must be positive"),
        (["--steps", "ten"], "steps='ten': must be an integer"),
        (["--remat", "some"], "remat='some': must be one of none, dots, full"),
        (["--mesh", "2x2"], "mesh='2x2': must be DATAxFSDPxTENSOR"),
        (["--config", "absent.yaml"], "config='absent.yaml': cannot be read"),
        (["--config", ""], "config="),
        (["--data_paths", "a.txt", "--data_weights", "1,2"], "data_weights=1,2"),
    ],
)
def test_a_mistake_is_one_line(argv: Sequence[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_config(argv)
    assert "\n" not in str(caught.value)


def test_entry_points_end_with_one_line_and_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPECTRAL_DIST_TRACEBACK", raising=False)

    def fails(argv: Sequence[str]) -> int:
        load_config(["--steps=0"])
        return 0

    with pytest.raises(SystemExit) as exited:
        run_main(fails)
    assert exited.value.code == 2
    assert capsys.readouterr().err == "error: steps=0: must be positive\n"

    def misses(argv: Sequence[str]) -> int:
        Path("absent/file").read_text()
        return 0

    with pytest.raises(SystemExit) as exited:
        run_main(misses)
    assert exited.value.code == 2
    assert "absent/file" in capsys.readouterr().err

    monkeypatch.setenv("SPECTRAL_DIST_TRACEBACK", "1")
    with pytest.raises(ValueError, match="steps=0"):
        run_main(fails)


@pytest.mark.parametrize("code", [0, 3])
def test_entry_points_return_their_code(code: int) -> None:
    with pytest.raises(SystemExit) as exited:
        run_main(lambda argv: code)
    assert exited.value.code == code


def test_a_ctrl_c_while_python_shuts_down_keeps_the_exit_code() -> None:
    code = (
        "import atexit, time\nfrom spectral_dist.command_line import run_main\n"
        "atexit.register(lambda: (print('ending', flush=True), time.sleep(100)))\n"
        "run_main(lambda argv: 3)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ending\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert (process.returncode, err) == (3, b"")


def raised(function: Callable[[], object]) -> BaseException:
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("it raised nothing")


def fail_with(error: BaseException) -> Callable[[], object]:
    def fails() -> None:
        raise error

    return fails


@pytest.mark.parametrize(
    ("function", "code"),
    [
        (lambda: load_config(["--steps=0"]), 2),
        (lambda: json.loads("{"), FAULT),  # a ValueError that a library raises
        (fail_with(FileNotFoundError(errno.ENOENT, "no such file")), 2),
        (fail_with(OSError(errno.ENOSPC, "no space left")), 2),
        (fail_with(OSError(errno.EIO, "input/output error")), FAULT),
        (fail_with(OSError(errno.ESTALE, "stale file handle")), FAULT),
        (fail_with(ConnectionResetError(errno.ECONNRESET, "reset")), FAULT),
        (fail_with(RuntimeError("INTERNAL: NCCL operation failed")), FAULT),
        (fail_with(KeyError("an invariant")), FAULT),
        (fail_with(MemoryError()), FAULT),
        (fail_with(Ending("stopped", STOPPED)), STOPPED),
        (fail_with(KeyboardInterrupt()), 130),
    ],
)
def test_an_error_ends_as_what_it_is(function: Callable[[], object], code: int) -> None:
    assert error_code(raised(function)) == code


def test_an_error_that_nobody_foresaw_is_one_line_and_may_be_started_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPECTRAL_DIST_TRACEBACK", raising=False)

    def broken(argv: Sequence[str]) -> int:
        raise RuntimeError("INTERNAL: NCCL\n operation failed")

    with pytest.raises(SystemExit) as exited:
        run_main(broken)
    assert exited.value.code == FAULT == 76
    assert capsys.readouterr().err == (
        "error: RuntimeError: INTERNAL: NCCL operation failed (SPECTRAL_DIST_TRACEBACK=1 shows"
        " where)\n"
    )
    assert one_line(KeyError()) == "KeyError"
    monkeypatch.setenv("SPECTRAL_DIST_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="NCCL"):
        run_main(broken)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ağaç\u00a0\u200bçiçek\t🌳\n", "ağaç\u00a0\u200bçiçek\t🌳\n"),
        ("\x1b[31mred\x07\x08\x7f\x9b2J\r", "\ufffd[31mred\ufffd\ufffd\ufffd\ufffd2J\ufffd"),
        ("name\udcff.txt", "name?.txt"),
    ],
)
def test_no_text_commands_the_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown


# ---- help ----

HELP = "from spectral_dist.flags import load_config; import sys; load_config(sys.argv[1:])"


def test_help_explains_every_setting_with_its_default() -> None:
    result = run_python(HELP, "--help")
    assert result.returncode == 0
    assert result.stderr == ""
    words = " ".join(result.stdout.split())
    assert all(f"--{name}" in words for name in LIST_FLAGS)
    for name, setting in SETTINGS.items():
        assert f"--{name}" in words
        text = setting.help
        if setting.field.default not in (None, ()):
            value = setting.field.default
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
            shown = str(shown).lower() if isinstance(shown, bool) else shown
            text = f"{text} (default: {shown})"
        # argparse breaks lines at hyphens too.
        assert text.replace(" ", "") in words.replace(" ", ""), name
        if setting.field.default in (None, ()):
            assert "default: " in text, f"{name}: say what the derived default is"
    for group in ("RUN", "MESH", "DATA", "MODEL", "OPTIMIZER", "EVALUATION", "OUTPUT"):
        assert f"\n{group.lower()}:\n" in result.stdout


def test_help_comes_at_once_and_without_jax() -> None:
    code = f"{HELP.replace('load_config(sys.argv[1:])', '')}\n" + (
        "try: load_config(sys.argv[1:])\n"
        "finally: print('HEAVY', sorted({'jax', 'numpy', 'grain', 'wandb'} & set(sys.modules)))"
    )
    before = os.times()
    result = run_python(code, "--help")
    after = os.times()
    assert result.stdout.endswith("HEAVY []\n")
    assert result.returncode == 0
    # Time of the processor and not of the clock: other programs may keep this machine busy.
    assert after.children_user - before.children_user < 1


def test_loading_a_whole_configuration_needs_no_jax() -> None:
    code = f"{HELP}\nassert not {{'jax', 'numpy', 'grain', 'wandb'}} & set(sys.modules)"
    result = run_python(code, *GUIDE.split())
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
