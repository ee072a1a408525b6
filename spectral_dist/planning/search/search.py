"""Search for the best mesh: every way to run a configuration on a number of devices, ranked.

Owns the branch and bound that compiles few of the candidates: 18 of 567 for level 3 on 32 GPUs with
one setting of unroll. A candidate is left out if a lower bound shows that it does not fit or is not
among the fastest. The bounds on time rise with what is compiled: first, for each remat and unroll,
a reference that bounds the kernels of the others. Read `search`; candidates.py says what a
candidate is.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from spectral_dist.planning.compile import check_hosts
from spectral_dist.planning.memory import GIB, runtime_lines
from spectral_dist.planning.roofline import rates_of
from spectral_dist.planning.search.bounds import (
    Shapes,
    TimeBound,
    find_shapes,
    kernel_floor,
    memory_bound,
    time_bound,
)
from spectral_dist.planning.search.candidates import (
    REMAT,
    Candidate,
    Kind,
    blank,
    chosen_config,
    kind_of,
    settings_of,
)
from spectral_dist.planning.search.workers import Cluster, Failure, Found, Outcome, Task
from spectral_dist.settings import Config

BEST = 3  # no candidate that is left out is faster than the first three
# Up to this share of a GPU's memory XLA compiles as if it were unlimited. Near 0.8 x 0.95 of it XLA
# schedules for less memory, and above that it rematerializes what activation checkpointing keeps
# (GetSchedulerMemoryLimit in xla/service/gpu/gpu_hlo_schedule.cc). At 0.7 the search took
# 64 x 1 sequences for level 1 on one L4, which is not the best split (docs/log.md).
FREE_SHARE = 0.6
# XLA fuses each candidate differently: with all of them compiled, the kernels of the reference took
# up to 5.5% more than those of a candidate that they should bound (docs/log.md).
TRUST = 0.95


class Compiling(Protocol):
    """What the search needs of `workers.Workers`, so that a test can compile nothing."""

    count: int

    @property
    def busy(self) -> int:
        """Number of tasks that are running."""
        ...

    def recall(self, task: Task) -> Found | None:
        """Return a cached result, or None."""
        ...

    def start(self, task: Task) -> None:
        """Start compiling, without waiting for it."""
        ...

    def wait(self) -> tuple[Task, Found]:
        """Wait for the next task that finishes; return it and its result."""
        ...


@dataclass
class _Option:
    """A valid candidate with its bounds and, once it is compiled, its result.

    Attributes:
      config: the run with the candidate's settings.
      room: bytes of a device for the programs; None where no limit is known.
      needs: lower bound on its peak memory, in bytes.
      bound: lower bound on the time of a step.
      found: the result of compiling it.
    """

    config: Config
    room: int | None
    needs: int
    bound: TimeBound
    found: Found | None = None

    @property
    def fits(self) -> bool:
        """Whether it was compiled and fits."""
        return isinstance(self.found, Outcome) and self.spare(self.found.peak) >= 0

    def spare(self, peak: int) -> int:
        """Return the bytes left beside a peak; 0 where no limit is known."""
        return 0 if self.room is None else self.room - peak


def search(
    config: Config,
    cluster: Cluster,
    compiling: Compiling,
    *,
    ruled_out: Mapping[Config, str],
    say: Callable[[str], None],
) -> list[Candidate]:
    """Return every candidate: the ranked ones, fastest first, then the others with a reason.

    The first BEST are the fastest of all by the model, as far as the bounds hold; after them come
    the others that were compiled and fit. Candidates that do not fit are sorted by what is missing.

    Args:
      config: the run; its own mesh, remat, unroll and split of the batch are ignored.
      cluster: the devices.
      compiling: compiles a candidate's training step.
      ruled_out: candidates of which another program does not fit, each with the reason.
      say: called with each line of progress.

    Raises:
      ValueError: if no candidate is valid.
    """
    options, refused = _enumerate(config, cluster)
    if not options:
        raise ValueError(f"mesh=auto: nothing can run on {cluster.text}: {refused[0].reason}")
    tree = _Tree(options, ruled_out, find_shapes(config), cluster)
    # First the cache: what it holds raises the bounds before anything is compiled.
    for task in tree.all_tasks():
        tree.learn(task, compiling.recall(task))
    running: set[Task] = set()
    compiled = 0
    while True:
        # Each result may rule out tasks that were waiting, so they are listed anew every time.
        waiting = tree.tasks(running)
        for task in waiting[: compiling.count - len(running)]:
            running.add(task)
            compiling.start(task)
        if not running:  # nothing is undecided either: it would have been started
            return tree.ranking() + refused
        task, found = compiling.wait()
        running.remove(task)
        tree.learn(task, found)
        compiled += 1
        say(f"compiled {compiled}, {_result_line(task, found)}; at most {len(waiting)} more")


def _result_line(task: Task, found: Found) -> str:
    flags = blank(task.config).flags
    if isinstance(found, Failure):
        return f"{flags}: {found.reason}"
    note = " (unlimited memory, for comparison)" if task.unlimited else ""
    return f"{flags}: {found.step_seconds:.3f} s a step, {found.peak / GIB:.2f} GiB{note}"


class _Tree:
    """The state of the branch and bound: every valid candidate, its bounds and its result."""

    def __init__(
        self,
        options: Sequence[_Option],
        ruled_out: Mapping[Config, str],
        shapes: Shapes,
        cluster: Cluster,
    ) -> None:
        """Start with nothing compiled; the arguments are those of `search`."""
        self._options, self._ruled_out, self._shapes = options, ruled_out, shapes
        self._rates = rates_of(cluster.gpu)
        self._freely = math.inf if cluster.gpu is None else FREE_SHARE * cluster.gpu.memory_bytes
        self._by_config = {option.config: option for option in options}
        kinds = dict.fromkeys(kind_of(option.config) for option in options)
        self._references = {kind: _reference(options, kind) for kind in kinds}
        self._measured: dict[Kind, Found | None] = {}

    def all_tasks(self) -> list[Task]:
        """Return every possible task, the references first."""
        references = [Task(config, True) for config in self._references.values()]
        return references + [Task(option.config, False) for option in self._options]

    def tasks(self, running: Collection[Task]) -> list[Task]:
        """Return what to compile next, the most promising first, without what is running."""
        bounds, limit = self._bounds(), self._limit()
        undecided = [
            (bounds[i], i)
            for i, option in enumerate(self._options)
            if option.found is None and not self._reason(option, bounds[i], limit)
        ]
        wanted: dict[Task, None] = {}  # in order, and a reference only once
        for _, i in sorted(undecided):
            config = self._options[i].config
            kind = kind_of(config)
            # Where the reference failed, its candidates go on with their own bounds alone.
            reference = Task(self._references[kind], True)
            wanted[Task(config, False) if self._measured.get(kind) else reference] = None
        return [task for task in wanted if task not in running]

    def learn(self, task: Task, found: Found | None) -> None:
        """Record the result of a task."""
        if task.unlimited:
            self._measured[kind_of(task.config)] = found
            # A small reference is the same program with the real limit: it counts as a candidate.
            if not isinstance(found, Outcome) or found.peak > self._freely:
                return
        if found is not None:
            self._by_config[task.config].found = found

    def ranking(self) -> list[Candidate]:
        """Return every candidate, ranked or with its reason."""
        bounds, limit = self._bounds(), self._limit()
        rows = []  # ranked; compiled and too large; too large by the bound; too slow
        for option, bound in zip(self._options, bounds, strict=True):
            candidate = _candidate(option, self._reason(option, bound, limit))
            if not candidate.reason:
                order = (0, candidate.step_seconds or 0.0, -(candidate.spare or 0))
            elif candidate.spare is not None and candidate.spare < 0:
                order = (1, -candidate.spare, 0)
            elif option.room is not None and option.needs > option.room:
                order = (2, option.needs - option.room, 0)
            else:
                order = (3, bound, 0)
            rows.append((order, candidate))
        return [candidate for _, candidate in sorted(rows, key=lambda row: row[0])]

    def _reason(self, option: _Option, bound: float, limit: float) -> str:
        """Return why a candidate is left out; empty if it is ranked or still undecided."""
        if option.config in self._ruled_out:
            return self._ruled_out[option.config]
        if isinstance(option.found, Failure):
            return option.found.reason
        if option.found is not None:
            over = -option.spare(option.found.peak)
            return f"{over / GIB:.2f} GiB too much" if over > 0 else ""
        if option.spare(option.needs) < 0:
            return f"needs at least {option.needs / GIB:.2f} GiB"
        for other in self._options:
            if not other.fits and isinstance(other.found, Outcome) and _keeps_less(other, option):
                return f"keeps more than {blank(other.config).flags}, which does not fit"
        if bound > limit:
            return f"takes at least {bound:.3f} s a step"
        return ""

    def _limit(self) -> float:
        """Return the step time of the last of the BEST so far: slower candidates are left out."""
        times = sorted(
            option.found.step_seconds
            for option in self._options
            if isinstance(option.found, Outcome)
            and option.fits
            and option.config not in self._ruled_out
        )
        return times[BEST - 1] if len(times) >= BEST else math.inf

    def _bounds(self) -> list[float]:
        """Return each candidate's lower bound on the time of a step, given all results so far."""
        known = [o.found for o in self._options if isinstance(o.found, Outcome)]
        known += [found for found in self._measured.values() if isinstance(found, Outcome)]
        # Assumed: no candidate hides more of its communication than the best one compiled so far.
        exposed = min((f.exposed_share for f in known), default=0.0)
        return [self._raised(option).seconds(exposed) for option in self._options]

    def _raised(self, option: _Option) -> TimeBound:
        """Return a candidate's bound, raised by the kernels of its reference."""
        kind = kind_of(option.config)
        measured, bound = self._measured.get(kind), option.bound
        if not isinstance(measured, Outcome):
            return bound
        # References are compiled for unlimited memory. Short of memory XLA recomputes on its own,
        # so that `dots` took 7.77 s of kernels with 4 sequences a device, and 7.08 s with 2: no
        # bound.
        reference = self._references[kind]
        floor = kernel_floor(
            measured.kernel_seconds, reference, option.config, self._shapes, self._rates
        )
        return dataclasses.replace(bound, kernel_seconds=max(bound.kernel_seconds, TRUST * floor))


