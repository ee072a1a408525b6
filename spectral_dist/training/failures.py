"""Errors of the runtime: out of memory as one line with the flags to change, others on record.

Knows no device. Read `explain`, then `recorded`.
"""

import contextlib
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

import jax

from spectral_dist.command_line import FAULT, Ending, error_code, invocation, one_line
from spectral_dist.fault_log import FaultLog
from spectral_dist.settings import Config

# gRPC uses the same code for a message that is too long; that is not about memory.
_OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED(?!: (?:Received|Sent) message)|[Oo]ut of memory")
_WANTED = re.compile(r"(?:allocat|request)\w*[^.\n]{0,40}?([\d.]+ ?(?:[KMGT]i?B|bytes))")


def explain(error: BaseException, config: Config) -> BaseException:
    """Return the error to show for one that JAX raised: out of memory becomes one clear line.

    Args:
      error: as JAX or Python raised it.
      config: the settings, for what to change.

    Returns:
      ValueError, one line with the flags to change, where memory ran out; else `error` itself.
    """
    if not isinstance(error, MemoryError) and not _OUT_OF_MEMORY.search(str(error)):
        return error
    wanted = _WANTED.search(str(error))
    asked = f" (asked for {wanted[1]})" if wanted else ""
    data, model = config.data, config.model
    flags = []
    # Below one sequence for each shard of the batch (data x fsdp) it cannot be halved.
    if data.batch_size > config.mesh.shape[0] * config.mesh.shape[1]:
        flags.append(
            f"--batch_size {data.batch_size // 2} with --accum_steps {data.accum_steps * 2}"
            " (the same batch)"
        )
    if model.remat != "full":
        flags.append(f"--remat full (now {model.remat})")
    flags.append(f"more fsdp in --mesh (now {config.mesh.mesh})")
    where = "this host" if isinstance(error, MemoryError) else "a device"
    return ValueError(
        f"out of memory on {where}{asked}. Checkpoints are safe. Change, in this order:"
        f" {'; '.join(flags)}. {invocation('dryrun')} shows before the start what fits"
    )


@contextlib.contextmanager
def explaining(config: Config) -> Iterator[None]:
    """Turn an error of JAX's runtime in a block, such as out of memory, into one line."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:  # device's or host's memory
        raise explain(error, config) from error


def recorded(error: Exception, folder: Path, process: int) -> Exception:
    """Return the error to end with; one that nobody foresaw is written down first.

    Its traceback is added to faults.log: the console shows one line, and a scheduler starts the run
    again before anybody has read it.

    Args:
      error: what ends the run.
      folder: the run folder.
      process: index of this process.
    """
    if error_code(error) != FAULT or isinstance(error, Ending):
        return error
    log = FaultLog(folder, process)
    try:
        log.write("".join(traceback.format_exception(error)))
    except OSError:  # the folder may be what failed
        return error
    return Ending(f"{one_line(error)}; its traceback is in {log.path}", FAULT)
