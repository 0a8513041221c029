#!/bin/sh
# Ask a running forecast server for two series: sh examples/request.sh http://localhost:8080
curl --silent --show-error --fail-with-body "${1:-http://localhost:8080}/v1/models/sales-forecast:predict" \
  --header 'content-type: application/json' \
  --data '{"instances": [{"store_id": 1, "dept_id": 1}, {"store_id": 1, "dept_id": 2}], "parameters": {"horizon": 4}}'
