"""The pages under load, in Chromium: programs of minutes, run by `nox -s pages`."""
