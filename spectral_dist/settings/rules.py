"""Error messages for settings: pydantic's errors as one line with setting, value and rule.

Imports no JAX. Read `first_mistake`.
"""

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pydantic

if TYPE_CHECKING:
    from spectral_dist.settings.config import Setting

Spelling = dict[str, str]  # path -> the name that the user wrote: a flag, or a key


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a "did you mean" hint with the known name of the nearest spelling, or ""."""
    # With less than half in common it is no misspelling, and a hint would mislead.
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def first_mistake(
    error: pydantic.ValidationError,
    values: Any,
    paths: Mapping[str, "Setting"],
    spelling: Spelling,
) -> str:
    """Return the first error of a validation as one line.

    Args:
      error: pydantic's error.
      values: the nested values that were validated.
      paths: every setting by its path.
      spelling: the names that the user wrote, by path.
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
    """Return pydantic's location of an error as a dotted path of the YAML file."""
    parts = list(loc)
    if len(parts) > 1 and parts[0] == "optimizer":
        del parts[1]  # the optimizer's name, by which pydantic chose the model
    if "weights" in parts and len(parts) > parts.index("weights") + 1:
        # Weights are pairs in our models and a mapping in the file: name the dataset.
        end = parts.index("weights") + 1
        for part in parts[:end]:
            values = values[part]
        parts[end:] = [list(values)[int(parts[end])]]
    return ".".join(map(str, parts))


def _owner(path: str, paths: Mapping[str, Any]) -> tuple[str, str]:
    """Return the setting that a path belongs to; the index of a list item is dropped."""
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
    # The names of the same section first: a near name elsewhere would be of another kind.
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
    # If the setting may be None, pydantic shows the value before its conversion.
    if not isinstance(value, int) and not math.isfinite(float(value)):
        return "must be finite"
    bounds: dict[str, float] = {}
    for item in setting.field.metadata if setting else ():
        for name in ("gt", "ge", "lt", "le"):
            if (bound := getattr(item, name, None)) is not None:
                bounds[name] = bound
    # A share: both ends in one message, whichever end the value is beyond.
    if bounds.get("lt") == 1:
        return f"must be {'above' if 'gt' in bounds else 'at least'} 0 and below 1"
    bound = next(iter(context.values()), 0)
    return {
        "greater_than": "must be positive" if bound == 0 else f"must be above {bound:g}",
        "greater_than_equal": "must not be negative" if bound == 0 else f"must be >= {bound:g}",
        "less_than": "must be below 2**31" if bound == 2**31 else f"must be below {bound:g}",
        "less_than_equal": f"must be at most {bound:g}",
    }[kind]
