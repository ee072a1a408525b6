"""`benchmarks.links`: what it counts as sent, which links it measures, and its flags."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from benchmarks import links
from benchmarks.links import Rate, by_host, lines, main, measure
from spectral_dist.dryrun import described_gpu, make_parser


def test_devices_by_host() -> None:
    devices = [SimpleNamespace(process_index=i, id=n) for n, i in enumerate((1, 0, 1, 0))]
    assert [[d.id for d in row] for row in by_host(devices)] == [[1, 3], [0, 2]]
    with pytest.raises(ValueError, match=r"hosts have \[1, 2\]"):
        by_host(devices[:3])


def test_what_is_sent_and_by_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Around a ring a device sends all parts but one; between hosts all devices send at once."""
    asked = []

    def seconds(mesh: object, axis: str, size: int, repeats: int) -> float:
        asked.append((axis, size, repeats))
        return 0.5

    monkeypatch.setattr(links, "_gather_seconds", seconds)
    devices = np.array(jax.devices()[:8]).reshape(2, 4)
    inside, between = measure(devices, 2, 7)
    assert asked == [("device", 2 * 2**20, 7), ("host", 2 * 2**20, 7)]
    assert inside.sent == 3 * 2 * 2**20
    assert inside.bytes_per_second == 2 * inside.sent
    assert between.sent == 2 * 2**20
    assert between.bytes_per_second == 4 * between.sent * 2
    assert [r.flag for r in measure(devices[:1], 2, 7)] == ["--inside_gb_per_s"]
    assert [r.flag for r in measure(devices[:, :1], 2, 7)] == ["--between_gb_per_s"]
    assert measure(devices[:1, :1], 2, 7) == []


def test_a_real_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--mib=1", "--repeats=2"]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("inside a host, 8 devices: ")
    assert "7 MiB of each device" in first
    # What it prints is what the dry run reads.
    flags, rest = make_parser().read_some(last.removeprefix("for the dry run: ").split())
    gpu = described_gpu(flags)
    assert not rest
    assert gpu is not None
    shown = float(first.split(": ")[1].split(" GB/s")[0])
    assert gpu.inside.bytes_per_second / 1e9 == pytest.approx(shown, rel=0.01, abs=0.006)


def test_one_device_has_no_link() -> None:
    assert lines([], "NVIDIA L4") == ["a single NVIDIA L4: there is no link to measure"]
    rate = Rate("--inside_gb_per_s", "inside a host, 2 devices", 0.01, 2.0**20, 13e9)
    assert lines([rate], "NVIDIA L4")[-1] == "for the dry run: --inside_gb_per_s=13"


@pytest.mark.parametrize("flag", ["--mib=0", "--repeats=0", "--mib=70000"])
def test_flags_out_of_range(flag: str) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        main([flag])


def test_several_processes_of_a_host_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_NNODES", "2")
    with pytest.raises(ValueError, match="SLURM_NTASKS=8: must be one for each of 2 hosts"):
        main([])
