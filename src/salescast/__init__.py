"""salescast: from a retailer's weekly sales history to calibrated multi-week forecasts.

The modules follow the way of the data:
data -> features -> retrieval -> dataset -> train -> evaluate -> registry -> serve -> forecast.
"""

__version__ = "0.1.0"
