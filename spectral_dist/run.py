"""A training run from the command line: its processes, a `Trainer`, its exit code.

Loads JAX, so `train` imports it only when the settings are checked. The flow itself is in
`trainer`. Read `run` first.
"""

from collections.abc import Sequence
from pathlib import Path

import jax

from spectral_dist.cluster.agreement import Processes
from spectral_dist.cluster.signals import StopSignal
from spectral_dist.cluster.start import start_processes
from spectral_dist.outputs.run_folder import code_version
from spectral_dist.outputs.summary import say_end, show_next_steps, show_sample
from spectral_dist.settings import Config
from spectral_dist.trainer import Trainer
from spectral_dist.training.failures import recorded


def run(config: Config, argv: Sequence[str], stop: StopSignal) -> int:
    """Train, as a single process or as one of several.

    Args:
      config: the settings, checked.
      argv: the command line, recorded in environment.json.
      stop: the signal handlers of this process.

    Returns:
      The exit code.

    Raises:
      ValueError: names the user's mistake: the setting, its value and the rule it breaks.
      Ending: if another process is lost, a signal comes while there is nothing to save, or the
        machine fails.
    """
    index, folder = 0, Path(config.run.checkpoint_dir) / config.run.run_name
    waits = config.run.start_timeout, config.run.hang_timeout
    try:
        with start_processes(stop, *waits, folder) as processes:
            index = processes.index
            # Before any collective: processes that differ here would compile different programs,
            # and then hang in them.
            processes.agree("settings", config.flat())
            processes.agree("version", code_version())
            return train_run(config, argv, stop, processes)
    except Exception as error:
        # Only now: the other processes have been told, and a lost one has been named.
        raise recorded(error, folder, index) from error


def train_run(config: Config, argv: Sequence[str], stop: StopSignal, processes: Processes) -> int:
    """Train and print the closing summary, in each process of the run; return the exit code."""
    with Trainer(
        config, verbose=processes.is_coordinator, argv=argv, stop=stop, processes=processes
    ) as trainer:
        for _ in trainer:
            pass  # the trainer's own outputs have printed and written the record
        saved, console = trainer.saved(), trainer.console
        console.close()
        # A sync point, so that all processes give the same answer and leave with one exit code.
        stopped = stop.received if processes.should_stop() else None
        if stopped is None and processes.is_coordinator:
            console.show_tables(trainer.measured)
            # Sampling runs on the whole mesh, and the other processes would not join in.
            if processes.count == 1:
                with jax.set_mesh(trainer.mesh):
                    shown = trainer.config, trainer.held_out, trainer.params, trainer.step
                    show_sample(*shown, console)
            show_next_steps(trainer.config, trainer.folder, console)
        return say_end(stopped, trainer.step, saved, console)
