"""The parts of `spectral-dist bench`: that each measures what it says."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import device, generation, loader, mixer, start
from benchmarks.dry_run_accuracy import Prediction
from spectral_dist.flags import load_config
from spectral_dist.model.filters import balanced_poles

_FLAGS = """--data_paths=none.txt --hidden_dim=16 --head_dim=8 --num_layers=1 --mlp_dim=32
    --layer_pattern=spectral --num_poles=4 --chunk_size=8 --seq_len=16"""
TINY = _FLAGS.split()


def test_chunks_fft_and_scan_are_the_same_function() -> None:
    bank = balanced_poles(mixer.POLES, 0.5, 16.0)
    keys = jax.random.split(jax.random.key(0), 3)
    u = jax.random.normal(keys[0], (2, 64, 128))
    weights = jax.random.normal(keys[1], (mixer.POLES, 128)), jax.random.normal(keys[2], (128,))
    forms = mixer.forms(bank, 16)
    assert list(forms) == ["ours", "FFT", "associative scan", "attention"]
    plain = weights[0]
    balanced = jnp.asarray(bank.cholesky_NN.T, jnp.float32) @ plain
    with jax.default_matmul_precision("highest"):
        ours = np.asarray(forms["ours"](u, balanced, weights[1]))
        fft = forms["FFT"](u, balanced, weights[1])
        scan = forms["associative scan"](u, plain, weights[1])
    attention = np.asarray(forms["attention"](u, *weights))
    np.testing.assert_allclose(fft, ours, rtol=0, atol=2e-5 * np.abs(ours).max())
    np.testing.assert_allclose(scan, ours, rtol=0, atol=2e-5 * np.abs(ours).max())
    assert attention.shape == ours.shape
    # Causal, as the others: the last input changes nothing before it.
    changed = forms["attention"](u.at[:, -1].set(0), *weights)
    np.testing.assert_array_equal(np.asarray(changed)[:, :-1], attention[:, :-1])


def test_a_form_that_does_not_fit_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixer, "free_bytes", lambda: 10**6)
    own, *others = mixer.measure(64, 64, rounds=2)
    assert [own.name, *(f.name for f in others)] == ["ours", "FFT", "attention"]
    assert own.note == "associative scan: needs some 0 GB"
    assert own.at == 64
    monkeypatch.setattr(mixer, "free_bytes", lambda: 10**12)
    figures = mixer.measure(64, 64, rounds=2)
    assert [figure.name for figure in figures] == ["ours", "FFT", "associative scan", "attention"]
    assert all(figure.value > 0 for figure in figures)
    assert mixer.needed_bytes("attention", 2048, 128) == 4 * mixer.needed_bytes(
        "attention", 1024, 128
    )


def test_the_loader_gives_whole_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "SEQ_LEN", 64)
    text = tmp_path / "text.txt"
    text.write_bytes(loader.made_up(tmp_path, 300_000))
    assert text.stat().st_size == 300_000
    assert len(loader.preparation(text, 2)) == 2
    assert (tmp_path / "1.txt.bin").is_file() or list(tmp_path.glob("1*.bin"))
    rates = loader.loading(text, batch_size=4, batches=3, rounds=2)
    assert len(rates) == 2
    assert min(rates) > 0


def test_generation_by_what_came_before() -> None:
    figures = list(
        generation.measure(load_config([*TINY, "--seed=1"]), (4, 40), count=24, rounds=2)
    )
    assert [(f.at, f.unit) for f in figures] == [
        (4, "thousand bytes/s"),
        (4, "ms a byte"),
        (40, "thousand bytes/s"),
        (40, "ms a byte"),
    ]
    assert all(f.value > 0 for f in figures)


def test_a_model_that_writes_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "sample", lambda *_, **__: iter([7]))
    with pytest.raises(ValueError, match=r"^seed=0: the model writes nothing; try another$"):
        list(generation.measure(load_config(TINY), (4,), count=4, rounds=1))


def test_a_start_has_a_first_byte_and_an_end(tmp_path: Path) -> None:
    found = start.start("platform", [], tmp_path)  # prints a line
    assert 0 < found.first <= found.whole
    assert found.processor > 0
    with pytest.raises(ValueError, match=r"^json.tool: code 2: .*no/such/file"):
        start.start("json.tool", ["no/such/file"], tmp_path)


def test_mfu_is_of_the_rate_that_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "run_module", lambda *_: RATES)
    monkeypatch.setattr(device, "measure_case", lambda *_, **__: FOUND)
    monkeypatch.setattr(device, "predict", lambda *_: Prediction(90 << 20, 0.4, 1, "NVIDIA L4"))
    figures = {(f.name, f.unit): f for f in device.measure(None, quick=True)}
    assert figures["copies", "GB/s"].value == 240
    assert figures["ours", "% MFU"].value == 40
    assert figures["ours", "tokens/s"].value == 2000
    assert figures["dry run", "MiB at the peak"].note == "-10.0% beside the measured one"
    assert figures["dry run", "ms a step"].note == "-20.0% beside the measured one"


RATES: dict[str, Any] = {
    **{"device_kind": "NVIDIA L4", "copy": 240e9, "product": 100e12, "dtype": "bfloat16"}
}
FOUND: dict[str, Any] = {
    **{"device_kind": "NVIDIA L4", "peak": 100 << 20, "step_seconds": 0.5},
    **{"tokens": 1000, "flops": 20e12},
}


def test_a_device_without_a_description_has_no_prediction(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device, "run_module", lambda *_: RATES | {"device_kind": "NVIDIA X9"})
    monkeypatch.setattr(device, "measure_case", lambda *_, **__: FOUND)
    names = {f.name for f in device.measure(None, quick=True)}
    assert names == {"copies", "products", "ours"}
    assert "the dry run has no description of NVIDIA X9" in capsys.readouterr().err
    assert device.known_as("cpu") == "cpu"
    assert device.known_as("NVIDIA H100 80GB HBM3") == "h100"
