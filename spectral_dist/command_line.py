"""What every command has in common: its parser, its exit codes, and errors as one line.

argparse and not a generator of command lines, because every mistake must end in one line that names
the flag. Loads nothing but the standard library: `--help` costs milliseconds. The flags that are
settings are in `flags`. Read `Parser`, then `run_main`.
"""

import argparse
import contextlib
import errno
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

# Exit codes beside 0 and 130 (Ctrl-C). A scheduler may start again what ends with 74, 75 or 76.
USER_ERROR = 2  # what a user can mend: a setting, a text, a folder, too little memory
UNSAVED = 74  # through, but the last checkpoint could not be saved: an input/output error
STOPPED = 75  # asked to stop, saved; sysexits.h calls it a temporary failure
# A device, the network, a disk, or another process of the run that is gone, hung or never came;
# also every error that nobody foresaw.
FAULT = 76
# A disk, a mount or a connection that fails, in place of a wrong path or too little room.
_OF_THE_MACHINE = {
    getattr(errno, name)
    for name in (
        *("EIO", "ENXIO", "ENODEV", "EREMOTEIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "ESHUTDOWN"),
        *("ECONNRESET", "ECONNREFUSED", "ECONNABORTED", "EPIPE", "EHOSTUNREACH", "EHOSTDOWN"),
        *("ENETUNREACH", "ENETDOWN", "ENETRESET", "ENOMEM"),
    )
    if hasattr(errno, name)  # some are Linux's own
}
# C0 and C1 controls, and DEL.
_CONTROLS = dict.fromkeys({*range(32), *range(127, 160)} - {9, 10}, "\N{REPLACEMENT CHARACTER}")
_PACKAGE = os.path.dirname(os.path.abspath(__file__))


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


def error_code(error: BaseException) -> int:
    """Return the exit code that an error ends a program with.

    A user's error is a ValueError that our own code raises, or an OSError of a path or of room.
    Everything else is a fault of the machine, a ValueError from inside a library too: it may say
    anything, and ending a run of many hosts for good because of it would be the worse mistake.
    """
    if isinstance(error, Ending):
        return error.code
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, OSError):
        return FAULT if error.errno in _OF_THE_MACHINE else USER_ERROR
    return USER_ERROR if isinstance(error, ValueError) and _is_ours(error) else FAULT


def _is_ours(error: BaseException) -> bool:
    """Return whether the code that raised an error is ours: the package, or what lies beside it."""
    trace = error.__traceback__
    if trace is None:  # nobody raised it
        return True
    while trace.tb_next is not None:
        trace = trace.tb_next
    file = os.path.abspath(trace.tb_frame.f_code.co_filename)
    return file.startswith((_PACKAGE, os.path.join(os.path.dirname(_PACKAGE), "benchmarks")))


def one_line(error: BaseException) -> str:
    """Return an error's text as one line; with the name of its type where nobody foresaw it."""
    text = printable(" ".join(str(error).split()))
    foreseen = isinstance(error, Ending | OSError | ValueError) and _is_ours(error)
    return text if text and foreseen else f"{type(error).__name__}: {text}".removesuffix(": ")


def printable(text: str) -> str:
    """Return a text that moves no cursor and rings no bell: control characters become U+FFFD.

    Names of files, messages of other processes and what a model writes may hold any of them. Line
    ends and tabs stay; lone surrogates, which no terminal can be sent, become question marks.
    """
    return text.encode("utf-8", "replace").decode("utf-8").translate(_CONTROLS)


def invocation(command: str) -> str:
    """Return how this program's user starts one of its commands, for a hint that can be pasted.

    Args:
      command: a name in `__main__.COMMANDS`.
    """
    if Path(sys.argv[0]).name == "spectral-dist":
        return f"{sys.argv[0]} {command}"
    # The interpreter by the name that finds it from here: an environment may not be active.
    python = Path(sys.executable)
    if shutil.which(python.name) == sys.executable:
        shown = python.name
    else:
        shown = str(python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python)
    return f"{shlex.quote(shown)} -m spectral_dist.{command}"


def say(text: str) -> None:
    """Print a line; do nothing where nobody reads any more, as after `| head`."""
    # What was begun is finished: a build of an hour must not be lost for a closed pipe.
    with contextlib.suppress(BrokenPipeError):
        print(printable(text), flush=True)


def run_folder(text: str) -> Path:
    """Return the folder of a run, given its path or its name in checkpoints/; may not exist."""
    # A plain word is a name, even if a folder here has it: as with --run_name.
    named = Path("checkpoints") / text
    return named if os.sep not in text and named.is_dir() else Path(text)


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

    def add_run_folder(self, *, several: bool = False) -> None:
        """Add the argument of a command that reads a run's folder; a list, if it takes several."""
        self.add_argument(
            "folder",
            type=run_folder,
            nargs="+" if several else None,
            metavar="RUN",
            help="the folder of a run, or the name of a run in checkpoints/",
        )

    def add_checkpoint(self) -> None:
        """Add the flags of a command that loads a trained model: which run, which checkpoint."""
        self.add_argument("--run_name", required=True, help="run to load")
        self.add_argument(
            "--checkpoint_dir",
            default="checkpoints",
            help="folder of the runs (default: checkpoints)",
        )
        self.add_argument(
            "--checkpoint",
            default="checkpoint_0",
            help="checkpoint_0 (latest), checkpoint_1, best (by validation) or a step",
        )

    @staticmethod
    def _spelt(word: str) -> str:
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
        return name + equals + value


def run_main(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run an entry point: every error is one line on stderr, and the exit code says of what kind.

    With SPECTRAL_DIST_TRACEBACK set, an error shows where it comes from.
    """
    try:
        code = main(sys.argv[1:])
    except Ending as ending:
        asked = ending.code in (STOPPED, 130)
        text = printable(str(ending))
        print(text if asked else f"error: {text}", file=sys.stdout if asked else sys.stderr)
        code = ending.code
    except KeyboardInterrupt:  # before training listens to signals, or the second one
        print("error: interrupted; what was saved before stays", file=sys.stderr)
        code = 130
    except Exception as error:
        if os.environ.get("SPECTRAL_DIST_TRACEBACK"):
            raise
        code = error_code(error)
        unforeseen = code == FAULT and not isinstance(error, OSError)
        hint = " (SPECTRAL_DIST_TRACEBACK=1 shows where)" if unforeseen else ""
        print(f"error: {one_line(error)}{hint}", file=sys.stderr)
    with contextlib.suppress(OSError):  # nobody reads any more
        sys.stdout.flush()
    with contextlib.suppress(ValueError):  # signals can be set in the main thread alone
        # The exit code stands: a Ctrl-C while Python shuts down must not turn into a traceback.
        signal.signal(signal.SIGINT, lambda *_: os._exit(code))
    sys.exit(code)
