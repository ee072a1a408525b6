"""`python -m spectral_dist.dryrun`: dry run, does a run fit in the memory of GPUs not attached.

Compiles the programs of the run for the described GPUs, from shapes alone: it reads no text and
allocates no array. The exit code is 3 where they do not fit. Read `main` first.
"""

import dataclasses
import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spectral_dist.command_line import Parser, run_main
from spectral_dist.flags import load_config
from spectral_dist.settings import AUTO_MESH, Config

if TYPE_CHECKING:
    from spectral_dist.planning.hardware import Gpu

DOES_NOT_FIT = 3  # exit code, so that a script can ask before it rents GPUs
MOST_GPUS_PER_HOST = 8  # of usual servers; --gpus_per_host says otherwise
_FAKE_DEVICES = "xla_force_host_platform_device_count"


def main(argv: Sequence[str]) -> int:
    """Compile the run, show the report and write its files; return the exit code."""
    flags, rest = make_parser().read_some(argv)
    check_flags(flags)
    config = load_config(rest, "spectral_dist.dryrun")
    auto = config.mesh.mesh == AUTO_MESH
    gpu = described_gpu(flags)
    if auto:
        check_devices(flags)
    prepare_environment()
    # JAX reads its environment when it is imported, and these modules import it.
    from spectral_dist.planning.report.page import write_html
    from spectral_dist.planning.report.text import build_report, say, show_report, write_json
    from spectral_dist.planning.search.choice import Choice, choose, described
    from spectral_dist.planning.search.ranking import start_command

    usable = None if flags.memory_gib is None else int(flags.memory_gib * 2**30)
    # For a given mesh there is nothing to choose: build_report compiles its programs.
    choice = Choice(config, True, [], [])
    if auto:
        cluster = described(gpu, flags.hosts, flags.gpus_per_host, usable)
        flags.hosts, flags.gpus_per_host = cluster.hosts, cluster.per_host
        choice = choose(config, cluster, say)  # its programs are compiled, and not compiled again
    report = build_report(
        choice.config,
        gpu=gpu,
        gpus_per_host=gpus_per_host(choice.config, flags.hosts, flags.gpus_per_host),
        usable=usable,
        tokens=flags.tokens,
        price_per_gpu_hour=flags.price_per_gpu_hour,
        programs=choice.programs,
        ranking=choice.ranking,
        say=say,
    )
    if auto and choice.fits:
        report = dataclasses.replace(report, command=start_command(rest, choice.ranking[0]))
    show_report(report)
    if flags.json:
        write_json(report, flags.json)
    if flags.html:
        write_html(report, flags.html)
    return DOES_NOT_FIT if report.verdict.fits is False else 0


def make_parser() -> Parser:
    """Return the parser of this command's own flags; those of training come beside them."""
    parser = Parser(
        prog="python -m spectral_dist.dryrun",
        allow_abbrev=False,
        description="Compile a run for devices that are not there, and report what it needs.",
        epilog="Every flag of spectral_dist.train is a flag here too; no text is read.",
    )
    parser.add_argument("--gpu", help="kind of GPU, or cpu (default: l4)")
    text = "kind of rented machine, such as g2-standard-96: its GPUs, their number and the network"
    parser.add_argument("--instance", help=text)
    text = "rate from a GPU to others of its host, one direction, in place of the specification's"
    parser.add_argument("--inside_gb_per_s", type=float, help=text)
    text = "rate from a host to others, one direction, GB/s and not Gbit/s, in place of the table's"
    parser.add_argument("--between_gb_per_s", type=float, help=text)
    text = "GPUs of one host (default: 8 or fewer; --mesh=auto needs it)"
    parser.add_argument("--gpus_per_host", type=int, help=text)
    text = "hosts (default: as many as the mesh fills; --mesh=auto needs it)"
    parser.add_argument("--hosts", type=int, help=text)
    parser.add_argument("--memory_gib", type=float, help="memory of a GPU, in place of the table's")
    parser.add_argument("--tokens", type=float, help="amount of text to give the time for, bytes")
    parser.add_argument("--price_per_gpu_hour", type=float, help="for the cost, in any currency")
    parser.add_argument("--json", metavar="FILE", help="file to write the report to")
    parser.add_argument("--html", metavar="FILE", help="the same as a page for a browser")
    return parser


