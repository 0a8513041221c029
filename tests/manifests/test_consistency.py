"""References between resources are valid, and the programs in the pods understand their settings and commands."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from cluster import (
    DEPLOYMENTS,
    IMAGE,
    MANIFESTS,
    NAMESPACE,
    ROOT,
    Pod,
    Resource,
    allowed,
    configmaps,
    environment,
    pods,
    resources,
    secrets,
    selects,
)  # fmt: skip
from pydantic_settings import BaseSettings

from salescast.cli import app
from salescast.config import Settings
from salescast.model.config import TrainConfig, TrainingSettings
from salescast.schema import MODEL_NAME
from salescast.tracking.champion import CHAMPION
from salescast.workdir import Workdir

DEPLOYED = pytest.mark.parametrize("deployment", list(DEPLOYMENTS))
# Kubernetes puts this CA bundle into every namespace.
GIVEN_CONFIGMAPS = {"kube-root-ca.crt"}
CONSTRAINTS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())

# Variables of other programs, each documented by its project.
DOCUMENTED = {
    "PGSSLROOTCERT": "libpq",
    "PGPASSWORD": "libpq",
    "POSTGRESQL_ADMIN_PASSWORD": "sclorg/postgresql-container",
    "POSTGRESQL_MAX_CONNECTIONS": "sclorg/postgresql-container",
    "POSTGRESQL_SHARED_BUFFERS": "sclorg/postgresql-container",
    "MLFLOW_TRACKING_SERVER_CERT_PATH": "MLflow",
    "MLFLOW_TRACKING_USERNAME": "MLflow",
    "MLFLOW_TRACKING_PASSWORD": "MLflow",
    "MLFLOW_BACKEND_STORE_URI": "MLflow",
    "MLFLOW_AUTH_CONFIG_PATH": "MLflow",
    "MLFLOW_AUTH_ADMIN_USERNAME": "MLflow",
    "MLFLOW_AUTH_ADMIN_PASSWORD": "MLflow",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "MLflow",
    "MLFLOW_DISABLE_TELEMETRY": "MLflow",
    "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": "MLflow",
    "RAY_AUTH_MODE": "Ray",
    "RAY_AUTH_TOKEN": "Ray",
    "RAY_USE_TLS": "Ray",
    "RAY_TLS_SERVER_CERT": "Ray",
    "RAY_TLS_SERVER_KEY": "Ray",
    "RAY_TLS_CA_CERT": "Ray",
    "OMP_NUM_THREADS": "OpenMP",
    "STORAGE_URI": "KServe",
}


def _containers(deployment: str) -> Iterator[tuple[Pod, dict[str, Any]]]:
    for pod in pods(resources(deployment)):
        for container in pod.containers:
            yield pod, container


def _names(items: list[Resource], kind: str) -> set[str]:
    return {item["metadata"]["name"] for item in items if item["kind"] == kind}


def _variables(kind: type[BaseSettings]) -> set[str]:
    """The environment variables of a class of settings."""
    return {str(field.validation_alias) for field in kind.model_fields.values()}


def _placeholders() -> set[str]:
    """The environment variables in the feature repo's configuration."""
    config = yaml.safe_load((ROOT / "feature_repo/feature_store_ray.yaml").read_text())
    return set(re.findall(r"\$\{(\w+)\}", str(config)))


def _options() -> set[str]:
    """Environment variables of the command line's own options."""
    group: Any = typer.main.get_command(app.app)
    envvars = [option.envvar for command in group.commands.values() for option in command.params if option.envvar]
    return {name for names in envvars for name in ([names] if isinstance(names, str) else names)}


@DEPLOYED
def test_every_resource_is_in_the_namespace(deployment: str) -> None:
    for item in resources(deployment):
        expected = None if item["kind"] == "Namespace" else NAMESPACE
        assert item["metadata"].get("namespace") == expected, item["metadata"]["name"]


