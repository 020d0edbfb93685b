"""The files and URLs of the settings: certificates, keys and the JWK Set of a provider."""

from __future__ import annotations

import ipaddress
import ssl
import stat
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx2
from cryptography import x509

from streamer.admin.keys import ApiKeys
from streamer.auth.jwks import fetch_keys
from streamer.auth.key_files import KeyFile
from streamer.auth.keys import KeyProblem, public_keys, secret_keys
from streamer.auth.refresh import read_secret
from streamer.auth.requests import TIMEOUT_SECONDS, HttpProblem
from streamer.auth.signing import SigningKey
from streamer.checks.finding import Finding, fault, ok, warning
from streamer.config import Settings
from streamer.edge.tls import server_context
from streamer.setting_rules import SettingError
from streamer.urls import redact

_SOON_DAYS: Final = 14
"""Certificates are usually renewed 30 days before their end; two weeks later, that has failed."""

_READERS: Final[dict[str, Callable[[str, Path], object]]] = {
    "api_key_file": lambda _setting, path: ApiKeys(path),
    "auth_secret_file": lambda setting, path: KeyFile(setting, path, secret_keys),
    "auth_keys_file": lambda setting, path: KeyFile(setting, path, public_keys),
    "auth_signing_key_file": SigningKey.read,
    "auth_client_secret_file": lambda _setting, path: read_secret(path),
}
"""How the server reads each file of keys."""

_PUBLIC: Final = frozenset({"auth_keys_file"})


def check_key_files(settings: Settings, *, skipped: Iterable[str] = ()) -> Iterator[Finding]:
    """Read each file of keys as the server will, and look who else may read it."""
    for setting, read in _READERS.items():
        path: Path | None = getattr(settings, setting)
        if path is None or setting in skipped:
            continue
        try:
            read(setting, path)
        except SettingError as error:
            yield fault(setting, str(error).removeprefix(f"{setting} "))
            continue
        yield (setting not in _PUBLIC and _exposure(setting, path)) or ok(
            setting, f"{path} can be used"
        )


def _exposure(setting: str, path: Path) -> Finding | None:
    """Return a warning if every user of this machine can read a secret file."""
    if path.stat().st_mode & stat.S_IROTH:
        return warning(setting, f"{path} can be read by every user: chmod o-r")
    return None


def check_certificate(
    certificate: Path, key: Path, host_names: Iterable[str] = (), *, now: datetime | None = None
) -> Iterator[Finding]:
    """Examine the certificate that clients are shown, and its key.

    `host_names` are the names or addresses that clients connect to; `now` has a time zone.
    """
    subject = "tls_certificate"
    try:
        server_context(certificate, key)
        shown = x509.load_pem_x509_certificates(certificate.read_bytes())[0]
    except ssl.SSLError as error:
        reason = getattr(error, "reason", None) or error.strerror or error
        yield fault(subject, f"{certificate} and {key} do not go together: {reason}")
        return
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        yield fault(subject, f"{certificate} cannot be used: {reason}")
        return
    yield _validity(subject, shown, datetime.now(UTC) if now is None else now)
    yield from _names(subject, shown, host_names)
    yield _exposure("tls_key", key) or ok("tls_key", f"{key} is that of the certificate")


def _validity(subject: str, shown: x509.Certificate, now: datetime) -> Finding:
    begins, ends = shown.not_valid_before_utc, shown.not_valid_after_utc
    if now < begins:
        return fault(subject, f"is not valid before {begins:%Y-%m-%d %H:%M} UTC")
    if now >= ends:
        return fault(subject, f"has expired at {ends:%Y-%m-%d %H:%M} UTC")
    days = (ends - now).days
    judge = warning if days < _SOON_DAYS else ok
    return judge(subject, f"is valid for {days} more days, until {ends:%Y-%m-%d %H:%M} UTC")


def _names(subject: str, shown: x509.Certificate, host_names: Iterable[str]) -> Iterator[Finding]:
    try:
        extension = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        yield fault(subject, "names no host: browsers do not accept it")
        return
    names = extension.get_values_for_type(x509.DNSName)
    addresses: list[Any] = extension.get_values_for_type(x509.IPAddress)
    listed = ", ".join([*names, *map(str, addresses)])
    missing = [name for name in host_names if not _is_named(name, names, addresses)]
    for name in missing:
        yield fault(subject, f"is not for {name}, but for {listed}")
    if not missing:
        yield ok(subject, f"is for {listed}")


def _is_named(name: str, names: Iterable[str], addresses: Iterable[Any]) -> bool:
    try:
        return ipaddress.ip_address(name) in addresses
    except ValueError:
        pass
    name = name.lower()
    # A wildcard is one whole label, the first (RFC 6125).
    return any(
        name.partition(".")[2] == pattern[2:].lower()
        if pattern.startswith("*.")
        else name == pattern.lower()
        for pattern in names
    )


async def check_jwks(url: str) -> Finding:
    """Fetch the JWK Set of a provider."""
    subject = "auth_jwks_url"
    async with httpx2.AsyncClient(timeout=TIMEOUT_SECONDS, follow_redirects=False) as client:
        try:
            keys = await fetch_keys(client, url)
        except (HttpProblem, KeyProblem) as error:
            return fault(subject, f"{redact(url)} {error}")
    return ok(subject, f"{redact(url)} has {len(keys)} keys")
