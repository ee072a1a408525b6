"""The settings on the command line: flags over a YAML file over the defaults.

Every flag is made from the declaration of its setting, so that a setting has one name and one text.
Knows nothing of JAX. Read `load_config`.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

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

_IN_A_LIST = re.compile(rf"--(?:{'|'.join(LISTS)})\.\d+\.[\w.-]+")


def load_config(argv: Sequence[str], program: str = "spectral_dist.train") -> Config:
    """Return the settings that the command line asks for, checked and complete.

    Order, the later wins: the defaults, the YAML file of `--config`, the flags. Without `--config`
    and without text the file is configs/demo.yaml. `--print_config` prints them and ends the
    program.

    Raises:
      ValueError: names the setting, its value and the rule it breaks.
    """
    flags = vars(make_parser(program, _list_flags(argv)).read(argv))
    path, printed = flags.pop("config", None), flags.pop("print_config")
    if path is None and not any(name.startswith(("data_paths", "datasets")) for name in flags):
        path = str(configs_folder() / "demo.yaml")
    file = read_yaml(Path(path)) if path is not None else {}
    config = resolve(from_layers([file, flags]))
    if printed:
        sys.stdout.write(to_yaml(config))
        raise SystemExit(0)
    return config


def configs_folder() -> Path:
    """The folder of the shipped YAML files, in a checkout or in an installed package."""
    beside = Path(__file__).parent / "configs"
    return beside if beside.is_dir() else Path(__file__).parents[1] / "configs"


def _list_flags(argv: Sequence[str]) -> list[str]:
    """Return the flags that reach into a list, such as --phases.2.weights.turkish."""
    words = [word.partition("=")[0] for word in argv]
    return [word for word in dict.fromkeys(words) if _IN_A_LIST.fullmatch(word)]


def make_parser(program: str = "spectral_dist.train", list_flags: Sequence[str] = ()) -> Parser:
    """Return the parser of all settings: those of daily use first, then by section.

    Args:
      program: what it is the command line of.
      list_flags: further ones, which reach into lists.
    """
    parser = Parser(
        prog=f"python -m {program}",
        usage="%(prog)s [--config FILE] [--SETTING VALUE ...]",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        description="Every setting is also a key of a --config file; a flag overrides the file."
        " A setting in a section may be named by its path, too: --mixers.spectral.num_poles 32.",
    )
    daily = parser.add_argument_group("daily use")
    daily.add_argument("--config", metavar="FILE", help="YAML file of these settings")
    for name, text in LIST_FLAGS.items():
        daily.add_argument(f"--{name}", metavar=name.upper(), help=text)
    for setting in SETTINGS.values():
        if setting.traits.daily:
            _add_flag(daily, setting)
    for path in SECTIONS:
        here = [setting for setting in SETTINGS.values() if setting.section == path]
        text = "Which optimizer, and its settings." if path == "optimizer" else None
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
        help="print every setting as a YAML file, with what it means, and end",
    )
    return parser


def _add_flag(section: argparse._ArgumentGroup, setting: Setting) -> None:
    section.add_argument(
        f"--{setting.name}",
        dest=setting.name,
        metavar="|".join(setting.choices) or setting.name.rpartition(".")[2].upper(),
        help=_help(setting),
    )
    if setting.path != setting.name:  # the dotted path is the same setting
        section.add_argument(f"--{setting.path}", dest=setting.name, help=argparse.SUPPRESS)


def _help(setting: Setting) -> str:
    default = setting.field.default
    text = setting.help.replace("%", "%%")
    if setting.kinds:
        text = f"{', '.join(setting.kinds)}: {text}"
    if default is None or default == ():
        return text
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    return f"{text} (default: {shown})"
