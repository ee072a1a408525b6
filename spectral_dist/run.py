"""A run from the command line, once JAX may be loaded: a `Trainer`, its processes, its exit code.

The flow itself is in `trainer`. Read `run` first.
"""

from collections.abc import Sequence

import jax

from spectral_dist.cluster.agreement import Processes
from spectral_dist.cluster.signals import StopSignal
from spectral_dist.cluster.start import start_processes
from spectral_dist.outputs.run_folder import code_version
from spectral_dist.outputs.summary import say_end, show_next_steps, show_sample
from spectral_dist.settings import Config
from spectral_dist.trainer import Trainer


def run(config: Config, argv: Sequence[str], stop: StopSignal) -> int:
    """Train, as one process or as one of several.

    Args:
      config: the settings, checked.
      argv: the command line, for the notes of the run.
      stop: the signals of this process.

    Returns:
      The exit code.

    Raises:
      ValueError: for what a user can cause: what was asked and the rule it breaks.
      Ending: where another process is lost, or a signal leaves nothing to save.
    """
    with start_processes(stop, config.run.start_timeout, config.run.hang_timeout) as processes:
        processes.agree("settings", config.flat())
        processes.agree("version", code_version())
        return train_run(config, argv, stop, processes)


def train_run(config: Config, argv: Sequence[str], stop: StopSignal, processes: Processes) -> int:
    """Train, in every process of a run alike; return the exit code."""
    with Trainer(
        config, verbose=processes.is_coordinator, argv=argv, stop=stop, processes=processes
    ) as trainer:
        for _ in trainer:
            pass  # the trainer's outputs have had the record
        saved, console = trainer.saved(), trainer.console
        console.close()
        stopped = stop.received if processes.should_stop() else None
        if stopped is None and processes.is_coordinator:
            console.show_tables(trainer.measured)
            if processes.count == 1:
                with jax.set_mesh(trainer.mesh):
                    show_sample(trainer.config, trainer.files, trainer.params, console)
            show_next_steps(trainer.config, trainer.folder, console)
        return say_end(stopped, trainer.step, saved, console)
