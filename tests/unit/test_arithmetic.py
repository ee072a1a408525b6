"""The worked problems: every line with an equals sign is checked again from its text."""

import ast
import re
from fractions import Fraction
from random import Random

from spectral_dist.sample_text.arithmetic import _PROBLEMS, worksheet

_SIDE = r"-?\d[\d /*+-]*"
_STATEMENT = re.compile(rf"({_SIDE})=\s*({_SIDE})")


def _value(expression: str) -> Fraction:
    """Evaluate + - * / on whole numbers exactly."""

    def walk(node: ast.AST) -> Fraction:
        if isinstance(node, ast.BinOp):
            left, right = walk(node.left), walk(node.right)
            if isinstance(node.op, ast.Add):
                return left + right
            if isinstance(node.op, ast.Sub):
                return left - right
            if isinstance(node.op, ast.Mult):
                return left * right
            assert isinstance(node.op, ast.Div)
            return left / right
        if isinstance(node, ast.UnaryOp):
            assert isinstance(node.op, ast.USub)
            return -walk(node.operand)
        assert isinstance(node, ast.Constant)
        assert isinstance(node.value, int)
        return Fraction(node.value)

    return walk(ast.parse(expression.strip(), mode="eval").body)


def _statements(text: str) -> list[tuple[str, str]]:
    """Return both sides of each equation between plain numbers."""
    plain = re.sub(r"x \+ \d+ = -?\d+", "", text)  # an equation in x is checked on its own
    return [(m[1], m[2]) for m in _STATEMENT.finditer(plain)]


def test_every_equation_is_true() -> None:
    """No sheet states a wrong sum, product, quotient or check."""
    checked = 0
    for seed in range(40):
        for left, right in _statements(worksheet(Random(seed), 6000)):
            assert _value(left) == _value(right), f"{left} = {right}"
            checked += 1
    assert checked > 4000


def test_the_check_sees_a_wrong_answer() -> None:
    """The parser above really reads both sides."""
    ((left, right),) = _statements("Answer: 12 + 30 = 43")
    assert _value(left) != _value(right)


def test_equations_are_solved_and_division_leaves_a_small_remainder() -> None:
    """The answer for x fits the question, and a remainder is below the divisor."""
    rng = Random(3)
    for _ in range(200):
        lines = _PROBLEMS["equations"](rng)
        ((a, b, right),) = re.findall(r"(\d+)x \+ (\d+) = (-?\d+)", lines[0])
        x = int(lines[3].split("=")[1])
        assert int(a) * x + int(b) == int(right)
        lines = _PROBLEMS["division"](rng)
        divisor, _, rest, _ = map(int, re.findall(r"\d+", lines[-1]))
        assert lines[-2].endswith(f"remainder {rest}")
        assert str(divisor) in lines[0]
        assert 0 <= rest < divisor


def test_the_columns_spell_the_answer() -> None:
    """The digits written in long addition and subtraction, and the last carry, are the answer."""
    rng = Random(4)
    for _ in range(200):
        *columns, answer = _PROBLEMS["addition"](rng)[1:]
        written, carries = zip(
            *(re.findall(r"write (\d), carry (\d)", line)[0] for line in columns), strict=True
        )
        assert int(carries[-1] + "".join(reversed(written))) == int(answer.split("=")[1])
        *columns, answer, _ = _PROBLEMS["subtraction"](rng)[1:]
        digits = [line.split("= ")[1] for line in columns]
        assert int("".join(reversed(digits))) == int(answer.split("=")[1])


def test_each_kind_of_problem_states_an_answer() -> None:
    """A problem is a question first and has one line with its answer."""
    for name, problem in _PROBLEMS.items():
        lines = problem(Random(1))
        assert sum(line.startswith("Answer") for line in lines) == 1, name
        assert not lines[0].startswith("Answer")


def test_a_sheet_is_as_long_as_asked_and_depends_on_its_numbers_alone() -> None:
    """Size and repeatability."""
    assert 9000 <= len(worksheet(Random(1), 9000)) < 11000
    assert worksheet(Random(7), 3000) == worksheet(Random(7), 3000)
    assert worksheet(Random(7), 3000) != worksheet(Random(8), 3000)
