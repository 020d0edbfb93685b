"""Certificates, files of keys and JWK Sets, examined."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from streamer.checks.files import check_certificate, check_jwks, check_key_files
from streamer.checks.finding import Finding, Level, worst
from streamer.config import Settings
from tests.auth.provider import Key, Provider, running_provider

ENDS = datetime(2030, 6, 30, tzinfo=UTC)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """The files of a certificate for some names, and of its key."""
    issued = trustme.CA().issue_cert("stream.example.com", "*.eu.example.com", "::1")
    return write(issued, tmp_path)


@pytest.fixture
def provider() -> Iterator[Provider]:
    """An identity provider."""
    with running_provider() as running:
        yield running


def write(issued: trustme.LeafCert, directory: Path) -> tuple[Path, Path]:
    """Write a certificate and its key as only their owner can read them."""
    chain, key = directory / "chain.pem", directory / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    key.chmod(0o600)
    return chain, key


def text(findings: list[Finding]) -> str:
    """Return the messages that are not ok."""
    return "\n".join(f"{f.level} {f.message}" for f in findings if f.level is not Level.OK)


def test_a_good_certificate_has_no_findings(files: tuple[Path, Path]) -> None:
    """Its names, how long it is valid and its key are reported."""
    names = ["stream.example.com", "A.eu.example.com", "::1"]
    findings = list(check_certificate(*files, names))
    assert worst(findings) is Level.OK
    assert any("*.eu.example.com" in finding.message for finding in findings)


@pytest.mark.parametrize(
    "name", ["example.com", "eu.example.com", "a.b.eu.example.com", "127.0.0.1"]
)
def test_a_certificate_for_other_names_is_a_fault(files: tuple[Path, Path], name: str) -> None:
    """A wildcard is for one label."""
    assert f"fault is not for {name}, but for" in text(list(check_certificate(*files, [name])))


@pytest.mark.parametrize(
    ("before_end", "expected"),
    [
        (timedelta(days=30), ""),
        (timedelta(days=5), "warning is valid for 5 more days"),
        (timedelta(0), "fault has expired at 2030-06-30"),
        (timedelta(days=20_000), "fault is not valid before"),
    ],
)
def test_the_time_left_is_judged(tmp_path: Path, before_end: timedelta, expected: str) -> None:
    """Two weeks before its end, a certificate should have been renewed."""
    files = write(trustme.CA().issue_cert("a.example", not_after=ENDS), tmp_path)
    assert text(list(check_certificate(*files, now=ENDS - before_end))).startswith(expected)
    assert bool(text(list(check_certificate(*files, now=ENDS - before_end)))) == bool(expected)


def test_the_key_of_another_certificate_is_a_fault(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    """So is a file that is not PEM."""
    certificate, _key = files
    other = tmp_path / "other.pem"
    trustme.CA().issue_cert("a.example").private_key_pem.write_to_path(other)
    assert "do not go together" in text(list(check_certificate(certificate, other)))
    other.write_text("nothing")
    assert worst(check_certificate(other, other)) is Level.FAULT
    assert worst(check_certificate(tmp_path / "absent", other)) is Level.FAULT


def test_a_key_that_everybody_can_read_is_a_warning(files: tuple[Path, Path]) -> None:
    """It is named."""
    files[1].chmod(0o644)
    assert f"warning {files[1]} can be read by every user" in text(list(check_certificate(*files)))


def test_each_file_of_keys_is_read_as_the_server_reads_it(tmp_path: Path) -> None:
    """All unusable ones are found, and nothing of them is shown; public keys are no secret."""
    secret, operators = tmp_path / "secret", tmp_path / "operators"
    secret.write_text("hunter2")
    operators.write_text("hunter2")
    settings = Settings(
        auth="required",
        auth_secret_file=secret,
        auth_keys_file=secret,
        auth_signing_key_file=secret,
        auth_client_id="streamer",
        auth_client_secret_file=operators,
        api_key_file=operators,
    )
    operators.chmod(0o644)
    findings = {finding.subject: finding for finding in check_key_files(settings)}
    levels = {subject: str(finding.level) for subject, finding in findings.items()}
    assert levels == {
        "api_key_file": "fault",
        "auth_secret_file": "fault",
        "auth_keys_file": "fault",
        "auth_signing_key_file": "fault",
        "auth_client_secret_file": "warning",
    }
    assert not any("hunter2" in finding.message for finding in findings.values())
    secret.write_text("x" * 40)
    secret.chmod(0o600)
    skipped = {"api_key_file", "auth_keys_file", "auth_client_secret_file"}
    assert worst(check_key_files(settings, skipped=skipped)) is Level.OK


async def test_a_provider_has_to_answer_with_keys(provider: Provider) -> None:
    """A status that is not 200, or no JWK Set, is a fault with the reason."""
    provider.publish(Key("a"))
    assert (await check_jwks(provider.jwks_url)).level is Level.OK
    absent = await check_jwks(f"{provider.origin}/absent")
    assert absent.level is Level.FAULT
    assert "404" in absent.message
    provider.answer("/jwks.json", {"nothing": []})
    assert (await check_jwks(provider.jwks_url)).level is Level.FAULT
