"""The rehearsal: run the rendered manifests as processes of this machine, from the first command to a forecast.

Needs Linux, root, kubectl and a PostgreSQL server: every pod gets a network namespace, its mounts and a user id that
no image knows. This file adds to the pods what Kubernetes and its operators add: Ray's command, torchrun's addresses,
the volume of the model.
"""

import argparse
import base64
import http.server
import os
import ssl
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import trustme
from runtime import NODE, Cluster, Process, new_folder, output

sys.path.append(str(Path(__file__).parents[1] / "manifests"))
from cluster import NAMESPACE, Pod, configmaps, pods, resources
from kube_api import KubernetesApi

UNSHARE = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


def step(text: str) -> None:
    sys.stdout.write(f"{time.monotonic() - START:6.1f} s  {text}\n")
    sys.stdout.flush()


def changed(pod: Pod, name: str, **changes: Any) -> Pod:
    """The pod with one container changed."""
    spec = {
        group: [{**item, **changes} if item["name"] == name else item for item in pod.spec.get(group, [])]
        for group in ("initContainers", "containers")
    }
    return replace(pod, spec={**pod.spec, **spec})


# --- what Kubernetes and its operators do ---


def kubernetes_api(cluster: Cluster, declared: list[str]) -> dict[str, dict[str, str]]:
    """Start an API server with the declared secrets; create the folder of the service account for pods with a token."""
    stored: dict[str, dict[str, str]] = {name: {} for name in declared}
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(NODE).configure_cert(context)
    handler = type("Api", (KubernetesApi,), {"stored": stored})
    server = http.server.ThreadingHTTPServer((NODE, 6443), handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    account = cluster.claim("service-account")
    authority.cert_pem.write_to_path(str(account / "ca.crt"))
    (account / "token").write_text("the-token-of-the-service-account")
    return stored


def with_token(pod: Pod) -> Pod:
    """The pod with the token of its service account mounted."""
    volume = {"name": "account", "persistentVolumeClaim": {"claimName": "service-account"}}
    mount = {"name": "account", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": True}
    containers = [{**item, "volumeMounts": [*item.get("volumeMounts", []), mount]} for item in pod.spec["containers"]]
    return replace(pod, spec={**pod.spec, "volumes": [*pod.spec.get("volumes", []), volume], "containers": containers})


POSTGRES = """
set -e; umask 077; export PGDATA=/var/lib/pgsql/data/userdata
if [ ! -f $PGDATA/PG_VERSION ]; then
    initdb -U postgres --auth-host=scram-sha-256 --pwfile=<(echo "$POSTGRESQL_ADMIN_PASSWORD")
    for file in /opt/app-root/src/postgresql-cfg/*.conf; do echo "include '$file'" >> $PGDATA/postgresql.conf; done
fi
exec postgres -h 0.0.0.0 -k /tmp -c max_connections=$POSTGRESQL_MAX_CONNECTIONS
"""


def postgres(pod: Pod, cluster: Cluster) -> Pod:
    """Do what sclorg/postgresql-container does: initialize the data folder, set the admin password, include *.conf."""
    servers = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))  # the wheel's PostgreSQL has no TLS
    if not servers:
        raise SystemExit(
            "the rehearsal needs a PostgreSQL server with TLS: apt-get install postgresql; nothing was run"
        )
    programs = servers[-1].parent
    cluster.claim("data-postgres-0")
    volume = {"name": "data", "persistentVolumeClaim": {"claimName": "data-postgres-0"}}
    (container,) = pod.spec["containers"]
    path = {"name": "PATH", "value": f"{programs}:/usr/bin:/bin"}
    command = ["/bin/bash", "-c", POSTGRES]
    pod = changed(pod, "postgres", command=command, env=[*container["env"], path], named_user=True)
    return replace(pod, spec={**pod.spec, "volumes": [*pod.spec["volumes"], volume]})