@DEPLOYED
def test_referenced_secrets_have_the_keys(deployment: str) -> None:
    made, items = secrets(), resources(deployment)
    served = {
        item["metadata"].get("annotations", {}).get("service.beta.openshift.io/serving-cert-secret-name")
        for item in items
    }
    assert set(made) == _names(items, "Secret")
    for pod, container in _containers(deployment):
        for entry in container.get("env", []):
            if reference := entry.get("valueFrom", {}).get("secretKeyRef"):
                assert reference["key"] in made[reference["name"]], (pod.name, reference)
    for pod in pods(items):
        for volume in pod.spec.get("volumes", []):
            if "secret" in volume and volume["secret"]["secretName"] not in served:
                keys = {item["key"] for item in volume["secret"]["items"]}  # never all keys of a secret
                assert keys <= set(made[volume["secret"]["secretName"]]), (pod.name, volume)


@DEPLOYED
def test_the_job_may_fill_exactly_the_declared_secrets(deployment: str) -> None:
    (role,) = [
        item for item in resources(deployment) if item["metadata"]["name"] == "salescast-secrets" and "rules" in item
    ]
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": sorted_as(role), "verbs": ["patch"]}
    ]
    assert set(sorted_as(role)) == set(secrets())


def sorted_as(role: Resource) -> list[str]:
    return list(role["rules"][0]["resourceNames"])


@DEPLOYED
def test_no_secret_has_a_value(deployment: str) -> None:
    for item in resources(deployment):
        if item["kind"] == "Secret":
            assert not {"data", "stringData"} & set(item), item["metadata"]["name"]


@DEPLOYED
def test_referenced_volumes_and_config_maps_exist(deployment: str) -> None:
    items = resources(deployment)
    configs = configmaps(items)
    for pod in pods(items):
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        for volume in volumes.values():
            sources = [volume, *volume.get("projected", {}).get("sources", [])]
            for source in sources:
                if name := source.get("configMap", {}).get("name"):
                    assert name in configs or name in GIVEN_CONFIGMAPS, (pod.name, name)
                if claim := source.get("persistentVolumeClaim"):
                    assert claim["claimName"] in _names(items, "PersistentVolumeClaim")
        claims = _claims(items, pod)
        for container in pod.containers:
            environment(container, configs)  # raises for a missing ConfigMap or key
            for mount in container.get("volumeMounts", []):
                assert mount["name"] in {*volumes, *claims}, (pod.name, container["name"], mount)
        used = {mount["name"] for container in pod.containers for mount in container.get("volumeMounts", [])}
        assert set(volumes) <= used, f"{pod.name} declares volumes that nothing mounts"


def _claims(items: list[Resource], pod: Pod) -> set[str]:
    sets = [item for item in items if item["kind"] == "StatefulSet" and item["metadata"]["name"] == pod.name]
    return {claim["metadata"]["name"] for item in sets for claim in item["spec"].get("volumeClaimTemplates", [])}


@DEPLOYED
def test_configured_files_are_mounted(deployment: str) -> None:
    """Files below /etc that a variable, an argument or a mounted configuration names are mounted."""
    configs = configmaps(resources(deployment))
    checked = 0
    for pod, container in _containers(deployment):
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        mounts = {mount["mountPath"]: volumes.get(mount["name"], {}) for mount in container.get("volumeMounts", [])}
        shared = {
            name for source in container.get("envFrom", []) for name in configs[source["configMapRef"]["name"]]
        }  # the same environment for all pods: not every pod uses all of it
        variables = environment(container, configs)
        mounted = [text for volume in mounts.values() for text in configs.get(_config(volume), {}).values()]
        texts = [
            *container.get("args", []),
            *mounted,
            *(str(variables[name]) for name in variables if name not in shared),
        ]
        required = {path for text in texts for path in re.findall(r"/etc/[\w.-]+/[\w.-]+\.\w+", text)}
        required |= {variables[name] for name in shared if str(variables[name]).rpartition("/")[0] in mounts}
        for path in required:
            folder, _, file = path.rpartition("/")
            assert folder in mounts, (pod.name, container["name"], path)
            if secret := mounts[folder].get("secret"):
                assert file in {item["path"] for item in secret.get("items", [])} or "items" not in secret, path
            checked += 1
    assert checked > 30


