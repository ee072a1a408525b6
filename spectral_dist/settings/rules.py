"""What pydantic finds wrong with settings, as one line: the setting, its value and the rule.

Imports no JAX. Read `first_mistake`.
"""

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pydantic

if TYPE_CHECKING:
    from spectral_dist.settings.config import Setting

Spelling = dict[str, str]  # path -> the name that the user gave it by


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint at the known name that a misspelt one is nearest to, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def first_mistake(
    error: pydantic.ValidationError,
    values: Any,
    paths: Mapping[str, "Setting"],
    spelling: Spelling,
) -> str:
    """Return the first mistake of a validation as one line.

    Args:
      error: of building the settings.
      values: what they were built from.
      paths: every setting by its path.
      spelling: how the user named some of them.
    """
    found = error.errors(include_url=False)[0]
    path = _path(found["loc"], values)
    kind, value, context = found["type"], found["input"], found.get("ctx", {})
    setting, item = _owner(path, paths)
    name = spelling.get(setting, paths[setting].name if setting in paths else setting) + item
    if kind == "unexpected_keyword_argument":
        return _unknown(path, paths)
    if kind in ("missing", "missing_keyword_only_argument"):
        return f"{path}: must be given"
    if kind == "union_tag_invalid":
        choices = context["expected_tags"].replace("'", "")
        return f"optimizer.name={context['tag']!r}: must be one of {choices}"
    shown, rule = _rule(kind, value, context, paths.get(setting))
    return f"{name}={shown}: {rule}"


def _path(loc: tuple[int | str, ...], values: Any) -> str:
    """Return the dotted path of pydantic's location, as it stands in a YAML file."""
    parts = list(loc)
    if len(parts) > 1 and parts[0] == "optimizer":
        del parts[1]  # the kind of the optimizer, by which pydantic chose its section
    if "weights" in parts and len(parts) > parts.index("weights") + 1:
        # Pairs in our models, a mapping in the file: name the dataset.
        end = parts.index("weights") + 1
        for part in parts[:end]:
            values = values[part]
        parts[end:] = [list(values)[int(parts[end])]]
    return ".".join(map(str, parts))


def _owner(path: str, paths: Mapping[str, Any]) -> tuple[str, str]:
    """Return the setting that a path lies in; of a list of values the item is not named."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        if (start := ".".join(parts[:end])) in paths:
            return start, ""
    return path, ""


def _unknown(path: str, paths: Mapping[str, "Setting"]) -> str:
    section, _, last = path.rpartition(".")
    known = paths.get(path)
    if known is not None and known.kinds:
        return f"{path}: is no setting of this optimizer; it belongs to {', '.join(known.kinds)}"
    inside = [p for p in paths if p.rpartition(".")[0] == section]
    hint = nearest(path, inside or paths)
    return f"unknown setting {(path if section else last)!r}{hint}"


def _rule(
    kind: str, value: Any, context: Mapping[str, Any], setting: "Setting | None"
) -> tuple[str, str]:
    """Return the value as the user would write it, and the rule that it breaks."""
    if kind == "value_error":
        return repr(value), str(context["error"])
    if kind == "literal_error":
        choices = setting.choices if setting else ()
        return repr(value), f"must be one of {', '.join(choices)}"
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        return str(value), _range(kind, value, context, setting)
    if kind == "tuple_type":
        return repr(value), "must be a list"
    if kind in ("dataclass_type", "model_attributes_type", "dict_type"):
        return repr(value), "must be a mapping of settings to values"
    return repr(value), f"is not valid ({kind.replace('_', ' ')})"


def _range(kind: str, value: float, context: Mapping[str, Any], setting: "Setting | None") -> str:
    # Where None is allowed, too, pydantic shows what was given, not what it became.
    if not isinstance(value, int) and not math.isfinite(float(value)):
        return "must be finite"
    bounds: dict[str, float] = {}
    for item in setting.field.metadata if setting else ():
        for name in ("gt", "ge", "lt", "le"):
            if (bound := getattr(item, name, None)) is not None:
                bounds[name] = bound
    if bounds.get("lt") == 1:
        return f"must be {'above' if 'gt' in bounds else 'at least'} 0 and below 1"
    bound = next(iter(context.values()), 0)
    return {
        "greater_than": "must be positive" if bound == 0 else f"must be above {bound:g}",
        "greater_than_equal": "must not be negative" if bound == 0 else f"must be >= {bound:g}",
        "less_than": "must be below 2**31" if bound == 2**31 else f"must be below {bound:g}",
        "less_than_equal": f"must be at most {bound:g}",
    }[kind]
