"""The manifests for Kubernetes, read without a cluster."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.cli.main import app
from shared.settings import VARIABLES, Settings, load

FILE = Path(__file__).parents[2] / "deploy/kubernetes.yaml"
OBJECTS: dict[tuple[str, str], dict[str, Any]] = {
    (each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(FILE.read_text())
}
PODS = {
    name: each["spec"]["template"]
    for (kind, name), each in OBJECTS.items()
    if kind in {"Deployment", "Job"}
}
SECRETS = {
    "REDIS_URL": "rediss://:x@redis.example.org",
    "DATABASE_URL": "postgresql://x@postgres.example.org/drumbeat",
    "BULK_SECRET_KEY": "k" * 32,
    "METRICS_TOKEN": "t",
}


def test_the_variables_are_ours_and_the_secret_holds_the_others() -> None:
    given = OBJECTS["ConfigMap", "drumbeat"]["data"]
    assert set(given) | set(SECRETS) <= set(VARIABLES)
    assert load({**given, **SECRETS}, None).warnings == ()
    head = FILE.read_text().partition("apiVersion")[0]
    assert all(name in head for name in SECRETS)


@pytest.mark.parametrize("name", PODS)
def test_each_pod_runs_a_verb_of_this_version_confined(name: str) -> None:
    pod = PODS[name]["spec"]
    [container] = pod["containers"]
    assert container["args"][0] in app
    assert container["image"] == f"drumbeat:{version('drumbeat')}"
    assert container["envFrom"] == [
        {"configMapRef": {"name": "drumbeat"}},
        {"secretRef": {"name": "drumbeat"}},
    ]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)
    assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("part", ["api", "worker"])
def test_two_of_each_are_found_probed_and_given_time_to_leave(part: str) -> None:
    deployment = OBJECTS["Deployment", f"drumbeat-{part}"]["spec"]
    assert deployment["replicas"] == 2
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    pod = deployment["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= Settings().worker_grace_s + 5
    [container] = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["management"] == 9464
    paths = {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
    for probe, path in paths.items():
        assert container[probe]["httpGet"] == {"path": path, "port": "management"}
    if part == "api":
        service = OBJECTS["Service", "drumbeat"]["spec"]
        assert service["selector"] == labels
        assert ports[service["ports"][0]["targetPort"]] == Settings().api_port


def test_a_release_migrates_by_a_job_of_its_own() -> None:
    release = version("drumbeat").replace(".", "-")
    assert ("Job", f"drumbeat-migrate-{release}") in OBJECTS
