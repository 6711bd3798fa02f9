"""Time stamps of RFC 3161: an authority signs that it has seen a hash, and when."""

from __future__ import annotations

import hashlib
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path

import rfc3161_client as tsp
from cryptography import x509

from declip.errors import SigningError
from declip.files import visible

__all__ = ["Stamp", "ask", "read_roots", "read_stamp"]

_SECONDS = 30
_MOST_BYTES = 1_000_000  # of an answer; usual ones have some thousand
_SHA256 = x509.ObjectIdentifier("2.16.840.1.101.3.4.2.1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stamp:
    """What a time stamp says. fits: it is of the data. doubt: why it is not to be believed; None = it was checked."""

    date: datetime
    fits: bool
    doubt: str | None = None


def ask(url: str, data: bytes) -> bytes:
    """Return the authority's answer (TimeStampResp as DER) on the SHA-256 of data.

    Raises SigningError if the address is not http(s), or the answer does not come or is not a time stamp of this hash.
    """
    if not url.lower().startswith(("http://", "https://")):
        raise SigningError(f"got {url} as the address of a time-stamping authority; expected http://… or https://…")
    query = tsp.TimestampRequestBuilder(data, tsp.HashAlgorithm.SHA256, cert_req=True).build()
    headers = {"Content-Type": "application/timestamp-query", "User-Agent": "declip"}
    try:
        request = urllib.request.Request(url, query.as_bytes(), headers)
        with urllib.request.urlopen(request, timeout=_SECONDS) as response:
            answer: bytes = response.read(_MOST_BYTES + 1)
    except (OSError, HTTPException, ValueError) as error:
        raise SigningError(f"{url} gave no time stamp: {error}; nothing was written") from error
    try:
        info = _granted(answer)
    except SigningError as error:
        raise SigningError(f"{url} gave no time stamp: {error}; nothing was written") from error
    if not _fits(info, data) or info.nonce != query.nonce:
        raise SigningError(f"the time stamp of {url} is of something else than it was asked for; nothing was written")
    return answer


def read_stamp(answer: bytes, data: bytes, roots: list[x509.Certificate]) -> Stamp:
    """Read an authority's answer on data, and check it if there are certificates of authorities that are trusted.

    A certificate has to be valid at the time of the stamp. Raises SigningError if the answer is no time stamp.
    """
    info = _granted(answer)
    date, fits = info.gen_time.astimezone(UTC), _fits(info, data)
    if not fits or not roots:
        return Stamp(date=date, fits=fits)
    try:
        tsp.VerifierBuilder(roots=roots).build().verify_message(tsp.decode_timestamp_response(answer), data)
    except tsp.VerificationError as error:
        return Stamp(date=date, fits=fits, doubt=str(error))
    return Stamp(date=date, fits=fits)


def read_roots(path: str | Path) -> list[x509.Certificate]:
    """Return the certificates in a PEM file. Raises SigningError."""
    try:
        return x509.load_pem_x509_certificates(Path(path).read_bytes())
    except OSError as error:
        raise SigningError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise SigningError(f"{path} holds no certificate in PEM (-----BEGIN CERTIFICATE-----)") from error


def _granted(answer: bytes) -> tsp.TimeStampTokenInfo:
    """Return what the authority signed. Raises SigningError with its reason, if it gave one instead."""
    try:
        response = tsp.decode_timestamp_response(answer)
    except ValueError as error:
        raise SigningError("the answer is no time stamp") from error
    if response.status != tsp.PKIStatus.GRANTED:
        reason = visible(" ".join(response.status_string)) or "without a reason"
        raise SigningError(f"the authority refused it (status {response.status}, {reason})")
    try:
        return response.tst_info
    except ValueError as error:
        raise SigningError("the answer is no time stamp") from error


def _fits(info: tsp.TimeStampTokenInfo, data: bytes) -> bool:
    imprint = info.message_imprint
    return imprint.hash_algorithm == _SHA256 and imprint.message == hashlib.sha256(data).digest()
