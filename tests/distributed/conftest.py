"""What the distributed tests share: one model with every mixer, its meshes, its compiled step.

They hold one description of the model so that the compilation cache serves them all. Read `model`.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh

from spectral_dist.mesh import make_mesh
from spectral_dist.settings import Config, from_flat, resolve
from spectral_dist.training.state import abstract_state
from spectral_dist.training.step import batch_sharding, make_train_step

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "c64": 8}


@dataclass(frozen=True)
class Collective:
    """One collective of a compiled program that moves anything.

    Attributes:
      kind: all-reduce, all-gather, reduce-scatter, all-to-all or collective-permute.
      shapes: of its results on one device.
      bytes: of its results.
      in_loop: whether it is paid for every round of a loop.
      origin: the traced operations that it comes from.
      line: its text.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    bytes: int
    in_loop: bool
    origin: str
    line: str


_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
_COLLECTIVE = re.compile(rf"= (.*?) ({_KINDS})(?:-start)?\(")
_RESULT = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:body|condition|calls|to_apply|true_computation|false_computation)=%([\w.-]+)"
    r"|(?:branch_computations|called_computations)=\{([^}]*)\}"
)


def find_collectives(text: str) -> list[Collective]:
    """Return the collectives of a compiled program, but those whose groups are single devices."""
    computations: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        start = re.match(r"^(?:ENTRY )?%([\w.-]+) \(.*\{$", line)
        if start:
            name = start[1]
        computations.setdefault(name, []).append(line)
    calls = {name: _called(lines) for name, lines in computations.items()}
    looped = {body for lines in computations.values() for body in _bodies(lines)}
    while new := {c for name in looped for c in calls.get(name, ())} - looped:
        looped |= new
    return [
        found
        for name, lines in computations.items()
        for line in lines
        if (found := _parse(line, name in looped)) is not None
    ]


def _bodies(lines: list[str]) -> set[str]:
    return {m[1] for line in lines for m in re.finditer(r"body=%([\w.-]+)", line)}


def _called(lines: list[str]) -> set[str]:
    names: set[str] = set()
    for line in lines:
        for match in _CALLED.finditer(line):
            names |= {match[1]} if match[1] else set(re.findall(r"%([\w.-]+)", match[2]))
    return names


def _parse(line: str, in_loop: bool) -> Collective | None:
    match = _COLLECTIVE.search(line)
    if match is None or re.search(r"replica_groups=\{\{\d+\}(,\{\d+\})*\}", line):
        return None
    results = [
        (dtype, tuple(int(n) for n in dims.split(",") if n))
        for dtype, dims in _RESULT.findall(match[1])
    ]
    size = sum(BYTES[dtype] * _product(shape) for dtype, shape in results)
    origin = re.search(r'op_name="([^"]*)"', line)
    shapes = tuple(shape for _, shape in results)
    return Collective(match[2], shapes, size, in_loop, origin[1] if origin else "", line.strip())


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for n in shape:
        product *= n
    return product


@pytest.fixture(scope="session")
def collectives() -> Callable[[str], list[Collective]]:
    """Return the reader of compiled programs."""
    return find_collectives


@pytest.fixture(scope="session")
def model() -> Callable[..., Config]:
    """Return (mesh, **changes) -> settings of a small model with every mixer, stacked twice."""

    def make(mesh: str, **changes: Any) -> Config:
        values: dict[str, Any] = {"mesh": mesh, "hidden_dim": 64, "head_dim": 8, "num_layers": 6}
        values |= {"layer_pattern": "spectral,window,attention", "num_kv_heads": 8, "mlp_dim": 128}
        values |= {"seq_len": 32, "window": 8, "chunk_size": 8, "num_poles": 4, "lr": 1e-3}
        values |= {"batch_size": 8, "accum_steps": 2, "steps": 50, "compute_dtype": "float32"}
        return resolve(from_flat(values | changes))

    return make


@pytest.fixture(scope="session")
def mesh_of() -> Callable[[Config], Mesh]:
    """Return settings -> their mesh, of the first devices."""

    def make(config: Config) -> Mesh:
        devices = jax.devices()[: _product(config.mesh.shape)]
        return make_mesh(config.mesh.shape, devices, config.mesh.axes)

    return make


@pytest.fixture(scope="session")
def compiled_step(mesh_of: Callable[[Config], Mesh]) -> Iterator[Callable[[Config], Any]]:
    """Return settings -> the compiled training step; the same settings compile once."""

    @cache
    def compile_step(config: Config) -> Any:
        mesh, data = mesh_of(config), config.data
        shape = (data.accum_steps, data.batch_size, data.seq_len + 1)
        tokens = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=batch_sharding(config, mesh))
        with jax.set_mesh(mesh):
            lowered = make_train_step(config, mesh).lower(abstract_state(config, mesh), tokens)
        return lowered.compile()

    yield compile_step
    compile_step.cache_clear()
