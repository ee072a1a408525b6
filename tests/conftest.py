"""What every test stands on: eight CPU devices, no network, strict shapes.

The settings below are made before any test imports JAX, and through the environment where the
programs that tests start must have them too.
"""

import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

NUM_DEVICES = 8

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is most of what the tests do: machine code that is not optimised comes much sooner. A
# started program counts its own devices, so a test that starts one sets this variable anew.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
os.environ.pop("WANDB_API_KEY", None)

# Tests and the programs they start compile the same steps again and again: share the results, also
# between the processes that run tests, which inherit this one's environment.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _compilations = tempfile.TemporaryDirectory(prefix="spectral_dist_compilations_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compilations.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
_caches = tempfile.TemporaryDirectory(prefix="spectral_dist_caches_")
os.environ["XDG_CACHE_HOME"] = _caches.name

# Whoever started the tests may have SIGHUP ignored, as nohup does: their programs would inherit it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

import jax  # noqa: E402 - reads the environment when it is imported
from jaxtyping import install_import_hook  # noqa: E402
from xdist.scheduler import LoadFileScheduling  # noqa: E402

from spectral_dist.cluster.signals import SIGNALS  # noqa: E402
from tests import warm  # noqa: E402
from tests.processor_time import ProcessorTime  # noqa: E402

jax.config.update("jax_num_cpu_devices", NUM_DEVICES)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# The shapes and types written in the model's annotations are checked at every call.
install_import_hook("spectral_dist.model", "beartype.beartype")

# The dearest files first, so that small ones fill the gaps at the end.
_ORDER = ("multiprocess", "end_to_end", "golden", "distributed", "oracle", "unit")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(ProcessorTime())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        folder = item.path.relative_to(warm.ROOT / "tests").parts[0]
        return _ORDER.index(folder) if folder in _ORDER else len(_ORDER)

    items.sort(key=place)


class WaitingApart(LoadFileScheduling):
    """Gives each process that runs tests whole files, and those that wait to one process each.

    Tests of several processes mostly wait: side by side they would leave the cores idle first and
    be in each other's way later. As two long pieces of work, SLURM's and the others, they lie
    beside what computes.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        if "multiprocess/" not in file:
            return file
        return "slurm" if "slurm" in file else "processes"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    return WaitingApart(config, log)


@pytest.fixture(scope="session", autouse=True)
def warm_server() -> Iterator[None]:
    """End the process that programs are forked from."""
    yield
    warm.stop_server()


@pytest.fixture
def mixed_types() -> Iterator[None]:
    """Let Optax, which a test calls by itself, mix its integer counts with floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """Undo what a test did to the variables that the programs of later tests inherit."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(autouse=True)
def same_signals() -> Iterator[None]:
    """Undo what a test did to the signals, which the programs of later tests inherit."""
    numbers = SIGNALS
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Refuse every connection but those to this machine: no test may depend on the network."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        local = self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost")
        if not local:
            raise OSError(f"a test tried to reach {address!r}")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", local_only)
        yield


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server."""
    from moto.server import ThreadedMotoServer  # takes two seconds to load

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket there."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    files = s3fs.S3FileSystem(skip_instance_cache=True)
    if not files.exists("bucket"):
        files.mkdir("bucket")
    return "s3://bucket"
