"""What the package takes of JAX's private parts: in one file, and there in this version."""

import ast
import re
from pathlib import Path
from typing import Any

import jax
import pytest

import spectral_dist
from spectral_dist.cluster import jax_service
from spectral_dist.cluster.service import free_port

# The versions that cluster/jax_service.py was tried with, two processes training each time. A new
# one that passes the tests below and tests/multiprocess belongs here.
KNOWN = ("0.10", "0.12")

HELP = (
    f"jax {jax.__version__} is not one of the versions {', '.join(KNOWN)} that"
    " spectral_dist/cluster/jax_service.py was written for, and lacks something that it uses. Look"
    " for jax.distributed.State.initialize in the new version, adapt that file, run"
    " tests/multiprocess, and add the version to KNOWN. Failed:"
)


@pytest.fixture
def version() -> str:
    """Return what to say in front of a failure: nothing for a version that is known."""
    return "" if ".".join(jax.__version__.split(".")[:2]) in KNOWN else HELP


def test_the_service_of_this_version_of_jax(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole life: start, connect, leave."""
    try:
        state: Any = jax_service._state()
        for name in ("client", "coordinator_address", "process_id", "num_processes"):
            monkeypatch.setattr(state, name, getattr(state, name))  # put back at the end
        port = free_port()
        service = jax_service.start_service(f"127.0.0.1:{port}", 1)
        jax_service.connect(f"127.0.0.1:{port}", 0, 1, 20)
        assert state.client is not None
        jax_service.disconnect()
        assert state.client is None
        del service
    except (AttributeError, ImportError, TypeError, ValueError) as error:
        pytest.fail(f"{version} {type(error).__name__}: {error}")


def test_a_version_without_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("jax._src.lib._jax.get_distributed_runtime_service")
    words = rf"jax={re.escape(jax.__version__)}: .*this version lacks .*runtime_service"
    with pytest.raises(ValueError, match=words):
        jax_service.start_service("127.0.0.1:1", 1)


def private_imports(text: str) -> list[str]:
    """Return the modules of JAX that a source imports and that no promise holds stable."""
    names: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in names if re.match(r"(jax\._|jax\.lib\b|jaxlib\b|jax\..*\._)", name)]


def test_one_file_imports_what_jax_keeps_private() -> None:
    root = Path(spectral_dist.__file__).parent
    found = {
        path.relative_to(root).as_posix(): names
        for path in root.rglob("*.py")
        if (names := private_imports(path.read_text(encoding="utf-8")))
    }
    assert found == {"cluster/jax_service.py": ["jax._src.lib._jax", "jax._src.distributed"]}
