"""What training wrote to MLflow, read with the pod's user, and that MLflow refuses clients without the password."""

import os
import ssl

import httpx
from mlflow import MlflowClient

client = MlflowClient()
model = client.get_registered_model("sales-forecast")
(version,) = client.search_model_versions("name='sales-forecast'")
run = client.get_run(version.run_id)
assert run.info.status == "FINISHED", run.info
assert "backtest_wmape" in run.data.metrics, sorted(run.data.metrics)
assert "bundle" in [file.path for file in client.list_artifacts(version.run_id)]
assert model.aliases == {"champion": version.version}, (model.aliases, version.tags)

url = f"{os.environ['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/registered-models/search"
authority = os.environ["MLFLOW_TRACKING_SERVER_CERT_PATH"]
context = ssl.create_default_context(cafile=authority)
assert httpx.get(url, verify=context).status_code == 401
assert httpx.get(url, verify=context, auth=("salescast", "guessed")).status_code == 401
