"""The worker's answers: its protocol, and unlimited device memory."""

import io
import json
import sys

import pytest

from spectral_dist.planning.compile import cuda_plugin
from spectral_dist.planning.hardware import find_gpu
from spectral_dist.planning.search import worker
from spectral_dist.planning.search.worker import answer, main
from tests.unit.test_bounds import small

needs_plugin = pytest.mark.skipif(cuda_plugin() is None, reason="needs the CUDA compiler plugin")


def say(text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert main() == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_what_cannot_be_compiled_is_an_error_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small(mesh="1x2x1").flat() | {"mesh": "1x3x1"}
    request = {"config": config, "gpu": None, "per_host": 3, "unlimited": False, "whole": False}
    said = say(json.dumps(request), monkeypatch, capsys)
    assert said["error"].startswith("batch_size=8: must be a multiple of data x fsdp = 3")


@needs_plugin
def test_memory_without_end_is_put_into_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    class Seen(Exception):
        pass

    def described(gpu: object, shape: object, per_host: object, axes: object) -> None:
        raise Seen(gpu.target)  # type: ignore[attr-defined]

    monkeypatch.setattr(worker, "described_mesh", described)
    request = {"config": small().flat(), "gpu": "l4", "per_host": 4, "whole": False}
    request["links"] = [13e9, 6e9]
    with pytest.raises(Seen, match="device_memory_size: 1125899906842624 "):
        answer(request | {"unlimited": True})
    with pytest.raises(Seen, match=f"device_memory_size: {find_gpu('l4').memory_bytes} "):
        answer(request | {"unlimited": False})
