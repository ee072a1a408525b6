"""A context: a text is read once, kept in constant size, and continued as if it stood there."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from spectral_dist import generate
from spectral_dist.context import fingerprint, load_context, save_context
from spectral_dist.inference import Generator, LoadedRun, load_run
from spectral_dist.mesh import make_mesh
from tests.unit.test_api import folder, make  # noqa: F401 - the fixture

TEXT = "Bir varmış, bir yokmuş. " * 40
HOW: dict[str, Any] = {"max_new_tokens": 24, "temperature": 0.9, "seed": 3}


@pytest.fixture(scope="module")
def runs(folder: Path) -> Path:  # noqa: F811
    """Two runs of the same settings: one of three steps, one of four; bfloat16 states."""
    for name, steps in (("read", 3), ("other", 4)):
        pattern = {"layer_pattern": "spectral,window,ssd", "num_layers": 4, "ngrams": [2, 4]}
        pattern |= {"ngram_rows": 256}
        with make(folder, name, steps=steps, compute_dtype="bfloat16", **pattern) as trainer:
            list(trainer)
    return folder


@pytest.fixture(scope="module")
def run(runs: Path) -> LoadedRun:
    return load_run("read", checkpoint_dir=runs)


@pytest.mark.parametrize("cut", [0, 1, 255, 256, 511, len(TEXT)])
def test_a_text_in_two_parts_is_the_text(run: LoadedRun, cut: int) -> None:
    generator = Generator(run)
    wanted = generator.text(TEXT, **HOW)
    context = generator.read(TEXT[:cut])
    assert context.length == 1 + len(TEXT[:cut].encode())
    assert 1 <= len(context.pending) <= 256
    assert generator.text(TEXT[cut:], after=context, **HOW) == wanted
    # A context is a value: continued once more, it says the same.
    twice = generator.read(TEXT[cut:], after=context)
    assert generator.text(after=twice, **HOW) == wanted


def test_a_file_gives_the_same_text(run: LoadedRun, tmp_path: Path) -> None:
    generator = Generator(run)
    context = generator.read(TEXT)
    size = save_context(tmp_path / "a", context, run)
    assert (tmp_path / "a").stat().st_size == size
    again = load_context(tmp_path / "a", run)
    for mine, other in zip(jax.tree.leaves(again), jax.tree.leaves(context), strict=True):
        assert np.asarray(mine).dtype == np.asarray(other).dtype
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(other))
    assert generator.text("Ve ", after=again, **HOW) == generator.text(TEXT + "Ve ", **HOW)
    # Ten times as much text takes as much room.
    longer = save_context(tmp_path / "b", generator.read(TEXT * 10), run)
    assert abs(longer - size) < 2_000
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["a", "b"]


def test_another_mesh_continues_it(run: LoadedRun, runs: Path, tmp_path: Path) -> None:
    save_context(tmp_path / "a", Generator(run).read(TEXT), run)
    mesh = make_mesh((1, 2, 1), jax.devices()[:2])
    there = load_run("read", checkpoint_dir=runs, mesh=mesh)
    assert fingerprint(there) == fingerprint(run)
    context = load_context(tmp_path / "a", there)
    how = {**HOW, "temperature": 0.0}
    found = Generator(there).text(after=context, **how)
    assert found[:3] == Generator(run).text(TEXT, **how)[:3]  # later bfloat16 may choose otherwise


def test_the_fingerprint_is_of_every_bit(run: LoadedRun, runs: Path) -> None:
    def changed(name: str, value: Any) -> str:
        return fingerprint(dataclasses.replace(run, params={**run.params, name: value}))

    embed = run.params["embed"]
    mine = fingerprint(run)
    assert mine == fingerprint(run)
    assert changed("embed", embed.at[3, 1].multiply(1 + 2e-7)) != mine
    swapped = embed.at[jnp.array([3, 4])].set(embed[jnp.array([4, 3])])
    assert changed("embed", swapped) != mine
    assert fingerprint(load_run("other", checkpoint_dir=runs)) != mine


def test_what_cannot_be_continued_is_one_line(run: LoadedRun, runs: Path, tmp_path: Path) -> None:
    good = tmp_path / "good"
    save_context(good, Generator(run).read("a"), run)
    (tmp_path / "cut").write_bytes(good.read_bytes()[:-100])
    (tmp_path / "text").write_text("Bir varmış")
    arrays = safetensors.numpy.load_file(good)
    arrays = {n: x[..., :1] if n.endswith("/poles") else x for n, x in arrays.items()}
    with safetensors.safe_open(good, framework="np") as file:
        safetensors.numpy.save_file(arrays, tmp_path / "narrow", metadata=file.metadata())
    other = load_run("other", checkpoint_dir=runs)
    for name, words, reader in (
        ("none", "no such file", run),
        ("cut", "cannot be read", run),
        ("text", "cannot be read", run),
        (".", "cannot be read", run),
        ("narrow", "cannot be read", run),
        ("good", "was read by another model", other),
    ):
        with pytest.raises(ValueError, match=f"^state_in=.*{words}") as error:
            load_context(tmp_path / name, reader)
        assert "\n" not in str(error.value)
    for name, words in (("good", "exists"), ("no/where", "no folder")):
        with pytest.raises(ValueError, match=f"^state_out=.*{words}"):
            save_context(tmp_path / name, Generator(run).read("a"), run)
    assert load_context(good, run).length == 2


def test_a_model_without_a_state_is_refused(runs: Path) -> None:
    with make(runs, "full", steps=1, layer_pattern="attention") as trainer:
        list(trainer)
    with pytest.raises(ValueError, match="grows with the text"):
        Generator("full", checkpoint_dir=runs).read("a")


def test_the_command_saves_and_continues(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    book, state = tmp_path / "book.txt", str(tmp_path / "book.state")
    book.write_text(TEXT, encoding="utf-8")
    flags = ["--run_name", "read", "--checkpoint_dir", str(runs), "--max_new_tokens", "12"]
    assert generate.main([*flags, "--prompt", TEXT + "Ve "]) == 0
    wanted = capsys.readouterr().out.removeprefix(TEXT)
    assert generate.main([*flags, "--prompt_file", str(book), "--state_out", state]) == 0
    assert f"book.state: {len(TEXT.encode()) + 1:,} tokens in" in capsys.readouterr().err
    assert generate.main([*flags, "--prompt", "Ve ", "--state_in", state]) == 0
    assert capsys.readouterr().out == wanted
    with pytest.raises(ValueError, match=r"state_out=.*exists"):
        generate.main([*flags, "--prompt", "x", "--state_out", state])


def test_prompts_of_a_file(
    run: LoadedRun, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ["Bir ", "", "Dağlar\u2028ve"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    flags = ["--run_name", "read", "--checkpoint_dir", str(runs), "--max_new_tokens", "10"]
    flags += ["--temperature", "0.9", "--seed", "3", "--stop", "q"]
    path = str(tmp_path / "prompts.txt")
    assert generate.main([*flags, "--prompts_file", path]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.split("\n") if line]
    assert [line["prompt"] for line in found] == prompts
    how: dict[str, Any] = {"max_new_tokens": 10, "temperature": 0.9, "stop": ("q",)}
    generator = Generator(run)
    assert [line["text"] for line in found] == generator.texts(prompts, seed=3, **how)
    for i, line in enumerate(found):
        alone = generator.text(prompts[i], seed=3 + i, **how)
        assert line["text"][:4] == alone[:4]  # later bfloat16 may choose otherwise


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--prompts_file", "none"], "prompts_file='none': cannot be read"),
        (["--prompts_file", "none", "--prompt", "a"], "prompts_file, prompt: give one of them"),
        (["--prompts_file", "none", "--state_in", "a"], "prompts_file, state_in: give one"),
        (["--prompts_file", "EMPTY"], "holds no prompt"),
    ],
)
def test_a_file_of_prompts_that_is_none(tmp_path: Path, flags: list[str], words: str) -> None:
    (tmp_path / "empty").write_text("")
    flags = [flag.replace("EMPTY", str(tmp_path / "empty")) for flag in flags]
    with pytest.raises(ValueError, match=words):
        generate.main(["--run_name", "no such run", *flags])


def test_texts_need_a_prompt(run: LoadedRun) -> None:
    for wrong in ([], "a text"):
        with pytest.raises(ValueError, match="prompts: must be texts, at least one"):
            Generator(run).texts(wrong)
