"""Parameters under the names of an exported model, and back; the only place that knows both.

An exported model has a tensor for each layer, `layers.7.mixer.w_in`; ours stacks the blocks,
`groups/layer_1/mixer/w_in` [blocks, ...]. Shapes are otherwise the same. Reads and writes
safetensors through NumPy; imports no JAX. Read `exported_names`, then `read_export`.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from spectral_dist.atomic_file import write_bytes

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SETTINGS = "spectral_dist"  # the key of config.json that holds our settings

Names = dict[str, tuple[str, int | None]]


def exported_names(names: list[str], pattern_length: int, blocks: int) -> Names:
    """Return {name in an export: (our name, index in its first dimension, or None for all of it)}.

    Args:
      names: our parameters, their keys joined by slashes.
      pattern_length: layers of a block.
      blocks: number of stacked blocks.
    """
    found: Names = {}
    for name in names:
        part, _, rest = name.partition("/")
        if part not in ("groups", "rest"):
            found[name.replace("/", ".")] = name, None
            continue
        layer, _, inner = rest.partition("/")
        place, inner = int(layer.removeprefix("layer_")), inner.replace("/", ".")
        if part == "rest":
            found[f"layers.{blocks * pattern_length + place}.{inner}"] = name, None
        for block in range(blocks if part == "groups" else 0):
            found[f"layers.{block * pattern_length + place}.{inner}"] = name, block
    return found


def write_tensors(folder: Path, shards: list[list[str]], tensor: Callable[[str], Any]) -> None:
    """Write the tensors of an exported model, in one file or in several with an index.

    Args:
      folder: where to.
      shards: the names of the tensors of each file.
      tensor: returns the float32 array of a name; called once for each, so that one file at a time
        is in memory.
    """
    weights: dict[str, str] = {}
    total = 0
    for number, names in enumerate(shards, 1):
        file = WEIGHTS
        if len(shards) > 1:
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        arrays = {name: np.ascontiguousarray(tensor(name), np.float32) for name in names}
        # By `write_bytes` of ours in place of safetensors' own file, which nobody else may read.
        write_bytes(folder / file, safetensors.numpy.save(arrays, metadata={"format": "pt"}))
        weights |= dict.fromkeys(names, file)
        total += sum(array.nbytes for array in arrays.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weights}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def is_export(folder: Path) -> bool:
    """Return whether a folder holds an exported model."""
    return (folder / CONFIG).is_file() and any((folder / n).is_file() for n in (WEIGHTS, INDEX))


class Export:
    """An exported model that is read: its settings, and its parameters by our names."""

    def __init__(self, folder: Path) -> None:
        """Read config.json and the names of the tensors.

        Raises:
          ValueError: if it is not a model that was exported here, or cannot be read.
        """
        try:
            self.settings: Mapping[str, Any] = json.loads((folder / CONFIG).read_text())[SETTINGS]
            if (folder / INDEX).is_file():
                files = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
            else:
                files = {WEIGHTS}
            self._files: dict[str, Path] = {}
            self._shapes: dict[str, tuple[int, ...]] = {}
            for file in sorted(files):
                with safetensors.safe_open(folder / file, "np") as tensors:
                    for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                        self._files[name] = folder / file
                        self._shapes[name] = tuple(tensors.get_slice(name).get_shape())
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise ValueError(
                f"{folder}: is no model that `spectral-dist export` wrote, or is damaged"
                f" ({type(error).__name__}: {error})"
            ) from error

    def shapes(self, names: Names) -> dict[str, tuple[int, ...]]:
        """Return the shape of each parameter that is there by our name.

        A tensor that no parameter is made of keeps its own name.

        Args:
          names: of `exported_names`, for the model that asks.
        """
        found: dict[str, tuple[int, ...]] = {}
        for name, shape in self._shapes.items():
            ours, index = names.get(name, (name, None))
            blocks = 0 if index is None else found.get(ours, (0,))[0] + 1
            found[ours] = shape if index is None else (blocks, *shape)
        return found

    def read(self, names: Names, ours: str) -> np.ndarray:
        """Return a parameter by our name, float32.

        Args:
          names: of `exported_names`, for the model that wants it.
          ours: the name.

        Raises:
          KeyError: if a tensor of it is not there.
        """
        parts = [(index, name) for name, (n, index) in names.items() if n == ours]
        if parts[0][0] is None:
            return self._tensor(parts[0][1])
        return np.stack([self._tensor(name) for _, name in sorted(parts)])

    def _tensor(self, name: str) -> np.ndarray:
        with safetensors.safe_open(self._files[name], "np") as tensors:
            return tensors.get_tensor(name)
