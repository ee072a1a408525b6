"""Datasets: their names, and their weights in the mixture.

Owns their rules: names are unique; there is one weight for each path; weights are finite, not
negative, and scaled to sum to 1. Imports no JAX. Read `normalise_weights`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spectral_dist.settings.declare import split_list
from spectral_dist.settings.sections import DatasetConfig


def from_lists(lists: Mapping[str, Any], earlier: Any) -> list[dict[str, Any]]:
    """Return the datasets that the flags `data_paths` and `data_weights` describe.

    Args:
      lists: the value of one flag, or of both.
      earlier: the datasets of earlier layers, such as a file; `data_weights` alone applies to them.

    Raises:
      ValueError: if a path is no text, or there is not one finite weight for each path.
    """
    if "data_paths" in lists:
        given = lists["data_paths"]
        for path in (paths := split_list(given)):
            if not isinstance(path, str):
                raise ValueError(f"data_paths={path!r}: must be text")
        found = [{"paths": [path]} for path in paths]
        # New paths keep the earlier weights; another number of them is an error below.
        kept = [item.get("weight") for item in earlier if isinstance(item, dict)]
        if "data_weights" not in lists and kept and None not in kept:
            lists = {**lists, "data_weights": kept}
    else:
        found = [dict(item) for item in earlier]
    weights = [_weight(text) for text in split_list(lists.get("data_weights", ()))]
    if not weights:
        return found
    shown = ",".join(f"{weight:g}" for weight in weights)
    names = [",".join(map(str, item["paths"])) for item in found]
    if not found:
        raise ValueError(f"data_weights={shown}: needs data_paths, one for each weight")
    if len(weights) != len(found):
        raise ValueError(
            f"data_weights={shown}: {len(weights)} weights for {len(found)} files in data_paths"
            f" ({', '.join(names)}); give one for each file"
        )
    # Checked here and not by the model, to name the flag and the file that the user wrote.
    for weight, name in zip(weights, names, strict=True):
        if not math.isfinite(weight) or weight < 0:
            raise ValueError(
                f"data_weights={shown}: the weight {weight:g} of {name} must be finite and not"
                " negative"
            )
    return [item | {"weight": w} for item, w in zip(found, weights, strict=True)]


def _weight(value: Any) -> float:
    wrong = ValueError(f"data_weights={value!r}: must be a number")
    # `float` would accept True.
    if isinstance(value, bool | list | dict | tuple) or value is None:
        raise wrong
    try:
        return float(value)
    except ValueError as error:
        raise wrong from error


def name_datasets(datasets: Sequence[DatasetConfig]) -> tuple[DatasetConfig, ...]:
    """Name every dataset that has no name after its file, made unique by _2, _3, ...

    Raises:
      ValueError: if two datasets are given the same name.
    """
    given = [d.name for d in datasets if d.name is not None]
    for number, dataset in enumerate(datasets):
        if dataset.name is not None and given.count(dataset.name) > 1:
            raise ValueError(f"datasets.{number}.name={dataset.name!r}: two datasets have it")
    # Names that were given stay as they are; the others must avoid them.
    taken, named = set(given), []
    for dataset in datasets:
        name = dataset.name
        if name is None:
            stem, number = Path(dataset.paths[0]).stem, 1
            name = stem
            while name in taken:
                number += 1
                name = f"{stem}_{number}"
            taken.add(name)
        named.append(dataclasses.replace(dataset, name=name))
    return tuple(named)


def normalise_weights(datasets: Sequence[DatasetConfig]) -> tuple[tuple[float, ...], str | None]:
    """Return the mixture weights scaled to sum to 1, and a message if they had to be scaled.

    Args:
      datasets: all with weights, of any scale, or all without, for equal shares. A weight of 0
        keeps a dataset out of training; it is still evaluated.

    Raises:
      ValueError: if some datasets have a weight and others none, or all weights are zero.
    """
    weights = [d.weight for d in datasets if d.weight is not None]
    if not datasets or not weights:
        return tuple(1 / len(datasets) for _ in datasets), None
    if len(weights) != len(datasets):
        number = next(i for i, d in enumerate(datasets) if d.weight is None)
        raise ValueError(
            f"datasets.{number}.weight: must be given, since other datasets have one; or give none"
        )
    return scale(weights)


def scale(weights: Sequence[float]) -> tuple[tuple[float, ...], str | None]:
    """Return weights scaled to sum to 1, and a message if their sum was not 1.

    Raises:
      ValueError: if all are zero, or their sum is not finite.
    """
    shown = ",".join(f"{weight:g}" for weight in weights)
    total = sum(weights)
    if total == 0:
        raise ValueError(f"data_weights={shown}: at least one weight must be above 0")
    if not math.isfinite(total):
        raise ValueError(f"data_weights={shown}: the sum of the weights must be finite")
    if total == 1:
        return tuple(weights), None  # unchanged to the last bit
    scaled = tuple(weight / total for weight in weights)
    # 0.1,0.2,0.7 misses 1 by rounding only: scaled too, but without a message.
    if math.isclose(total, 1, rel_tol=1e-6):
        return scaled, None
    parts = ",".join(f"{weight:.4g}" for weight in scaled)
    return scaled, f"data_weights={shown} sum to {total:g}: normalised to {parts}"
