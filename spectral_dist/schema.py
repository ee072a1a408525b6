"""`spectral-dist schema`: the JSON schema of a settings file, for editors.

    spectral-dist schema > spectral_dist.schema.json

and, as the first line of a YAML file:

    # yaml-language-server: $schema=spectral_dist.schema.json
"""

import json
import sys
from collections.abc import Sequence

from spectral_dist.command_line import Parser, run_main


def make_parser() -> Parser:
    """Return the parser of this command's flags."""
    return Parser(
        prog="spectral-dist schema",
        description="Print the JSON schema of a settings file, for editors that know YAML.",
    )


def main(argv: Sequence[str]) -> int:
    """Print the schema; return the exit code."""
    make_parser().read(argv)
    from spectral_dist.settings.schema import json_schema  # not needed for --help

    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    run_main(main)
