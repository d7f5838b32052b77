"""The files in deploy/ for clusters and for Triton fit the schemas that there are here, and our own command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
KUBERNETES = "1.32"

WHOLE = {"type": "integer", "minimum": 0}
TEMPLATE = {
    "type": "object", "required": ["spec"], "additionalProperties": False,
    "properties": {"metadata": {"type": "object"}, "spec": {"type": "object"}},
}  # fmt: skip
START = {"type": "object", "additionalProperties": {"type": "string"}}
RAY_JOB = {
    "type": "object", "required": ["entrypoint", "rayClusterSpec"], "additionalProperties": False,
    "properties": {
        "entrypoint": {"type": "string"}, "shutdownAfterJobFinishes": {"type": "boolean"},
        "ttlSecondsAfterFinished": WHOLE, "backoffLimit": WHOLE,
        "rayClusterSpec": {
            "type": "object", "required": ["headGroupSpec"], "additionalProperties": False,
            "properties": {
                "rayVersion": {"type": "string"},
                "headGroupSpec": {
                    "type": "object", "required": ["rayStartParams", "template"], "additionalProperties": False,
                    "properties": {"rayStartParams": START, "template": TEMPLATE},
                },
                "workerGroupSpecs": {
                    "type": "array",
                    "items": {
                        "type": "object", "additionalProperties": False,
                        "required": ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
                        "properties": {
                            "groupName": {"type": "string"}, "replicas": WHOLE, "minReplicas": WHOLE,
                            "maxReplicas": WHOLE, "rayStartParams": START, "template": TEMPLATE,
                        },
                    },
                },
            },
        },
    },
}  # fmt: skip
"""The fields of KubeRay's RayJob (ray.io/v1) that we use, from its types: a small part of the definition."""
REPLICAS = {
    "type": "object", "required": ["template"], "additionalProperties": False,
    "properties": {
        "replicas": WHOLE, "template": TEMPLATE,
        "restartPolicy": {"enum": ["Always", "OnFailure", "Never", "ExitCode"]},
    },
}  # fmt: skip
PYTORCH_JOB = {
    "type": "object", "required": ["pytorchReplicaSpecs"], "additionalProperties": False,
    "properties": {
        "nprocPerNode": {"type": "string"},
        "runPolicy": {
            "type": "object", "additionalProperties": False,
            "properties": {
                "cleanPodPolicy": {"enum": ["All", "Running", "None"]}, "backoffLimit": WHOLE,
                "ttlSecondsAfterFinished": WHOLE,
            },
        },
        "pytorchReplicaSpecs": {
            "type": "object", "required": ["Master"], "additionalProperties": False,
            "properties": {"Master": REPLICAS, "Worker": REPLICAS},
        },
    },
}  # fmt: skip
"""The fields of the training operator's PyTorchJob (kubeflow.org/v1) that we use, from its types."""


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def pods(part: Any) -> list[Any]:
    """The pod templates anywhere in a document."""
    if isinstance(part, list):
        return [pod for one in part for pod in pods(one)]
    if not isinstance(part, dict):
        return []
    return [part["template"]] if "template" in part else [pod for one in part.values() for pod in pods(one)]


@pytest.mark.parametrize(
    ("name", "version", "kind", "schema", "count"),
    [
        ("cluster/rayjob.yaml", "ray.io/v1", "RayJob", RAY_JOB, 2),
        ("cluster/pytorchjob.yaml", "kubeflow.org/v1", "PyTorchJob", PYTORCH_JOB, 2),
    ],
)
def test_jobs_fit_their_definitions_and_kubernetes_takes_their_pods(name, version, kind, schema, count):
    job = read(name)
    assert (job["apiVersion"], job["kind"]) == (version, kind)
    jsonschema.validate(job["spec"], schema)
    found = pods(job["spec"])
    assert len(found) == count
    for template in found:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        for container in pod["spec"]["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert container["resources"]["requests"] == container["resources"]["limits"]


def test_a_wrong_field_would_be_found():
    job = read("cluster/pytorchjob.yaml")
    job["spec"]["pytorchReplicaSpecs"]["Master"]["restartpolicy"] = "Never"
    with pytest.raises(jsonschema.ValidationError, match="restartpolicy"):
        jsonschema.validate(job["spec"], PYTORCH_JOB)
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "pod"},
        **pods(read("cluster/rayjob.yaml")["spec"])[0],
    }
    pod["spec"]["containers"][0]["imagge"] = "typo"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_the_ray_job_names_one_version_everywhere():
    cluster = read("cluster/rayjob.yaml")["spec"]["rayClusterSpec"]
    images = {container["image"] for pod in pods(cluster) for container in pod["spec"]["containers"]}
    assert [image.rpartition(":")[2] for image in images] == [cluster["rayVersion"]]


