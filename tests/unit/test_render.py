"""Templates: what is printed is escaped, what is missing is an error, and nothing opens a hole."""

import ast
import re
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from spectral_dist.outputs.report.render import SHARED, Table, bold, environment, render

PACKAGE = Path(__file__).parents[2] / "spectral_dist"
TEMPLATES = sorted(PACKAGE.rglob("*.jinja"))
HOSTILE = "<script>alert('x')</script>&\""


def test_a_value_is_escaped_in_every_template_and_markup_is_not() -> None:
    template = environment().from_string("<p title='{{ text }}'>{{ text }}{{ html }}</p>")
    page = template.render(text=HOSTILE, html=Markup("<b>{}</b>").format(HOSTILE))
    assert page.count("<script") == 0
    assert page.count("&lt;script&gt;") == 3
    assert "<b>&lt;" in page
    assert page.count("'") == 2  # no value ends the attribute


def test_a_table_escapes_its_heads_its_cells_and_its_name() -> None:
    module = environment().get_template("table.html.jinja").module
    drawn = module.table(Table(HOSTILE, (HOSTILE, "b"), [(HOSTILE, bold(HOSTILE))]))  # type: ignore[attr-defined]
    assert "<script" not in drawn
    assert drawn.count("&lt;script&gt;") == 4
    assert drawn.count("<b>") == 1


def test_a_value_that_is_missing_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="title"):
        render(SHARED, "base.html.jinja")


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_no_template_turns_escaping_off(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\|\s*safe\b|autoescape|Markup", text)
    assert text.isascii()


def test_markup_is_made_of_literals_alone() -> None:
    made = 0
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "Markup":
                made += 1
                given = [isinstance(each, ast.Constant) for each in node.args]
                assert given == [True], f"{path.name}:{node.lineno}: format values into it"
    assert made > 8
