"""The manifests as the cluster sees them: rendered resources and pod templates with what the operators add."""

import functools
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"
NAMESPACE = "feast-trainer-demo"
IMAGE = "salescast:0.1.0"

# What a user applies, in order.
DEPLOYMENTS = {
    "base": (".", "steps/dataprep", "steps/train", "steps/serve"),
    "gpu": (".", "steps/dataprep", "overlays/gpu", "steps/serve"),
    "small": ("overlays/small", "overlays/small/dataprep", "overlays/small/train", "overlays/small/serve"),
    "openshift": ("overlays/openshift", "steps/dataprep", "steps/train", "overlays/openshift/serve"),
}

Resource = dict[str, Any]


@functools.cache
def kubectl() -> str:
    """Why kubectl cannot render the kustomizations; '' if it can."""
    if shutil.which("kubectl") is None:
        return "kubectl is not installed"
    client = subprocess.run(["kubectl", "version", "--client"], capture_output=True, text=True, check=False).stdout
    major, minor = re.search(r"v(\d+)\.(\d+)", client).groups()  # type: ignore[union-attr]
    return "" if (int(major), int(minor)) >= (1, 24) else f"kubectl {major}.{minor} is too old, 1.24 renders them"


@functools.cache
def rendered(folder: str) -> str:
    if reason := kubectl():
        pytest.skip(f"{reason}, so the manifests were not rendered")
    command = ["kubectl", "kustomize", str(MANIFESTS / folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def resources(deployment: str) -> list[Resource]:
    return [item for folder in DEPLOYMENTS[deployment] for item in yaml.safe_load_all(rendered(folder))]


@dataclass(frozen=True)
class Pod:
    """A pod template; `labels` include those that the operator adds."""

    name: str
    kind: str
    labels: dict[str, str]
    spec: dict[str, Any]

    @property
    def containers(self) -> list[dict[str, Any]]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def _pod(name: str, kind: str, template: dict[str, Any], **labels: str) -> Pod:
    added = {key.replace("__", "/").replace("_", "-"): value for key, value in labels.items()}
    return Pod(name, kind, {**template.get("metadata", {}).get("labels", {}), **added}, template["spec"])


def pods(items: list[Resource]) -> Iterator[Pod]:
    """Every pod template. The TrainJob's trainer is merged into the node of its runtime, as the controller does it."""
    jobs = {item["spec"]["runtimeRef"]["name"]: item for item in items if item["kind"] == "TrainJob"}
    for item in items:
        kind, name, spec = item["kind"], item["metadata"]["name"], item.get("spec", {})
        if kind in ("Deployment", "StatefulSet", "Job"):
            yield _pod(name, kind, spec["template"])
        elif kind == "RayCluster":
            head = {"ray.io/cluster": name, "ray.io/node-type": "head"}
            worker = {"ray.io/cluster": name, "ray.io/node-type": "worker"}
            yield Pod(f"{name}-head", kind, **_ray(spec["headGroupSpec"]["template"], head, spec))
            for group in spec["workerGroupSpecs"]:
                yield Pod(f"{name}-{group['groupName']}", kind, **_ray(group["template"], worker))
        elif kind == "TrainingRuntime":
            template = spec["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
            trainer = jobs[name]["spec"]["trainer"]
            node = template["spec"]["containers"][0]
            node = {
                **node,
                **{key: trainer[key] for key in ("image", "command", "args") if key in trainer},
                "env": [*node["env"], *trainer["env"]],
                "resources": trainer["resourcesPerNode"],
            }
            template = {**template, "spec": {**template["spec"], "containers": [node]}}
            job = jobs[name]["metadata"]["name"]
            yield Pod(
                job, kind, {**template["metadata"]["labels"], "jobset.sigs.k8s.io/jobset-name": job}, template["spec"]
            )
        elif kind == "InferenceService":
            predictor = spec["predictor"]
            labels = {**item["metadata"].get("labels", {}), **predictor.get("labels", {})}
            yield Pod(name, kind, {**labels, "app": f"isvc.{name}-predictor"}, predictor)


def _ray(template: dict[str, Any], labels: dict[str, str], cluster: dict[str, Any] | None = None) -> dict[str, Any]:
    """A Ray pod with KubeRay's labels, and with the autoscaler's container beside the head's."""
    spec = template["spec"]
    if cluster:
        image = spec["containers"][0]["image"]
        autoscaler = {**cluster["autoscalerOptions"], "name": "autoscaler", "image": image}
        spec = {**spec, "containers": [*spec["containers"], autoscaler]}
    return {"labels": {**template["metadata"]["labels"], **labels}, "spec": spec}


def secrets() -> dict[str, dict[str, str]]:
    """The contents that the Job writes to the secrets."""
    if str(MANIFESTS / "scripts") not in sys.path:
        sys.path.append(str(MANIFESTS / "scripts"))
    import cluster_secrets

    return cluster_secrets.contents(NAMESPACE)


def configmaps(items: list[Resource]) -> dict[str, dict[str, str]]:
    return {item["metadata"]["name"]: item["data"] for item in items if item["kind"] == "ConfigMap"}


def environment(container: dict[str, Any], configs: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Name -> value, or `valueFrom` if only the cluster knows the value."""
    values: dict[str, Any] = {}
    for source in container.get("envFrom", []):
        values |= configs[source["configMapRef"]["name"]]
    for entry in container.get("env", []):
        source = entry.get("valueFrom", {})
        if "configMapKeyRef" in source:
            values[entry["name"]] = configs[source["configMapKeyRef"]["name"]][source["configMapKeyRef"]["key"]]
        else:
            values[entry["name"]] = entry.get("value", source)
    return values


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """A label selector of matchLabels, the only kind these manifests use for pods."""
    assert set(selector) <= {"matchLabels"}, selector
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def allowed(items: list[Resource], source: dict[str, str], target: dict[str, str], port: int) -> bool:
    """Whether the network policies let a pod of the namespace connect to another's TCP port."""

    def permits(direction: str, own: dict[str, str], other: dict[str, str], peers: str) -> bool:
        policies = [
            item["spec"]
            for item in items
            if item["kind"] == "NetworkPolicy"
            and direction in item["spec"]["policyTypes"]
            and selects(item["spec"]["podSelector"], own)
        ]
        rules = [rule for policy in policies for rule in policy.get(direction.lower(), [])]
        return not policies or any(
            ("ports" not in rule or any(entry["port"] == port for entry in rule["ports"]))
            and any("podSelector" in peer and selects(peer["podSelector"], other) for peer in rule.get(peers, []))
            for rule in rules
        )

    return permits("Egress", source, target, "to") and permits("Ingress", target, source, "from")
