"""Checks of this project that no published tool makes; run by the lint session of nox."""
