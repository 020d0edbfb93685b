"""`streamer check`: what is wrong with a configuration, and with what it needs."""

from typing import TYPE_CHECKING, Final

import click
import orjson
import trio

from streamer.cli.errors import CommandError, ExitCode
from streamer.cli.options import (
    SETTINGS_HELP,
    JudgedSettings,
    SettingsCommand,
    with_judged_settings,
)

if TYPE_CHECKING:
    from streamer.checks.finding import Finding

_HELP: Final = f"""Check a configuration, and what a server with it needs, without starting one.

\b
  streamer check --config streamer.toml
  streamer check --config streamer.toml --host-name stream.example.com
  streamer check --config streamer.toml --json

Prints a line for each finding: ok, a warning, or a fault. All faults of the settings come at once;
then Redis (version, permissions, clock), the certificate, files of keys, the JWK Set of the
identity provider, and the limit of open files. Changes nothing, in Redis neither. Ends with code 0
unless there is a fault. Run it as the user that the server will run as.

{SETTINGS_HELP}
"""


@click.command("check", cls=SettingsCommand, help=_HELP)
@click.option(
    "--host-name",
    "host_names",
    multiple=True,
    metavar="NAME",
    help="A name or address that clients connect to, which the certificate must name; repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Write the findings as JSON.")
@with_judged_settings
def command(judged: JudgedSettings, host_names: tuple[str, ...], *, as_json: bool) -> int:
    """Print the findings."""
    # Imported here: it takes longer than the other commands need to start.
    from streamer.checks.finding import Level, worst  # noqa: PLC0415

    findings = trio.run(_findings, judged, host_names)
    if as_json:
        click.echo(_as_json(findings))
    else:
        for finding in findings:
            click.echo(f"{finding.level:<7}  {finding.subject}: {finding.message}")
    if worst(findings) is Level.FAULT:
        count = sum(finding.level is Level.FAULT for finding in findings)
        raise CommandError(f"{count} {'fault' if count == 1 else 'faults'} found")
    return ExitCode.OK


async def _findings(judged: JudgedSettings, host_names: tuple[str, ...]) -> "list[Finding]":
    from streamer.checks.files import (  # noqa: PLC0415 - as above
        check_certificate,
        check_jwks,
        check_key_files,
    )
    from streamer.checks.finding import fault, ok  # noqa: PLC0415
    from streamer.checks.machine import (  # noqa: PLC0415
        check_descriptors,
        hard_descriptor_limit,
    )
    from streamer.checks.redis import check_redis  # noqa: PLC0415

    settings, wrong = judged.settings, judged.wrong
    findings = [fault("settings", problem) for problem in judged.problems]
    if not findings:
        findings.append(ok("settings", "all are valid"))
    if not settings.memory and "redis" not in wrong:
        findings += await check_redis(settings)
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate and key and wrong.isdisjoint({"tls_certificate", "tls_key"}):
        findings += check_certificate(certificate, key, host_names)
    findings += check_key_files(settings, skipped=wrong)
    if settings.auth_jwks_url is not None:
        findings.append(await check_jwks(settings.auth_jwks_url))
    findings.append(check_descriptors(hard_descriptor_limit(), settings.max_connections))
    return findings


def _as_json(findings: "list[Finding]") -> str:
    from streamer.checks.finding import worst  # noqa: PLC0415 - as above

    rows = [
        {"level": finding.level, "subject": finding.subject, "message": finding.message}
        for finding in findings
    ]
    options = orjson.OPT_INDENT_2
    return orjson.dumps({"result": worst(findings), "findings": rows}, option=options).decode()
