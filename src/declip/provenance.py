"""What a file says of how it was made: content credentials (C2PA), XMP, and texts that generators leave.

    found = provenance.read(read_photo("photo.jpg"))
    found.state      # "intact"
    found.headline   # one sentence for the top of a page, or None

Nothing here looks at pixels, and nothing is fetched from a network. Every sentence is written so that it can be printed
under a name: a failed check is told as what it is (the bytes differ, the signature is wrong, the certificate has
expired, nobody vouches for the signer), and only a hash that does not match is called a change.

Files are hostile until proven otherwise. Names that stand in a sentence are cut, quoted, and their unprintable
characters become codes; the names and values of `fields` are as they are in the file, and whoever prints them escapes
them. XMP is searched, not parsed, so that no entity of XML is ever expanded.
"""

from __future__ import annotations

import html
import io
import itertools
import json
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from declip.results import Photo

__all__ = ["LONGEST", "Field", "Generator", "Provenance", "Reason", "State", "cut", "read"]

LONGEST = 160  # characters of a value that are kept

State: TypeAlias = Literal[
    "valid",
    "intact",
    "changed",
    "signature wrong",
    "unclear",
    "elsewhere",
    "unreadable",
    "present, not read",
    "none",
]
Generator: TypeAlias = Literal["whole", "parts", "text"]

_MOST = 60  # entries of a list that are kept
_DEEPEST = 8  # generations of ingredients that are followed
_XMP_BYTES = 1 << 20
_TEXT_BYTES = 1 << 16  # of a text chunk, unpacked
_NAME = 60  # characters of a name in a sentence


class Field(NamedTuple):
    """A name and its value, both as text."""

    name: str
    value: str


