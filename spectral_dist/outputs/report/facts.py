"""What is on record of a run beside its curves: its starts, its settings, what it has used up.

Reads the files of a run folder, and nothing of a training. Read `Facts`.
"""

import contextlib
import datetime
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from spectral_dist.command_line import FAULT, STOPPED, USER_ERROR
from spectral_dist.data.phases import shares_of, stretches
from spectral_dist.outputs.jsonl import read_metrics
from spectral_dist.outputs.report.render import Table
from spectral_dist.outputs.starts import STARTS, read_starts
from spectral_dist.settings import SETTINGS, Config, from_flat, resolve
from spectral_dist.settings.files import read_yaml
from spectral_dist.training.metrics import Record

SAMPLES = "samples.jsonl"
_ENDS = {0: "complete", USER_ERROR: "a mistake", STOPPED: "stopped", FAULT: "a fault"}


@dataclass(frozen=True)
class Facts:
    """A run folder as it lies on the disk.

    Attributes:
      folder: the run folder.
      records: of its metrics.jsonl.
    """

    folder: Path
    records: Sequence[Record]

    @classmethod
    def read(cls, folder: Path) -> "Facts":
        """Read a run folder.

        Raises:
          ValueError: if it has no readable metrics.jsonl.
        """
        return cls(folder, read_metrics(folder / "metrics.jsonl"))

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.resolve().name

    @cached_property
    def starts(self) -> list[dict[str, Any]]:
        """Of starts.jsonl, each with its `end` if it has one."""
        return read_starts(self.folder / STARTS)

    @cached_property
    def settings_text(self) -> str:
        """config.yaml, "" without one: somebody may have copied the metrics alone."""
        path = self.folder / "config.yaml"
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    @cached_property
    def config(self) -> Config | None:
        """The settings; None if there are none, or an earlier version's cannot be read."""
        with contextlib.suppress(ValueError, OSError):
            return resolve(from_flat(read_yaml(self.folder / "config.yaml")))
        return None

    @property
    def step(self) -> int:
        """The last step on record."""
        return max((record.step for record in self.records), default=0)

    def last(self, metric: str) -> float | None:
        """Return the last value of a metric."""
        having = (r for r in reversed(self.records) if metric in r.metrics)
        return next((record.metrics[metric] for record in having), None)

    def best(self, metric: str) -> float | None:
        """Return the lowest finite value of a metric."""
        values = [r.metrics[metric] for r in self.records if metric in r.metrics]
        return min(filter(math.isfinite, values), default=None)

    @property
    def state(self) -> str:
        """How the last start ended; "no end on record" while it trains, and after a kill."""
        if not self.starts:
            return "no start on record"
        return self._end_of(self.starts[-1])

    def _end_of(self, start: Mapping[str, Any]) -> str:
        end = start.get("end")
        if end is None:
            return "no end on record"
        word = _ENDS.get(end["code"], f"exit code {end['code']}")
        # A run that a signal stops saves and ends without an error, too.
        if end["code"] == 0 and self.config is not None and end["step"] < self.config.run.steps:
            word = "stopped"
        said = f": {end['message']}" if "message" in end else ""
        return f"{word} at step {end['step']:,}{said}"

    def samples(self, count: int = 3) -> list[dict[str, Any]]:
        """Return the last samples of generated text: step, prompt, text."""
        found = []
        with contextlib.suppress(OSError):
            for line in (self.folder / SAMPLES).read_bytes().splitlines()[-count:]:
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
        return found

    def overview(self) -> Table | None:
        """Return parameters, tokens, passes, times, devices and commit, as far as on record."""
        rows: list[list[str]] = []
        last = self.starts[-1] if self.starts else {}
        environment = last.get("environment", {})
        if "parameters" in last:
            rows.append(["parameters", f"{last['parameters']:,}"])
        tokens = self.last("progress/tokens")
        if tokens is not None:
            rows.append(["tokens trained on", f"{tokens:,.0f}"])
            rows += [[f"passes over {n}", p] for n, p in self._passes(tokens, last)]
        for metric, label in (
            ("progress/flops", "model FLOPs"),
            ("progress/train_hours", "hours of training"),
        ):
            if (value := self.last(metric)) is not None:
                rows.append([label, f"{value:,.4g}"])
        if (wall := self._wall_hours()) is not None:
            rows.append(["hours since the first start", f"{wall:,.4g}"])
        if devices := environment.get("devices"):
            rows.append(["devices", f"{devices.get('count')} x {devices.get('kind')}"])
        for key in ("processes", "commit"):
            if environment.get(key) is not None:
                rows.append([key, str(environment[key])])
        return Table("the run", ["", ""], rows, words=2) if rows else None

    def _passes(self, tokens: float, last: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return how often each dataset was passed over."""
        sizes, config = last.get("train_tokens", {}), self.config
        if config is None or not config.datasets:
            return []
        shares = shares_of(stretches(config), 0, max(self.step, 1))
        names = [str(dataset.name) for dataset in config.datasets]
        share = dict(zip(names, shares, strict=True))
        return [
            (name, f"{tokens * share.get(name, 0.0) / size:,.3g}")
            for name, size in sizes.items()
            if size
        ]

    def _wall_hours(self) -> float | None:
        if not self.starts:
            return None
        times = [s["time"] for s in self.starts]
        ends = [s["end"]["time"] for s in self.starts if "end" in s]
        return (max([*times, *ends]) - times[0]) / 3600

    def differing(self) -> Table | None:
        """Return the settings that are not the defaults."""
        if self.config is None:
            return None
        rows = []
        values, derived = self.config.flat(), set(self.config.derived)
        for name, setting in SETTINGS.items():
            default = setting.field.default
            if name not in values or setting.path in derived or default is None:
                continue
            default = list(default) if isinstance(default, tuple) else default
            if values[name] != default and name not in ("run_name", "checkpoint_dir"):
                rows.append([name, _shown(values[name]), _shown(default)])
        heads = ["setting", "here", "default"]
        return Table("settings that are not the defaults", heads, rows, words=3) if rows else None

    def starts_table(self) -> Table | None:
        """Return each start: when, from which step, where, and how it ended."""
        rows = []
        for start in self.starts:
            environment = start.get("environment", {})
            devices = environment.get("devices") or {}
            when = datetime.datetime.fromtimestamp(start["time"], datetime.UTC)
            commit = str(environment.get("commit") or "")
            rows.append(
                [
                    f"{when:%Y-%m-%d %H:%M} UTC",
                    f"{start['first_step']:,}",
                    f"{devices.get('count', '?')} x {devices.get('kind', '?')}",
                    commit[:12],
                    self._end_of(start),
                ]
            )
        heads = ["started", "from step", "devices", "commit", "end"]
        return Table("starts", heads, rows, words=5) if rows else None


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