def _config(volume: dict[str, Any]) -> str:
    return str(volume.get("configMap", {}).get("name"))


@DEPLOYED
def test_service_accounts_exist_and_tokens_are_mounted_only_where_they_are_used(deployment: str) -> None:
    items = resources(deployment)
    with_token = set()
    for pod in pods(items):
        assert pod.spec["serviceAccountName"] in _names(items, "ServiceAccount"), pod.name
        if pod.spec.get("automountServiceAccountToken", True):
            with_token.add(pod.name)
    expected = {"salescast-secrets"} | ({"oauth-proxy", "sales-forecast"} if deployment == "openshift" else set())
    assert with_token == expected
    for item in items:
        if item["kind"] == "RoleBinding":
            assert item["roleRef"]["name"] in _names(items, "Role")
            assert {subject["name"] for subject in item["subjects"]} <= _names(items, "ServiceAccount")


@DEPLOYED
def test_selectors_select_pods_and_ports_are_open(deployment: str) -> None:
    items = resources(deployment)
    everything = list(pods(items))
    for item in items:
        kind, spec, name = item["kind"], item.get("spec", {}), item["metadata"]["name"]
        if kind == "Service":
            (pod,) = [pod for pod in everything if selects({"matchLabels": spec["selector"]}, pod.labels)]
            ports = {port["name"] for container in pod.containers for port in container.get("ports", [])}
            assert {port["targetPort"] for port in spec["ports"]} <= ports, name
        elif kind in ("NetworkPolicy", "PodDisruptionBudget"):
            selector = spec.get("podSelector", spec.get("selector"))
            assert [pod for pod in everything if selects(selector, pod.labels)], f"{kind} {name} selects nothing"
        elif kind == "Route":
            (service,) = [
                other
                for other in items
                if other["kind"] == "Service" and other["metadata"]["name"] == spec["to"]["name"]
            ]
            assert spec["port"]["targetPort"] in {port["name"] for port in service["spec"]["ports"]}
            assert spec["to"]["name"] == "oauth-proxy" and spec["tls"]["termination"] == "reencrypt"


# Client, server, port: connections that must work and connections that must not.
OPEN = [
    ("mlflow", "postgres", 5432),
    ("postgres-roles", "postgres", 5432),
    ("feast-server", "postgres", 5432),
    ("feast-dataprep", "postgres", 5432),
    ("feast-dataprep", "feast-ray-head", 10001),
    ("feast-ray-cpu", "feast-ray-head", 6379),
    ("feast-ray-head", "feast-ray-cpu", 40000),
    ("sales-training", "sales-training", 29500),
    ("sales-training", "postgres", 5432),
    ("sales-training", "feast-ray-head", 10001),
    ("sales-training", "mlflow", 5000),
    ("sales-forecast", "postgres", 5432),
    ("sales-forecast", "mlflow", 5000),
]
CLOSED = [
    ("sales-forecast", "feast-ray-head", 10001),
    ("sales-training", "feast-ray-head", 8265),
    ("sales-training", "feast-ray-cpu", 10001),
    ("feast-dataprep", "mlflow", 5000),
    ("feast-ray-cpu", "postgres", 5432),
    ("feast-server", "feast-ray-head", 8265),
    ("mlflow", "sales-forecast", 8080),
    ("salescast-secrets", "postgres", 5432),
]


