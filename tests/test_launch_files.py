"""The files in launch/ that nothing here can run: what they must say, so that they can't drift from each other."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from toy import REPOSITORY

from drwr_dist.version import __version__

LAUNCH = REPOSITORY / "launch"
ON_HOSTS = [LAUNCH / name for name in ("cluster.yaml", "aws.yaml", "gcp.yaml")]


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def manifests() -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all((LAUNCH / "kuberay.yaml").read_text())
    return {document["kind"]: document for document in documents}


def pod_templates() -> list[dict[str, Any]]:
    cluster = manifests()["RayCluster"]["spec"]
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def pinned(package: str) -> str:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    return next(line.split("==")[1] for line in lines if line.startswith(f"{package}=="))


@pytest.mark.parametrize("path", ON_HOSTS, ids=lambda path: path.name)
def test_all_that_an_installation_needs_is_mounted(path: Path):
    mounts = load(path)["file_mounts"]
    needed = ("drwr_dist", "launch", "configs", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")
    assert {f"~/drwr-dist/{name}" for name in needed} <= set(mounts)
    assert all(remote.removeprefix("~/drwr-dist/") == local for remote, local in mounts.items() if "auth" not in remote)


@pytest.mark.parametrize("path", ON_HOSTS, ids=lambda path: path.name)
def test_start_commands_bring_their_environment(path: Path):
    content = load(path)
    for line in content["head_start_ray_commands"] + content["worker_start_ray_commands"]:
        assert line.startswith(". ~/drwr-dist/launch/env.sh &&")


@pytest.mark.parametrize("path", ON_HOSTS[1:], ids=lambda path: path.name)
def test_clouds_train_on_spot_workers_and_nothing_on_the_head(path: Path):
    types = load(path)["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0, "GPU": 0}
    assert "spot" in str(types["gpu"]["node_config"]).lower()
    assert "spot" not in str(types["head"]["node_config"]).lower()


def test_kubernetes_pods_have_the_token_memory_and_storage():
    cluster = manifests()["RayCluster"]["spec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == pinned("ray")
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for pod in pod_templates():
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
        claim = manifests()["PersistentVolumeClaim"]
        assert volumes["shared"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        (container,) = pod["containers"]
        assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/shared", "/dev/shm"}
        assert pod["securityContext"]["runAsNonRoot"] and pod["automountServiceAccountToken"] is False
        assert all(isinstance(value, str) for value in container["resources"]["limits"].values())
    assert len({pod["containers"][0]["image"] for pod in pod_templates()}) == 1
    tags = re.findall(r"drwr-dist:([\w.]+)", (LAUNCH / "kuberay.yaml").read_text())
    assert len(tags) >= 3 and set(tags) == {__version__}


# What KubeRay's API reference (ray.io/v1) calls the keys; no package brings its schema. 1.5.1 brought authOptions.
KUBERAY_KEYS = {
    "RayCluster": "rayVersion authOptions headGroupSpec workerGroupSpecs enableInTreeAutoscaling autoscalerOptions "
    "gcsFaultToleranceOptions suspend managedBy headServiceAnnotations",
    "headGroupSpec": "template headService enableIngress rayStartParams serviceType resources labels",
    "workerGroupSpecs": "template groupName replicas minReplicas maxReplicas idleTimeoutSeconds rayStartParams suspend "
    "scaleStrategy numOfHosts resources labels",
    "RayJob": "activeDeadlineSeconds backoffLimit rayClusterSpec submitterPodTemplate metadata clusterSelector "
    "submitterConfig managedBy deletionStrategy entrypoint runtimeEnvYAML jobId submissionMode entrypointResources "
    "entrypointNumCpus entrypointNumGpus ttlSecondsAfterFinished shutdownAfterJobFinishes suspend",
}


def test_kuberay_knows_every_key():
    cluster, job = manifests()["RayCluster"], manifests()["RayJob"]
    assert cluster["apiVersion"] == job["apiVersion"] == "ray.io/v1"
    found = {
        "RayCluster": [cluster["spec"]],
        "RayJob": [job["spec"]],
        "headGroupSpec": [cluster["spec"]["headGroupSpec"]],
    }
    found["workerGroupSpecs"] = cluster["spec"]["workerGroupSpecs"]
    for kind, specs in found.items():
        for spec in specs:
            assert set(spec) <= set(KUBERAY_KEYS[kind].split()), kind
            assert all(isinstance(value, str) for value in spec.get("rayStartParams", {}).values())


def test_pods_and_volume_keep_to_the_schema_of_kubernetes():
    validator = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate (108 MB)")
    release = validator.latest_version()
    validator.validate(manifests()["PersistentVolumeClaim"], release, strict=True)
    for pod in pod_templates():
        manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, "spec": pod}
        validator.validate(manifest, release, strict=True)


def test_the_kubernetes_job_runs_on_that_cluster():
    job, cluster = manifests()["RayJob"], manifests()["RayCluster"]
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    assert job["spec"]["entrypoint"].startswith("python -m drwr_dist.train ")


def test_the_image_has_what_the_package_needs():
    lines = (LAUNCH / "Dockerfile").read_text()
    assert "USER ray" in lines and "RAY_AUTH_MODE=token" in lines
    allowed = (REPOSITORY / ".dockerignore").read_text().splitlines()
    for line in lines.splitlines():
        for source in line.split()[1:-1] if line.startswith("COPY ") else ():
            assert (REPOSITORY / source).exists(), source
            assert f"!{source.split('/')[0]}" in allowed, source


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_bash(path: Path):
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    assert os.access(path, os.X_OK) or path.name == "env.sh"


def test_start_without_a_role_shows_the_usage():
    done = subprocess.run([LAUNCH / "start.sh"], capture_output=True, text=True)
    assert done.returncode == 2 and "launch/start.sh worker HEAD_IP" in done.stderr


def test_a_head_whose_port_is_taken_does_not_start(tmp_path: Path):
    environment = {**os.environ, "HOME": str(tmp_path), "DRWR_NODE_IP": "127.0.0.1", "RAY_AUTH_TOKEN": "0" * 64}
    with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", 8265)):  # or it is taken already
        done = subprocess.run(
            [LAUNCH / "start.sh", "head"], capture_output=True, text=True, env=environment, timeout=60
        )
        assert done.returncode == 1 and "port 8265 of" in done.stderr and "is taken" in done.stderr, done.stderr


def test_a_worker_without_the_token_does_not_start(tmp_path: Path):
    environment = {**os.environ, "HOME": str(tmp_path), "DRWR_NODE_IP": "127.0.0.1"}
    done = subprocess.run(
        [LAUNCH / "start.sh", "worker", "127.0.0.1"], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 1 and "no token in ~/.ray/auth_token" in done.stderr


def test_the_environment_is_that_of_the_given_network(tmp_path: Path):
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "SSH_CONNECTION": "10.0.0.1 5000 127.0.0.1 22"}
    (tmp_path / ".drwr_host.sh").write_text("DRWR_RAY_OPTIONS=--num-cpus=3\nDRWR_INTERFACE=ib0\n")
    names = ("DRWR_NODE_IP", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "RAY_AUTH_MODE", "DRWR_RAY_OPTIONS")
    line = f". {LAUNCH}/env.sh && echo {' '.join(f'${name}' for name in names)}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["127.0.0.1", "ib0", "ib0", "token", "--num-cpus=3"]