def ray(pod: Pod, cluster_resource: dict[str, Any]) -> Pod:
    """Do what KubeRay does: `ray start` in a login shell with the group's parameters, the addresses and the token."""
    head = pod.name.endswith("-head")
    spec = cluster_resource["spec"]
    group = spec["headGroupSpec"] if head else spec["workerGroupSpecs"][0]
    container = pod.spec["containers"][0]
    service = f"feast-ray-head-svc.{NAMESPACE}.svc.cluster.local"
    parameters = {
        "num-cpus": container["resources"]["requests"]["cpu"],
        "memory": str(2 * 1024**3),  # what this machine has, instead of the limit
        "object-store-memory": str(256 * 1024**2),
        "dashboard-agent-listen-port": "52365",
        "metrics-export-port": "8080",
        **group["rayStartParams"],
    }
    where = ["--head", "--port=6379"] if head else [f"--address={service}:6379"]
    options = " ".join([*where, "--block", *(f"--{name}={value}" for name, value in parameters.items())])
    added = [
        {"name": "RAY_CLUSTER_NAME", "value": cluster_resource["metadata"]["name"]},
        {"name": "RAY_ADDRESS", "value": "127.0.0.1:6379" if head else f"{service}:6379"},
        {"name": "RAY_AUTH_MODE", "value": spec["authOptions"]["mode"]},
        {
            "name": "RAY_AUTH_TOKEN",
            "valueFrom": {"secretKeyRef": {"name": spec["authOptions"]["secretName"], "key": "auth_token"}},
        },
    ]
    command = ["/bin/bash", "-lc", f"ulimit -n 65536; ray start {options}"]
    pod = replace(pod, spec={**pod.spec, "containers": [container]})  # the autoscaler needs a cluster to scale
    pod = changed(pod, container["name"], command=command, env=[*container["env"], *added])
    volumes = [volume for volume in pod.spec["volumes"] if "projected" not in volume]
    if head:
        return replace(pod, spec={**pod.spec, "volumes": volumes})
    wait = {
        **container,
        "name": "wait-gcs-ready",
        "command": ["/bin/bash", "-lc", f"until ray health-check --address {service}:6379; do sleep 1; done"],
        "env": [*container["env"], *added],
    }
    return replace(pod, spec={**pod.spec, "volumes": volumes, "initContainers": [*pod.spec["initContainers"], wait]})


def training_node(job: dict[str, Any], rank: int) -> dict[str, str]:
    """The variables that Trainer's torch plugin sets on node `rank`."""
    trainer = job["spec"]["trainer"]
    return {
        "PET_NNODES": str(trainer["numNodes"]),
        "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
        "PET_NODE_RANK": str(rank),
        "PET_MASTER_ADDR": f"{job['metadata']['name']}-node-0-0.{job['metadata']['name']}",
        "PET_MASTER_PORT": "29500",
    }


def model_volume(pod: Pod) -> Pod:
    """Do what KServe does: mount the claim of STORAGE_URI read-only at /mnt/models."""
    (container,) = pod.spec["containers"]
    (uri,) = [entry["value"] for entry in container["env"] if entry["name"] == "STORAGE_URI"]
    claim, _, folder = uri.removeprefix("pvc://").partition("/")
    volume = {"name": "kserve-pvc-source", "persistentVolumeClaim": {"claimName": claim}}
    mount = {"name": "kserve-pvc-source", "mountPath": "/mnt/models", "subPath": folder, "readOnly": True}
    pod = changed(pod, container["name"], volumeMounts=[*container["volumeMounts"], mount])
    return replace(pod, spec={**pod.spec, "volumes": [*pod.spec["volumes"], volume]})


# --- the rehearsal ---


@dataclass(frozen=True)
class Rehearsal:
    cluster: Cluster
    items: list[dict[str, Any]]
    pods: dict[str, Pod]

    def one(self, kind: str) -> dict[str, Any]:
        (item,) = [item for item in self.items if item["kind"] == kind]
        return item


def prepare(folder: Path) -> Rehearsal:
    """The cluster before the first command: every pod and every Service has an address."""
    items = resources("base")
    cluster = Cluster(folder, {}, configmaps(items))
    every = {pod.name: pod for pod in pods(items)}
    services = {item["metadata"]["name"]: item["spec"]["selector"] for item in items if item["kind"] == "Service"}
    for service, selector in services.items():
        (name,) = [pod.name for pod in every.values() if selector.items() <= pod.labels.items()]
        cluster.service(service, name)
    cluster.service("feast-ray-head-svc", "feast-ray-head")  # created by KubeRay and KServe
    cluster.service("sales-forecast-predictor", "sales-forecast")
    rehearsal = Rehearsal(cluster, items, every)
    for rank in range(rehearsal.one("TrainJob")["spec"]["trainer"]["numNodes"]):
        cluster.address(f"sales-training-node-{rank}-0", f"sales-training-node-{rank}-0.sales-training")
    for name in every:
        cluster.address(name)
    return rehearsal


