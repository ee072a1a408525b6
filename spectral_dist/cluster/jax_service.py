"""JAX's coordination service, through JAX's private API: the only file that imports `jax._src`.

`jax.distributed.initialize` starts the service inside process 0, and JAX aborts every process if
one of them is lost or if the service ends. A run must live long enough to say which process is
lost. So here the service runs in a process of its own, with `recoverable`, and each process
connects a matching client.

tests/unit/test_jax_service.py lists the versions of JAX that this was tested with, and fails if
another version lacks something. Read `connect`.
"""

from typing import Any

import jax

# Seconds until JAX's own heartbeats act. They are the last resort: cluster.heartbeat notices a loss
# sooner and ends the process with one line, where JAX would abort it with a stack trace.
_JAX_HEARTBEAT_SECONDS = 3600


def start_service(address: str, count: int) -> Any:
    """Start the coordination service in this process; it runs as long as the returned object.

    Args:
      address: host:port to listen on.
      count: number of processes that will connect.
    """
    # With `recoverable` the service does not make all processes abort when one is lost.
    make_service, _ = _makers()
    return make_service(address, count, heartbeat_timeout=_JAX_HEARTBEAT_SECONDS, recoverable=True)


def connect(address: str, index: int, count: int, timeout: int) -> None:
    """Connect to the service, as jax.distributed.initialize does, but without starting one.

    Call it before JAX looks for devices, and only once all processes have reported in: JAX aborts
    this process if another one does not connect.

    Args:
      address: of the service, or of a relay to it: host:port or unix:PATH.
      index: index of this process.
      count: number of processes.
      timeout: seconds to wait for the service.
    """
    state = _state()
    _, make_client = _makers()
    client = make_client(
        address,
        index,
        init_timeout=timeout,
        heartbeat_timeout=_JAX_HEARTBEAT_SECONDS,
        shutdown_on_destruction=False,  # it would wait for all processes; `disconnect` does
        use_compression=True,
    )
    client.connect()
    # Where JAX keeps its own client, so that collectives, Orbax and `multihost_utils` find it.
    state.client, state.coordinator_address = client, address
    state.process_id, state.num_processes = index, count


def disconnect() -> None:
    """Disconnect from the service when all processes are done; waits for them."""
    state = _state()
    state.client.shutdown()
    state.client = None  # as before `connect`: None means that there is no service


def _makers() -> tuple[Any, Any]:
    """Return JAX's functions that make a service and a client."""
    # Imported here and not above: one process alone needs none of them, whatever the version.
    try:
        from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]

        return _jax.get_distributed_runtime_service, _jax.get_distributed_runtime_client
    except (ImportError, AttributeError) as error:
        raise _unknown_version(error) from error


def _state() -> Any:
    try:
        from jax._src import distributed

        return distributed.global_state
    except (ImportError, AttributeError) as error:
        raise _unknown_version(error) from error


def _unknown_version(error: Exception) -> ValueError:
    return ValueError(
        f"jax={jax.__version__}: a run of several processes needs a part of JAX that this version"
        f" lacks ({error}); training with one process still works, and the code to adapt is in"
        " spectral_dist/cluster/jax_service.py"
    )
