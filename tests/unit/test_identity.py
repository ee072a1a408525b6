"""Who a process is, by the variables of its surroundings."""

import pytest

from spectral_dist.cluster.identity import Identity, find_identity, first_host

JAX = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}
SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[3-4]",
}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"},  # a batch script's own
        SLURM | {"SLURM_STEP_NUM_TASKS": "1"},
        JAX | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
    ],
)
def test_alone(environment: dict[str, str]) -> None:
    assert find_identity(environment) is None


def test_jax_variables_come_before_slurm() -> None:
    assert find_identity(SLURM | JAX) == Identity("10.0.0.1", 1234, 3, 4, None, "10.0.0.1:1234")
    here = find_identity(JAX | {"JAX_LOCAL_DEVICE_IDS": "0,2"})
    assert here is not None
    assert here.local_devices == (0, 2)
    there = find_identity(JAX | {"JAX_COORDINATOR_ADDRESS": "[fe80::1]:99"})
    assert there is not None
    assert (there.host, there.port) == ("fe80::1", 99)


def test_slurm() -> None:
    assert find_identity(SLURM) == Identity("gpu3", 61441, 3, 4, (1,), "4097.0.0")
    other = find_identity(SLURM | {"SLURM_RESTART_COUNT": "2", "JAX_COORDINATOR_PORT": "77"})
    assert other is not None
    assert (other.port, other.job) == (77, "4097.0.2")


@pytest.mark.parametrize(
    ("changed", "devices"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x4)"}, None),
        ({"CUDA_VISIBLE_DEVICES": "1"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, (1,)),
    ],
)
def test_a_task_takes_its_gpu_only_where_it_sees_several(
    changed: dict[str, str], devices: tuple[int, ...] | None
) -> None:
    here = find_identity(SLURM | changed)
    assert here is not None
    assert here.local_devices == devices


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"JAX_PROCESS_ID": "0"}, "JAX_COORDINATOR_ADDRESS: must be set"),
        (JAX | {"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID=4: must be below JAX_NUM_PROCESSES=4"),
        (JAX | {"JAX_PROCESS_ID": "one"}, "JAX_PROCESS_ID='one': must be a number"),
        (JAX | {"JAX_COORDINATOR_ADDRESS": "host"}, "JAX_COORDINATOR_ADDRESS='host': must be host"),
        (JAX | {"JAX_LOCAL_DEVICE_IDS": "a"}, "JAX_LOCAL_DEVICE_IDS='a': must be numbers"),
        (SLURM | {"SLURM_LOCALID": ""}, "SLURM_LOCALID: srun did not set it"),
        (SLURM | {"SLURM_STEP_NODELIST": "["}, r"SLURM_STEP_NODELIST='\[': no host"),
    ],
)
def test_what_cannot_be_is_named(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_identity(environment)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu[003-008,011],login", "gpu003"),
        ("gpu[7]", "gpu7"),
        ("rack[2,5]-a,x", "rack2-a"),
        ("a-b.c[01-02].site", "a-b.c01.site"),
    ],
)
def test_the_first_host_of_a_node_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_a_restarted_job_meets_at_another_port() -> None:
    ports = set()
    for restart in range(10):
        here = find_identity(SLURM | {"SLURM_RESTART_COUNT": str(restart)})
        assert here is not None
        assert 61440 <= here.port < 65536
        ports.add(here.port)
    assert len(ports) == 10
