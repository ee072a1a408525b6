"""JAX's coordination service, by names that JAX keeps private: the only file that imports them.

`jax.distributed.initialize` starts the service inside process 0, and JAX aborts every process when
one of them is lost or the service goes. A run must live on for as long as it takes to say who is
lost, so here the service is started by a process of its own, with `recoverable`, and the client is
made to match. It is kept where JAX keeps its own, so that collectives, Orbax and `multihost_utils`
find it.

tests/unit/test_jax_service.py names the versions of JAX that this was tried with, and fails where
another one lacks something. Read `connect`.
"""

from typing import Any

import jax

# JAX's own heartbeats are the last resort, in seconds: cluster.heartbeat notices a loss sooner, and
# ends a process by one line where JAX would abort it with a stack trace.
_JAX_HEARTBEAT_SECONDS = 3600


def start_service(port: int, count: int) -> Any:
    """Start the service in this process; it lives as long as what is returned.

    Args:
      port: to listen at, on every interface.
      count: of the processes that will connect.
    """
    # With `recoverable` the service tells nobody to abort when a process is lost.
    make_service, _ = _makers()
    return make_service(
        f"[::]:{port}", count, heartbeat_timeout=_JAX_HEARTBEAT_SECONDS, recoverable=True
    )


def connect(address: str, index: int, count: int, timeout: int) -> None:
    """Join the service, as jax.distributed.initialize does but for starting it.

    To be called before JAX looks for devices, and when all processes are known to be there: JAX
    aborts this process where one of them does not connect.

    Args:
      address: host:port of the service.
      index: of this process.
      count: of processes.
      timeout: seconds to wait for the service.
    """
    state = _state()
    _, make_client = _makers()
    client = make_client(
        address,
        index,
        init_timeout=timeout,
        heartbeat_timeout=_JAX_HEARTBEAT_SECONDS,
        shutdown_on_destruction=False,  # it waits for all processes: `disconnect` says when
        use_compression=True,
    )
    client.connect()
    state.client, state.coordinator_address = client, address
    state.process_id, state.num_processes = index, count


def disconnect() -> None:
    """Leave the service, once all processes are through; waits for them."""
    state = _state()
    state.client.shutdown()
    state.client = None


def key_value_store() -> Any:
    """Return the key-value store of the processes, or None where there is no service.

    It is the service's client: key_value_set(key, text, allow_overwrite=False),
    key_value_dir_get(folder) -> [(key, text)], key_value_delete(key or folder). Calls raise
    jax.errors.JaxRuntimeError where the service cannot be reached.
    """
    return _state().client


def _makers() -> tuple[Any, Any]:
    """Return what makes a service and what makes a client."""
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
        f"jax={jax.__version__}: this version lacks what a run of several processes needs of it"
        f" ({error}); one process still trains, and spectral_dist/cluster/jax_service.py is the"
        " place to adapt"
    )
