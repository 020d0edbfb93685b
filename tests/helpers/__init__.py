"""Servers, clients, publications and waiting, for tests of every part."""