def prepare_environment() -> None:
    """Set JAX's environment so that it uses no attached accelerator: the compiler needs none."""
    # A training run on this host may be using them, and JAX would take their memory.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.pop("JAX_PLATFORM_NAME", None)
    # XLA's warnings of full rematerializations are part of the report.
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0"


def check_flags(flags: Namespace) -> None:
    """Check the flags that would otherwise fail only after minutes of compilation.

    Raises:
      ValueError: names the flag.
    """
    numbers = ("hosts", "gpus_per_host", "memory_gib", "tokens", "price_per_gpu_hour")
    for name in (*numbers, "inside_gb_per_s", "between_gb_per_s"):
        value = getattr(flags, name)
        if value is not None and not 0 < value < 1e18:
            raise ValueError(f"{name}={value}: must be positive")
    for name in ("json", "html"):
        path = getattr(flags, name)
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise ValueError(f"{name}={path!r}: its folder does not exist")


def described_gpu(flags: Namespace) -> "Gpu | None":
    """Return the GPU that the flags describe, with its links; None for fake CPU devices.

    Sets `gpus_per_host` to the instance's, where it is not given.

    Raises:
      ValueError: names the flag that is unknown, or that contradicts another.
    """
    from spectral_dist.planning.hardware import CPU, find_gpu, find_instance, with_links

    name, between, source = flags.gpu or "l4", flags.between_gb_per_s, "as given"
    if flags.instance is not None:
        machine = find_instance(flags.instance)
        if flags.gpu not in (None, machine.gpu):
            raise ValueError(f"gpu={flags.gpu!r}: instance={flags.instance} has {machine.gpu}")
        name, flags.gpus_per_host = machine.gpu, flags.gpus_per_host or machine.gpus
        if between is None:
            between, source = machine.gigabits / 8, machine.source
    if name == CPU:
        if (flags.inside_gb_per_s, between) != (None, None):
            raise ValueError("gpu='cpu': fake devices have no links whose rate could be given")
        return None
    inside = flags.inside_gb_per_s
    return with_links(find_gpu(name), inside and inside * 1e9, between and between * 1e9, source)


def check_devices(flags: Namespace) -> None:
    """Check that `--mesh=auto` knows the number of devices.

    Raises:
      ValueError: if neither the flags nor, for fake devices, XLA_FLAGS say it.
    """
    given = [flags.hosts is not None, flags.gpus_per_host is not None]
    counted = flags.gpu == "cpu" and _FAKE_DEVICES in os.environ.get("XLA_FLAGS", "")
    if not all(given) and (any(given) or not counted):
        raise ValueError(
            "mesh=auto: needs --hosts and --gpus_per_host, which say how many devices there are"
        )


def gpus_per_host(config: Config, hosts: int | None, given: int | None) -> int:
    """Return the number of GPUs of one host.

    Args:
      config: has the mesh.
      hosts: the flag, if given.
      given: the flag for the GPUs of a host, if given.

    Raises:
      ValueError: if the mesh and the flags do not agree.
    """
    shape = config.mesh.shape
    count = shape[0] * shape[1] * shape[2]
    if given is None:
        given = min(count, MOST_GPUS_PER_HOST) if hosts is None else max(1, count // hosts)
    # A mesh smaller than a host takes a part of it, unless the user also says how many hosts.
    per_host = min(given, count) if hosts is None else given
    if count % per_host or (hosts is not None and hosts * per_host != count):
        filled = "" if hosts is None else f"hosts={hosts} x "
        raise ValueError(
            f"mesh={config.mesh.mesh}: its {count} devices are not {filled}gpus_per_host={per_host}"
        )
    return per_host


if __name__ == "__main__":
    run_main(main)
