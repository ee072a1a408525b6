"""The command line: flags over a YAML file over the defaults, and errors as one line.

Every flag is made from the declarations in `config`, so that a setting has one name and one text.
argparse and not a generator of command lines, because every mistake must end in one line that names
the setting. Knows nothing of JAX: `--help` costs milliseconds. Read `load_config` first.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from spectral_dist.settings import (
    LIST_FLAGS,
    SECTIONS,
    SETTINGS,
    Config,
    Setting,
    from_layers,
    resolve,
)
from spectral_dist.settings.files import read_yaml
from spectral_dist.settings.rules import nearest

# Exit codes beside 0, 2 (a user's error) and 130 (Ctrl-C): what a scheduler may start again.
UNSAVED = 74  # through, but the last checkpoint could not be saved: an input/output error
STOPPED = 75  # asked to stop, saved; sysexits.h calls it a temporary failure
LOST = 76  # another process of the run is gone, hung or never came


class Ending(Exception):
    """Ends an entry point with a line for the user and an exit code of its own."""

    def __init__(self, message: str, code: int) -> None:
        """Keep both.

        Args:
          message: one line.
          code: exit code.
        """
        super().__init__(message)
        self.code = code


def load_config(argv: Sequence[str], program: str = "spectral_dist.train") -> Config:
    """Return the configuration that the command line asks for, checked and complete.

    Order, the later wins: the defaults of `config`, the YAML file of `--config`, the flags. Without
    `--config` and without `--data_paths` the file is configs/demo.yaml.

    Raises:
      ValueError: names the setting, its value and the rule it breaks.
    """
    flags = _parse_flags(argv, program)
    path = flags.pop("config", None)
    if path is None and "data_paths" not in flags:
        path = str(configs_folder() / "demo.yaml")
    file = read_yaml(Path(path)) if path is not None else {}
    return resolve(from_layers([file, flags]))


def configs_folder() -> Path:
    """The folder of the shipped YAML files, in a checkout or in an installed package."""
    beside = Path(__file__).parent / "configs"
    return beside if beside.is_dir() else Path(__file__).parents[1] / "configs"


class Parser(argparse.ArgumentParser):
    """argparse, with its errors raised as ValueError: one clear line."""

    def error(self, message: str) -> NoReturn:
        """Raise ValueError with argparse's message."""
        raise ValueError(message)

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse the flags; a hyphen in a flag's name is an underscore: --batch-size.

        Raises:
          ValueError: names the flag, and the nearest one where it is unknown.
        """
        parsed, unknown = self.read_some(argv)
        if unknown:
            flag = unknown[0].partition("=")[0]
            hint = nearest(flag, self._option_string_actions)
            raise ValueError(f"unknown flag {flag!r}{hint}; --help lists every setting")
        return parsed

    def read_some(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Parse the flags that are declared here; return them and the words of the others."""
        return self.parse_known_args([self._spelt(word) for word in argv])

    @staticmethod
    def _spelt(word: str) -> str:
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
        return name + equals + value


def _parse_flags(argv: Sequence[str], program: str) -> dict[str, Any]:
    parser = Parser(
        prog=f"python -m {program}",
        allow_abbrev=False,
        description="Every setting is also a key of a --config file; a flag overrides the file.",
    )
    parser.add_argument(
        "--config", metavar="FILE", default=argparse.SUPPRESS, help="YAML file of these settings"
    )
    lists = parser.add_argument_group("datasets", "The text.")
    for name, text in LIST_FLAGS.items():
        lists.add_argument(f"--{name}", default=argparse.SUPPRESS, metavar=name.upper(), help=text)
    for path in SECTIONS:
        section = parser.add_argument_group(path)
        for setting in SETTINGS.values():
            if setting.section == path:
                _add_flag(section, setting)
    return vars(parser.read(argv))


def _add_flag(section: argparse._ArgumentGroup, setting: Setting) -> None:
    section.add_argument(
        f"--{setting.name}",
        dest=setting.name,
        default=argparse.SUPPRESS,
        metavar="|".join(setting.choices) or setting.name.rpartition(".")[2].upper(),
        help=_help(setting),
    )
    if setting.path != setting.name:  # the dotted path is the same setting
        section.add_argument(
            f"--{setting.path}",
            dest=setting.name,
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )


def _help(setting: Setting) -> str:
    default = setting.field.default
    text = setting.help.replace("%", "%%")
    if default is None or default == ():
        return text
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    return f"{text} (default: {shown})"


def run_main(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run an entry point: a user's error is one line on stderr and exit code 2."""
    try:
        code = main(sys.argv[1:])
    except (ValueError, OSError) as error:
        if os.environ.get("SPECTRAL_DIST_TRACEBACK"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    except Ending as ending:
        asked = ending.code in (STOPPED, 130)
        print(ending if asked else f"error: {ending}", file=sys.stdout if asked else sys.stderr)
        code = ending.code
    except KeyboardInterrupt:  # before training listens to signals, or the second one
        print("error: interrupted; what was saved before stays", file=sys.stderr)
        code = 130
    sys.exit(code)
