"""Ask a running forecast server for two series: `python examples/client.py http://localhost:8080`."""

import sys

import salescast

url = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8080"
with salescast.Client(url) as client:
    forecasts = client.forecast([(1, 1), (1, 2)], weeks=4)

print(forecasts.write_csv(), end="")
