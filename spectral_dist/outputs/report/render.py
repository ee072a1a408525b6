"""HTML rendering: the jinja environment that escapes every value, and the table.

Owns how values become a page of one file that loads nothing else. Knows nothing of what is on the
page. Read `environment` first.

Every value is escaped where it is printed. A value that is HTML already is a `markupsafe.Markup`.
Only our drawing code makes those, and they escape what is formatted into them.
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
    """A table, for the macro `table` in table.html.jinja.

    Attributes:
      name: what a screen reader calls it.
      heads: the heads of the columns.
      rows: the cells of each row; the first cell is the head of its row.
      words: how many columns, from the left, hold words and not numbers.
    """

    name: str
    heads: Row
    rows: Sequence[Row]
    words: int = 1

    def __post_init__(self) -> None:
        """Check that every row has a cell for each column."""
        assert all(len(row) == len(self.heads) for row in self.rows), f"{self.name}: ragged rows"


def bold(text: str) -> Markup:
    """Return a text as a bold cell."""
    return Markup("<b>{}</b>").format(text)


# Cached: parsing the templates is slower than filling them.
@functools.cache
def environment(folder: Path = SHARED) -> Environment:
    """Return the jinja environment of a folder of templates, the shared templates included."""
    found = Environment(
        loader=FileSystemLoader([folder, SHARED]),
        # By default jinja escapes nothing: a dataset may be called <script>.
        autoescape=True,
        # A missing value is an error: by default it would leave a gap in the page unnoticed.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.globals.update(light=LIGHT, dark=DARK)
    return found


def render(folder: Path, template: str, **values: Any) -> str:
    """Render a page: fill a template of the folder with values."""
    return environment(folder).get_template(template).render(values)
