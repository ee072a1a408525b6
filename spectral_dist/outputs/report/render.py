"""HTML pages from templates: the environment that escapes, and the table.

Owns how values become a page, and that the page is one file which needs nothing from elsewhere.
Knows nothing of what is on it. Read `environment` first.

Every value is escaped where it is printed. What is HTML already is a `markupsafe.Markup`, which
only our drawing code makes, and which escapes in turn what is formatted into it.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from spectral_dist.outputs.report.scales import DARK, LIGHT

SHARED = Path(__file__).parent / "templates"

Row = Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table, for the macro of that name in table.html.jinja.

    Attributes:
      name: what a screen reader calls it.
      heads: of the columns.
      rows: cells; the first one heads its row.
      words: how many columns, from the left, hold words and not numbers.
    """

    name: str
    heads: Row
    rows: Sequence[Row]
    words: int = 1

    def __post_init__(self) -> None:
        """Refuse what would be drawn askew."""
        assert all(len(row) == len(self.heads) for row in self.rows), f"{self.name}: ragged rows"


def bold(text: str) -> Markup:
    """Return a text as a bold cell."""
    return Markup("<b>{}</b>").format(text)


@functools.cache
def environment(folder: Path = SHARED) -> Environment:
    """Return where the templates of a folder, and the shared ones, are found and filled.

    Escapes every value in every template, whatever its file is called. A name that a template asks
    for and was not given is an error: silence would leave a hole in the page.
    """
    found = Environment(
        loader=FileSystemLoader([folder, SHARED]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.globals.update(light=LIGHT, dark=DARK)
    return found


def render(folder: Path, template: str, **values: Any) -> str:
    """Return a page: a template of the folder, filled with values."""
    return environment(folder).get_template(template).render(values)
