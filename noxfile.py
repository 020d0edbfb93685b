"""Everything a change has to pass, and how to run each part of it alone.

    nox                       lint, types, package, and the tests on this Python
    nox -s tests-3.13         the tests on another Python
    nox -s tests-3.11 -- -k hub   arguments after -- go to pytest
    nox -s docs               write docs/reference anew, from the models
    nox -s bench -- --help    the benchmark
    nox -r …                  the same with the environments of the last run, which is faster

Nothing need be installed but Python and nox: where there is no redis-server 7, the tests session
has apt-get install one. Most tests also run on the 6.2 that a test dependency carries; where that
is all there is, those that need more (sharded channels, TLS) fail and say so.
"""

import os
import re
import shutil
import sys

import nox

nox.needs_version = ">=2026.10"

PROJECT = nox.project.load_toml()
PYTHONS = nox.project.python_versions(PROJECT)
THIS_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
SOURCES = ("streamer", "tests", "bench", "docs", "noxfile.py")

nox.options.sessions = ["lint", "types", "package", f"tests-{THIS_PYTHON}"]
nox.options.error_on_missing_interpreters = True


def dependencies(group: str) -> list[str]:
    """The requirements of a dependency group of pyproject.toml."""
    return list(nox.project.dependency_groups(PROJECT, group))


@nox.session
def lint(session: nox.Session) -> None:
    """Style, known mistakes (Trio's among them), and the direction of imports."""
    session.install(*dependencies("lint"))
    session.run("ruff", "check", *SOURCES)
    session.run("ruff", "format", "--check", *SOURCES)
    session.run("flake8", *SOURCES)
    session.run("lint-imports", "--no-cache")


@nox.session
def types(session: nox.Session) -> None:
    """Types, strictly, in the tests and the benchmark too."""
    session.install("-e", ".", *dependencies("types"))
    session.run("mypy", "--strict", *SOURCES)


@nox.session
def package(session: nox.Session) -> None:
    """What is built and installed is whole: its command starts, away from this directory."""
    session.install(".")
    session.chdir(session.create_tmp())
    session.run("streamer", "--version")
    session.run("streamer", "serve", "--help", silent=True)


def provide_redis(session: nox.Session) -> None:
    """Install Debian's redis-server where PATH has none that is new enough for every test."""
    if binary := shutil.which("redis-server"):
        version = session.run(binary, "--version", external=True, silent=True)
        if re.search(r"v=([7-9]|\d\d)\.", str(version)):
            return
    apt_get = ["apt-get"] if os.geteuid() == 0 else ["sudo", "apt-get"]
    # Whether it can be and is installed is for the tests to say: most of them can do without.
    if all(map(shutil.which, apt_get)):
        install = ["install", "--yes", "--no-install-recommends", "redis-server"]
        for command in ["update"], install:
            session.run(*apt_get, *command, external=True, success_codes=range(256))


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The tests, and that they reach at least 95 % of all branches.

    The faults come last and untraced: they run at full load, which tracing would make lighter. A
    run of a part (arguments after --) reports its coverage but does not have to reach the mark.
    """
    provide_redis(session)
    session.install("-e", ".", *dependencies("test"))
    session.run("coverage", "erase")
    parts = session.posargs or ["--ignore=tests/faults"]
    session.run("coverage", "run", "-m", "pytest", *parts)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report", *(["--fail-under=0"] if session.posargs else []))
    if not session.posargs:
        session.run("pytest", "tests/faults")


@nox.session
def docs(session: nox.Session) -> None:
    """Write the reference from the models; the tests fail while it says something else."""
    session.install("-e", ".")
    session.run("python", "-m", "docs.generate")


@nox.session
def bench(session: nox.Session) -> None:
    """The fan-out benchmark; arguments after -- go to it."""
    session.install("-e", ".", *dependencies("bench"))
    session.run("python", "-m", "bench", *session.posargs)
