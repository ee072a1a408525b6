"""Our training step beside other projects': the models, their processes, and the figures."""

import dataclasses
import importlib
import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import step_beside_peers
from benchmarks.figures import read_figures
from benchmarks.peers import PEERS, TOLERANCE, Shape, check_peers, fit, ours
from benchmarks.peers import process as peer_process
from benchmarks.peers.process import Sample, StepProcess
from benchmarks.step_beside_peers import compare, figures_of, main, shape_of

pytestmark = pytest.mark.slow

# Peers are written as their own documentation would, and not by the rules of our tests.
AS_USUAL = jax.numpy_dtype_promotion("standard")
WORDS = ("--chunk_size", "16")


def small() -> Shape:
    bare = Shape(seq_len=32, batch_size=2, hidden_dim=128, num_layers=3, parameters=0)
    return dataclasses.replace(bare, parameters=ours.count(ours.settings(bare, WORDS)))


def test_fit_finds_the_nearest_size() -> None:
    assert fit(1000, lambda size: 100 + 9 * size, multiple=8) == 104  # 1036; 96 gives 964
    assert fit(1000, lambda size: 2000 + 9 * size, multiple=8) < 0


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_has_our_parameters_and_learns(name: str) -> None:
    module, needs = PEERS[name]
    for library in needs:
        pytest.importorskip(library)
    shape = small()
    tokens = np.random.default_rng(0).integers(32, 127, (2, 33), np.uint8)
    with AS_USUAL:
        parameters, step = importlib.import_module(module).make_step(shape)
        losses = [step(tokens) for _ in range(6)]
    assert abs(parameters / shape.parameters - 1) <= TOLERANCE
    assert losses[-1] < losses[0] - 0.1  # the same batch again and again


def test_the_flax_peer_sees_no_later_token() -> None:
    module = importlib.import_module(PEERS["flax"][0])
    tokens = np.random.default_rng(0).integers(32, 127, (2, 33), np.uint8)
    with AS_USUAL:
        first = module.make_step(small())[1](tokens)
        tokens[:, -1] = 0  # only ever a target
        changed = module.make_step(small())[1](tokens)
    assert abs(first - changed) < 0.1  # one of 32 targets
    assert first != changed


def test_a_step_runs_in_its_own_process() -> None:
    with StepProcess("ours", small(), WORDS) as process:
        assert process.parameters == small().parameters
        samples = [process.step() for _ in range(3)]
    losses = [sample.loss for sample in samples]
    assert losses == sorted(losses, reverse=True)
    assert all(sample.wall > 0 and sample.processor > 0 for sample in samples)


def test_a_process_that_fails_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"^ours: num_kv_heads=3: must divide"):
        StepProcess("ours", small(), ("--num_kv_heads", "3"))


def test_a_process_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_process, "BUILD_SECONDS", 0.01)
    with pytest.raises(ValueError, match=r"^ours: its first step takes more than 0 s$"):
        StepProcess("ours", small(), WORDS)


def test_other_numbers_of_parameters_are_refused() -> None:
    shape = dataclasses.replace(small(), parameters=1)
    with pytest.raises(ValueError, match=r"parameters, not within 1% of our 1$"):
        compare(shape, [], 2, WORDS)


def test_figures_are_of_the_wall_and_the_processors() -> None:
    samples = {
        "ours": [Sample(w, 2 * w, 1.0) for w in (1.0, 2.0, 4.0)],
        "peer": [Sample(3.0, 3.0, 0.5), Sample(4.0, 4.0, 0.5), Sample(20.0, 20.0, 0.4)],
    }
    figures = figures_of(small(), {"ours": 1_000_000, "peer": 1_010_000}, samples)
    assert [(f.name, f.unit) for f in figures] == [
        ("ours", "ms a step"),
        ("peer", "ms a step"),
        ("ours", "processor-ms"),
        ("peer", "processor-ms"),
    ]
    peer = figures[1]
    assert (peer.value, peer.ratio, figures[3].ratio) == (4000.0, 3.0, 1.5)
    assert (peer.note, peer.at) == ("1.01M parameters", 32)
    # The processors of a GPU's host only wait.
    lower = dataclasses.replace(small(), dtype="bfloat16")
    assert len(figures_of(lower, {"ours": 1, "peer": 1}, samples)) == 2


def test_a_peer_that_fails_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PEERS, "broken", ("benchmarks.peers.nowhere", ()))
    figures = compare(small(), ["broken"], 2, WORDS)
    assert {f.name for f in figures} == {"ours"}
    assert "T=32: broken is left out: " in capsys.readouterr().err


def test_the_table_and_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(step_beside_peers, "shape_of", lambda case, words, dtype: small())
    file = tmp_path / "timings.json"
    assert main(["--seq_lens=512", "--peers=", "--rounds=2", f"--json={file}", *WORDS]) == 0
    wall, processor = read_figures(file)
    assert (wall.name, wall.ratio, wall.unit) == ("ours", 1.0, "ms a step")
    assert processor.unit == "processor-ms"
    assert wall.note in capsys.readouterr().out


def test_the_shapes_have_our_parameters() -> None:
    shape = shape_of((512, 4, 256, 6), (), "float32")
    assert (shape.seq_len, shape.batch_size, shape.num_layers) == (512, 4, 6)
    assert shape.parameters == 4_850_176


def test_mistakes_name_the_flag(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"^peers=gpt: must be among llama, mamba2, flax$"):
        main(["--peers=gpt"])
    with pytest.raises(ValueError, match=r"^seq_lens=7: must be among 512, 2048, 8192$"):
        main(["--peers=", "--seq_lens=7"])
    with pytest.raises(ValueError, match="rounds"):
        main(["--rounds=1"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^peers=llama: needs torch and transformers, not inst"):
        check_peers(["flax", "llama"])
    assert step_beside_peers._peers(None) == ["flax"]
    said = capsys.readouterr().err
    assert "llama is left out: torch and transformers not installed here" in said
