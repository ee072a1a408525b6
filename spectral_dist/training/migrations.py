"""Migrations: reading checkpoints of earlier versions, whose names were different.

A checkpoint's description holds the number of its format; without one it has format 1. Old
checkpoints are read as they are and never rewritten. Read `upgrade`, then `as_stored`.
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

FORMAT = 2
# The names in format 1: {old: new} in the description, {new: old} at the top of the state.
_DESCRIPTION = {"sources": "datasets", "next_row": "next_sequence"}
_STATE = {"opt_state": "moments"}


def upgrade(description: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's description with the names of the current format.

    Raises:
      ValueError: if a newer version of the program wrote it.
    """
    found = description.get("format", 1)
    if found > FORMAT:
        raise ValueError(
            f"the checkpoint has format {found} and this version reads formats up to {FORMAT}:"
            " it was written by a newer version of spectral_dist; use that one"
        )
    return {_DESCRIPTION.get(name, name): value for name, value in description.items()}


def as_stored(state: Any, names: Collection[str]) -> tuple[Any, Callable[[Any], Any]]:
    """Return a state under the names of a checkpoint, and a function that renames what is read.

    Args:
      state: pytree; only a dataclass (`TrainState`) has fields that were renamed.
      names: of the checkpoint's arrays, their paths joined by slashes.
    """
    # Judged by the arrays and not by the format's number: they are what Orbax will look for.
    old = {name.partition("/")[0] for name in names} & set(_STATE.values())
    if not old or not dataclasses.is_dataclass(state) or isinstance(state, type):
        return state, lambda read: read
    fields = [f.name for f in dataclasses.fields(state)]
    stored = {_STATE.get(name, name): getattr(state, name) for name in fields}

    def back(read: dict[str, Any]) -> Any:
        return dataclasses.replace(state, **{n: read[_STATE.get(n, n)] for n in fields})

    return stored, back
