"""Attacks on a server by clients, producers and Redis, beside a client that must not notice."""