def fill_secrets(rehearsal: Rehearsal) -> None:
    declared = [item["metadata"]["name"] for item in rehearsal.items if item["kind"] == "Secret"]
    stored = kubernetes_api(rehearsal.cluster, declared)
    rehearsal.cluster.start(with_token(rehearsal.pods["salescast-secrets"]))
    first = {name: dict(values) for name, values in stored.items()}
    rehearsal.cluster.start(with_token(rehearsal.pods["salescast-secrets"]))
    assert all(stored.values()), "the Job left a secret empty"
    assert first == stored, "applied again, the Job changed a secret"
    for name, values in stored.items():
        rehearsal.cluster.secrets[name] = {key: base64.b64decode(value).decode() for key, value in values.items()}
    step("secrets are filled")


def infrastructure(rehearsal: Rehearsal) -> list[Process]:
    cluster, pod = rehearsal.cluster, rehearsal.pods
    step("kubectl apply -k manifests/")
    fill_secrets(rehearsal)
    (database,) = cluster.start(postgres(pod["postgres"], cluster))
    database.ready()
    step("postgres is ready")
    (head,) = cluster.start(ray(pod["feast-ray-head"], rehearsal.one("RayCluster")))
    head.ready()  # before the others: its dashboard waits only 30 s for its own processes
    step("feast-ray-head is ready")
    for _ in range(2):  # applied twice
        cluster.start(pod["postgres-roles"])
    step("roles and databases exist")
    (tracking,) = cluster.start(pod["mlflow"])
    servers = cluster.start(pod["feast-server"])
    (worker,) = cluster.start(ray(pod["feast-ray-cpu"], rehearsal.one("RayCluster")))
    services = [database, head, worker, tracking, *servers]
    for process in services:
        process.ready()
        step(f"{process.name} is ready")
    return services


def data(rehearsal: Rehearsal) -> None:
    step("kubectl apply -f manifests/05-dataprep-job.yaml")
    for _ in range(2):  # applied twice
        rehearsal.cluster.start(rehearsal.pods["feast-dataprep"])
        step("job/feast-dataprep is complete")


def training(rehearsal: Rehearsal) -> None:
    step("kubectl apply -f manifests/06-trainjob.yaml")
    job = rehearsal.one("TrainJob")
    less = {"OMP_NUM_THREADS": "1"}  # this machine has fewer cores than a node
    nodes = [
        process
        for rank in range(job["spec"]["trainer"]["numNodes"])
        for process in rehearsal.cluster.start(
            rehearsal.pods["sales-training"], f"sales-training-node-{rank}-0", training_node(job, rank) | less
        )
    ]
    for process in nodes:
        process.finished()
    step("trainjob/sales-training is complete")


def serving(rehearsal: Rehearsal) -> Process:
    step("kubectl apply -f manifests/07-inference-service.yaml")
    (server,) = rehearsal.cluster.start(model_volume(rehearsal.pods["sales-forecast"]))
    server.ready()
    step("inferenceservice/sales-forecast is ready")
    return server


def rehearse(folder: Path) -> None:
    rehearsal = prepare(folder)
    services = infrastructure(rehearsal)
    data(rehearsal)
    check(rehearsal, "ray_access", "feast-dataprep")
    training(rehearsal)
    services.append(serving(rehearsal))
    check(rehearsal, "forecast", "sales-training")
    check(rehearsal, "tracking", "sales-training")
    check(rehearsal, "database", "sales-forecast")
    for process in services:
        for kind in ("readinessProbe", "livenessProbe"):
            reason = process.probe(kind)
            assert not reason, f"{process.name}: {kind} fails at the end: {reason}"
    step("every pod is still ready; the rehearsal has passed")


def check(rehearsal: Rehearsal, name: str, pod_name: str) -> None:
    """Run checks/NAME.py in place of a pod's command, with its environment, secrets, mounts and host names."""
    script = Path(__file__).parent / "checks" / f"{name}.py"
    pod = rehearsal.pods[pod_name]
    container = pod.spec["containers"][0]["name"]
    pod = replace(pod, spec={**pod.spec, "initContainers": []})
    pod = replace(changed(pod, container, command=["python", "-c", script.read_text()], args=[]), kind="Job")
    rehearsal.cluster.start(pod, "check")
    step(f"checks/{name}.py has passed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if os.geteuid() != 0 or sys.platform != "linux":
        raise SystemExit("the rehearsal needs Linux and root: it makes network and mount namespaces; nothing was run")
    if not arguments.inside:
        inside = [*UNSHARE, sys.executable, str(Path(__file__).resolve()), "--inside", *sys.argv[1:]]
        raise SystemExit(subprocess.run(inside, check=False).returncode)
    folder = new_folder()
    try:
        rehearse(folder)
    finally:
        if "KEEP_LOGS" in os.environ:
            output("cp", "-r", str(folder / "containers"), os.environ["KEEP_LOGS"])


START = time.monotonic()
if __name__ == "__main__":
    main()
