"""Put content credentials and unsigned statements into words."""

from __future__ import annotations

from collections.abc import Iterator

from declip.files import visible
from declip.provenance.credentials import OWN, Checks, Credentials
from declip.provenance.result import LONGEST, Generator, Provenance, Reason, State, Statement, quoted, words

__all__ = ["describe"]

_MOST = 60  # entries of a list that are kept
_DECISIVE = ("signature wrong", "bytes differ", "claims differ")  # the groups of checks that decide the state
_STAMP_TRUSTED = "timeStamp.trusted"
_FAILED = "The reader reports that this check failed."


def describe(credentials: Credentials, unsigned: tuple[Statement, ...]) -> Provenance:
    """Describe what the credentials and the unsigned statements come to."""
    state, signed = credentials.state, credentials.statements
    says = [Reason(said.code, said.text(said.where, _doubt(credentials, said))) for said in signed]
    says += [Reason(said.code, said.text(said.where, _unsigned_note(state))) for said in unsigned]
    main = _main((*signed, *unsigned))
    return Provenance(
        state=state,
        meaning=words().states[credentials.told_as],
        headline=_headline(credentials, unsigned),
        generator=main and main.generator,
        reasons=tuple(_reasons(credentials.checks))[:_MOST],
        says=tuple(dict.fromkeys(says))[:_MOST],
        fields=credentials.fields[:_MOST],
    )


def _doubt(credentials: Credentials, said: Statement) -> str:
    """Return what is added to a statement of credentials that do not hold; "" for other statements."""
    if credentials.state not in ("valid", "intact"):
        return "not known to be signed for this file"
    broken = not _decisive().isdisjoint(credentials.checks.ingredients)
    return "whose own checks failed" if broken and said.where != OWN else ""


def _decisive() -> frozenset[str]:
    return frozenset().union(*(words().groups[name] for name in _DECISIVE))


def _unsigned_note(state: State) -> str:
    return "not among the signed statements" if state in ("valid", "intact") else "unsigned: anybody can write this"


def _main(says: tuple[Statement, ...]) -> Statement | None:
    """Return the statement that weighs most: a generator of the whole, of parts, a text, any other source."""
    order: tuple[Generator | None, ...] = ("whole", "parts", "text", None)
    sources = [said for said in says if said.generator is not None or said.code in words().sources]
    return min(sources, key=lambda said: order.index(said.generator), default=None)


def _headline(credentials: Credentials, unsigned: tuple[Statement, ...]) -> str | None:
    """Return the sentence for the top of a page.

    Signed statements come first if they say as much as the unsigned ones, since they can be checked.
    """
    signed, loose = _main(credentials.statements), _main(unsigned)
    what = _phrase(credentials, signed)
    if loose is None or (signed is not None and _main((signed, loose)) is signed):
        sentence = _signed_sentence(credentials, what, "The file itself says")
        return sentence and f"{sentence}."
    is_text = loose.generator == "text"
    code = f"“{loose.code}”" if is_text else loose.code
    told = loose.text(loose.where, _unsigned_note(credentials.state), before=(code,))
    told = f"The file holds {told}" if is_text else f"The file itself says: {told}"
    sentence = _signed_sentence(credentials, what, "Its content credentials say")
    return f"{told}; {sentence[0].lower()}{sentence[1:]}." if sentence else f"{told}."


def _phrase(credentials: Credentials, main: Statement | None) -> str | None:
    """Return what the signed statements come to, as part of a sentence."""
    edits = list({said.code: f"{said.words} ({said.code})" for said in credentials.statements if said.edit}.values())
    steps = ", ".join(edits[:4]) + (", and others" if len(edits) > 4 else "")
    if main is None:
        return steps or None
    earlier = () if main.where == OWN else (main.where, _doubt(credentials, main))
    told = main.text(*earlier, before=(main.code,))
    return f"{told}; steps named: {steps}" if steps else told


def _signed_sentence(credentials: Credentials, what: str | None, subject: str) -> str | None:
    """Return what the credentials say and how far they can be relied on; None without credentials.

    what: their statements as a phrase. subject: the beginning of a sentence that tells them.
    """
    if credentials.state == "none":
        return None
    if standing := words().standings.get(credentials.told_as):
        return f"{standing}; the credentials say: {what}" if what else standing
    begun = f"{subject}: {what}" if what else "The file carries content credentials"
    return f"{begun}; {'; '.join(_signer_phrases(credentials))}"


def _signer_phrases(credentials: Credentials) -> Iterator[str]:
    """Yield how the file was signed and what is open about the signer, if bytes and signature match."""
    checks, failure = credentials.checks, credentials.checks.failure
    signer = quoted(credentials.signer) if credentials.signer else ""
    left_out = not words().groups["left out"].isdisjoint(checks.informational)
    match = f"the bytes match{', but for parts that the signer left out' if left_out else ''}"
    if credentials.state == "valid":
        yield f"signed{f' by {signer}' if signer else ''}, for whom a trusted list vouches, and {match}"
        return
    yield f"signed{f' in the name of {signer}' if signer else ''}, and {match}"
    if "signingCredential.untrusted" in failure:
        yield "who signed is not verified"
    if checks.failed("expired"):
        outside = "claimSignature.outsideValidity" in failure or _STAMP_TRUSTED in checks.success
        yield "the certificate was not valid at the time of signing" if outside else "the certificate has expired"
    if checks.failed("revoked"):
        yield "the certificate was revoked"
    told = words().groups["expired"] | words().groups["revoked"] | {"signingCredential.untrusted"}
    if others := [visible(code[:LONGEST]) for code in failure if code not in told]:
        yield f"further checks failed ({', '.join(others[:3])})"


def _reasons(checks: Checks) -> Iterator[Reason]:
    """Yield the checks in words: failures that decide the state, other failures, successes, notes, ingredients."""
    meanings = words().checks
    decisive, worth_telling = _decisive(), words().groups["bytes match"] | words().groups["success"]
    for code in sorted(checks.failure, key=lambda code: code not in decisive):
        text = _expired(checks) if code == "signingCredential.expired" else meanings.get(code, _FAILED)
        yield Reason(visible(code[:LONGEST]), text)
    for code in checks.success:
        if code in worth_telling:
            yield Reason(code, meanings[code])
    for code in checks.informational:
        text = meanings.get(code, "The reader notes this; it counts neither for nor against.")
        yield Reason(visible(code[:LONGEST]), text)
    for code in checks.ingredients:
        text = f"Of an earlier picture that went into this one, not of this file: {meanings.get(code, _FAILED)}"
        yield Reason(visible(code[:LONGEST]), text)


def _expired(checks: Checks) -> str:
    """Explain an expired certificate: it still counts if it is proved to have been valid at the time of signing."""
    stamp = next((code for code in (_STAMP_TRUSTED, "timeStamp.validated") if code in checks.success), "none")
    return f"{words().expired[stamp]} This says nothing of a change."
