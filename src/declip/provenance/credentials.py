"""Read content credentials with c2pa-python, and judge them by the results of its checks."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from declip.files import visible
from declip.provenance.marks import OTHER_SOURCE, last_part
from declip.provenance.result import LONGEST, Field, State, Statement, cut, words

__all__ = ["OWN", "TRUSTED", "Checks", "Credentials", "read_credentials"]

OWN = "in the content credentials"  # of the picture itself
TRUSTED = "signingCredential.trusted"
_SIGNED = "claimSignature.validated"
_DEEPEST = 8  # generations of ingredients that are followed


class Checks(NamedTuple):
    """The codes of the reader's results: for the active manifest by outcome, and the failures of its ingredients."""

    success: tuple[str, ...] = ()
    informational: tuple[str, ...] = ()
    failure: tuple[str, ...] = ()
    ingredients: tuple[str, ...] = ()

    def failed(self, group: str) -> bool:
        """Tell whether a check of this group of `words.toml` failed for the active manifest."""
        return not words().groups[group].isdisjoint(self.failure)


class Credentials(NamedTuple):
    """Content credentials as they were read. signer: the name in the certificate, "" if it has none."""

    state: State
    checks: Checks = Checks()
    statements: tuple[Statement, ...] = ()
    fields: tuple[Field, ...] = ()
    signer: str = ""

    @property
    def told_as(self) -> str:
        """Return the state by its name in `words.toml`, which tells changed bytes from changed statements."""
        claims_alone = self.state == "changed" and not self.checks.failed("bytes differ")
        return "statements changed" if claims_alone else self.state


def read_credentials(data: bytes, mime: str, anchors: str | None) -> Credentials:
    """Read the manifest of a file. Nothing is fetched from a network; `provenance.read` describes anchors."""
    try:
        import c2pa
    except (ImportError, OSError, RuntimeError):  # not installed, or its library does not load on this machine
        return Credentials("present, not read")
    settings: dict[str, Any] = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
    if anchors is not None:
        settings["trust"] = {"trust_anchors": anchors}
    try:
        reader = c2pa.Reader.try_create(mime, io.BytesIO(data), context=c2pa.Context.from_dict(settings))
        if reader is None:
            return Credentials("none")
        store = json.loads(reader.json())
        manifests = store["manifests"]
        manifest = manifests[store["active_manifest"]]
    except c2pa.C2paError as error:
        # There is one class for all errors; the kind of error is the first word of its message.
        return Credentials("elsewhere" if str(error).startswith("Remote:") else "unreadable")
    except (ValueError, KeyError, TypeError, RecursionError):  # not JSON, or JSON of another shape
        return Credentials("unreadable")
    if not isinstance(manifest, dict):
        return Credentials("unreadable")
    checks = _checks(store, manifest)
    signer = _dict(manifest.get("signature_info")).get("issuer")
    statements = tuple(_statements(manifests, manifest))
    return Credentials(_state(checks), checks, statements, tuple(_fields(manifest)), str(signer or ""))


def _state(checks: Checks) -> State:
    # With a wrong signature, the hashes are not known to be signed by anybody either.
    if checks.failed("signature wrong"):
        return "signature wrong"
    if checks.failed("bytes differ") or checks.failed("claims differ"):
        return "changed"
    if _SIGNED not in checks.success or words().groups["bytes match"].isdisjoint(checks.success):
        return "unclear"
    return "valid" if TRUSTED in checks.success and not checks.failure else "intact"


def _checks(store: Mapping[str, Any], manifest: Mapping[str, Any]) -> Checks:
    """Collect the reader's results. Older answers hold no results but a list of failures, which is used then."""
    results = _dict(store.get("validation_results"))
    active = _dict(results.get("activeManifest")) or {"failure": store.get("validation_status")}
    own = f"/c2pa/{store.get('active_manifest')}/"

    def is_own(status: Mapping[str, Any]) -> bool:
        """Tell whether a status is about the active manifest: the box that it names may be in an ingredient's."""
        place = f"{status.get('url') or ''}/"
        return own in place or "/c2pa/" not in place

    outcomes = [_dicts(active.get(outcome)) for outcome in ("success", "informational", "failure")]
    of_ingredients = [status for part in _dicts(manifest.get("ingredients")) for status in _noted_failures(part)]
    of_ingredients += [status for status in outcomes[-1] if not is_own(status)]
    for delta in _dicts(results.get("ingredientDeltas")):
        of_ingredients += _dicts(_dict(delta.get("validationDeltas")).get("failure"))
    success, informational, failure = (_codes(filter(is_own, statuses)) for statuses in outcomes)
    return Checks(success, informational, failure, _codes(of_ingredients))


