"""Sheets of arithmetic problems worked step by step, for the built-in sample text.

Owns the problems; every answer is right by construction, and every line with an equals sign can be
checked by a reader: both sides are plain expressions. It must not know of files (sample.py). Read
`worksheet` first.
"""

from collections.abc import Callable
from fractions import Fraction
from random import Random

_PEOPLE = ("Ada", "Emmy", "Carl", "Sofia", "Leonhard", "Maryam", "Ali", "Grace", "Niels", "Zeynep")
_GOODS = ("apples", "pencils", "books", "tickets", "stamps", "bricks", "bottles", "eggs", "chairs")
_PLACES = ("units", "tens", "hundreds", "thousands", "ten thousands", "hundred thousands")


def _number(rng: Random, most_digits: int) -> int:
    """Draw a number of 2 to most_digits digits, each length as likely as the next."""
    digits = rng.randint(2, most_digits)
    return rng.randint(10 ** (digits - 1), 10**digits - 1)


def _addition(rng: Random) -> list[str]:
    a, b = _number(rng, 5), _number(rng, 5)
    lines = [rng.choice((f"Add {a} and {b}.", f"What is {a} + {b}?", f"Find the sum of {a}, {b}."))]
    carry = 0
    for i in range(max(len(str(a)), len(str(b)))):
        x, y = a // 10**i % 10, b // 10**i % 10
        total = x + y + carry
        carried = f" + {carry}" if carry else ""
        carry = total // 10
        lines.append(
            f"{_PLACES[i]}: {x} + {y}{carried} = {total}; write {total % 10}, carry {carry}"
        )
    lines.append(f"Answer: {a} + {b} = {a + b}")
    return lines


def _subtraction(rng: Random) -> list[str]:
    b, a = sorted((_number(rng, 5), _number(rng, 5)))
    lines = [rng.choice((f"Subtract {b} from {a}.", f"What is {a} - {b}?"))]
    borrow = 0
    for i in range(len(str(a))):
        x, y = a // 10**i % 10 - borrow, b // 10**i % 10
        borrow = int(x < y)
        top = f"borrow 10: {x + 10} - {y} = {x + 10 - y}" if borrow else f"{x} - {y} = {x - y}"
        lines.append(f"{_PLACES[i]}: {top}")
    lines.append(f"Answer: {a} - {b} = {a - b}")
    lines.append(f"Check: {a - b} + {b} = {a}")
    return lines


def _multiplication(rng: Random) -> list[str]:
    a, b = _number(rng, 4), _number(rng, 3)
    lines = [rng.choice((f"Multiply {a} by {b}.", f"What is {a} * {b}?", f"Work out {a} * {b}."))]
    total = 0
    for i, digit in enumerate(reversed(str(b))):
        part = a * int(digit) * 10**i
        lines.append(f"{a} * {int(digit) * 10**i} = {part}")
        if i:
            lines.append(f"{total} + {part} = {total + part}")
        total += part
    lines.append(f"Answer: {a} * {b} = {total}")
    return lines


def _division(rng: Random) -> list[str]:
    a, b = _number(rng, 5), rng.randint(2, 29)
    lines = [rng.choice((f"Divide {a} by {b}.", f"How many times does {b} go into {a}?"))]
    rest = 0
    for digit in str(a):
        current = rest * 10 + int(digit)
        count, rest = divmod(current, b)
        lines.append(f"bring down {digit}: {current} = {b} * {count} + {rest}")
    quotient = a // b
    lines.append(f"Answer: quotient {quotient}, remainder {rest}")
    lines.append(f"Check: {b} * {quotient} + {rest} = {a}")
    return lines


def _fractions(rng: Random) -> list[str]:
    b, d = rng.randint(2, 15), rng.randint(2, 15)
    a, c = rng.randint(1, b), rng.randint(1, d)
    lines = [rng.choice((f"Add {a}/{b} and {c}/{d}.", f"What is {a}/{b} + {c}/{d}?"))]
    bottom = b * d
    lines.append(f"{a}/{b} = {a * d}/{bottom}")
    lines.append(f"{c}/{d} = {c * b}/{bottom}")
    top = a * d + c * b
    lines.append(f"{a * d}/{bottom} + {c * b}/{bottom} = {top}/{bottom}")
    lines.append(f"Answer: {a}/{b} + {c}/{d} = {Fraction(top, bottom)}")
    return lines


