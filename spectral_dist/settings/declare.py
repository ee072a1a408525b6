"""Declaring a setting: once, with its default, help text, range and traits.

`Traits` hold what the rest of the program needs to know of a setting: may a resumed run change it,
does it enter the compiled program, and so on. So there are no lists of names elsewhere. The types
convert what YAML files and flags hold. Imports no JAX. Read `setting`, then `Traits`.
"""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
from pydantic import BeforeValidator, ConfigDict, Field

# An unknown name is an error, or a misspelt setting would be ignored.
STRICT = ConfigDict(extra="forbid")
LIMIT = 2**31  # larger than any useful count, width or rate; below it, all fit JAX's int32

Resume = Literal["reported", "silent", "same"]


@dataclass(frozen=True)
class Traits:
    """What the program needs to know of a setting, beside its value.

    Attributes:
      flag: its short name, a flag and a top-level key of YAML files. None takes the field's name;
        "" leaves only the dotted path.
      daily: whether `--help` shows it first, among the settings of daily use.
      resume: whether a resumed run may change it. "reported": yes, with a message; "silent": yes,
        without one; "same": no, because the trained model depends on it.
      compiled: whether the compiled programs depend on it.
      order: whether the order of the training data depends on it.
      derive: computes its value from the other settings if none is given.
      follows: paths of the settings that `derive` reads.
      bounds: of a number, in the words of JSON schema.
    """

    flag: str | None = None
    daily: bool = False
    resume: Resume = "reported"
    compiled: bool = False
    order: bool = False
    derive: Callable[[Any], Any] | None = None
    follows: tuple[str, ...] = ()
    bounds: dict[str, float] = dataclasses.field(default_factory=dict)

    def __call__(self, schema: dict[str, Any]) -> None:
        """Extend the field's JSON schema; pydantic calls this."""
        # Being callable is what lets traits travel in pydantic's `json_schema_extra`.
        if self.derive is not None:
            schema["x-derived-from"] = list(self.follows)
        schema |= self.bounds  # which pydantic leaves out where a number may be None


def setting(
    default: Any,
    help: str,
    *,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    **traits: Any,
) -> Any:
    """Declare one setting.

    Args:
      default: its value if none is given; None if it is derived.
      help: its meaning and unit, in a line or two, for --help and config.yaml.
      gt: the value must be above this.
      ge: the value must be at least this.
      lt: the value must be below this; by default `LIMIT` for a number with a lower bound.
      le: the value must be at most this.
      traits: fields of `Traits`.
    """
    if (gt is not None or ge is not None) and lt is None and le is None:
        lt = LIMIT
    given = {"gt": gt, "ge": ge, "lt": lt, "le": le}
    given = {name: bound for name, bound in given.items() if bound is not None}
    bounds = {_JSON_BOUNDS[name]: bound for name, bound in given.items()}
    return Field(
        default,
        description=help,
        json_schema_extra=Traits(bounds=bounds, **traits),
        **given,
    )


_JSON_BOUNDS = {
    **{"gt": "exclusiveMinimum", "ge": "minimum"},
    **{"lt": "exclusiveMaximum", "le": "maximum"},
}


def positive(default: Any, help: str, **traits: Any) -> Any:
    """Declare a number above 0."""
    return setting(default, help, gt=0, **traits)


def not_negative(default: Any, help: str, **traits: Any) -> Any:
    """Declare a number of at least 0."""
    return setting(default, help, ge=0, **traits)


def share(default: Any, help: str, **traits: Any) -> Any:
    """Declare a number of at least 0 and below 1."""
    return setting(default, help, ge=0, lt=1, **traits)


def traits_of(field: pydantic.fields.FieldInfo) -> Traits:
    """Return the traits of a declared field."""
    traits = field.json_schema_extra
    assert isinstance(traits, Traits), "every setting is declared by `setting`"
    return traits


# ---- types: they convert what a YAML file or a flag holds ----


def _read_integer(value: Any) -> Any:
    # pydantic's own conversion would accept True, and its messages are not in our form.
    if isinstance(value, bool | list | dict | tuple) or value is None:
        raise ValueError("must be an integer")
    try:
        # Python reads "50_000" as an integer, and YAML reads 2.0e+3 as a float.
        number = int(value) if isinstance(value, str) else value
        if number != int(number):
            raise ValueError
        return int(number)
    except (ValueError, OverflowError) as error:
        raise ValueError("must be an integer") from error


def _read_number(value: Any) -> Any:
    if isinstance(value, bool | list | dict | tuple) or value is None:
        raise ValueError("must be a number")
    try:
        return float(value)  # YAML 1.1 reads 3e-4 as text, for want of a dot
    except (ValueError, OverflowError) as error:
        raise ValueError("must be a number") from error


def _read_text(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("must be text")
    return value


def _read_bool(value: Any) -> Any:
    # YAML 1.1 reads true, on and yes as booleans; a flag gives text.
    known = {"true": True, "false": False}
    found = value if isinstance(value, bool) else known.get(str(value).lower())
    if found is None:
        raise ValueError("must be true or false")
    return found


def split_list(value: Any) -> Any:
    r"""Return the items of a list, which a flag gives as text with commas; "\," is a comma."""
    parts = value
    if isinstance(value, str):
        parts = [part.replace("\\,", ",") for part in re.split(r"(?<!\\),", value)]
    if not isinstance(parts, list | tuple):
        parts = [parts]
    parts = [part.strip() if isinstance(part, str) else part for part in parts]
    return tuple(part for part in parts if part != "")  # "a.txt," is one item


Bool = Annotated[bool, BeforeValidator(_read_bool)]
Int = Annotated[int, BeforeValidator(_read_integer)]
Float = Annotated[float, BeforeValidator(_read_number)]
if TYPE_CHECKING:  # what readers see: `resolve` fills it in
    DerivedInt = int
else:
    DerivedInt = Int | None
Text = Annotated[str, BeforeValidator(_read_text)]
Ints = Annotated[tuple[Int, ...], BeforeValidator(split_list)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(split_list)]


# ---- nested values ----


def value_at(values: Any, path: str) -> Any:
    """Return the value at a dotted path of nested mappings and lists."""
    for part in path.split("."):
        values = values[int(part) if isinstance(values, list) else part]
    return values


def plain(value: Any) -> Any:
    """Return settings as YAML and JSON hold them: sections as mappings, tuples as lists."""
    # Not `dataclasses.asdict`, which keeps tuples: what is read back from a file holds lists.
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value