def _noted_failures(ingredient: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what was wrong with an ingredient when it was added, as its file noted then."""
    active = _dict(_dict(ingredient.get("validation_results")).get("activeManifest"))
    return _dicts(active.get("failure") if active else ingredient.get("validation_status"))


def _codes(statuses: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(status["code"]) for status in statuses if status.get("code")))


def _statements(manifests: Mapping[str, Any], manifest: Mapping[str, Any]) -> Iterator[Statement]:
    """Yield what the active manifest, and those of the pictures that went into it, say about how they were made."""
    queue: list[tuple[Mapping[str, Any], bool, int]] = [(manifest, True, 0)]
    seen: set[str] = set()
    while queue:
        current, same, depth = queue.pop(0)
        where = f"{OWN} of what it was before" if same else "in that picture's content credentials"
        for action in _actions(current):
            yield from _action_statements(action, where if depth else OWN, same=same)
        for ingredient in _dicts(current.get("ingredients")):
            label, relation = str(ingredient.get("active_manifest")), ingredient.get("relationship")
            # A picture that a generator was only shown ("inputTo") is no part of this one.
            if relation in ("parentOf", "componentOf") and label not in seen and depth < _DEEPEST:
                seen.add(label)
                queue.append((_dict(manifests.get(label)), same and relation == "parentOf", depth + 1))


def _action_statements(action: Mapping[str, Any], where: str, *, same: bool) -> Iterator[Statement]:
    """Yield the source and the step that an action names.

    same: the manifest is of this picture or of an earlier state of it, not of a picture that became a part of it.
    """
    name, source, agent = str(action.get("action") or ""), last_part(action.get("digitalSourceType")), _agent(action)
    edit = name not in words().actions
    if source:
        kind, text = words().sources.get(source, OTHER_SOURCE)
        if not same:
            kind, text = kind and "parts", f"of a picture that went into it: {text}"
        elif kind == "whole" and edit:
            kind, text = "parts", "edited with a generator"
        yield Statement(visible(source[:LONGEST]), text, agent, kind, where)
    if same and name:
        known = words().edits if edit else words().actions
        text = known.get(name, "an action that the standard does not name")
        yield Statement(visible(name[:LONGEST]), text, agent, None, where, edit)


def _actions(manifest: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for assertion in _dicts(manifest.get("assertions")):
        if str(assertion.get("label", "")).startswith("c2pa.actions"):
            yield from _dicts(_dict(assertion.get("data")).get("actions"))


def _fields(manifest: Mapping[str, Any]) -> Iterator[Field]:
    """Yield what is shown of a manifest. Assertions about places, persons and anything else are left out."""
    generators = [_program(generator) for generator in _dicts(manifest.get("claim_generator_info"))]
    for made_by in generators or [str(manifest.get("claim_generator") or "")]:
        if made_by:
            yield Field("made by", cut(made_by.strip()))
    signature = _dict(manifest.get("signature_info"))
    for name, key in (("signed in the name of", "issuer"), ("certificate of", "common_name"), ("signed at", "time")):
        if signature.get(key):
            yield Field(name, cut(str(signature[key]).strip()))
    for action in _actions(manifest):
        agent, source = _agent(action), last_part(action.get("digitalSourceType"))
        parts = (action.get("action"), agent and f"by {agent}", source and f"source: {source}", action.get("when"))
        yield Field("action", cut(", ".join(str(part) for part in parts if part).strip()))
    yield Field("ingredients", str(len(_dicts(manifest.get("ingredients")))))


def _agent(action: Mapping[str, Any]) -> str:
    agent = action.get("softwareAgent")
    return _program(agent) if isinstance(agent, dict) else str(agent or "")


def _program(described: Mapping[str, Any]) -> str:
    """Return the name and version of a program."""
    return f"{described.get('name') or ''} {described.get('version') or ''}".strip()


def _dict(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _dicts(value: object) -> list[Mapping[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