@DEPLOYED
def test_network_policies_open_what_is_needed_and_nothing_else(deployment: str) -> None:
    items = resources(deployment)
    labels = {pod.name: pod.labels for pod in pods(items)}
    for source, target, port in OPEN:
        assert allowed(items, labels[source], labels[target], port), (source, target, port)
    for source, target, port in CLOSED:
        assert not allowed(items, labels[source], labels[target], port), (source, target, port)


def test_network_policies_of_the_login_proxy() -> None:
    items = resources("openshift")
    labels = {pod.name: pod.labels for pod in pods(items)}
    for target, port in (("mlflow", 5000), ("feast-server", 8888), ("feast-ray-head", 8265)):
        assert allowed(items, labels["oauth-proxy"], labels[target], port)
    assert not allowed(items, labels["oauth-proxy"], labels["postgres"], 5432)
    assert not allowed(items, labels["oauth-proxy"], labels["feast-ray-head"], 10001)


@DEPLOYED
def test_every_variable_is_read(deployment: str) -> None:
    """Every variable is a setting, an option, a placeholder of the feature repo, or documented by another project."""
    ours = _variables(Settings) | _variables(TrainingSettings) | _options()
    scripts = "".join(path.read_text() for path in (MANIFESTS / "scripts").glob("*.py"))
    read = ours | _placeholders() | set(DOCUMENTED) | set(re.findall(r'os\.environ\["(\w+)"\]', scripts))
    configs = configmaps(resources(deployment))
    for pod, container in _containers(deployment):
        unknown = set(environment(container, configs)) - read
        assert not unknown, f"{pod.name}/{container['name']}: nothing reads {sorted(unknown)}"


@DEPLOYED
def test_programs_have_the_variables_that_they_need(deployment: str) -> None:
    """Pods that open the feature store have every variable of its configuration; settings accept their values."""
    configs = configmaps(resources(deployment))
    for pod, container in _containers(deployment):
        if container.get("image") != IMAGE or container["name"] in ("autoscaler", "mlflow"):
            continue
        variables = environment(container, configs)
        if "FEAST_DB_USER" in variables:
            assert _placeholders() <= set(variables), (pod.name, container["name"])
        texts = {name: value for name, value in variables.items() if isinstance(value, str)}
        Settings.model_validate(texts)
        TrainingSettings.model_validate(texts)


@DEPLOYED
def test_images_are_ours_or_have_a_digest(deployment: str) -> None:
    import tomllib

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"salescast:{version}" == IMAGE
    for pod, container in _containers(deployment):
        image = container["image"]
        assert image == IMAGE or re.fullmatch(r"[\w./-]+(:[\w.-]+)?@sha256:[0-9a-f]{64}", image), (pod.name, image)
    build = yaml.safe_load_all((MANIFESTS / "build/build.yaml").read_text())
    assert [item["spec"]["output"]["to"]["name"] for item in build if item["kind"] == "BuildConfig"] == [IMAGE]


@DEPLOYED
def test_ray_version_is_the_locked_one(deployment: str) -> None:
    (cluster,) = [item for item in resources(deployment) if item["kind"] == "RayCluster"]
    assert cluster["spec"]["rayVersion"] == CONSTRAINTS["ray"]
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    assert all(isinstance(value, str) for group in groups for value in group["rayStartParams"].values())
    bounds = cluster["spec"]["workerGroupSpecs"][0]
    assert 1 <= bounds["minReplicas"] <= bounds["replicas"] <= bounds["maxReplicas"]


def _parses(command: list[str]) -> bool:
    """Whether the program accepts the command line; nothing is run."""
    program, *arguments = command
    if program in ("python", "torchrun"):
        script = ROOT / arguments[0].removeprefix("/opt/salescast/")
        compile(script.read_text(), str(script), "exec")
        return arguments[0].startswith("/opt/salescast/manifests/scripts/")
    if program == "salescast":
        root: Any = typer.main.get_command(app.app)
    elif program == "feast":
        from feast.cli.cli import cli as root
    elif program == "mlflow":
        from mlflow.cli import cli as root
    else:
        return False
    context = root.make_context(program, list(arguments), resilient_parsing=False)
    while hasattr(
        context.command, "resolve_command"
    ):  # a group; Typer bundles its own click, so isinstance does not help
        name, subcommand, rest = context.command.resolve_command(context, [*context._protected_args, *context.args])
        assert subcommand is not None
        context = subcommand.make_context(name, rest, parent=context)
    return True


