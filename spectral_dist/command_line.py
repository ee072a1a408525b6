"""The command line: flags over a YAML file over the defaults, and errors as one line.

Every flag is made from the declarations in `config`, so that a setting has one name and one text.
argparse and not a generator of command lines, because every mistake must end in one line that names
the setting. Knows nothing of JAX: `--help` costs milliseconds. Read `load_config` first.
"""

import argparse
import dataclasses
import difflib
import os
import sys
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import yaml

from spectral_dist.config import SETTINGS, Config, from_flat, resolve

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
    values = (read_yaml(Path(path)) if path is not None else {}) | flags
    return resolve(from_flat(values))


def configs_folder() -> Path:
    """The folder of the shipped YAML files, in a checkout or in an installed package."""
    beside = Path(__file__).parent / "configs"
    return beside if beside.is_dir() else Path(__file__).parents[1] / "configs"


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, which by itself would silently keep the last of two equal keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key!r} is given twice")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read flat settings from a YAML file.

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
    for name in values:
        if name not in SETTINGS:
            hint = nearest(str(name), SETTINGS)
            raise ValueError(f"config={str(path)!r}: unknown setting {name!r}{hint}")
    return values


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint at the known name that a misspelt one is nearest to, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


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
    for group in fields(Config):
        kind = typing.cast(Any, group.type)
        section = parser.add_argument_group(group.name, kind.__doc__)
        for f in fields(kind):
            section.add_argument(
                f"--{f.name}", default=argparse.SUPPRESS, metavar=_metavar(f), help=_help(f)
            )
    return vars(parser.read(argv))


def _metavar(declared: dataclasses.Field[Any]) -> str:
    return "|".join(declared.metadata["choices"]) or declared.name.upper()


def _help(declared: dataclasses.Field[Any]) -> str:
    default = declared.default
    text = declared.metadata["help"].replace("%", "%%")
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
