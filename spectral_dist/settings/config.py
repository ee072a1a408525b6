"""All settings of a run in one frozen model, and the table of every setting.

A setting has one path (`mixers.spectral.num_poles`) and usually a short name, its flag
(`num_poles`). `from_flat` reads any mixture of short names, dotted paths and nested sections.
`resolve` fills in the derived defaults and checks the rules between settings. Imports no JAX. Read
`Config`, then `from_flat` and `resolve`.
"""

import copy
import dataclasses
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass as plain_dataclass
from typing import Any

import pydantic
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from spectral_dist.settings.datasets import (
    DatasetConfig,
    PhaseConfig,
    from_lists,
    lengths,
    name_datasets,
    normalise_weights,
)
from spectral_dist.settings.declare import STRICT, Text, Traits, plain, traits_of, value_at
from spectral_dist.settings.hints import hint
from spectral_dist.settings.mixers import MixersConfig
from spectral_dist.settings.optimizers import OPTIMIZER_KINDS, AdamWConfig, Optimizer
from spectral_dist.settings.relations import check_relations
from spectral_dist.settings.rules import Spelling, first_mistake
from spectral_dist.settings.sections import (
    DataConfig,
    EvalConfig,
    MeshConfig,
    ModelConfig,
    OutputConfig,
    RunConfig,
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Config:
    """All settings of a run, in sections."""

    run: RunConfig = RunConfig()
    mesh: MeshConfig = MeshConfig()
    data: DataConfig = DataConfig()
    datasets: tuple[DatasetConfig, ...] = ()
    phases: tuple[PhaseConfig, ...] = ()
    validation: tuple[DatasetConfig, ...] = ()
    model: ModelConfig = ModelConfig()
    mixers: MixersConfig = MixersConfig()
    optimizer: Optimizer = AdamWConfig()
    evaluation: EvalConfig = EvalConfig()
    output: OutputConfig = OutputConfig()
    # The paths of the settings that `resolve` derived. Without this list, a stored configuration
    # would hold them like given ones, and an override of hidden_dim would keep the old mlp_dim.
    derived: tuple[Text, ...] = ()

    @property
    def phase_steps(self) -> tuple[int, ...]:
        """The length of each phase, in optimizer steps; ValueError if it has two, or none."""
        return lengths(self.phases, self.data.step_tokens)

    def nested(self) -> dict[str, Any]:
        """Return every setting in its section, as YAML and JSON hold them."""
        values = plain(self)
        # Pairs in the model, so that it stays hashable; a mapping in a file.
        for phase in values["phases"]:
            phase["weights"] = dict(phase["weights"])
        return values

    def flat(self) -> dict[str, Any]:
        """Return every setting by its short name, or else its dotted path; tuples as lists."""
        values = self.nested()
        found = {s.name: value_at(values, s.path) for s in SETTINGS.values() if s.belongs_to(self)}
        return found | {name: values[name] for name in (*LISTS, "derived")}


@plain_dataclass(frozen=True)
class Setting:
    """One setting, as the table of all settings lists it.

    Attributes:
      name: its flag: a short name, or the dotted path.
      path: where it is in the sections, such as "mixers.spectral.num_poles".
      section: the path of its section.
      field: its declaration.
      kinds: the optimizers that have it; empty if it belongs to all of them, or to none.
    """

    name: str
    path: str
    section: str
    field: FieldInfo
    kinds: tuple[str, ...] = ()

    @property
    def traits(self) -> Traits:
        """What the rest of the program needs to know of it."""
        return traits_of(self.field)

    @property
    def help(self) -> str:
        """Its meaning, with its unit."""
        return self.field.description or ""

    @property
    def choices(self) -> tuple[str, ...]:
        """The texts that it may be; empty if it is not a choice."""
        if self.path == "optimizer.name":  # each optimizer's section allows its own name alone
            return tuple(OPTIMIZER_KINDS)
        kind = self.field.annotation
        if kind is bool:
            return ("true", "false")
        return typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()

    def belongs_to(self, config: Config) -> bool:
        """Return whether a config has this setting: it may belong to another optimizer."""
        return not self.kinds or config.optimizer.name in self.kinds


LISTS = ("datasets", "phases", "validation")  # sections that are lists of mappings
# Flags that fill a list of sections, one entry for each item.
LIST_FLAGS = {
    "data_paths": "text files, separated by commas; each becomes a dataset",
    "data_weights": "weights of data_paths in the mixture (default: equal)",
}


def _declared(kind: Any, section: str, kinds: tuple[str, ...] = ()) -> Iterator[Setting]:
    """Yield the settings that a section's model declares, those of inner sections included."""
    for name, field in kind.__pydantic_fields__.items():
        path = f"{section}.{name}"
        if dataclasses.is_dataclass(field.annotation):
            yield from _declared(field.annotation, path, kinds)
        else:
            flag = traits_of(field).flag  # None: the field's own name; "": the path alone
            yield Setting(name if flag is None else flag or path, path, section, field, kinds)


def _optimizer_settings() -> Iterator[Setting]:
    """Yield the settings of all optimizers; one that several share is one setting."""
    found: dict[str, Setting] = {}
    for kind, section in OPTIMIZER_KINDS.items():
        for item in _declared(section, "optimizer", (kind,)):
            known = found.get(item.path)
            kinds = (*known.kinds, kind) if known else (kind,)
            found[item.path] = dataclasses.replace(known or item, kinds=kinds)
    everybody = tuple(OPTIMIZER_KINDS)
    for item in found.values():
        yield dataclasses.replace(item, kinds=() if item.kinds == everybody else item.kinds)


def _table() -> dict[str, Setting]:
    table: dict[str, Setting] = {}
    for section in dataclasses.fields(typing.cast(Any, Config)):
        kind: Any = section.type
        items = _optimizer_settings() if section.name == "optimizer" else ()
        if dataclasses.is_dataclass(kind):
            items = _declared(kind, section.name)
        for item in items:
            # Flags have no sections, so two settings of one name could not be told apart.
            assert item.name not in table, f"two settings are called {item.name}"
            table[item.name] = item
    return table


# Built once at import, so that a mistake in a declaration shows in every test.
SETTINGS: dict[str, Setting] = _table()
PATHS: dict[str, Setting] = {s.path: s for s in SETTINGS.values()}
SECTIONS = tuple(dict.fromkeys(s.section for s in SETTINGS.values()))
_TOP = {f.name for f in dataclasses.fields(typing.cast(Any, Config))}
# Building an adapter takes pydantic longer than a validation does: one for all.
_ADAPTER: pydantic.TypeAdapter[Config] = pydantic.TypeAdapter(Config)


def section_model(setting: Setting) -> type:
    """Return the model that declares a setting; for an optimizer's, the first that has it."""
    if setting.section == "optimizer":
        return OPTIMIZER_KINDS[(setting.kinds or tuple(OPTIMIZER_KINDS))[0]]
    kind: Any = Config
    for part in setting.section.split("."):
        kind = kind.__pydantic_fields__[part].annotation
    return kind


def known_names() -> list[str]:
    """Return every name that may be a top-level key of a YAML file or a flag."""
    return [*SETTINGS, *LIST_FLAGS, *sorted(_TOP - {"derived"} - set(SETTINGS))]


# ---- reading ----


def merge(layers: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Any], Spelling]:
    """Merge layers of settings into nested values; a later layer wins.

    Returns:
      The nested values, and the name by which the user gave each path, for error messages.

    Raises:
      ValueError: names an unknown setting, or a dataset or phase that does not exist.
    """
    merged: dict[str, Any] = {}
    spelling: Spelling = {}
    for layer in layers:
        flat_lists: dict[str, Any] = {}
        for name, value in copy.deepcopy(dict(layer)).items():  # lists are changed in place
            if name in LIST_FLAGS:
                flat_lists[name] = value
            elif name in SETTINGS and not (name in _TOP and isinstance(value, dict)):
                _put(merged, SETTINGS[name].path, value)
                spelling[SETTINGS[name].path] = name
            elif name in _TOP:
                _put_section(merged, name, value, spelling)
            elif name.partition(".")[0] in _TOP:
                _put(merged, name, value)
                spelling[name] = name
            else:
                raise ValueError(f"unknown setting {name!r}{hint(name, known_names())}")
        # After the layer's other names: weights alone are given to the datasets of the same layer.
        if flat_lists:
            earlier = merged.get("datasets", [])
            merged["datasets"] = from_lists(flat_lists, earlier)
    return merged, spelling


