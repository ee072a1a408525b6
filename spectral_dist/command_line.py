"""What every command has in common: its parser, its exit codes, and errors as one line.

argparse and not a generator of command lines, because every mistake must end in one line that names
the flag. Loads nothing but the standard library: `--help` costs milliseconds. The flags that are
settings are in `flags`. Read `Parser`, then `run_main`.
"""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

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
            from spectral_dist.settings.hints import hint  # nobody else pays for it

            flag = unknown[0].partition("=")[0]
            known = [name.lstrip("-") for name in self._option_string_actions]
            text = hint(flag.lstrip("-"), known, prefix="--") if flag.startswith("--") else ""
            raise ValueError(f"unknown flag {flag!r}{text}; --help lists every one")
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
    with contextlib.suppress(OSError):  # nobody reads any more
        sys.stdout.flush()
    with contextlib.suppress(ValueError):  # signals can be set in the main thread alone
        # The exit code stands: a Ctrl-C while Python shuts down must not turn into a traceback.
        signal.signal(signal.SIGINT, lambda *_: os._exit(code))
    sys.exit(code)