def options_of(words: list[str]) -> list[str]:
    """What follows `torchrun ... -m adafocus_edge train`."""
    start = words.index("-m")
    assert words[start : start + 3] == ["-m", "adafocus_edge", "train"]
    return words[start + 3 :]


def check_options(options: list[str], data: Path) -> None:
    """Training takes these options, with another folder of data."""
    from training.compose import compose_options

    assert "data_dir=/data" in options
    composed = compose_options([word.replace("data_dir=/data", f"data_dir={data}") for word in options])
    assert composed.options.train_stage == 1


def test_pods_of_a_training_start_torchrun_with_options_that_training_takes(tmp_path):
    (container,) = pods(read("cluster/pytorchjob.yaml")["spec"])[0]["spec"]["containers"]
    assert container["name"] == "pytorch"
    script = container["args"][0].replace("/runs/1", str(tmp_path))
    stub(tmp_path / "bin" / "torchrun", 'printf "%s\\n" "$@"')
    for resumed in (False, True):
        if resumed:
            (tmp_path / "last.pth.tar").touch()
        done = run([*container["command"], script], tmp_path)
        options = options_of(done.stdout.splitlines())
        assert (f"resume={tmp_path}/last.pth.tar" in options) == resumed
        check_options(options, tmp_path)


def stub(path: Path, body: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def run(words: list[Any], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        list(map(str, words)), check=False, capture_output=True, text=True, timeout=60, cwd=folder,
        env={**os.environ, **variables, "PATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_slurm_starts_one_torchrun_per_machine_with_options_that_training_takes(tmp_path):
    """Slurm's own commands are stand-ins here: `srun` runs the command once."""
    stub(tmp_path / "bin" / "scontrol", 'printf "node7\\nnode8\\n"')
    stub(tmp_path / "bin" / "srun", 'printf "%s\\n" "$@"')
    stub(tmp_path / "bin" / "activate", "")
    variables = {
        "ADAFOCUS_EDGE_VENV": str(tmp_path), "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "42",
    }  # fmt: skip
    script = DEPLOY / "cluster" / "train.slurm"
    words = run([script], tmp_path, **variables).stdout.splitlines()
    assert words[0] == "torchrun"
    from torch.distributed.run import get_args_parser

    parsed = get_args_parser().parse_args(words[1:])
    assert (parsed.nnodes, parsed.nproc_per_node, parsed.rdzv_id) == ("2", "8", "42")
    assert (parsed.rdzv_backend, parsed.rdzv_endpoint) == ("c10d", "node7:29500")
    assert parsed.training_script == "adafocus_edge"
    check_options(options_of(words), tmp_path)
    own = run([script, "dataset=actnet", "data_dir=/data", "train_stage=1"], tmp_path, **variables).stdout.splitlines()
    assert options_of(own) == ["dataset=actnet", "data_dir=/data", "train_stage=1"]


def test_compose_starts_a_server_on_the_repository_that_we_write():
    compose = DEPLOY / "triton" / "compose.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", compose],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    service = read("triton/compose.yaml")["services"]["triton"]
    assert "--model-repository=/models" in service["command"]
    assert service["volumes"] == ["./model_repository:/models:ro"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["environment"]["NVIDIA_TF32_OVERRIDE"] == "0"


def test_compose_names_options_that_the_server_has(tmp_path):
    from tests.support.triton_server.server import BINARY, need_triton

    need_triton()
    known = subprocess.run([BINARY, "--help"], check=False, capture_output=True, text=True, timeout=60).stderr
    words = read("triton/compose.yaml")["services"]["triton"]["command"]
    assert words[0] == "tritonserver"
    for word in words[1:]:
        assert word.partition("=")[0] in known