def _put_section(merged: dict[str, Any], path: str, value: Any, spelling: Spelling) -> None:
    """Merge a section into what earlier layers say of it; anything but a mapping replaces that."""
    # A list is replaced as a whole: its items have no names by which they could be merged.
    if not isinstance(value, dict) or path.partition(".")[0] in LISTS:
        _put(merged, path, value)
        return
    _put(merged, path, {}, keep=True)
    # The name goes first, because it drops the settings of another optimizer.
    if path == "optimizer" and "name" in value:
        value = {"name": value["name"]} | value
    for name, item in value.items():
        inner = f"{path}.{name}"
        if isinstance(item, dict):
            _put_section(merged, inner, item, spelling)
        else:
            _put(merged, inner, item)
            spelling[inner] = inner


def _put(merged: dict[str, Any], path: str, value: Any, *, keep: bool = False) -> None:
    """Set the value at a dotted path, in place; with `keep`, only if there is no mapping yet."""
    *parents, last = path.split(".")
    if parents and parents[0] in LISTS and not isinstance(merged.get(parents[0]), list):
        raise ValueError(f"{path}: there is no list of {parents[0]}; define it in a --config file")
    here: Any = merged
    for parent in parents:
        here = here.setdefault(parent, {}) if isinstance(here, dict) else _item(here, parent, path)
        if not isinstance(here, dict | list):
            raise ValueError(f"{path}: {parent} is a setting, not a section of settings")
    if path == "optimizer.name" and isinstance(here, dict) and here.get("name") != value:
        _drop_other_optimizer(here, value)
    if isinstance(here, list):
        _item(here, last, path)
        here[int(last)] = value
    elif keep:
        if not isinstance(here.setdefault(last, value), dict):
            here[last] = value
    else:
        here[last] = value