def _reference(options: Sequence[_Option], kind: Kind) -> Config:
    """Return the candidate that bounds most others: least tensor, least gradient accumulation."""
    same = [option.config for option in options if kind_of(option.config) == kind]
    return min(same, key=lambda c: (c.mesh.shape[2], c.data.accum_steps, c.mesh.shape[0]))


def _keeps_less(less: _Option, more: _Option) -> bool:
    """Whether one candidate surely needs no more memory than another."""
    # Assumed, not proved: on one mesh, with no larger micro-batches and no fewer recomputations.
    a, b = less.config, more.config
    return (
        a.mesh == b.mesh
        and a.data.batch_size <= b.data.batch_size
        and a.model.unroll == b.model.unroll
        and REMAT.index(a.model.remat) >= REMAT.index(b.model.remat)
    )


def _candidate(option: _Option, reason: str) -> Candidate:
    bare, found = dataclasses.replace(blank(option.config), reason=reason), option.found
    if not isinstance(found, Outcome):
        return bare
    return dataclasses.replace(
        bare,
        peak=found.peak,
        spare=None if option.room is None else option.room - found.peak,
        step_seconds=found.step_seconds,
        tokens_per_second=found.tokens_per_second,
    )


def _enumerate(config: Config, cluster: Cluster) -> tuple[list[_Option], list[Candidate]]:
    """Return the valid candidates, and the others with the rule that they break."""
    shapes, rates = find_shapes(config), rates_of(cluster.gpu)
    options, refused = [], []
    for settings in settings_of(config, cluster.count):
        bare = Candidate(*settings, None, None, None, None, "")
        try:
            changed = chosen_config(config, bare)
            check_hosts(changed.mesh.shape, cluster.per_host)
            space = room(changed, cluster)
            needs = 0 if space is None else memory_bound(changed, shapes)
        except ValueError as error:
            refused.append(dataclasses.replace(bare, reason=str(error)))
            continue
        bound = time_bound(changed, shapes, rates, cluster.per_host)
        options.append(_Option(changed, space, needs, bound))
    return options, refused


def room(config: Config, cluster: Cluster) -> int | None:
    """Return the bytes of a device that a run's programs may take; None where no limit is known."""
    # JAX's pool leaves out what the runtime takes; a GPU's memory includes it.
    if cluster.usable is None or cluster.gpu is None or cluster.pool:
        return cluster.usable
    return cluster.usable - sum(line.bytes for line in runtime_lines(cluster.gpu, config))
