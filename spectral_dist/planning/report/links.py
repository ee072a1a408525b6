"""How the predicted step depends on the links between the devices, as lines and as rows of a table.

A link's rate is what a dry run knows least: it belongs to the machine, and collectives reach a part
of it. Read `link_cases`.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from spectral_dist.planning.hardware import Gpu
from spectral_dist.planning.hlo.collectives import find_collectives, mesh_sizes
from spectral_dist.planning.hlo.parse import parse
from spectral_dist.planning.roofline import rates_of, step_time
from spectral_dist.settings import Config


@dataclass(frozen=True)
class LinkCase:
    """The predicted step if the links were of other rates, in bytes/s.

    Attributes:
      inside: rate from a GPU to others of its host.
      between: rate from a host to others.
      step_seconds: time of a step.
      tokens_per_second: of all devices together.
    """

    inside: float
    between: float
    step_seconds: float
    tokens_per_second: float


# Parts of the described rates. Boxes of PCIe cards report a fifth to nine tenths inside a host.
_SLOWER = ((1.0, 1.0), (0.5, 1.0), (1.0, 0.5), (0.5, 0.5), (0.25, 0.25))


def link_cases(
    text: str, config: Config, gpu: Gpu | None, devices_per_host: int
) -> tuple[LinkCase, ...]:
    """Return how the predicted step depends on the links; none for a single device.

    The arguments and errors are those of `roofline.predict`. The program stays the same: with
    slower links another mesh may be the best.
    """
    devices, data, rates = math.prod(config.mesh.shape), config.data, rates_of(gpu)
    if devices == 1:
        return ()
    program = parse(text)
    collectives = find_collectives(program, mesh_sizes(config), devices_per_host)
    found = []
    for inside, between in _SLOWER:
        if devices == devices_per_host and between != inside:
            continue  # the network carries nothing
        slower = dataclasses.replace(
            rates, inside=rates.inside * inside, between=rates.between * between
        )
        seconds = step_time(program, collectives, slower).seconds
        tokens = data.step_tokens
        found.append(LinkCase(slower.inside, slower.between, seconds, tokens / seconds))
    return tuple(found)


def link_rows(cases: Sequence[LinkCase], hosts: int) -> list[tuple[str, ...]]:
    """Return for each case its rates, the step, the throughput, and its share of the first's."""
    rows = []
    for case in cases:
        rates = [f"{case.inside / 1e9:.3g} GB/s"]
        rates += [f"{case.between / 1e9:.3g} GB/s"] if hosts > 1 else []
        share = case.tokens_per_second / cases[0].tokens_per_second
        speed = f"{case.tokens_per_second:,.0f}"
        rows.append((*rates, f"{case.step_seconds:.3f} s", speed, f"{share:.0%}"))
    return rows


def link_lines(cases: Sequence[LinkCase], hosts: int) -> list[str]:
    """Return a line for each case but the first, which is the prediction itself."""
    lines = []
    for row in link_rows(cases, hosts)[1:]:
        between = f", {row[1]} between hosts" if hosts > 1 else ""
        lines.append(f"at {row[0]} inside a host{between}: {row[-2]} tokens/s ({row[-1]})")
    return lines
