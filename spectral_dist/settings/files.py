"""YAML files of settings: reading them, and writing them with the meaning of each setting.

Imports no JAX. Read `read_yaml`, then `to_yaml`.
"""

from pathlib import Path
from typing import Any

import yaml

from spectral_dist.settings.config import (
    LISTS,
    PATHS,
    SECTIONS,
    SETTINGS,
    Config,
    from_flat,
    known_names,
    resolve,
)
from spectral_dist.settings.declare import plain, value_at
from spectral_dist.settings.hints import hint


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, with an error for a key that is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        # By itself YAML keeps the last of two equal keys, without a word.
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key!r} is given twice")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read settings from a YAML file: short names, dotted paths and sections.

    Raises:
      ValueError: if the file cannot be read, is not a mapping or holds an unknown name.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except OSError as error:
        raise ValueError(f"config={str(path)!r}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"config={str(path)!r}: is not valid YAML: {reason}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"config={str(path)!r}: must be a mapping of settings to values")
    known = {*known_names(), "derived"}
    for name in values:
        if str(name).partition(".")[0] not in known:
            text = hint(str(name), known)
            raise ValueError(f"config={str(path)!r}: unknown setting {name!r}{text}")
    return mark_derived(values)


def mark_derived(values: dict[str, Any]) -> dict[str, Any]:
    """Find which values of a run's config.yaml were derived, if an old file does not say so.

    Files written before settings had sections hold every setting, and derived ones like given ones.
    A value that equals the derived default is taken for derived.
    """
    # Such a file knows only AdamW, whose settings have short names.
    short = [
        s for s in SETTINGS.values() if s.traits.flag != "" and (not s.kinds or "adamw" in s.kinds)
    ]
    # A file that somebody wrote leaves settings out: everything in it was meant.
    if "derived" in values or not {s.name for s in short} <= set(values):
        return values
    derivable = [s for s in short if s.traits.derive is not None]
    names = {s.name for s in derivable}
    without = {name: value for name, value in values.items() if name not in names}
    try:
        fresh = resolve(from_flat(without)).flat()
    except ValueError:  # the defaults break a rule here, so these values were given
        return values
    derived = [s.path for s in derivable if values[s.name] == fresh[s.name]]
    return values | {"derived": derived}


def to_yaml(config: Config) -> str:
    """Return settings as YAML text in sections, with the meaning of each in a comment above it."""
    values = config.nested()
    lines: list[str] = []
    done: set[str] = set()
    # In the order of declaration; PyYAML cannot write comments, so the lines are made here.
    for section in SECTIONS:
        top = section.partition(".")[0]
        for depth, part in enumerate(section.split(".")):
            path = ".".join(section.split(".")[: depth + 1])
            if path not in done:
                lines += [*([""] if depth == 0 and done else []), f"{'  ' * depth}{part}:"]
                done.add(path)
        indent = section.count(".") + 1
        for setting in PATHS.values():
            if setting.section == section and setting.belongs_to(config):
                name = setting.path.rpartition(".")[2]
                lines.append(f"{'  ' * indent}# {setting.help}")
                entry = _entry(name, value_at(values, setting.path), indent)
                # A derived value is a comment: who changes hidden_dim in the file gets the mlp_dim
                # that goes with it.
                if setting.path in config.derived:
                    follows = ", ".join(setting.traits.follows)
                    entry = [f"{'  ' * indent}# {entry[0].strip()}  # follows from {follows}"]
                lines += entry
        if top == "data":
            for name in LISTS:
                lines += ["", *_entry(name, values[name], 0)]
    return "\n".join(lines) + "\n"


def _entry(name: str, value: Any, indent: int) -> list[str]:
    # A list of mappings (datasets, phases) in block style; everything else on one line.
    flow = None if isinstance(value, list) and value and isinstance(value[0], dict) else True
    text = yaml.safe_dump(
        {name: plain(value)} if flow is None else plain(value),
        allow_unicode=True,
        default_flow_style=flow,
        sort_keys=False,
        width=2**20,  # never wraps
    ).removesuffix("...\n")  # YAML's end of document, which a lone scalar gets
    body = text.rstrip("\n") if flow is None else f"{name}: {text.strip()}"
    return [f"{'  ' * indent}{line}" for line in body.split("\n")]
