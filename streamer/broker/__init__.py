"""Access to Redis from Trio: connections, pub/sub, Sentinel, Cluster, histories and sessions."""
