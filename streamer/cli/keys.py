"""`streamer keys`: keys for development, and for those who issue tokens themselves."""

import os
import secrets
from pathlib import Path
from typing import Final

import click
import orjson

from streamer.cli.errors import CommandError

DIRECTORY: Final = Path("streamer-keys")
"""Where `streamer keys new` writes, and `streamer token` looks for the key to sign with."""

SIGNING_KEY: Final = "signing-key.pem"
PUBLIC_KEYS: Final = "keys.json"
SECRET: Final = "secret"

_SECRET_BYTES: Final = 48
_PRIVATE: Final = 0o600
_PUBLIC: Final = 0o644


@click.group("keys")
def command() -> None:
    """Make keys that sign tokens and verify them."""


@command.command("new")
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    default=DIRECTORY,
    show_default=True,
    metavar="DIRECTORY",
    help="Where to write; it is made if it is not there.",
)
@click.option(
    "--secret",
    "is_secret",
    is_flag=True,
    help="Write a shared secret (HS256) instead of a pair of keys (ES256).",
)
def new(*, directory: Path, is_secret: bool) -> None:
    """Write a new private key and its JWK Set, or a shared secret.

    Only the owner can read what is private. Nothing is overwritten.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if is_secret:
            path = directory / SECRET
            _write(path, secrets.token_urlsafe(_SECRET_BYTES).encode() + b"\n", _PRIVATE)
            click.echo(f"{path}: a shared secret. Whoever has it can sign tokens.")
            serve = f"--auth-secret-file {path}"
        else:
            path = directory / SIGNING_KEY
            private, public = _new_pair()
            _write(path, private, _PRIVATE)
            try:
                _write(directory / PUBLIC_KEYS, public, _PUBLIC)
            except OSError:
                path.unlink()  # without the other it would look like half of the pair there
                raise
            click.echo(f"{path}: the private key. Whoever has it can sign tokens.")
            click.echo(f"{directory / PUBLIC_KEYS}: the public key, for servers that only verify.")
            serve = f"--auth-signing-key-file {path}"
    except FileExistsError as error:
        raise CommandError(f"{error.filename} exists, and is not overwritten") from None
    except OSError as error:
        raise CommandError(f"cannot write {error.filename}: {error.strerror}") from None
    key = "" if path == DIRECTORY / SIGNING_KEY else f" {serve}"
    click.echo(f"\nstreamer serve --auth required {serve}")
    click.echo(f"streamer token{key} --user 42 --topic 'stock:*' --expires 1h")


def _new_pair() -> tuple[bytes, bytes]:
    """Return a private key in PEM, and a JWK Set with its public key."""
    # Imported here: it takes longer than the other commands need to start.
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    from streamer.auth.keys import public_jwk, thumbprint  # noqa: PLC0415

    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key()
    jwk = public_jwk(public) | {"kid": thumbprint(public), "use": "sig", "alg": "ES256"}
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private, orjson.dumps({"keys": [jwk]}, option=orjson.OPT_INDENT_2) + b"\n"


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a new file that never is readable for more than its mode allows."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    except OSError as error:
        path.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None
