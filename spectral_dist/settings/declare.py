"""How a setting is declared: once, with everything that others ask of it.

`setting` gives a field its default, its meaning, its range and its traits; `Traits` are what the
rest of the program asks (may a resumed run change it, does it enter the compiled program, ...), so
that no list of names is kept elsewhere. The types read what YAML files and flags hold. Imports no
JAX. Read `setting`, then `Traits`.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BeforeValidator, ConfigDict, Field

# Unknown names are errors: a misspelt setting must not be lost in silence.
STRICT = ConfigDict(extra="forbid")
LIMIT = 2**31  # above every count, width and rate that makes sense; fits JAX's int32

Resume = Literal["told", "silent", "same"]


@dataclass(frozen=True)
class Traits:
    """What the program asks of a setting beside its value.

    Attributes:
      flag: its name on the command line and at the top of a YAML file; "" stands for the dotted
        path alone.
      daily: whether it is one of the few that `--help` shows first.
      resume: what a resumed run may do with it: change it and be told, change it in silence, or
        nothing, because the trained model depends on it.
      compiled: whether the compiled programs depend on it.
      order: whether the order of the training data depends on it.
      derive: from the other settings to its value, where none is given.
      follows: paths of the settings that `derive` looks at.
    """

    flag: str | None = None
    daily: bool = False
    resume: Resume = "told"
    compiled: bool = False
    order: bool = False
    derive: Callable[[Any], Any] | None = None
    follows: tuple[str, ...] = ()

    def __call__(self, schema: dict[str, Any]) -> None:
        """Add to a field's JSON schema; pydantic calls this."""
        if self.derive is not None:
            schema["x-derived-from"] = list(self.follows)


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
      default: its value where none is given; None stands for a derived one.
      help: what it means, with its unit, in a line or two.
      gt: the value must be above this.
      ge: the value must be at least this.
      lt: the value must be below this; numbers have `LIMIT` where nothing lower is said.
      le: the value must be at most this.
      traits: fields of `Traits`.
    """
    if (gt is not None or ge is not None) and lt is None and le is None:
        lt = LIMIT
    bounds = {"gt": gt, "ge": ge, "lt": lt, "le": le}
    return Field(
        default,
        description=help,
        json_schema_extra=Traits(**traits),
        **{name: bound for name, bound in bounds.items() if bound is not None},
    )


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


# ---- types: what a YAML file or a flag holds, and what it means ----


def _read_integer(value: Any) -> Any:
    if isinstance(value, bool | list | dict | tuple) or value is None:
        raise ValueError("must be an integer")
    try:
        # "50_000" is an integer to Python, and 2e3 a float that YAML gives.
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
        return float(value)  # YAML reads 3e-4 as text
    except (ValueError, OverflowError) as error:
        raise ValueError("must be a number") from error


def _read_text(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("must be text")
    return value


def split_list(value: Any) -> Any:
    """Return the items of a list that a flag may give as text, joined by commas."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        parts = [parts]
    parts = [part.strip() if isinstance(part, str) else part for part in parts]
    return tuple(part for part in parts if part != "")


Int = Annotated[int, BeforeValidator(_read_integer)]
Float = Annotated[float, BeforeValidator(_read_number)]
Text = Annotated[str, BeforeValidator(_read_text)]
Ints = Annotated[tuple[Int, ...], BeforeValidator(split_list)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(split_list)]


# ---- nested values ----


def plain(value: Any) -> Any:
    """Return settings as YAML and JSON hold them: sections as mappings, tuples as lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value
