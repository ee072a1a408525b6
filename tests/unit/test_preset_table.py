"""The table of the levels: its cells, and that the README holds what the command prints."""

import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from benchmarks import preset_table
from benchmarks.preset_table import GIB, HEADS, LEVELS, ROWS, level_cells, main
from spectral_dist.flags import configs_folder, load_config
from spectral_dist.planning.compile import cuda_plugin

ROOT = Path(__file__).parents[2]


def rows_of(text: str) -> list[list[str]]:
    """The cells of a table in Markdown, without its head."""
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def readme_rows() -> list[list[str]]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    marked = re.search("<!-- levels -->\n(.*?)<!-- end of levels -->", text, re.DOTALL)
    assert marked is not None, "the README's table of the levels has lost its marks"
    assert rows_of("\n".join(["|", "|", *marked[1].splitlines()[:1]]))[0] == list(HEADS)
    return rows_of(marked[1])


def a_report(**changes: Any) -> dict[str, Any]:
    traffic = [
        {"moved_bytes": 3.0 * GIB, "crosses_hosts": False},
        {"moved_bytes": 0.5 * GIB, "crosses_hosts": True},
    ]
    config = {"run_name": "level9", "mesh": "4x8x1", "batch_size": 64, "accum_steps": 4}
    report = {
        "config": {**config, "remat": "full"},
        "parameters": 2_410_000_000,
        "gpu": {"name": "l4"},
        "hosts": 4,
        "gpus_per_host": 8,
        "communication": {"collectives": traffic},
        "verdict": {"peak": 8.25 * GIB, "runtime": 0.625 * GIB, "fits": True},
        "time": {"tokens_per_second": 50_934.4},
        "compiler": {"line": "compiled by a compiler"},
    }
    return report | changes


def test_a_row_says_what_was_chosen_and_what_it_needs() -> None:
    assert level_cells(a_report()) == (
        *("level9", "2.4B", "32 L4", "4x8x1", "64 x 4", "full"),
        *("8.25 + 0.62 fits", "3.50, 0.50 of it between hosts", "50,934"),
    )
    alone = a_report(
        parameters=37_880_000,
        communication={"collectives": []},
        verdict={"peak": 50 * GIB, "runtime": GIB, "fits": False},
    )
    assert level_cells(alone)[1] == "38M"
    assert level_cells(alone)[6:8] == ("50.00 + 1.00 DOES NOT FIT", "0.00")


def test_the_command_makes_a_dry_run_for_each_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[list[str]] = []

    def dry_run(words: list[str]) -> dict[str, Any]:
        asked.append(words)
        return a_report()

    monkeypatch.setattr(preset_table, "dry_run", dry_run)
    assert main([]) == 0
    out = capsys.readouterr().out
    assert len(rows_of(out)) == len(asked) == len(ROWS)
    assert out.strip().endswith("compiled by a compiler")
    assert main(["--only=level2", "--gpu=a10g"]) == 0
    assert [words[1:3] for words in asked[len(ROWS) :]] == [
        ["--gpu=a10g", "--mesh=1x1x1"],
        ["--gpu=a10g"],
    ]
    with pytest.raises(ValueError, match="invalid choice: 'level7'"):
        main(["--only=level7"])


def test_the_rows_of_a_preset_have_one_batch_of_a_step() -> None:
    for level in LEVELS:
        path = configs_folder() / f"{level}.yaml"
        configs = [load_config([f"--config={path}", *w]).data for n, w in ROWS if n == level]
        assert len({c.batch_size * c.accum_steps for c in configs}) == 1


def test_the_readme_has_the_rows_of_the_command() -> None:
    for (level, words), row in zip(ROWS, readme_rows(), strict=True):
        config = load_config([f"--config={configs_folder() / level}.yaml", *words])
        batch = f"{config.data.batch_size} x {config.data.accum_steps}"
        assert [row[0], *row[3:6]] == [level, config.mesh.mesh, batch, config.model.remat]


def test_the_presets_say_what_the_readme_says() -> None:
    for (level, words), row in zip(ROWS, readme_rows(), strict=True):
        head = (configs_folder() / f"{level}.yaml").read_text(encoding="utf-8")
        if not words:
            needed = f"{float(row[6].split(' + ')[0]):.1f} GiB"
            assert f"# memory per device: {needed}" in head
            assert f": {row[1]} parameters" in head
            assert f"# devices: {row[2].split()[0]}\n" in head


@pytest.mark.slow
def test_the_readmes_row_of_level_1_is_what_the_command_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if cuda_plugin() is None:
        pytest.skip("needs the CUDA compiler plugin")
    monkeypatch.setenv("XLA_FLAGS", "")  # those of the tests are not a user's
    assert main(["--only=level1"]) == 0
    (row,) = rows_of(capsys.readouterr().out)
    assert row[6].endswith("fits")
    tested = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    if f"jax=={metadata.version('jax')}" not in tested:
        pytest.skip("the README's figures are of the version of jax in requirements.txt")
    assert row == readme_rows()[0], "python -m benchmarks.preset_table, into the README"
