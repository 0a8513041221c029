"""A client's requests to the served endpoint."""

import httpx

url = "http://sales-forecast-predictor:8080"
one = {"store_id": 1, "dept_id": 1}
answer = httpx.post(
    f"{url}/v1/models/sales-forecast:predict", json={"instances": [one], "parameters": {"horizon": 4}}, timeout=30
)
assert answer.status_code == 200, answer.text
(row,) = answer.json()["predictions"]
assert len(row["weeks"]) == len(row["forecast"]) == 4, row
assert all(low < middle < high for low, middle, high in zip(row["p10"], row["forecast"], row["p90"], strict=True)), row
unknown = httpx.post(f"{url}/v1/models/sales-forecast:predict", json={"instances": [{"store_id": 9999, "dept_id": 1}]})
assert unknown.status_code == 400 and "instances[0]" in unknown.text, unknown.text
