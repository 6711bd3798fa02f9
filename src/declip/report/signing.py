"""Sign a report: the page, its mask, and what they were made from, with an Ed25519 key.

Beside report.html, `save` writes
- report.mask.png;
- report.json, the statement: the SHA-256 of page, mask, photo and model, the public key, and the facts of the page;
- report.sig: the signature (64 bytes) of report.json as it lies on the disk;
- report.tsr: a time stamp of report.sig, if one is asked for.

The statement names the bytes of the page, so that a page that says anything else is not the one that was signed.
`openssl` can check all of it; docs/sign.md has the commands.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from declip.errors import ImageError, SigningError
from declip.files import encode, write_together
from declip.images.mapfiles import mask_png
from declip.report import page
from declip.report.examination import Report
from declip.report.timestamp import ask

__all__ = ["FORMAT", "Paths", "Signer", "fingerprint", "parse_public_key", "paths_of", "read_signer", "save"]

Passphrase: TypeAlias = Callable[[], str | None]

# The first field of each statement: a key that also signs other things signs nothing that could be taken for one.
FORMAT = "declip signed report 1"

_MAKE = "make one with: openssl genpkey -algorithm ed25519 -out key.pem"


class Paths(NamedTuple):
    """Where the files of a signed report lie."""

    page: Path
    mask: Path
    statement: Path
    signature: Path
    stamp: Path


def paths_of(page: str | Path) -> Paths:
    """Return where the files of the signed report with this page lie. Raises SigningError for a name without .html."""
    path = Path(page)
    if path.suffix.lower() not in (".html", ".htm"):
        raise SigningError(f"{path} has no name of a signed page; expected one that ends in .html")
    mask, statement, signature, stamp = map(path.with_suffix, (".mask.png", ".json", ".sig", ".tsr"))
    return Paths(page=path, mask=mask, statement=statement, signature=signature, stamp=stamp)


@dataclass(frozen=True, kw_only=True, slots=True)
class Signer:
    """A key that reports are signed with."""

    key: Ed25519PrivateKey = field(repr=False)

    @property
    def public_key(self) -> Ed25519PublicKey:
        """Whoever has it can check signatures, and make none."""
        return self.key.public_key()

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 of the public key; see `fingerprint`."""
        return fingerprint(self.public_key)


def fingerprint(key: Ed25519PublicKey) -> str:
    """Return the SHA-256 of a public key as DER (SubjectPublicKeyInfo), as 64 hex digits."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, form)).hexdigest()


def read_signer(path: str | Path, passphrase: Passphrase | None = None) -> Signer:
    """Return the signer of a private Ed25519 key in a PEM file.

    passphrase: called if the key is encrypted; what it returns opens the key, None = there is none.
    Raises SigningError for a file that cannot be read or holds something else, or a wrong passphrase.
    """
    data = _read(path)
    if b"PUBLIC KEY-----" in data:
        raise SigningError(f"{path} holds a public key, which checks signatures; expected the private one")
    try:
        key = serialization.load_pem_private_key(data, None)
    except TypeError:  # it is encrypted
        given = None if passphrase is None else passphrase()
        if not given:
            raise SigningError(f"the key in {path} is encrypted; give its passphrase") from None
        try:
            key = serialization.load_pem_private_key(data, given.encode())
        except (ValueError, UnsupportedAlgorithm) as error:
            raise SigningError(f"the passphrase does not open the key in {path}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SigningError(f"{path} holds no private key in PEM; {_MAKE}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningError(f"{path} holds a key of another kind ({_kind(key)}); expected Ed25519; {_MAKE}")
    return Signer(key=key)


def parse_public_key(data: bytes, name: str) -> Ed25519PublicKey:
    """Return the public Ed25519 key that PEM holds. name: of its file, for messages. Raises SigningError."""
    if b"PRIVATE KEY-----" in data:
        advice = "openssl pkey -in key.pem -pubout -out pub.pem"
        raise SigningError(f"{name} holds a private key, which is nobody else's; expected the public one: {advice}")
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SigningError(f"{name} holds no public key in PEM (-----BEGIN PUBLIC KEY-----)") from error
    if not isinstance(key, Ed25519PublicKey):
        raise SigningError(f"{name} holds a public key of another kind ({_kind(key)}); reports have Ed25519 keys")
    return key


def save(
    report: Report, path: str | Path, signer: Signer, *, force: bool = False, authority: str | None = None
) -> None:
    """Write the page and its signature: the files of `paths_of`, all of them or none.

    authority: http(s) address of a time-stamping authority (RFC 3161), which is sent the signature's SHA-256, and
    nothing else. Raises ImageError of kind "exists" unless force, and "input" if the photo is no file; SigningError
    where the name is no .html or the authority gives no time stamp; OSError.
    """
    paths = paths_of(path)
    if not force and (there := next(filter(os.path.lexists, paths), None)):
        raise ImageError(str(there), "exists", "this file is there already; force=True (--force) overwrites it")
    if report.metadata is None:
        raise ImageError(report.photo.name, "input", "only a photo from a file can be named in a signed report")
    contents = {
        paths.page: encode(page.render(report, signer=signer.fingerprint)),
        paths.mask: mask_png(report.result.mask),
    }
    signed = {"page": _named(paths.page, contents[paths.page]), "mask": _named(paths.mask, contents[paths.mask])}
    statement = json.dumps(_statement(report, signer) | signed, indent=1).encode()
    signature = signer.key.sign(statement)
    contents |= {paths.statement: statement, paths.signature: signature}
    if authority is not None:
        contents[paths.stamp] = ask(authority, signature)
    write_together(dict(contents), new=not force)
    if authority is None:
        paths.stamp.unlink(missing_ok=True)  # it belonged to the signature that was overwritten


def _statement(report: Report, signer: Signer) -> dict[str, Any]:
    """Return what is signed, but for the files that are written. It names no folder of this computer."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    facts, name = report.to_dict(), Path(report.photo.name).name
    assert report.metadata is not None
    return {
        "format": FORMAT,
        "date": facts["date"],
        "declip": facts["declip"],
        "key": signer.public_key.public_bytes(serialization.Encoding.PEM, form).decode(),
        "photo": {"name": name, "sha256": report.metadata.sha256},
        "model": {"name": report.localizer.model, "sha256": report.localizer.sha256},
        "facts": facts | {"image": name},
    }


def _named(path: Path, content: bytes) -> dict[str, str]:
    return {"name": path.name, "sha256": hashlib.sha256(content).hexdigest()}


def _kind(key: object) -> str:
    return type(key).__name__.removesuffix("PrivateKey").removesuffix("PublicKey").strip("_")


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SigningError(f"cannot read {path}: {error.strerror}") from error
