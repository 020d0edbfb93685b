"""For operators: statistics, metrics, connections and health over HTTP."""