def _item(items: list[Any], index: str, path: str) -> Any:
    if not index.isdecimal() or int(index) >= len(items):
        raise ValueError(
            f"{path}: {index!r} must be the index of an item, from 0 to {len(items) - 1}"
        )
    return items[int(index)]


def _drop_other_optimizer(section: dict[str, Any], name: Any) -> None:
    """Drop the settings of an earlier layer that the newly named optimizer does not have."""
    # So `--optimizer.name lion` works on top of a file that sets Adam's beta1.
    for key in list(section):
        known = PATHS.get(f"optimizer.{key}")
        if known is not None and known.kinds and name not in known.kinds:
            del section[key]


def build(values: dict[str, Any], spelling: Spelling) -> Config:
    """Validate nested values: return the settings, each converted to its type.

    Raises:
      ValueError: one line that names the setting, its value and the rule.
    """
    if isinstance(values.get("optimizer"), dict):
        # pydantic picks the optimizer's model by its name, and has no default for that.
        kind = OPTIMIZER_KINDS["adamw"].__pydantic_fields__["name"].default
        values = values | {"optimizer": {"name": kind} | values["optimizer"]}
    try:
        return _ADAPTER.validate_python(values)
    except pydantic.ValidationError as error:
        raise ValueError(first_mistake(error, values, PATHS, spelling)) from error


def from_flat(values: Mapping[str, Any]) -> Config:
    """Return the settings from short names, dotted paths and sections, in any mixture.

    Raises:
      ValueError: one line that names the setting, its value and the rule.
    """
    return build(*merge([values]))


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """Return settings with some values replaced by name; derived values follow."""
    return resolve(from_layers([config.flat(), values]))


def from_layers(layers: Iterable[Mapping[str, Any]]) -> Config:
    """Return the settings from several layers, such as a file and flags; a later layer wins.

    Raises:
      ValueError: as `from_flat` does.
    """
    layers = list(layers)
    # A run's own config.yaml holds derived values, too. If the last layer changes a setting that
    # one of them follows from, it is derived again, unless that layer gives it outright.
    before, _ = merge(layers[:-1])
    values, spelling = merge(layers)
    given = {path for layer in layers[-1:] for path in _paths(layer)}
    changed = {path for path in given if _as_text(before, path) != _as_text(values, path)}
    changed |= {path.partition(".")[0] for path in changed}  # --phases.0.tokens changes the phases
    listed = values.get("derived")  # what is no list of texts is refused by `build`
    for path in filter(PATHS.__contains__, map(str, listed if isinstance(listed, list) else [])):
        if path not in given and changed & set(PATHS[path].traits.follows):
            _put(values, path, None)
    return build(values, spelling)


def _paths(layer: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the paths of the settings that a layer names."""
    for name, value in layer.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict) and path not in SETTINGS:
            yield from _paths(value, f"{path}.")
        else:
            yield SETTINGS[path].path if path in SETTINGS else path


def _as_text(values: dict[str, Any], path: str) -> str | None:
    """Return the value at a path as text, or None if there is none."""
    try:
        # As text, because a flag's value is not converted yet: "512" must equal 512.
        return str(value_at(values, path))
    except (LookupError, TypeError, ValueError):
        return None


# ---- derived defaults and rules between settings ----


def resolve(config: Config) -> Config:
    """Fill in the derived defaults, and check the rules between settings.

    After this, no number is None.

    Raises:
      ValueError: names the setting, its value and the rule it breaks.
    """
    found = {
        name: name_datasets(getattr(config, name), name) for name in ("datasets", "validation")
    }
    for name, datasets in found.items():
        normalise_weights(datasets, name)  # to check them; they are scaled when they are opened
    config = dataclasses.replace(config, **found)
    derived = list(config.derived)
    # In the order of declaration, so a value derived from a derived one must be declared after it.
    for item in SETTINGS.values():
        derive = item.traits.derive
        if derive is None or not item.belongs_to(config) or _get(config, item.path) is not None:
            continue
        config = _replace(config, item.path, derive(config))
        derived += [item.path] if item.path not in derived else []
    config = dataclasses.replace(config, derived=tuple(derived))
    check_relations(config)
    return config


def _get(config: Any, path: str) -> Any:
    for part in path.split("."):
        config = getattr(config, part)
    return config


def _replace(config: Any, path: str, value: Any) -> Any:
    name, _, rest = path.partition(".")
    inner = _replace(getattr(config, name), rest, value) if rest else value
    return dataclasses.replace(config, **{name: inner})
