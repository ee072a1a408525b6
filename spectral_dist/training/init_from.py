"""The first state of a run: from the seed, or with parameters of another run (`--init_from`).

Owns where those parameters are looked for, and which of them are taken. Step, opt_state and the
order of the data begin anew in either case. Read `first_state`.
"""

import contextlib
import dataclasses
import fnmatch
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from spectral_dist.cluster.agreement import Processes
from spectral_dist.data.tokenizers import BYTES, find_tokenizer, open_tokenizer
from spectral_dist.model.exchange import Export, exported_names, is_export
from spectral_dist.settings import Config
from spectral_dist.training.checkpoint import Checkpoints
from spectral_dist.training.checkpoint_folder import complete_steps
from spectral_dist.training.manifest import array_types, read_manifest
from spectral_dist.training.state import TrainState, abstract_state, init_state


def first_state(
    config: Config,
    mesh: Mesh,
    report: Callable[[str], None],
    processes: Processes | None = None,
) -> tuple[TrainState, int, int]:
    """Return the state before the first step, on the mesh, with step 0 and sequence 0.

    Args:
      config: the settings.
      mesh: the devices; it need not be like the one that the other run was trained on.
      report: takes a line that says what was taken from where.
      processes: the processes of the run, if there are several.

    Raises:
      ValueError: if `init_from` cannot be found or read, or a parameter that `init_names` chooses
        is not there or has another shape.
    """
    state = init_state(config, mesh)
    if not config.run.init_from:
        return state, 0, 0
    here = array_types(state.params)
    with contextlib.closing(_find(config, list(here), processes)) as source:
        names = _chosen(config, here, source.types())
        found = source.read(_nested(names, abstract_state(config, mesh).params))
        report(
            f"init_from: {len(names)} of {len(here)} parameters are those of {source};"
            " optimizer and data begin anew"
        )
        now, then = find_tokenizer(config).fingerprint, source.tokenizer()
        if now != then and {"embed", "head"} & set(names):
            report(
                f"warning: init_from: {source} was trained with the tokenizer {then}, and this run"
                f" has {now}: the rows of embed and head stand for other tokens"
            )
    return dataclasses.replace(state, params=_merged(state.params, found)), 0, 0


class _Run:
    """The parameters in a checkpoint of another run."""

    def __init__(self, checkpoints: Checkpoints, step: int) -> None:
        self._checkpoints, self._step = checkpoints, step

    def __str__(self) -> str:
        return f"step {self._step} in {self._checkpoints.folder}"

    def types(self) -> dict[str, str]:
        """Return name and type of each parameter."""
        arrays = read_manifest(self._checkpoints.folder / str(self._step))["arrays"]
        prefix = "params/"
        return {n.removeprefix(prefix): kind for n, kind in arrays.items() if n.startswith(prefix)}

    def tokenizer(self) -> str:
        """Return the fingerprint of its tokenizer."""
        return self._checkpoints.describe(self._step).get("tokenizer", BYTES.fingerprint)

    def read(self, abstract: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters that a nested dict of shapes and shardings asks for."""
        return self._checkpoints.restore_part({"params": abstract}, self._step)["params"]

    def close(self) -> None:
        self._checkpoints.close()


class _Exported:
    """The parameters of an exported model."""

    def __init__(self, config: Config, folder: Path, ours: list[str]) -> None:
        pattern = len(config.model.pattern)
        self._folder, self._export = folder, Export(folder)
        self._names = exported_names(ours, pattern, config.model.num_layers // pattern)

    def __str__(self) -> str:
        return f"the model in {self._folder}"

    def types(self) -> dict[str, str]:
        """Return name and type of each parameter."""
        shapes = self._export.shapes(self._names)
        return {name: f"float32[{','.join(map(str, shape))}]" for name, shape in shapes.items()}

    def tokenizer(self) -> str:
        """Return the fingerprint of its tokenizer."""
        has_file = (self._folder / "tokenizer.json").is_file()
        return open_tokenizer(str(self._folder)).fingerprint if has_file else BYTES.fingerprint

    def read(self, abstract: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters that a nested dict of shapes and shardings asks for."""

        def place(path: Any, wanted: jax.ShapeDtypeStruct) -> jax.Array:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            array = self._export.read(self._names, name)
            return jax.make_array_from_callback(array.shape, wanted.sharding, array.__getitem__)

        return jax.tree_util.tree_map_with_path(place, abstract)

    def close(self) -> None:
        """Do nothing: files are open only while they are read."""


def _find(config: Config, ours: list[str], processes: Processes | None) -> _Run | _Exported:
    """Return what `init_from` names.

    Args:
      config: the settings.
      ours: the names of this model's parameters.
      processes: of the run.
    """
    given, runs = config.run.init_from, Path(config.run.checkpoint_dir)
    path = Path(given).expanduser()
    if is_export(path):
        return _Exported(config, path, ours)
    # A plain word is the name of a run, as for generate and evaluate.
    folder = path if os.sep in given else runs / given
    name = "checkpoint_0"
    if not complete_steps(folder) and complete_steps(folder.parent):
        folder, name = folder.parent, folder.name
    if not complete_steps(folder):
        raise ValueError(
            f"init_from={given!r}: {folder} is no run with checkpoints; give a run, its name in"
            f" {runs}, a checkpoint of one, such as RUN/500 or RUN/best, or an exported model"
        )
    # It never saves, so it warns of nothing.
    checkpoints = Checkpoints(folder, keep=1, warn=lambda text: None, processes=processes)
    try:
        return _Run(checkpoints, checkpoints.find(name))
    except ValueError as error:
        checkpoints.close()
        raise ValueError(f"init_from={given!r}: {error}") from error


def _chosen(config: Config, here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """Return the names of the parameters to take.

    Raises:
      ValueError: if a pattern chooses none, or one of them is missing or of another shape.
    """
    given, patterns = config.run.init_from, config.run.init_names
    for pattern in patterns:
        if not fnmatch.filter(here, pattern):
            raise ValueError(
                f"init_names={pattern!r}: no parameter has such a name; there are {', '.join(here)}"
            )
    names = [n for n in here if any(fnmatch.fnmatchcase(n, p) for p in patterns)]
    # All of them means the same model: what the other one has besides would be lost unseen.
    extra = [n for n in there if n not in here] if len(names) == len(here) else []
    for name in [*names, *extra]:
        if here.get(name) != there.get(name):
            raise ValueError(
                f"init_from={given!r}: the parameter {name} is {there.get(name, 'not there')}, but"
                f" {here.get(name, 'not')} in this model; --init_names takes some of them"
            )
    return names


def _nested(names: list[str], tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a nested dict that the names choose."""
    found: dict[str, Any] = {}
    for name in names:
        inner: Any = tree
        here, (*parents, last) = found, name.split("/")
        for parent in parents:
            inner, here = inner[parent], here.setdefault(parent, {})
        here[last] = inner[last]
    return found


def _merged(tree: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    """Return a nested dict with some of its leaves replaced by those of another."""

    def items() -> Iterator[tuple[str, Any]]:
        for name, value in tree.items():
            new = part.get(name, value)
            yield name, _merged(value, new) if isinstance(value, Mapping) and name in part else new

    return dict(items())
