"""Checkpoints of earlier versions: what was called otherwise when they were written.

A checkpoint says which format its description and its arrays have; one that says nothing is of the
first. They are read as they are and never rewritten. Read `upgrade`, then `as_stored`.
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

FORMAT = 2
# What format 1 called things: in the description, and at the top of the state.
_DESCRIPTION = {"sources": "datasets", "next_row": "next_sequence"}
_STATE = {"opt_state": "moments"}


def upgrade(description: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's description in the words of today.

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
    """Return a state as a checkpoint holds it, and what makes today's of what is read so.

    Args:
      state: pytree; of the first format where it is a dataclass with a field called otherwise then.
      names: of the checkpoint's arrays, their paths joined by slashes.
    """
    old = {name.partition("/")[0] for name in names} & set(_STATE.values())
    if not old or not dataclasses.is_dataclass(state) or isinstance(state, type):
        return state, lambda read: read
    fields = [f.name for f in dataclasses.fields(state)]
    stored = {_STATE.get(name, name): getattr(state, name) for name in fields}

    def back(read: dict[str, Any]) -> Any:
        return dataclasses.replace(state, **{n: read[_STATE.get(n, n)] for n in fields})

    return stored, back
