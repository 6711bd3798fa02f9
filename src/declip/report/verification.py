"""Check a signed report: who signed what, and whether the files beside it are still those.

found = verify("report.html", key="pub.pem")
found.ok, [check.says for check in found.checks]
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from declip.errors import SigningError
from declip.files import sha256_of
from declip.models.catalog import MODELS
from declip.models.resolve import cached
from declip.report.signing import FORMAT, Paths, fingerprint, parse_public_key, paths_of
from declip.report.timestamp import read_roots, read_stamp

__all__ = ["Check", "Part", "State", "Verification", "verify"]

Part: TypeAlias = Literal["signature", "key", "page", "mask", "photo", "model", "time stamp"]
State: TypeAlias = Literal["good", "bad", "open"]

_NAMED: tuple[Part, ...] = ("page", "mask", "photo", "model")
# What is said of a file that is the one that was signed, that is another one, and that is absent.
_WORDS = {
    "page": ("{} is the page that was signed, byte for byte.", "{} was changed after it was signed.", ""),
    "mask": (
        "{} is the mask that was signed.",
        "{} is not the mask that was signed: it was changed afterwards.",
        "{} is not beside the page, so it was not compared.",
    ),
    "photo": (
        "{} is the photo that was examined, byte for byte.",
        "{} is not the photo that was examined. Saving it anew or sending it by a messenger is enough for that.",
        "{} is not beside the page, so it was not compared. Put it there, or give it (--photo).",
    ),
    "model": (
        "{} holds the weights that were used.",
        "{} holds other weights than those that were used.",
        "{} is absent.",
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One check. state: "open" = there was nothing to check it with. says: in one sentence."""

    part: Part
    state: State
    says: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What is known about the signature of a page.

    date: "YYYY-MM-DD hh:mm:ss UTC", by the signer's clock. fingerprint: of the key that signed. Both are None without
    a valid signature.
    """

    page: str
    checks: tuple[Check, ...]
    date: str | None = None
    fingerprint: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the given key signed this very page, and no file that could be compared is another one."""
        key_good = any(check.part == "key" and check.state == "good" for check in self.checks)
        return key_good and not any(check.state == "bad" for check in self.checks)

    @property
    def summary(self) -> str:
        """Return all of it in one sentence."""
        if bad := [check.part for check in self.checks if check.state == "bad"]:
            return f"Not confirmed: {', '.join(bad)}."
        if not self.ok:
            return "Unchanged since it was signed, but whose key signed it is not known."
        rest = ", ".join(check.part for check in self.checks if check.state == "open")
        return "Signed with the key you gave, and unchanged since." + (f" Not compared: {rest}." if rest else "")

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        checks = [{"part": check.part, "state": check.state, "says": check.says} for check in self.checks]
        return {
            "page": self.page,
            "ok": self.ok,
            "summary": self.summary,
            "date": self.date,
            "fingerprint": self.fingerprint,
            "checks": checks,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class _Statement:
    """What was signed: the name and the SHA-256 of each part."""

    key: Ed25519PublicKey
    date: str
    version: str
    parts: dict[Part, tuple[str, str]]


def verify(
    path: str | Path,
    *,
    key: str | Path | None = None,
    photo: str | Path | None = None,
    roots: str | Path | None = None,
) -> Verification:
    """Check the signature of a page, and the files that it names.

    key: PEM file of the public key that should have signed. photo: file of the photo; None = beside the page, under the
    name it had. roots: PEM file of certificates of time-stamping authorities that are trusted. The weights are looked
    for beside the page (NAME.onnx, NAME.safetensors) and among the models on this computer; nothing is downloaded.

    Raises SigningError if the page, the key, the roots, or the photo that was given cannot be read.
    """
    paths = paths_of(path)
    if not paths.page.is_file():
        raise SigningError(f"there is no page {paths.page}")
    wanted = None if key is None else parse_public_key(_read(Path(key)), str(key))
    missing = [each.name for each in (paths.statement, paths.signature) if not each.is_file()]
    if missing:
        lacking = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not beside the page"
        return _unsigned(paths, f"This page has no signature: {lacking}.")
    try:
        signature, statement = _read(paths.signature), _parse(data := _read(paths.statement))
        statement.key.verify(signature, data)
    except SigningError as error:
        return _unsigned(paths, f"{paths.statement.name} is not what declip signs: {error}.")
    except InvalidSignature:
        both = f"{paths.statement.name} and {paths.signature.name}"
        return _unsigned(paths, f"{both} do not belong together: one of them was changed after the signing.")
    signer, parts = fingerprint(statement.key), statement.parts
    made = f"on {statement.date} by the clock of the signer, with declip {statement.version}"
    checks = [
        Check(part="signature", state="good", says=f"The signature is valid. It was made {made}."),
        _key(signer, None if wanted is None else fingerprint(wanted)),
        _compare("page", paths.page, parts["page"][1]),
        _compare("mask", paths.mask, parts["mask"][1]),
        _compare("photo", _photo(paths, parts["photo"][0], photo), parts["photo"][1]),
        _model(paths.page.parent, *parts["model"]),
        *_stamp(paths.stamp, signature, roots),
    ]
    return Verification(page=str(paths.page), checks=tuple(checks), date=statement.date, fingerprint=signer)


def _parse(data: bytes) -> _Statement:
    """Read a statement, which anybody may have written. Raises SigningError."""
    try:
        made = json.loads(data)
        if made["format"] != FORMAT:
            raise SigningError(f"its format is not {FORMAT!r}")
        date, version = str(made["date"]), str(made["declip"])
        datetime.strptime(date, "%Y-%m-%d %H:%M:%S UTC")
        parts = {part: (str(made[part]["name"]), str(made[part]["sha256"])) for part in _NAMED}
        key = parse_public_key(str(made["key"]).encode(), "its field 'key'")
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise SigningError("it is no statement on a page, mask, photo and model") from error
    return _Statement(key=key, date=date, version=version[:40], parts=parts)


def _key(signer: str, wanted: str | None) -> Check:
    if wanted is None:
        says = (
            f"Signed with a key that you did not give. Its SHA-256 fingerprint is {signer}. Anybody can make a key: "
            "compare the fingerprint with the one that its owner has published, or give the owner's key (--key)."
        )
        return Check(part="key", state="open", says=says)
    if signer != wanted:
        says = f"Signed with another key than the one you gave. Its fingerprint is {signer}; yours is {wanted}."
        return Check(part="key", state="bad", says=says)
    return Check(part="key", state="good", says=f"Signed with the key you gave. Its SHA-256 fingerprint is {signer}.")


def _compare(part: Part, file: Path, sha256: str) -> Check:
    """Compare a file with the one that was signed."""
    same, other, absent = (words.format(file.name) for words in _WORDS[part])
    if not os.path.isfile(file):  # noqa: PTH113 (also false of a name that cannot be one)
        return Check(part=part, state="open", says=absent)
    good = sha256_of(file) == sha256
    return Check(part=part, state="good" if good else "bad", says=same if good else other)


def _photo(paths: Paths, name: str, given: str | Path | None) -> Path:
    if given is None:
        return paths.page.with_name(Path(name).name or "?")
    if not Path(given).is_file():
        raise SigningError(f"there is no photo {given}")
    return Path(given)


def _model(folder: Path, name: str, sha256: str) -> Check:
    """Compare the weights beside the page, or those of this name on this computer."""
    beside = [folder / f"{Path(name).name}{suffix}" for suffix in (".onnx", ".safetensors")]
    if file := next(filter(os.path.isfile, beside), None):
        return _compare("model", file, sha256)
    for file in filter(None, (cached(card) for card in MODELS if card.name == name)):
        # Another version of declip may have other weights of this name: that tells nothing about the report.
        if (found := _compare("model", file, sha256)).state == "good":
            return found
    says = f"The weights that were used ({name}, SHA-256 {sha256}) are not on this computer, so they were not compared."
    return Check(part="model", state="open", says=says)


def _stamp(path: Path, signature: bytes, roots: str | Path | None) -> list[Check]:
    """Return what the time stamp shows; nothing if there is none, and none was expected."""
    trusted = [] if roots is None else read_roots(roots)
    if not path.is_file():
        says = f"There is no time stamp: {path.name} is not beside the page."
        return [Check(part="time stamp", state="bad", says=says)] if trusted else []
    state: State = "bad"
    try:
        stamp = read_stamp(_read(path), signature, trusted)
    except SigningError as error:
        return [Check(part="time stamp", state=state, says=f"{path.name} is no time stamp: {error}.")]
    existed = f"the signature existed on {stamp.date:%Y-%m-%d %H:%M:%S} UTC"
    if not stamp.fits:
        says = f"{path.name} is the time stamp of another signature."
    elif stamp.doubt is not None:
        says = f"{path.name} was changed, or is not by an authority whose certificate you gave: {stamp.doubt}."
    elif trusted:
        state, says = "good", f"An authority whose certificate you gave confirms that {existed}."
    else:
        state, says = (
            "open",
            f"{path.name} says that {existed}. To check it, give its authority's certificate (--roots).",
        )
    return [Check(part="time stamp", state=state, says=says)]


def _unsigned(paths: Paths, says: str) -> Verification:
    return Verification(page=str(paths.page), checks=(Check(part="signature", state="bad", says=says),))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SigningError(f"cannot read {path}: {error.strerror}") from error
