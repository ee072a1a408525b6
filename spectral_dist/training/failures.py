"""What a runtime's error means to the user, where it means something.

Owns the texts for memory that ran out. Knows no device. Read `explain`.
"""

import re

from spectral_dist.settings import Config

# Messages between processes that are too long carry the same code.
_OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED(?!: (?:Received|Sent) message)|[Oo]ut of memory")
_WANTED = re.compile(r"(?:allocat|request)\w*[^.\n]{0,40}?([\d.]+ ?(?:[KMGT]i?B|bytes))")


def explain(error: BaseException, config: Config) -> BaseException:
    """Return the error to show in place of a runtime's.

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
        f" {'; '.join(flags)}. python -m spectral_dist.dryrun tells before the start what fits"
    )
