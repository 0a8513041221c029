"""Every resource is valid for its API, by the packages that the project installs; `make manifests` can check more."""

import pytest
import yaml
from cluster import DEPLOYMENTS, MANIFESTS, Resource, rendered, resources

DEPLOYED = [pytest.param(name, id=name) for name in DEPLOYMENTS]
CORE = {
    "v1", "apps/v1", "batch/v1", "policy/v1", "networking.k8s.io/v1", "rbac.authorization.k8s.io/v1",
}  # fmt: skip


@pytest.mark.parametrize("deployment", DEPLOYED)
def test_core_resources_are_valid(deployment: str) -> None:
    import kubernetes_validate

    core = [item for item in resources(deployment) if item["apiVersion"] in CORE]
    assert len(core) > 30
    for item in core:
        kubernetes_validate.validate(item, "1.33", strict=True)


def test_validation_notices_an_unknown_field() -> None:
    import kubernetes_validate

    service = next(item for item in resources("base") if item["kind"] == "Service")
    with pytest.raises(kubernetes_validate.ValidationError, match="portz"):
        kubernetes_validate.validate({**service, "spec": {**service["spec"], "portz": []}}, "1.33", strict=True)


def _same(given: object, parsed: object, path: str = "") -> None:
    """Fail for a field that the model dropped because the API does not have it."""
    if isinstance(given, dict):
        assert isinstance(parsed, dict), path
        for key, value in given.items():
            assert key in parsed, f"{path}.{key} is not a field of the API"
            _same(value, parsed[key], f"{path}.{key}")
    elif isinstance(given, list):
        assert isinstance(parsed, list) and len(given) == len(parsed), path
        for number, (left, right) in enumerate(zip(given, parsed, strict=True)):
            _same(left, right, f"{path}[{number}]")
    else:
        assert str(given) == str(parsed), path


def _of_kind(deployment: str, kind: str) -> Resource:
    (resource,) = [item for item in resources(deployment) if item["kind"] == kind]
    return resource


@pytest.mark.parametrize("deployment", DEPLOYED)
def test_training_is_valid(deployment: str) -> None:
    from kubeflow_trainer_api import models

    for kind in ("TrainJob", "TrainingRuntime"):
        item = _of_kind(deployment, kind)
        _same(item, getattr(models, f"TrainerV1alpha1{kind}").from_dict(item).to_dict())


@pytest.mark.parametrize("deployment", DEPLOYED)
def test_training_is_valid_for_trainer_2_1_and_2_3(deployment: str) -> None:
    # Only these fields of a TrainJob are spelled the same in both.
    spec = _of_kind(deployment, "TrainJob")["spec"]
    assert set(spec) == {"runtimeRef", "trainer"}
    assert set(spec["trainer"]) <= {"image", "command", "args", "env", "numNodes", "numProcPerNode", "resourcesPerNode"}
    assert isinstance(spec["trainer"]["numProcPerNode"], int)


def _kserve(item: Resource) -> object:
    from kserve import V1beta1InferenceService
    from kubernetes.client import ApiClient

    class Response:
        data = yaml.safe_dump(item)

    class WithKserve(ApiClient):
        def _ApiClient__deserialize(self, data: object, klass: object) -> object:  # noqa: N802
            import kserve.models

            if isinstance(klass, str) and hasattr(kserve.models, klass.removeprefix("KnativeAPIs")):
                klass = getattr(kserve.models, klass)
            return super()._ApiClient__deserialize(data, klass)  # type: ignore[misc]

    api = WithKserve()
    return api.sanitize_for_serialization(api._ApiClient__deserialize(item, V1beta1InferenceService))


@pytest.mark.parametrize("deployment", DEPLOYED)
def test_inference_service_is_valid(deployment: str) -> None:
    item = _of_kind(deployment, "InferenceService")
    _same(item, _kserve(item))


def test_inference_service_notices_an_unknown_field() -> None:
    item = _of_kind("base", "InferenceService")
    predictor = {**item["spec"]["predictor"], "minReplicaz": 1}
    with pytest.raises(AssertionError, match="minReplicaz is not a field"):
        _same(wrong := {**item, "spec": {"predictor": predictor}}, _kserve(wrong))


def test_every_kustomization_renders() -> None:
    folders = sorted(str(path.parent.relative_to(MANIFESTS)) for path in MANIFESTS.rglob("kustomization.yaml"))
    assert {"base", "build", "overlays/gpu", "overlays/openshift", "overlays/small"} <= set(folders)
    for folder in folders:
        assert list(yaml.safe_load_all(rendered(folder))), folder


def test_numbered_links_lead_to_rendered_files() -> None:
    linked = {path.name: path.resolve().relative_to(MANIFESTS) for path in MANIFESTS.glob("0*.yaml")}
    assert [name.split("-")[0] for name in sorted(linked)] == ["00", "01", "02", "03", "04a", "04b", "05", "06", "07"]
    for target in linked.values():
        names = yaml.safe_load((MANIFESTS / target.parent / "kustomization.yaml").read_text())["resources"]
        assert target.name in names
