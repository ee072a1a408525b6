"""Orbax as checkpoint.py needs it: its arguments, a part of a state, and no words of its own.

Its argument classes are dataclasses that hide their fields from a type checker.
"""

import logging
import sys
from functools import cache
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp


def save_args(state: Any) -> Any:
    """Wrap the arrays to save."""
    arguments: Any = ocp.args.StandardSave
    return arguments(state)


def restore_args(abstract_state: Any) -> Any:
    """Wrap the shapes and shardings of a whole state to read."""
    arguments: Any = ocp.args.StandardRestore
    return arguments(abstract_state)


def read_part(folder: Path, abstract: Any) -> Any:
    """Return some arrays of a checkpoint: those that a nested dict of shapes names."""
    # The handler of whole states reads no part of one; this one reads what it has written.
    handler: Any = ocp.PyTreeCheckpointHandler()
    arguments: Any = ocp.args.PyTreeRestore
    shardings = ocp.checkpoint_utils.construct_restore_args(abstract)
    wanted = arguments(abstract, restore_args=shardings, partial_restore=True)
    return handler.restore(folder, args=wanted)


@cache
def say_nothing() -> None:
    """Drop Orbax's log lines, and the tracebacks of writes that a failed save left under way.

    What a user must know of a save, `Checkpoints` says in one line.
    """
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        # Orbax closes the event loop at the first failure. Every write that ends later finds it
        # closed, and would bury our line under a traceback.
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook
