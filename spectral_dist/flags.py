"""Command-line flags for the settings; they override a YAML file, which overrides the defaults.

Every flag is generated from the declaration of its setting, so that name and help text exist once.
Imports no JAX. Read `load_config`.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from spectral_dist.command_line import Parser
from spectral_dist.settings import (
    LIST_FLAGS,
    LISTS,
    SECTIONS,
    SETTINGS,
    Config,
    Setting,
    from_layers,
    resolve,
)
from spectral_dist.settings.config import section_model
from spectral_dist.settings.files import read_yaml, to_yaml

# A flag that reaches into a list, such as --phases.2.weights.turkish. There is one for every item
# and dataset of a run, so they cannot be declared beforehand.
_IN_A_LIST = re.compile(rf"--(?:{'|'.join(LISTS)})\.\d+\.[\w.-]+")


def load_config(argv: Sequence[str], program: str = "spectral_dist.train") -> Config:
    """Parse the command line; return the settings, checked and complete.

    Flags override the YAML file of `--config`, which overrides the defaults. Without `--config`
    and without a dataset, the file is configs/demo.yaml. `--print_config` prints the settings and
    exits.

    Raises:
      ValueError: names the setting, its value and the rule it breaks.
    """
    flags = vars(make_parser(program, _list_flags(argv)).read(argv))
    path, printed = flags.pop("config", None), flags.pop("print_config")
    # Naming your own text means your own run: the demo's tiny model must not come with it.
    if path is None and not any(name.startswith(("data_paths", "datasets")) for name in flags):
        path = configs_folder() / "demo.yaml"
    file = read_yaml(find_config(path)) if path is not None else {}
    config = resolve(from_layers([file, flags]))
    if printed:
        sys.stdout.write(to_yaml(config))
        raise SystemExit(0)
    return config


def configs_folder() -> Path:
    """The folder of the shipped YAML files, in a checkout or in an installed package."""
    beside = Path(__file__).parent / "configs"  # where the wheel puts them
    return beside if beside.is_dir() else Path(__file__).parents[1] / "configs"


def find_config(name: str | PathLike[str]) -> Path:
    """Return the settings file of a name: a path, or a shipped preset such as level1.

    Raises:
      ValueError: if there is neither; lists the presets.
    """
    path = Path(os.path.expanduser(name))
    presets = {file.stem: file for file in sorted(configs_folder().glob("*.yaml"))}
    # The shipped file under its path in a checkout, too, from wherever a wheel is used.
    shipped = presets.get(path.stem if path.parent in (Path(), Path("configs")) else "")
    if path.exists() or (shipped is None and path.suffix):
        return path  # one that is not there is named by who reads it
    if shipped is None:
        raise ValueError(
            f"config={os.fspath(name)!r}: no such file, and no preset; there are"
            f" {', '.join(presets)}"
        )
    return shipped


def _list_flags(argv: Sequence[str]) -> list[str]:
    """Return the flags that reach into a list, such as --phases.2.weights.turkish."""
    words = [word.partition("=")[0] for word in argv]
    return [word for word in dict.fromkeys(words) if _IN_A_LIST.fullmatch(word)]


def make_parser(program: str = "spectral_dist.train", list_flags: Sequence[str] = ()) -> Parser:
    """Return the argument parser of all settings: first those of daily use, then by section.

    Args:
      program: the module, for the usage line.
      list_flags: further flags, which reach into lists.
    """
    parser = Parser(
        prog=f"python -m {program}",
        usage="%(prog)s [--config FILE] [--SETTING VALUE ...]",
        allow_abbrev=False,  # an abbreviation could mean another setting in a later version
        argument_default=argparse.SUPPRESS,  # a flag that is not given must not hide the file's
        description="Every setting is also a key of a --config file; a flag overrides the file."
        " A setting in a section may be named by its path, too: --mixers.spectral.num_poles 32.",
    )
    daily = parser.add_argument_group("daily use")
    daily.add_argument(
        "--config", metavar="FILE", help="YAML file of these settings, or a preset such as level1"
    )
    for name, text in LIST_FLAGS.items():
        daily.add_argument(f"--{name}", metavar=name.upper(), help=text)
    for setting in SETTINGS.values():
        if setting.traits.daily:
            _add_flag(daily, setting)
    for path in SECTIONS:
        here = [setting for setting in SETTINGS.values() if setting.section == path]
        text = "Which optimizer, and its settings." if path == "optimizer" else None
        # Elsewhere the first line of the section's docstring is its help.
        text = text or (section_model(here[0]).__doc__ or "").partition("\n")[0]
        section = parser.add_argument_group(path, text)
        for setting in here:
            if not setting.traits.daily:
                _add_flag(section, setting)
    for flag in list_flags:
        parser.add_argument(flag, help=argparse.SUPPRESS, dest=flag.removeprefix("--"))
    others = parser.add_argument_group("others")
    others.add_argument(
        "--print_config",
        action="store_true",
        default=False,
        help="print every setting with its meaning, as a YAML file, and exit",
    )
    return parser


def _add_flag(section: argparse._ArgumentGroup, setting: Setting) -> None:
    # The name alone turns a switch on.
    switch = {"nargs": "?", "const": "true"} if setting.field.annotation is bool else {}
    metavar = "|".join(setting.choices) or setting.name.rpartition(".")[2].upper()
    given: dict[str, Any] = {"dest": setting.name, "metavar": metavar, **switch}
    section.add_argument(f"--{setting.name}", help=_help(setting), **given)
    if setting.path != setting.name:  # the dotted path works too, but --help lists each once
        section.add_argument(f"--{setting.path}", help=argparse.SUPPRESS, **given)


def _help(setting: Setting) -> str:
    default = setting.field.default
    text = setting.help.replace("%", "%%")  # argparse formats help texts
    if setting.kinds:
        text = f"{', '.join(setting.kinds)}: {text}"
    if default is None or default == ():
        return text
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    shown = str(shown).lower() if isinstance(shown, bool) else shown
    return f"{text} (default: {shown})"
