"""The links of a described machine: flags, instances, and how the prediction depends on them."""

import dataclasses
from argparse import Namespace
from typing import Any

import pytest

from spectral_dist.dryrun import described_gpu, make_parser
from spectral_dist.planning.compile import compile_programs, described_mesh
from spectral_dist.planning.hardware import INSTANCES, find_gpu, find_instance, with_links
from spectral_dist.planning.report.links import link_cases, link_lines, link_rows
from spectral_dist.planning.roofline import predict
from spectral_dist.settings import Config, from_flat, resolve


def flags(*argv: str) -> Namespace:
    return make_parser().read_some(list(argv))[0]


def test_without_flags_the_links_are_the_tables() -> None:
    gpu = described_gpu(flags())
    assert gpu == find_gpu("l4")
    assert described_gpu(flags("--gpu", "cpu")) is None


def test_a_rate_as_a_flag() -> None:
    gpu = described_gpu(flags("--inside_gb_per_s", "13", "--between_gb_per_s=6"))
    assert gpu is not None
    assert (gpu.inside.bytes_per_second, gpu.between.bytes_per_second) == (13e9, 6e9)
    assert gpu.inside.name == "PCIe 4.0 x16 at 13 GB/s"
    assert gpu.sources["inside"] == gpu.sources["between"] == "as given"
    assert dataclasses.replace(gpu, inside=None, between=None, sources={}) == dataclasses.replace(
        find_gpu("l4"),
        inside=None,  # type: ignore[arg-type]
        between=None,  # type: ignore[arg-type]
        sources={},
    )


def test_an_instance_says_its_gpus_and_its_network() -> None:
    given = flags("--instance", "g6.12xlarge")
    gpu = described_gpu(given)
    assert gpu is not None
    assert given.gpus_per_host == 4
    assert gpu.between.bytes_per_second == 5e9
    assert gpu.inside == find_gpu("l4").inside
    assert gpu.sources["between"] == INSTANCES["g6.12xlarge"].source
    # A flag comes before the instance's figure.
    given = flags("--instance=g6.12xlarge", "--gpus_per_host=2", "--between_gb_per_s=3")
    gpu = described_gpu(given)
    assert gpu is not None
    assert (given.gpus_per_host, gpu.between.bytes_per_second) == (2, 3e9)


@pytest.mark.parametrize("name", INSTANCES)
def test_every_instance_names_a_known_gpu_and_its_source(name: str) -> None:
    machine = find_instance(name)
    assert find_gpu(machine.gpu)
    assert machine.source


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--instance=g9"], "instance='g9': must be one of g2-standard-24"),
        (["--instance=g6.48xlarge", "--gpu=h100"], "gpu='h100': instance=g6.48xlarge has l4"),
        (["--gpu=l5"], "gpu='l5': must be one of"),
        (["--gpu=cpu", "--between_gb_per_s=1"], "gpu='cpu': fake devices have no links"),
    ],
)
def test_what_is_unknown_or_contradicts_is_refused(argv: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        described_gpu(flags(*argv))


def small(mesh: str) -> Config:
    values: dict[str, Any] = {"hidden_dim": 64, "head_dim": 16, "num_layers": 1, "mesh": mesh}
    values |= {"seq_len": 64, "window": 32, "batch_size": 8, "layer_pattern": "window"}
    return resolve(from_flat(values | {"eval_lengths": (1,)}))


def test_the_step_by_the_rates() -> None:
    """The first case is the prediction; a slower link that is used makes a step longer."""
    config, l4 = small("1x4x1"), find_gpu("l4")
    slow = with_links(l4, 1e6, 1e6)  # so slow that nothing hides it
    text = next(compile_programs(config, described_mesh(None, config.mesh.shape, 4))).text
    for per_host, hosts, count in ((4, 1, 3), (2, 2, 5)):
        cases = link_cases(text, config, slow, per_host)
        assert len(cases) == count
        assert cases[0].step_seconds == predict(text, config, slow, per_host).step.seconds
        assert cases[-1].inside == slow.inside.bytes_per_second / 4
        assert cases[-1].step_seconds > 2 * cases[0].step_seconds
        lines = link_lines(cases, hosts)
        assert len(lines) == count - 1
        assert ("between hosts" in lines[0]) == (hosts > 1)
        assert link_rows(cases, hosts)[0][-1] == "100%"


def test_a_single_device_has_no_links() -> None:
    config = small("1x1x1")
    text = next(compile_programs(config, described_mesh(None, config.mesh.shape, 1))).text
    assert link_cases(text, config, find_gpu("l4"), 1) == ()
    assert link_lines((), 1) == []