@DEPLOYED
def test_programs_accept_their_commands(deployment: str) -> None:
    for pod, container in _containers(deployment):
        if container["image"] != IMAGE or (pod.kind == "RayCluster" and container in pod.spec["containers"]):
            continue  # images of other projects; KubeRay makes Ray's command
        command = [*container["command"], *container.get("args", [])]
        assert _parses(command), shlex.join(command)
        assert not any("\n" in word or word in ("-c", "sh", "bash") for word in command), "code in YAML"


def test_an_unknown_option_is_not_accepted() -> None:
    with pytest.raises(Exception, match=r"No such option.*--outt"):
        _parses(["salescast", "data", "generate", "--outt=/shared"])


@DEPLOYED
def test_pods_are_restricted(deployment: str) -> None:
    for pod, container in _containers(deployment):
        where = (pod.name, container["name"])
        assert pod.spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}, (
            where
        )
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False and security["capabilities"] == {"drop": ["ALL"]}, where
        assert not {"runAsUser", "runAsGroup", "privileged"} & set(security), where
        # PostgreSQL's image writes to its home at start.
        assert security.get("readOnlyRootFilesystem", False) is (pod.name != "postgres"), where
        assert {"cpu", "memory"} <= set(container["resources"]["requests"]), where
        assert "memory" in container["resources"]["limits"], where


@DEPLOYED
def test_long_running_pods_have_probes_of_open_ports(deployment: str) -> None:
    for pod in pods(resources(deployment)):
        if pod.kind in ("Job", "TrainingRuntime"):
            continue
        for container in pod.spec["containers"]:
            if container["name"] == "autoscaler":
                continue  # KubeRay makes this container without probes
            ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
            kinds = {"readinessProbe", "livenessProbe"}
            assert kinds <= set(container), (pod.name, container["name"])
            for kind in kinds | ({"startupProbe"} & set(container)):
                if get := container[kind].get("httpGet"):
                    # Ray's agent always listens on 52365.
                    known = {*ports, *ports.values(), *({52365} if pod.kind == "RayCluster" else set())}
                    assert get["port"] in known, (pod.name, container["name"], get)


@DEPLOYED
def test_nothing_is_killed_for_being_slow(deployment: str) -> None:
    """A busy node makes everything slow. A container that ends is restarted at once, without a probe."""
    for item in resources(deployment):
        assert "activeDeadlineSeconds" not in item.get("spec", {}), item["metadata"]["name"]
    for pod in pods(resources(deployment)):
        for container in pod.spec["containers"]:
            assert ("startupProbe" in container) == ("livenessProbe" in container), (pod.name, container["name"])
            for kind, least in (("startupProbe", 1800), ("livenessProbe", 300)):
                if probe := container.get(kind):
                    name = pod.name, container["name"], kind
                    assert probe["periodSeconds"] * probe["failureThreshold"] >= least, name
                    assert probe["timeoutSeconds"] >= 10, name


@DEPLOYED
def test_training(deployment: str) -> None:
    items = resources(deployment)
    (job,) = [item for item in items if item["kind"] == "TrainJob"]
    (pod,) = [pod for pod in pods(items) if pod.name == job["metadata"]["name"]]
    (container,) = pod.containers
    assert pod.labels["trainer.kubeflow.org/trainjob-name"] == "sales-training"
    variables = environment(container, configmaps(items))
    assert not [name for name in variables if name.startswith("PET_")], "only the controller may set these"
    trainer = job["spec"]["trainer"]
    assert variables["OMP_NUM_THREADS"] == trainer["resourcesPerNode"]["requests"]["cpu"]
    gpus = {trainer["resourcesPerNode"][kind].get("nvidia.com/gpu") for kind in ("requests", "limits")}
    assert gpus == ({"1"} if deployment == "gpu" else {None})
    published = (MANIFESTS / "06-trainjob.yaml").read_text()
    assert len(re.findall(r'^ +# nvidia\.com/gpu: "1"$', published, re.MULTILINE)) == 2