class Reason(NamedTuple):
    """A code as its standard writes it, and what it says in plain words."""

    code: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """What a file says of how it was made, and how far that can be checked.

    state: of the content credentials.
        "valid": the bytes and the signature match, and a trusted list vouches for the signer.
        "intact": the bytes and the signature match; of the signer something is open (see reasons).
        "changed": the bytes, or statements of the credentials, are not the ones that were signed.
        "signature wrong": the signature is missing or does not fit, so that nothing is known to have been signed.
        "unclear": read, but the reader reports neither a match nor a mismatch.
        "elsewhere": the file names the address of its credentials, which is not fetched.
        "unreadable": present and damaged. "present, not read": c2pa-python is not installed. "none": no credentials.
    meaning: the state in plain words. headline: the one sentence that must stand beside any verdict on the pixels; None
    where the file says nothing of how it was made.
    generator: what the file says of generators: "whole" (it was created by one), "parts" (parts of it were), "text"
    (it holds a text such as generators leave), None (nothing; that is no statement that none was used).
    reasons: the checks, by their C2PA status codes. says: the file's own statements: codes of IPTC's digital source
    types, C2PA's actions, names of texts. fields: who made and signed the credentials, and their actions.
    """

    state: State
    meaning: str
    headline: str | None = None
    generator: Generator | None = None
    reasons: tuple[Reason, ...] = ()
    says: tuple[Reason, ...] = ()
    fields: tuple[Field, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it ready for JSON: strings, None, and lists of {code, text} and {name, value}."""
        return {
            "state": self.state,
            "meaning": self.meaning,
            "headline": self.headline,
            "generator": self.generator,
            "reasons": [reason._asdict() for reason in self.reasons],
            "says": [said._asdict() for said in self.says],
            "fields": [field._asdict() for field in self.fields],
        }


def cut(text: str, length: int) -> str:
    """Return at most LONGEST characters, with a word on what is missing of `length`."""
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}… (cut: {length} in the file)"


def read(photo: Photo, *, anchors: str | None = None) -> Provenance:
    """Read what a photo's file says of how it was made. A photo that did not come from a file says nothing.

    anchors: certificates (PEM) of the authorities whose signers count as trusted; without any, no signer does.

    A file without marks costs a walk over its blocks (GIF, AVIF and HEIC: a search of its bytes). Damaged blocks raise
    nothing.
    """
    marks = _marks(photo.data)
    unsigned = tuple(_unsigned(marks))
    if marks.manifest:
        credentials = _read_manifest(photo.data, marks.mime, anchors)
    elif marks.address:
        credentials = _Credentials("elsewhere")
    else:
        credentials = _Credentials("none")
    return _told(credentials, unsigned)


# --- words ----------------------------------------------------------------------------------------------------------

_PRESENT = "Content credentials are present, and were not read: pip install 'c2pa-python'"
_MEANING: dict[State, str] = {
    "valid": "The bytes that were signed and the signature match, and a trusted list vouches for the signer. This "
    "tells who signed, and that what was signed is still the same; not that it is true.",
    "intact": "The bytes that were signed and the signature match: what was signed is still the same. What is open "
    "about the signer stands below; a signature never says that its signer tells the truth.",
    "changed": "The bytes of the file are not the ones that were signed: it was changed after it was signed, or the "
    "credentials were taken from another file. Pixels need not have changed; metadata count, too. What the credentials "
    "say cannot be relied on for this file.",
    "signature wrong": "The signature of the credentials is missing or does not fit them, so nobody is known to have "
    "signed what they say. Nothing follows from this for the picture itself.",
    "unclear": "The credentials were read, but not every check that is needed came to a result: nothing is known to "
    "be wrong with the bytes, and nothing is known to be right.",
    "elsewhere": "The file names an address on the network where its content credentials are said to be. declip "
    "fetches nothing, and has not looked at them.",
    "unreadable": "The file carries content credentials that cannot be read.",
    "present, not read": f"{_PRESENT}.",
    "none": "The file carries no content credentials. Most photos do not.",
}
_CLAIMS_CHANGED = (
    "Statements of the credentials are not the ones that were signed, so what they say cannot be relied on. Whether "
    "the rest of the file is as it was signed is a check of its own, below."
)

# The checks' codes by what they decide.
_BYTES_MATCH = frozenset(
    {f"assertion.{kind}.match" for kind in ("dataHash", "bmffHash", "boxesHash", "collectionHash")}
)
_BYTES_DIFFER = frozenset(
    {f"assertion.{kind}.mismatch" for kind in ("dataHash", "bmffHash", "boxesHash", "collectionHash")}
    | {"assertion.boxesHash.unknownBox", "assertion.collectionHash.incorrectFileCount"}
)
_CLAIMS_DIFFER = frozenset({"assertion.hashedURI.mismatch", "hashedURI.mismatch"})
_SIGNED = "claimSignature.validated"
_SIGNATURE_WRONG = frozenset({"claimSignature.mismatch", "claimSignature.missing"})
_TRUSTED = "signingCredential.trusted"
_REVOKED = frozenset({"signingCredential.revoked", "signingCredential.ocsp.revoked"})
_EXPIRED = frozenset({"signingCredential.expired", "claimSignature.outsideValidity"})
_EXCLUSIONS = frozenset(
    f"assertion.{kind}.additionalExclusionsPresent" for kind in ("dataHash", "bmffHash", "boxesHash")
)

_DIFFER = "The bytes of the file do not fit the hash that stands in the credentials."
_MATCH = "The bytes of the file fit the hash that stands in the credentials."
_LEFT_OUT = "Parts of the file beside the credentials themselves are left out of what was signed."
_FAILED = "The reader reports that this check failed."
_RESULTS = {
    "signingCredential.expired": "The signer's certificate has expired.",
    **dict.fromkeys(_BYTES_MATCH, _MATCH),
    **dict.fromkeys(_BYTES_DIFFER, _DIFFER),
    **dict.fromkeys(_EXCLUSIONS, _LEFT_OUT),
    **dict.fromkeys(_CLAIMS_DIFFER, "A statement of the credentials is not the one that was signed."),
    **dict.fromkeys(_REVOKED, "The issuer has revoked the signer's certificate."),
    _SIGNED: "The signature fits the credentials.",
    _TRUSTED: "A trusted list vouches for the signer.",
    "signingCredential.untrusted": "The signer could not be traced to a list of trusted ones, so the name in the "
    "certificate is not verified. This says nothing against the file.",
    "signingCredential.invalid": "The signer's certificate is not one that content credentials may be signed with.",
    "signingCredential.ocsp.notRevoked": "The signer's certificate was not revoked, says its issuer.",
    "signingCredential.ocsp.skipped": "Whether the certificate was revoked was not asked: nothing is fetched.",
    "signingCredential.ocsp.inaccessible": "Whether the certificate was revoked is not known.",
    "signingCredential.ocsp.unknown": "Whether the certificate was revoked, its issuer does not know.",
    "claimSignature.insideValidity": "The certificate was valid at the time of signing, as far as that is known.",
    "claimSignature.outsideValidity": "The time of signing lies outside the time in which the certificate was valid.",
    "claimSignature.missing": "The credentials carry no signature.",
    "claimSignature.mismatch": "The signature does not fit the credentials.",
    "timeStamp.validated": "A time stamp fits the signature.",
    "timeStamp.trusted": "A trusted list vouches for the authority that gave the time stamp.",
    "timeStamp.untrusted": "No trusted list vouches for the authority that gave the time stamp.",
    "timeStamp.mismatch": "The time stamp does not belong to this signature.",
    "timeStamp.malformed": "The time stamp cannot be read.",
    "timeStamp.outsideValidity": "The time stamp lies outside the time in which a certificate was valid.",
    "timeStamp.credentialInvalid": "The certificate of the time stamp is not fit for time stamps.",
    "claim.missing": "The credentials hold no claim.",
    "claim.multiple": "The credentials hold more than one claim.",
    "claim.malformed": "The claim in the credentials is not written as the standard asks.",
    "claim.hardBindings.missing": "The credentials name no hash of the file, so its bytes cannot be checked.",
    "assertion.multipleHardBindings": "The credentials name more than one hash of the file.",
    "assertion.missing": "A statement that the credentials name is not among them.",
    "assertion.undeclared": "A statement stands among the credentials that they do not name.",
    "assertion.inaccessible": "A statement of the credentials lies elsewhere, and is not fetched.",
    "ingredient.manifest.missing": "The credentials of an earlier picture are named, and are not in the file.",
    "ingredient.manifest.mismatch": "The credentials of an earlier picture are not the ones that were signed.",
    "ingredient.unknownProvenance": "An earlier picture came without content credentials.",
    "manifest.inaccessible": "Further credentials lie elsewhere, and are not fetched.",
    "algorithm.unsupported": "The credentials use an algorithm that the reader does not know.",
    "algorithm.deprecated": "The credentials use an algorithm that should not be used any more.",
}
# Of the checks that succeeded, those that are worth a line.
_TOLD_SUCCESS = _BYTES_MATCH | {
    _SIGNED,
    _TRUSTED,
    "timeStamp.validated",
    "timeStamp.trusted",
    "signingCredential.ocsp.notRevoked",
}

# IPTC's digital source types (and C2PA's own two): what they say of generators, and in words.
_SOURCES: dict[str, tuple[Generator | None, str]] = {
    "trainedAlgorithmicMedia": ("whole", "created by a generator"),
    "trainedAlgorithmicData": ("whole", "created by a generator"),
    "compositeWithTrainedAlgorithmicMedia": ("parts", "parts were made by a generator"),
    "compositeSynthetic": ("parts", "put together from elements of which at least one is synthetic"),
    "algorithmicMedia": (None, "made by an algorithm that was not trained on samples"),
    "algorithmicallyEnhanced": (None, "enhanced by an algorithm"),
    "dataDrivenMedia": (None, "drawn from data by an algorithm"),
    "virtualRecording": (None, "a recording of a virtual event"),
    "digitalCapture": (None, "captured by a digital camera"),
    "computationalCapture": (None, "captured by a camera that computes its pictures"),
    "multiFrameComputationalCapture": (None, "computed by a camera from several takes"),
    "compositeCapture": (None, "put together from several captures"),
    "composite": (None, "put together from several elements"),
    "negativeFilm": (None, "digitised from a negative"),
    "positiveFilm": (None, "digitised from a slide"),
    "print": (None, "digitised from a print"),
    "screenCapture": (None, "a capture of a screen"),
    "humanEdits": (None, "edited by a person without a generator"),
    "minorHumanEdits": (None, "edited a little by a person"),
    "digitalArt": (None, "drawn by a person with digital tools"),
    "digitalCreation": (None, "made by a person with digital tools"),
    "softwareImage": (None, "made with software"),
    "empty": (None, "begun as an empty canvas"),
}

_OWN = "in the content credentials"
_OTHER_SOURCE: tuple[Generator | None, str] = (None, "of a source that is not on IPTC's list")

# C2PA's actions: whether they change what is seen, and in words.
_ACTIONS: dict[str, tuple[bool, str]] = {
    "c2pa.created": (False, "created"),
    "c2pa.opened": (False, "opened in a program"),
    "c2pa.converted": (False, "saved in another format"),
    "c2pa.transcoded": (False, "encoded anew"),
    "c2pa.repackaged": (False, "packed in another file"),
    "c2pa.published": (False, "published"),
    "c2pa.copied": (False, "copied"),
    "c2pa.saved": (False, "saved"),
    "c2pa.printed": (False, "printed"),
    "c2pa.managed": (False, "taken into an archive"),
    "c2pa.produced": (False, "produced"),
    "c2pa.version_updated": (False, "saved as another version"),
    "c2pa.redacted": (False, "statements were removed from the credentials"),
    "c2pa.edited.metadata": (False, "metadata edited"),
    "c2pa.watermarked": (False, "an invisible watermark was added"),
    "c2pa.watermarked.bound": (False, "an invisible watermark was added"),
    "c2pa.watermarked.unbound": (False, "an invisible watermark was added"),
    "c2pa.orientation": (True, "turned or mirrored"),
    "c2pa.resized": (True, "scaled"),
    "c2pa.resized.proportional": (True, "scaled"),
    "c2pa.cropped": (True, "cropped"),
    "c2pa.color_adjustments": (True, "colours or brightness adjusted"),
    "c2pa.adjustedColor": (True, "colours or brightness adjusted"),
    "c2pa.filtered": (True, "a filter was applied"),
    "c2pa.enhanced": (True, "enhanced (noise, sharpness)"),
    "c2pa.drawing": (True, "drawn or painted on"),
    "c2pa.addedText": (True, "text was added"),
    "c2pa.placed": (True, "another picture or element was placed into it"),
    "c2pa.removed": (True, "an element was removed"),
    "c2pa.deleted": (True, "an element was deleted"),
    "c2pa.edited": (True, "edited"),
    "c2pa.unknown": (True, "changed in a way that the program does not name"),
}


def _named(text: object) -> str:
    """A name from the file as part of a sentence: cut, in quotes of which it holds none, unprintables as codes."""
    plain = " ".join(str(text)[: 4 * _NAME].split())
    seen = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in plain).replace("“", '"').replace("”", '"')
    return f"“{seen if len(seen) <= _NAME else seen[:_NAME] + '…'}”"


# --- one statement and one sentence out of all ----------------------------------------------------------------------


class _Said(NamedTuple):
    """A statement on how the file was made. by: the program it names; where: in the file it stands."""

    code: str
    words: str
    by: str
    generator: Generator | None
    where: str
    edit: bool = False

    def text(self, *after: str, before: tuple[str, ...] = ()) -> str:
        """The words, with the details in one pair of brackets: before and after what it was done by."""
        by = self.by and f"by {_named(self.by)}"
        return f"{self.words} ({', '.join(detail for detail in (*before, by, *after) if detail)})"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Checks:
    """The reader's results for the active manifest by their codes, in the file's order, and for its ingredients."""

    success: tuple[str, ...] = ()
    informational: tuple[str, ...] = ()
    failure: tuple[str, ...] = ()
    ingredients: tuple[str, ...] = ()

    def failed(self, codes: frozenset[str]) -> bool:
        return not codes.isdisjoint(self.failure)


class _Credentials(NamedTuple):
    state: State
    checks: _Checks = _Checks()
    says: tuple[_Said, ...] = ()
    fields: tuple[Field, ...] = ()
    signer: str = ""


def _told(credentials: _Credentials, unsigned: tuple[_Said, ...]) -> Provenance:
    state = credentials.state
    meaning = _MEANING[state]
    if state == "changed" and not credentials.checks.failed(_BYTES_DIFFER):
        meaning = _CLAIMS_CHANGED
    says = [Reason(said.code, said.text(said.where, _doubt(credentials, said))) for said in credentials.says]
    says += [Reason(said.code, said.text(said.where, _mark(state))) for said in unsigned]
    main = _main((*credentials.says, *unsigned))
    return Provenance(
        state=state,
        meaning=meaning,
        headline=_headline(credentials, unsigned),
        generator=None if main is None else main.generator,
        reasons=tuple(_reasons(credentials.checks))[:_MOST],
        says=tuple(dict.fromkeys(says))[:_MOST],
        fields=credentials.fields[:_MOST],
    )


def _doubt(credentials: _Credentials, said: _Said) -> str:
    """What is said with a statement of credentials that do not hold; "" with others."""
    if credentials.state not in ("valid", "intact"):
        return "not known to be signed for this file"
    broken = not (_BYTES_DIFFER | _CLAIMS_DIFFER | _SIGNATURE_WRONG).isdisjoint(credentials.checks.ingredients)
    return "whose own checks failed" if broken and said.where != _OWN else ""


def _mark(state: State) -> str:
    """What is said with every unsigned statement."""
    return "not among the signed statements" if state in ("valid", "intact") else "unsigned: anybody can write this"


def _main(says: tuple[_Said, ...]) -> _Said | None:
    """The statement that weighs most: a generator of the whole, of parts, a text, any other source."""
    order: tuple[Generator | None, ...] = ("whole", "parts", "text", None)
    sources = [said for said in says if said.generator is not None or said.code in _SOURCES]
    return min(sources, key=lambda said: order.index(said.generator), default=None)


def _headline(credentials: _Credentials, unsigned: tuple[_Said, ...]) -> str | None:
    """The sentence for the top of a page; signed statements first where they say as much, since they can be checked."""
    signed, loose = _main(credentials.says), _main(unsigned)
    what = _phrase(credentials, signed)
    if loose is None or (signed is not None and _main((signed, loose)) is signed):
        sentence = _signed_sentence(credentials, what, "The file itself says")
        return sentence and f"{sentence}."
    subject = "The file holds" if loose.generator == "text" else "The file itself says:"
    code = f"“{loose.code}”" if loose.generator == "text" else loose.code
    told = f"{subject} {loose.text(loose.where, _mark(credentials.state), before=(code,))}"
    sentence = _signed_sentence(credentials, what, "Its content credentials say")
    return f"{told}; {sentence[0].lower()}{sentence[1:]}." if sentence else f"{told}."


def _phrase(credentials: _Credentials, main: _Said | None) -> str | None:
    """What the signed statements come to, as part of a sentence."""
    edits = {said.code: f"{said.words} ({said.code})" for said in credentials.says if said.edit}
    named = list(edits.values())
    steps = ", ".join(named[:4]) + (", and others" if len(named) > 4 else "")
    if main is None:
        return steps or None
    earlier = () if main.where == _OWN else (main.where, _doubt(credentials, main))
    told = main.text(*earlier, before=(main.code,))
    return f"{told}; steps named: {steps}" if steps else told


def _signed_sentence(credentials: _Credentials, what: str | None, subject: str) -> str | None:
    """What the credentials say and how far they can be relied on; None without any. subject: of what they say."""
    checks = credentials.checks
    they_say = f"; the credentials say: {what}" if what else ""
    match credentials.state:
        case "none":
            return None
        case "present, not read":
            return _PRESENT
        case "elsewhere":
            return "The file names an address where its content credentials are said to be; nothing was fetched"
        case "unreadable":
            return "The file carries content credentials that cannot be read"
        case "unclear":
            return f"Whether the content credentials of this file belong to it could not be checked{they_say}"
        case "signature wrong":
            return (
                "The content credentials of this file carry no signature that fits, so that anybody may have written "
                f"them{they_say}"
            )
        case "changed" if checks.failed(_BYTES_DIFFER):
            return f"The bytes of this file are not the ones that its content credentials were signed for{they_say}"
        case "changed":
            return f"Statements in the content credentials of this file are not the ones that were signed{they_say}"
    begun = f"{subject}: {what}" if what else "The file carries content credentials"
    return f"{begun}; {'; '.join(_standing(credentials))}"


def _standing(credentials: _Credentials) -> Iterator[str]:
    """How the file was signed, where bytes and signature match, and what is open."""
    checks, failure = credentials.checks, credentials.checks.failure
    signer = _named(credentials.signer) if credentials.signer else ""
    left_out = ", but for parts that the signer left out" if not _EXCLUSIONS.isdisjoint(checks.informational) else ""
    if credentials.state == "valid":
        by = f"signed by {signer}" if signer else "signed"
        yield f"{by}, for whom a trusted list vouches, and the bytes match{left_out}"
        return
    yield f"signed{f' in the name of {signer}' if signer else ''}, and the bytes match{left_out}"
    if "signingCredential.untrusted" in failure:
        yield "who signed is not verified"
    if checks.failed(_EXPIRED):
        outside = "claimSignature.outsideValidity" in failure or "timeStamp.trusted" in checks.success
        yield "the certificate was not valid at the time of signing" if outside else "the certificate has expired"
    if checks.failed(_REVOKED):
        yield "the certificate was revoked"
    told = _EXPIRED | _REVOKED | {"signingCredential.untrusted"}
    if others := [_code(code) for code in failure if code not in told]:
        yield f"further checks failed ({', '.join(others[:3])})"


def _reasons(checks: _Checks) -> Iterator[Reason]:
    # What decides the state comes first.
    decisive = _SIGNATURE_WRONG | _BYTES_DIFFER | _CLAIMS_DIFFER
    for code in sorted(checks.failure, key=lambda code: code not in decisive):
        if code == "signingCredential.expired":
            yield Reason(code, _expired(checks))
        else:
            yield Reason(_code(code), _RESULTS.get(code, _FAILED))
    for code in checks.success:
        if code in _TOLD_SUCCESS:
            yield Reason(code, _RESULTS[code])
    for code in checks.informational:
        yield Reason(_code(code), _RESULTS.get(code, "The reader notes this; it counts neither for nor against."))
    for code in checks.ingredients:
        text = _RESULTS.get(code, _FAILED)
        yield Reason(_code(code), f"Of an earlier picture that went into this one, not of this file: {text}")


def _expired(checks: _Checks) -> str:
    """An expired certificate is as good as ever where it was valid at the time of signing, and that can be proved."""
    if "timeStamp.trusted" in checks.success:
        said = "The signer's certificate was not valid at the time of signing that a trusted time stamp gives."
    elif "timeStamp.validated" in checks.success:
        said = (
            "The signer's certificate has expired. A time stamp gives the time of signing, but no trusted list vouches "
            "for its authority, so whether the certificate was valid then is not proved."
        )
    else:
        said = "The signer's certificate has expired, and no time stamp tells when the file was signed."
    return f"{said} This says nothing of a change."


def _code(code: str) -> str:
    """A status code that may be anything: the reader passes on what stands in an ingredient."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in code[:LONGEST])


# --- the manifest ---------------------------------------------------------------------------------------------------


def _read_manifest(data: bytes, mime: str, anchors: str | None) -> _Credentials:
    """Read the manifest with c2pa-python where it is installed. Nothing is fetched from a network."""
    try:
        import c2pa
    except (ImportError, OSError, RuntimeError):  # not there, or its library does not load on this machine
        return _Credentials("present, not read")
    settings: dict[str, Any] = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
    if anchors is not None:
        settings["trust"] = {"trust_anchors": anchors}
    try:
        reader = c2pa.Reader.try_create(mime, io.BytesIO(data), context=c2pa.Context.from_dict(settings))
        if reader is None:
            return _Credentials("none")
        store = json.loads(reader.json())
        manifests = store["manifests"]
        manifest = manifests[store["active_manifest"]]
        if not isinstance(manifest, dict):
            return _Credentials("unreadable")
    except c2pa.C2paError as error:
        # It has one class for all; the kind is its first word.
        return _Credentials("elsewhere" if str(error).startswith("Remote:") else "unreadable")
    except (ValueError, KeyError, TypeError, RecursionError):  # no JSON, or none of this shape
        return _Credentials("unreadable")
    checks = _checks(store, manifest)
    return _Credentials(
        _state(checks),
        checks,
        says=tuple(_statements(manifests, manifest)),
        fields=tuple(_claims(manifest)),
        signer=str(_dict(manifest.get("signature_info")).get("issuer") or ""),
    )


def _state(checks: _Checks) -> State:
    # Where the signature is wrong, nobody is known to have signed the hashes either.
    if checks.failed(_SIGNATURE_WRONG):
        return "signature wrong"
    if checks.failed(_BYTES_DIFFER | _CLAIMS_DIFFER):
        return "changed"
    if _SIGNED not in checks.success or _BYTES_MATCH.isdisjoint(checks.success):
        return "unclear"
    return "valid" if _TRUSTED in checks.success and not checks.failure else "intact"


def _checks(store: Mapping[str, Any], manifest: Mapping[str, Any]) -> _Checks:
    """The reader's results; from its list of failures alone where it gives no more."""
    results = _dict(store.get("validation_results"))
    active = _dict(results.get("activeManifest")) or {"failure": store.get("validation_status")}
    own = f"/c2pa/{store.get('active_manifest')}/"
    codes: dict[str, list[str]] = {"success": [], "informational": [], "failure": []}
    ingredients = [code for part in _dicts(manifest.get("ingredients")) for code in _failures(part)]
    for outcome, found in codes.items():
        for status in _dicts(active.get(outcome)):
            # A status names the box that it is about, which may be in the manifest of an ingredient.
            place = f"{status.get('url') or ''}/"
            if own in place or "/c2pa/" not in place:
                found += _codes([status])
            elif outcome == "failure":
                ingredients += _codes([status])
    for delta in _dicts(results.get("ingredientDeltas")):
        ingredients += _codes(_dict(delta.get("validationDeltas")).get("failure"))
    return _Checks(
        success=tuple(dict.fromkeys(codes["success"])),
        informational=tuple(dict.fromkeys(codes["informational"])),
        failure=tuple(dict.fromkeys(codes["failure"])),
        ingredients=tuple(dict.fromkeys(ingredients)),
    )


def _failures(ingredient: Mapping[str, Any]) -> list[str]:
    """What was wrong with an ingredient when it was taken in, as its file noted then."""
    active = _dict(_dict(ingredient.get("validation_results")).get("activeManifest"))
    return _codes(active.get("failure") if active else ingredient.get("validation_status"))


def _codes(statuses: object) -> list[str]:
    return [str(status["code"]) for status in _dicts(statuses) if status.get("code")]


def _statements(manifests: Mapping[str, Any], manifest: Mapping[str, Any]) -> Iterator[_Said]:
    """What the active manifest and those of the pictures that went into it say of how they were made."""
    line: list[tuple[Mapping[str, Any], bool, int]] = [(manifest, True, 0)]
    seen: set[str] = set()
    while line:
        current, same, depth = line.pop(0)
        if depth == 0:
            where = _OWN
        else:
            where = f"{_OWN} of what it was before" if same else "in that picture's content credentials"
        for action in _actions(current):
            yield from _statement(action, where, same=same)
        for ingredient in _dicts(current.get("ingredients")):
            label, relation = str(ingredient.get("active_manifest")), ingredient.get("relationship")
            # What a generator was only shown ("inputTo") is no part of this picture.
            if relation not in ("parentOf", "componentOf") or label in seen or depth == _DEEPEST:
                continue
            seen.add(label)
            line.append((_dict(manifests.get(label)), same and relation == "parentOf", depth + 1))


def _statement(action: Mapping[str, Any], where: str, *, same: bool) -> Iterator[_Said]:
    """same: the manifest is of this picture, or of what it was before, not of a picture that is a part of it."""
    name, source = str(action.get("action") or ""), _term(action.get("digitalSourceType"))
    agent = _agent(action)
    edit, does = _ACTIONS.get(name, (True, "an action that the standard does not name"))
    if source:
        kind, words = _SOURCES.get(source, _OTHER_SOURCE)
        if not same:
            kind, words = kind and "parts", f"of a picture that went into it: {words}"
        elif kind == "whole" and edit:
            kind, words = "parts", "edited with a generator"
        yield _Said(_code(source), words, agent, kind, where)
    if same and name:
        yield _Said(_code(name), does, agent, None, where, edit)


def _term(source: object) -> str:
    """The last part of a digital source type's address."""
    return str(source or "").strip().rstrip("/").rpartition("/")[2]


def _actions(manifest: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for assertion in _dicts(manifest.get("assertions")):
        if str(assertion.get("label", "")).startswith("c2pa.actions"):
            yield from _dicts(_dict(assertion.get("data")).get("actions"))


def _claims(manifest: Mapping[str, Any]) -> Iterator[Field]:
    """What is shown of a manifest; assertions of place, persons and any other kind are left out."""
    generators = [_program(generator) for generator in _dicts(manifest.get("claim_generator_info"))]
    for made_by in generators or [str(manifest.get("claim_generator") or "")]:
        if made_by:
            yield _field("made by", made_by)
    signature = _dict(manifest.get("signature_info"))
    for name, key in (("signed in the name of", "issuer"), ("certificate of", "common_name"), ("signed at", "time")):
        if signature.get(key):
            yield _field(name, signature[key])
    for action in _actions(manifest):
        agent = _agent(action)
        source = _term(action.get("digitalSourceType"))
        parts = (action.get("action"), agent and f"by {agent}", source and f"source: {source}", action.get("when"))
        yield _field("action", ", ".join(str(part) for part in parts if part))
    yield _field("ingredients", len(_dicts(manifest.get("ingredients"))))


def _agent(action: Mapping[str, Any]) -> str:
    agent = action.get("softwareAgent")
    return _program(agent) if isinstance(agent, dict) else str(agent or "")


def _program(described: Mapping[str, Any]) -> str:
    """Name and version."""
    return f"{described.get('name') or ''} {described.get('version') or ''}".strip()


def _field(name: str, value: object) -> Field:
    text = str(value).strip()
    return Field(name, cut(text, len(text)))


def _dict(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _dicts(value: object) -> list[Mapping[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


# --- unsigned marks -------------------------------------------------------------------------------------------------

# As an attribute or an element, with any prefix: <a:DigitalSourceType>…</…>, rdf:resource="…", …="…".
_SOURCE = re.compile(
    r":DigitalSourceType(?:\s{1,20}rdf:resource)?\s{0,20}(?:=\s{0,20}[\"']|>)\s{0,200}([^\"'<>]{1,400})"
)
_ADDRESS = re.compile(r"dcterms:provenance\s{0,20}(?:=\s{0,20}[\"']|>)\s{0,20}https?://")
_PARAMETERS, _STABLE_DIFFUSION = ("Steps: ", "Sampler: "), "programs for Stable Diffusion"
# Text chunks of PNG by their keys: a word that such a text holds, and whose texts are like that.
_TEXTS = {
    "parameters": (_PARAMETERS, _STABLE_DIFFUSION),
    "prompt": (('"class_type"',), "ComfyUI"),
    "workflow": (('"nodes"',), "ComfyUI"),
    "invokeai_metadata": (("{",), "InvokeAI"),
    "sd-metadata": (("{",), "InvokeAI"),
    "Dream": (("-s",), "InvokeAI"),
}


def _unsigned(marks: _Marks) -> Iterator[_Said]:
    for match in itertools.islice(_SOURCE.finditer(marks.xmp), _MOST):
        source = _term(html.unescape(match[1]))
        kind, words = _SOURCES.get(source, _OTHER_SOURCE)
        yield _Said(_code(source), words, "", kind, "in XMP")
    for key, (needed, writers) in _TEXTS.items():
        text = marks.texts.get(key, "")
        if text and all(word in text for word in needed):
            yield _text_mark(key, writers, "in a PNG text")
    # EXIF's comment is written in one of three codings; ComfyUI writes its own into whatever tag.
    for coding in ("latin-1", "utf-16-le", "utf-16-be"):
        if all(word.encode(coding) in marks.exif for word in _PARAMETERS):
            yield _text_mark("parameters", _STABLE_DIFFUSION, "in EXIF")
            break
    for key in ("prompt", "workflow"):
        if f"{key}:".encode() in marks.exif and all(word.encode() in marks.exif for word in _TEXTS[key][0]):
            yield _text_mark(key, "ComfyUI", "in EXIF")


def _text_mark(key: str, writers: str, where: str) -> _Said:
    return _Said(key, f"a text as of {writers}", "", "text", where)


# --- where such marks stand in a file -------------------------------------------------------------------------------


@dataclass(kw_only=True, slots=True)
class _Marks:
    """What was found in the blocks of a file. mime: for the reader of manifests."""

    mime: str = ""
    manifest: bool = False
    xmp: str = ""
    exif: bytes = field(default=b"", repr=False)
    texts: dict[str, str]

    @property
    def address(self) -> bool:
        """XMP names where the manifest is, as C2PA has it."""
        return _ADDRESS.search(self.xmp) is not None


_C2PA_BOX = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
_XMP_JPEG = b"http://ns.adobe.com/xap/1.0/\0"


def _marks(data: bytes) -> _Marks:
    found = _Marks(texts={})
    if data.startswith(b"\xff\xd8"):
        found.mime = "image/jpeg"
        _jpeg(data, found)
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        found.mime = "image/png"
        _png(data, found)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        found.mime = "image/webp"
        _webp(data, found)
    elif data[:4] in (b"II*\0", b"MM\0*"):
        found.mime = "image/tiff"
        _tiff(data, found)
    elif data[4:8] == b"ftyp":
        found.mime = "image/avif" if data[8:12] in (b"avif", b"avis") else "image/heic"
        found.manifest = any(data[at : at + 16] == _C2PA_BOX for kind, at in _boxes(data) if kind == b"uuid")
        found.xmp = _packet(data)
    elif data.startswith(b"GIF8"):
        found.mime = "image/gif"
        found.manifest = b"C2PA_GIF" in data
        found.xmp = _packet(data)
    return found


def _jpeg(data: bytes, found: _Marks) -> None:
    """Walk the segments before the first scan; what counts stands there."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA or length < 2:
            return
        start, end = at + 4, at + 2 + length
        if marker == 0xE1 and data.startswith(_XMP_JPEG, start) and len(found.xmp) < _XMP_BYTES:
            found.xmp += _xmp(data[start + len(_XMP_JPEG) : end])
        elif marker == 0xE1 and data.startswith(b"Exif\0", start) and not found.exif:
            found.exif = data[start:end]
        elif marker == 0xEB and data.startswith(b"JP", start) and b"c2pa" in data[start:end]:
            found.manifest = True
        at = end


def _png(data: bytes, found: _Marks) -> None:
    at = 8
    while at + 8 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        start = at + 8
        at = start + length + 4
        match kind:
            case b"caBX":
                found.manifest = True
            case b"eXIf":
                found.exif = data[start : start + length]
            case b"tEXt" | b"zTXt" | b"iTXt":
                key, text = _png_text(kind, data[start : start + min(length, _XMP_BYTES)])
                if key == "XML:com.adobe.xmp":
                    found.xmp = found.xmp or text
                elif key in _TEXTS:
                    found.texts.setdefault(key, text)


def _png_text(kind: bytes, chunk: bytes) -> tuple[str, str]:
    """(key, text as far as it is looked at); "" where it cannot be unpacked."""
    key, _, rest = chunk.partition(b"\0")
    packed = kind == b"zTXt"
    if packed:
        rest = rest[1:]
    elif kind == b"iTXt":
        packed = rest[:1] == b"\1"
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    if packed:
        try:
            rest = zlib.decompressobj().decompress(rest, _XMP_BYTES if key.startswith(b"XML:") else _TEXT_BYTES)
        except zlib.error:
            rest = b""
    return key.decode("latin-1"), rest.decode("utf-8", "replace")


def _webp(data: bytes, found: _Marks) -> None:
    at = 12
    while at + 8 <= len(data):
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        start = at + 8
        at = start + length + length % 2
        match kind:
            case b"C2PA":
                found.manifest = True
            case b"XMP ":
                found.xmp = _xmp(data[start : start + length])
            case b"EXIF":
                found.exif = data[start : start + length]


def _tiff(data: bytes, found: _Marks) -> None:
    """Look at the first directory: C2PA's tag, XMP, and EXIF's comment, whose place is searched for."""
    order = "<" if data[:2] == b"II" else ">"
    try:
        (first,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, first)
        for entry in range(count):
            tag, _, length, at = struct.unpack_from(f"{order}HHII", data, first + 2 + 12 * entry)
            if tag == 52545:
                found.manifest = True
            elif tag == 700:
                found.xmp = _xmp(data[at : at + length])
    except struct.error:  # the directory breaks off
        return


def _boxes(data: bytes) -> Iterator[tuple[bytes, int]]:
    """(type, where its content begins) of the outermost boxes of an AVIF or HEIC file."""
    at = 0
    while at + 8 <= len(data):
        length, kind, head = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], 8
        if length == 1:
            length, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        yield kind, at + head
        if length < head:  # 0: to the end of the file
            return
        at += length


def _packet(data: bytes) -> str:
    """XMP wherever it stands; "" without any."""
    at = data.find(b"<x:xmpmeta")
    return _xmp(data[at:]) if at >= 0 else ""


def _xmp(packet: bytes) -> str:
    return packet[:_XMP_BYTES].decode("utf-8", "replace")
