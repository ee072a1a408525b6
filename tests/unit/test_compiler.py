"""XLA's options: those of a GPU's mesh, and the user's own before them."""

from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from spectral_dist.mesh import make_mesh
from spectral_dist.training.compiler import compiler_options

LATENCY = "xla_gpu_enable_latency_hiding_scheduler"


def _mesh(platform: str, size: int) -> Any:
    devices = np.array([SimpleNamespace(platform=platform)] * size)
    return SimpleNamespace(devices=devices, size=size)


def test_only_several_gpus_have_collectives_to_hide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert compiler_options(_mesh("gpu", 8)) == {LATENCY: True}
    assert compiler_options(_mesh("gpu", 1)) == {}
    assert compiler_options(make_mesh((1, 2, 1), jax.devices()[:2])) == {}


def test_the_users_own_flag_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", f"--{LATENCY}=false")
    assert compiler_options(_mesh("gpu", 8)) == {}
