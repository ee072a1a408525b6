"""Streams: what each distance costs, in bits per byte, with the state carried and without."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_dist.data.shards import Tokens
from spectral_dist.data.tokens import TokenFile
from spectral_dist.evaluate import main
from spectral_dist.inference import LoadedRun
from spectral_dist.mesh import make_mesh
from spectral_dist.stream import Distance, read_streams
from spectral_dist.training.state import model_spec
from tests.end_to_end.test_transformers import random_run

SEQ_LEN, PIECES = 64, 5
HYBRID = "--num_layers 4 --head_dim 16 --window 24 --ngrams 2,4 --ngram_rows 200 --ssd_chunk_size 8"
PATTERN = "--layer_pattern spectral,ssd,window"


def text(name: str, size: int) -> TokenFile:
    """A text of random letters with a document's end now and then; 10 tokens are of training."""
    tokens = np.random.default_rng(size).integers(97, 120, size).astype(np.uint8)
    tokens[50::177] = 0
    return TokenFile(name, Path(f"{name}.bin"), Tokens([tokens]), 3, "", 10)


FILES = [text("a", 1_000), text("b", 340), text("short", 300)]


@pytest.fixture(scope="module")
def run() -> LoadedRun:
    return random_run(f"{HYBRID} {PATTERN}")


@pytest.fixture(scope="module")
def found(run: LoadedRun) -> list[Distance]:
    return read_streams(run, FILES, PIECES, lanes=2, batch_size=3)


def bits(run: LoadedRun, tokens: np.ndarray) -> np.ndarray:
    """Return the bits of each target by one call of the model, [T]."""
    tokens = tokens.astype(np.int32)
    logp = np.asarray(jax.nn.log_softmax(run.model(tokens[None, :-1])[0]), np.float64)[0]
    return -logp[np.arange(len(logp)), tokens[1:]] / math.log(2)


def streams() -> dict[str, list[np.ndarray]]:
    """Two of text a, of which the second begins in its middle; one of b."""
    length = PIECES * SEQ_LEN + 1
    a, b = (np.asarray(file.tokens)[10:] for file in FILES[:2])
    return {"a": [a[:length], a[989 // 2 :][:length]], "b": [b[:length]]}


def test_each_distance_is_what_one_pass_over_the_stream_says(
    run: LoadedRun, found: list[Distance]
) -> None:
    assert [(at.first, at.last) for at in found] == [(0, 1), (1, 2), (2, 4), (4, 5)]
    whole = {name: [bits(run, s) for s in some] for name, some in streams().items()}
    pieces = {
        name: [
            np.concatenate(
                [bits(run, s[i * SEQ_LEN : (i + 1) * SEQ_LEN + 1]) for i in range(PIECES)]
            )
            for s in some
        ]
        for name, some in streams().items()
    }
    for at in found:
        part = slice(at.first * SEQ_LEN, at.last * SEQ_LEN)
        assert at.by_text.keys() == {"a", "b"}
        for name, (carried, restarted) in at.by_text.items():
            assert carried == pytest.approx(np.mean([w[part] for w in whole[name]]), rel=1e-5)
            assert restarted == pytest.approx(np.mean([p[part] for p in pieces[name]]), rel=1e-5)
        every = np.mean([w[part] for some in whole.values() for w in some])
        assert at.carried == pytest.approx(every, rel=1e-5)
        assert at.difference == pytest.approx(at.carried - at.restarted, abs=1e-6)
        assert at.upper >= at.difference
    assert found[0].difference == 0, "both read the first piece alike"
    assert found[0].success
    assert abs(found[1].difference) > 1e-3


def test_the_state_that_is_told_is_the_state(run: LoadedRun, found: list[Distance]) -> None:
    spec, firsts = model_spec(run.config), [s for some in streams().values() for s in some]
    tokens = np.stack(firsts)[:, : 2 * SEQ_LEN].astype(np.int32)
    with jax.set_mesh(run.mesh):
        state = jax.jit(lambda p: spec.bind(p)(jnp.asarray(tokens))[1])(run.params)
    wanted = {
        jax.tree_util.keystr(path, simple=True, separator="/"): float(np.sqrt(np.mean(x**2)))
        for path, x in jax.tree.leaves_with_path(state)
        if x.dtype == np.float32
    }
    assert found[1].last == 2
    assert found[1].state == pytest.approx(wanted, rel=1e-4)
    assert not any("ngrams" in name for name in wanted), "tokens are no numbers"


def test_another_mesh_says_the_same(run: LoadedRun, found: list[Distance]) -> None:
    mesh = make_mesh((2, 2, 1), jax.devices()[:4])
    placed = jax.device_put(run.params, model_spec(run.config).shardings(mesh))
    there = LoadedRun(run.config, placed, 3, {}, mesh)
    for batch_size in (1, 8):
        others = read_streams(there, FILES, PIECES, lanes=2, batch_size=batch_size)
        for mine, other in zip(others, found, strict=True):
            assert mine.carried == pytest.approx(other.carried, rel=1e-6)
            assert mine.difference == pytest.approx(other.difference, abs=1e-5)
            assert mine.state.keys() == other.state.keys()


def test_what_cannot_be_read_is_one_line(run: LoadedRun) -> None:
    with pytest.raises(ValueError, match=r"^stream=99: no held-out text has the 6,337 tokens of"):
        read_streams(run, FILES, 99, lanes=1, batch_size=1)
    full = random_run("--num_layers 2 --layer_pattern attention,spectral")
    with pytest.raises(ValueError, match=r"^stream=2: the state of attention grows with the text"):
        read_streams(full, FILES, 2, lanes=1, batch_size=1)


def test_the_command(
    run: LoadedRun,
    found: list[Distance],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("spectral_dist.scoring.load_run", lambda *_, **__: run)
    monkeypatch.setattr("spectral_dist.scoring.open_texts", lambda *_: FILES)
    flags = ["--run_name", "r", "--stream", str(PIECES), "--windows", "2"]
    assert main([*flags, "--json", str(tmp_path / "found.json")]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "r at step 3, streams of 320 tokens, 5 x seq_len=64"
    assert [line.split("x")[0].split() for line in lines] == [
        *(["0", "to", "1"], ["1", "to", "2"], ["2", "to", "4"], ["4", "to", "5"]),
    ]
    assert f"carried {found[3].carried:.4f} bits/byte" in lines[3]
    assert ("worse" in lines[3]) == (not found[3].success)
    metrics: dict[str, Any] = json.loads((tmp_path / "found.json").read_text())["metrics"]
    assert metrics["stream/5x/bits_per_byte"] == pytest.approx(found[3].carried, rel=1e-6)
    assert metrics["stream/4x/a/restarted_bits_per_byte"] == pytest.approx(
        found[2].by_text["a"][1], rel=1e-6
    )
    assert any(name.startswith("stream/1x/state/groups/layer_0") for name in metrics)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--stream", "0"], "stream=0: must be at least 1"),
        (["--stream", "2", "--batch_size", "0"], "batch_size=0: must be at least 1"),
        (["--stream", "2", "--windows", "-1"], "windows=-1: must be at least 1"),
        (["--stream", "2", "--pairs", "turkish"], "stream, pairs: give one of them"),
        (["--stream", "2", "--lengths", "1,2"], "stream, lengths: give one of them"),
    ],
)
def test_mistakes_are_told_before_the_model_is_loaded(flags: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        main(["--run_name", "no such run", *flags])
