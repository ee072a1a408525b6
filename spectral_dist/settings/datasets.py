"""Datasets and phases: what they are, their names, and their weights in the mixture.

Owns their rules: names are unique; there is one weight for each path; weights are finite, not
negative, and scaled to sum to 1. Imports no JAX. Read `normalise_weights`.
"""

import dataclasses
import glob
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator
from pydantic.dataclasses import dataclass

from spectral_dist.settings.declare import (
    STRICT,
    Float,
    Int,
    Text,
    Texts,
    not_negative,
    positive,
    setting,
    split_list,
)

_PACKED = (".gz", ".zst", ".zstd", ".bz2", ".xz")  # endings before which the name ends


def _dataset_name(name: str | None) -> str | None:
    # The name is part of a metric's name, val/<name>/bits_per_byte.
    if name is not None and (not name or "/" in name or "\n" in name):
        raise ValueError("must be a name without a slash or a line break")
    return name


def _some(paths: tuple[str, ...]) -> tuple[str, ...]:
    if not paths:
        raise ValueError("must name at least one file")
    return paths


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DatasetConfig:
    """One dataset: texts with a name and a weight in the mixture."""

    name: Annotated[Text | None, AfterValidator(_dataset_name)] = setting(
        None, "its name in metrics (default: the file's name without its ending)", order=True
    )
    paths: Annotated[Texts, AfterValidator(_some)] = setting(
        ...,
        "its files: text in UTF-8, .jsonl, .parquet, .arrow, also .gz, .zst, .bz2, .xz; folders and"
        " patterns (*) stand for many; all of these also as a URL: s3://, gs://, hf://, https://;"
        " or .bin files prepared from them",
        order=True,
    )
    format: Literal["auto", "txt", "jsonl", "parquet", "arrow"] = setting(
        "auto", "format of its files; auto goes by their names", order=True
    )
    text_field: Text = setting(
        "text", "field of a record that holds the text, in all formats but txt", order=True
    )
    normalize: Literal["none", "nfc"] = setting(
        "none",
        "nfc writes each letter in Unicode's composed form, where a text has letters in two parts",
        order=True,
    )
    # All datasets have one, or none has: see `normalise_weights`.
    weight: Float | None = not_negative(
        None, "its weight in the mixture, on any scale (default: equal)", order=True
    )


def _as_pairs(value: Any) -> Any:
    """Convert a mapping to pairs."""
    # Settings stay hashable: what is computed from them is cached by them.
    if isinstance(value, tuple):
        return value
    if not isinstance(value, dict):
        raise ValueError("must map names of datasets to weights")
    return tuple(value.items())


def _finite_weight(weight: float) -> float:
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError("must be finite and not negative")
    return weight


Weight = Annotated[Float, AfterValidator(_finite_weight)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PhaseConfig:
    """One phase of a curriculum: its length, and its own mixture of the datasets."""

    steps: Int | None = positive(None, "its length, in optimizer steps; or give tokens", order=True)
    tokens: Int | None = setting(
        None, "its length, in tokens, rounded up to whole steps", gt=0, lt=2**63, order=True
    )
    weights: Annotated[tuple[tuple[Text, Weight], ...], BeforeValidator(_as_pairs)] = setting(
        ..., "weight of each dataset by name; a dataset that is left out has none", order=True
    )
    lr_factor: Float = positive(1.0, "factor of the learning rate in this phase")
    ramp: Int = not_negative(
        0,
        "steps at its beginning over which weights and lr_factor move from those of the last phase",
        order=True,
    )


def lengths(phases: Sequence[PhaseConfig], step_tokens: int) -> tuple[int, ...]:
    """Return the length of each phase in optimizer steps.

    Args:
      phases: the phases.
      step_tokens: tokens of one step.

    Raises:
      ValueError: if a phase has two lengths, or none.
    """
    found: list[int] = []
    for number, phase in enumerate(phases):
        match phase.steps, phase.tokens:
            case int(steps), None:
                found.append(steps)
            case None, int(tokens):
                found.append(-(-tokens // step_tokens))
            case _:
                raise ValueError(f"phases.{number}: give its length once, as steps or as tokens")
    return tuple(found)


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


def name_datasets(
    datasets: Sequence[DatasetConfig], section: str = "datasets"
) -> tuple[DatasetConfig, ...]:
    """Name every dataset that has no name after its file, made unique by _2, _3, ...

    Args:
      datasets: of one section of the settings.
      section: its name, for the error.

    Raises:
      ValueError: if two datasets are given the same name.
    """
    given = [d.name for d in datasets if d.name is not None]
    for number, dataset in enumerate(datasets):
        if dataset.name is not None and given.count(dataset.name) > 1:
            raise ValueError(f"{section}.{number}.name={dataset.name!r}: two datasets have it")
    # Names that were given stay as they are; the others must avoid them.
    taken, named = set(given), []
    for dataset in datasets:
        name = dataset.name
        if name is None:
            stem, number = _default_name(dataset.paths[0]), 1
            name = stem
            while name in taken:
                number += 1
                name = f"{stem}_{number}"
            taken.add(name)
        named.append(dataclasses.replace(dataset, name=name))
    return tuple(named)


def _default_name(text: str) -> str:
    """Return the name of a dataset by its first path: a file's or a folder's, without endings."""
    path = Path(text.partition("?")[0] if text.startswith(("http://", "https://")) else text)
    while glob.has_magic(path.name) and path.parent != path:
        path = path.parent
    if path.suffix.lower() in _PACKED:
        path = path.with_suffix("")
    return path.stem or "dataset"


def normalise_weights(
    datasets: Sequence[DatasetConfig], section: str = "datasets"
) -> tuple[tuple[float, ...], str | None]:
    """Return the mixture weights scaled to sum to 1, and a message if they had to be scaled.

    Args:
      datasets: all with weights, of any scale, or all without, for equal shares. A weight of 0
        keeps a dataset out of training; it is still evaluated.
      section: of the settings, for the error.

    Raises:
      ValueError: if some datasets have a weight and others none, or all weights are zero.
    """
    weights = [d.weight for d in datasets if d.weight is not None]
    if not datasets or not weights:
        return tuple(1 / len(datasets) for _ in datasets), None
    if len(weights) != len(datasets):
        number = next(i for i, d in enumerate(datasets) if d.weight is None)
        raise ValueError(
            f"{section}.{number}.weight: must be given, since other datasets have one; or give none"
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