@DEPLOYED
def test_training_settings_are_set_in_one_place(deployment: str) -> None:
    """Data preparation and training read them from the config map; only two published ones are set in the TrainJob."""
    items = resources(deployment)
    names = _variables(TrainingSettings)
    configs = configmaps(items)
    assert configs["salescast"]["SALESCAST_HORIZON"] == str(TrainConfig.horizon)
    configs["salescast"] |= {"SALESCAST_HORIZON": "13", "SALESCAST_PATIENCE": "3"}
    read = {}
    for pod, container in _containers(deployment):
        if pod.name in ("feast-dataprep", "sales-training"):
            own = {entry["name"] for entry in container.get("env", [])} & names
            assert own == ({"NUM_EPOCHS", "BATCH_SIZE"} if pod.name == "sales-training" else set()), container["name"]
            texts = {name: value for name, value in environment(container, configs).items() if isinstance(value, str)}
            read[container["name"]] = TrainingSettings.model_validate(texts)
    assert {"features", "node"} <= set(read)
    assert {(settings.horizon, settings.patience) for settings in read.values()} == {(13, 3)}


@DEPLOYED
def test_serving(deployment: str) -> None:
    items = resources(deployment)
    (service,) = [item for item in items if item["kind"] == "InferenceService"]
    (container,) = service["spec"]["predictor"]["containers"]
    assert service["metadata"]["name"] == MODEL_NAME == "sales-forecast"
    assert container["readinessProbe"]["httpGet"]["path"] == f"/v2/models/{MODEL_NAME}/ready"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["http1"] == Settings.model_fields["http_port"].default
    assert ports["grpc"] == Settings.model_fields["grpc_port"].default
    variables = environment(container, configmaps(items))
    assert variables["STORAGE_URI"] == "pvc://shared" and "shared" in _names(items, "PersistentVolumeClaim")
    folders = Workdir(Path("/mnt/models"))  # where KServe mounts it
    assert variables["SALESCAST_WORKDIR"] == str(folders.root)
    assert variables["SALESCAST_MODEL"] == CHAMPION and "SALESCAST_MODEL_DIR" not in variables, (
        "serve the champion, not the last model"
    )
    assert {"MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"} <= set(variables)
    assert service["spec"]["predictor"]["labels"]["access.salescast/mlflow"] == "true"
    patience = service["spec"]["predictor"]["terminationGracePeriodSeconds"]
    assert patience > Settings.model_fields["shutdown_seconds"].default
    exposed = service["metadata"].get("labels", {}).get("networking.kserve.io/visibility") == "exposed"
    checked = service["metadata"]["annotations"].get("security.opendatahub.io/enable-auth") == "true"
    assert exposed == checked == (deployment == "openshift")


def test_documented_commands_name_existing_resources() -> None:
    items = resources("base")
    labels = {pod.name: pod.labels for pod in pods(items)}
    assert labels["postgres"]["app"] == "postgres"
    assert labels["feast-ray-head"]["ray.io/node-type"] == "head"
    assert "feast-dataprep" in _names(items, "Job") and "sales-training" in _names(items, "TrainJob")


def test_steps_can_be_applied_again() -> None:
    for item in resources("base"):
        if item["kind"] == "Job":  # applying a finished Job does not run it again, so it must be deleted
            assert item["spec"]["ttlSecondsAfterFinished"] <= 600
            assert item["spec"]["template"]["spec"]["restartPolicy"] == "OnFailure"