def _percentage(rng: Random) -> list[str]:
    percent, whole = rng.randint(1, 19) * 5, rng.randint(2, 200) * 20
    part = percent * whole // 100
    good = rng.choice(_GOODS)
    if rng.random() < 0.5:
        question = f"What is {percent} percent of {whole}?"
    else:
        question = f"A shop has {whole} {good} and sells {percent} percent of them. How many go?"
    return [
        question,
        f"1 percent: {whole} / 100 = {Fraction(whole, 100)}",
        f"{percent} * {whole} = {percent * whole}",
        f"{percent * whole} / 100 = {part}",
        f"Answer: {part}; what is left: {whole} - {part} = {whole - part}",
    ]


def _equation(rng: Random) -> list[str]:
    a, x, b = rng.randint(2, 19), rng.randint(-30, 60), rng.randint(1, 99)
    right = a * x + b
    return [
        rng.choice(("Solve for x:", "Find x:", "Which x makes this true?"))
        + f" {a}x + {b} = {right}",
        f"take {b} from both sides: {right} - {b} = {right - b}, so {a}x = {right - b}",
        f"divide both sides by {a}: {right - b} / {a} = {x}",
        f"Answer: x = {x}",
        f"Check: {a} * {x} + {b} = {right}",
    ]


def _shopping(rng: Random) -> list[str]:
    name, good = rng.choice(_PEOPLE), rng.choice(_GOODS)
    count, price = rng.randint(3, 60), rng.randint(2, 40)
    cost = count * price
    paid = -(-cost // 50) * 50
    return [
        f"{name} buys {count} {good} at {price} lira each and pays with {paid} lira."
        f" How much change does {name} get?",
        f"cost: {count} * {price} = {cost}",
        f"change: {paid} - {cost} = {paid - cost}",
        f"Answer: {paid - cost} lira",
    ]


def _sharing(rng: Random) -> list[str]:
    first, second = rng.sample(_PEOPLE, 2)
    good, people = rng.choice(_GOODS), rng.randint(3, 12)
    a, b = rng.randint(20, 500), rng.randint(20, 500)
    share, rest = divmod(a + b, people)
    return [
        f"{first} has {a} {good} and {second} has {b}. They put them together and share them"
        f" equally among {people} friends. How many does each get, and how many are left?",
        f"together: {a} + {b} = {a + b}",
        f"share: {a + b} = {people} * {share} + {rest}",
        f"Answer: {share} each, {rest} left",
    ]


def _travel(rng: Random) -> list[str]:
    speed, hours, wait = rng.randint(4, 24) * 5, rng.randint(2, 12), rng.randint(1, 3)
    vehicle = rng.choice(("train", "bus", "lorry", "ship"))
    return [
        f"A {vehicle} moves at {speed} km per hour for {hours} hours and then waits {wait} hours."
        " How far does it get, and how long does it take in minutes?",
        f"distance: {speed} * {hours} = {speed * hours}",
        f"time: {hours} + {wait} = {hours + wait}",
        f"minutes: {hours + wait} * 60 = {(hours + wait) * 60}",
        f"Answer: {speed * hours} km in {(hours + wait) * 60} minutes",
    ]


def _sequence(rng: Random) -> list[str]:
    start, step, count = rng.randint(-20, 50), rng.randint(2, 30), rng.randint(5, 12)
    shown = ", ".join(str(start + step * i) for i in range(4))
    term = start + step * (count - 1)
    return [
        f"The sequence {shown}, ... goes on in the same way. What is term {count}?",
        f"difference: {start + step} - {start} = {step}".replace("- -", "+ "),
        f"Answer: {start} + {count - 1} * {step} = {term}",
    ]


_PROBLEMS: dict[str, Callable[[Random], list[str]]] = {
    "addition": _addition,
    "subtraction": _subtraction,
    "multiplication": _multiplication,
    "division": _division,
    "fractions": _fractions,
    "percentages": _percentage,
    "equations": _equation,
    "shopping": _shopping,
    "sharing": _sharing,
    "travel": _travel,
    "sequences": _sequence,
}


def worksheet(rng: Random, size: int) -> str:
    """Write one sheet of numbered problems with worked answers.

    Args:
      rng: decides everything.
      size: about how long the sheet is to be, in characters; the last problem may run over.

    Returns:
      The text, with an empty line between problems and no newline at the end.
    """
    kinds = rng.sample(sorted(_PROBLEMS), rng.randint(1, len(_PROBLEMS)))
    parts = [f"Sheet: {', '.join(kinds)}"]
    length = 0
    while length < size:
        first, *rest = _PROBLEMS[rng.choice(kinds)](rng)
        parts.append("\n".join([f"Problem {len(parts)}. {first}", *rest]))
        length += len(parts[-1]) + 2
    return "\n\n".join(parts)
