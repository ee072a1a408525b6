"""launch/kubernetes_jobset.yaml: only published fields, and figures that agree with each other."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from spectral_dist.flags import load_config

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "launch" / "kubernetes_jobset.yaml"
SCHEMA = json.loads((ROOT / "tests" / "schemas" / "kubernetes.json").read_text(encoding="utf-8"))


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8")))


def job_of(jobset: dict[str, Any]) -> dict[str, Any]:
    (replicated,) = jobset["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def pod_of(jobset: dict[str, Any]) -> dict[str, Any]:
    return job_of(jobset)["template"]["spec"]


@pytest.fixture
def claim() -> dict[str, Any]:
    return documents()[0]


@pytest.fixture
def jobset() -> dict[str, Any]:
    return documents()[1]


def test_every_document_fits_the_published_api() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for document in documents():
        jsonschema.validate(document, SCHEMA)


WRONG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "unknown field": lambda s: s["spec"].update(network={"enableDnsHostnames": True}),
    "wrong type": lambda s: job_of(s).update(completions="2"),
    "unknown action": lambda s: s["spec"]["failurePolicy"]["rules"][0].update(action="Fail"),
    "exit code 0": lambda s: job_of(s)["podFailurePolicy"]["rules"][0]["onExitCodes"].update(
        values=[0]
    ),
    "number in the environment": lambda s: pod_of(s)["containers"][0]["env"][1].update(value=2),
    "missing restart policy": lambda s: pod_of(s).pop("restartPolicy"),
    "downward field": lambda s: pod_of(s)["containers"][0]["env"][2]["valueFrom"][
        "fieldRef"
    ].update(fieldPath="spec.index"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_schema_refuses(name: str, jobset: dict[str, Any]) -> None:
    changed = copy.deepcopy(jobset)
    WRONG[name](changed)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed, SCHEMA)


def test_hosts_processes_mesh_and_gpus_agree(jobset: dict[str, Any]) -> None:
    job, container = job_of(jobset), pod_of(jobset)["containers"][0]
    environment = {entry["name"]: entry for entry in container["env"]}
    hosts = job["completions"]
    assert job["completionMode"] == "Indexed"
    assert job["parallelism"] == hosts
    assert int(environment["JAX_NUM_PROCESSES"]["value"]) == hosts
    index = environment["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    shape = load_config(container["args"]).mesh.shape
    assert (
        shape[0] * shape[1] * shape[2] == hosts * container["resources"]["limits"]["nvidia.com/gpu"]
    )
    assert container["command"] == ["python", "-m", "spectral_dist.train"]


def test_the_coordinator_is_pod_0_by_its_published_name(jobset: dict[str, Any]) -> None:
    container = pod_of(jobset)["containers"][0]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    name, (replicated,) = jobset["metadata"]["name"], jobset["spec"]["replicatedJobs"]
    (port,) = container["ports"]
    # <jobset>-<replicated job>-<job index>-<pod index>.<subdomain>, which is the JobSet's name.
    wanted = f"{name}-{replicated['name']}-0-0.{name}:{port['containerPort']}"
    assert environment["JAX_COORDINATOR_ADDRESS"] == wanted
    assert jobset["spec"]["network"]["enableDNSHostnames"] is True
    assert replicated["replicas"] == 1


def test_exit_codes_75_and_76_restart_and_2_does_not(jobset: dict[str, Any]) -> None:
    job = job_of(jobset)
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {"containerName": "train", "operator": "In", "values": [2]}
    assert rule["onExitCodes"]["containerName"] == pod_of(jobset)["containers"][0]["name"]
    (decision,) = jobset["spec"]["failurePolicy"]["rules"]
    assert decision["action"] == "FailJobSet"
    assert decision["onJobFailureReasons"] == ["PodFailurePolicy"]
    # Any other failed pod fails the job at once, and the JobSet restarts every job of it.
    assert job["backoffLimit"] == 0
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    assert pod_of(jobset)["restartPolicy"] == "Never"


def test_checkpoints_go_to_the_claimed_volume(
    claim: dict[str, Any], jobset: dict[str, Any]
) -> None:
    pod = pod_of(jobset)
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {m["mountPath"]: m["name"] for m in pod["containers"][0]["volumeMounts"]}
    assert set(mounts.values()) == set(volumes)
    shared = volumes[mounts["/shared"]]
    assert shared["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    config = load_config(pod["containers"][0]["args"])
    assert Path(config.run.checkpoint_dir).is_relative_to("/shared")
    assert all(Path(dataset.paths[0]).is_relative_to("/shared") for dataset in config.datasets)


def test_an_l4_is_asked_for_and_there_is_time_to_save(jobset: dict[str, Any]) -> None:
    pod = pod_of(jobset)
    assert pod["nodeSelector"]["cloud.google.com/gke-accelerator"] == "nvidia-l4"
    assert pod["nodeSelector"]["node.kubernetes.io/instance-type"].startswith("g2-standard-")
    assert pod["terminationGracePeriodSeconds"] >= 60
