"""Answers that the reader of content credentials may give, whether it should or not."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, get_args

import pytest

from declip import provenance
from declip.provenance import Provenance
from tests.provenance import ACCUSING, read, words

Reader = Callable[[Any], Provenance]


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Reader:
    """Read a JPEG with a manifest about which the reader says this."""
    data = (Path(__file__).parents[1] / "golden" / "credentials" / "expired.jpg").read_bytes()
    asked: dict[str, Any] = {}

    class C2paError(Exception):
        pass

    def try_create(mime: str, stream: io.BytesIO, context: Any) -> Any:
        asked.update(mime=mime, data=stream.read(), settings=context)
        match asked["answer"]:
            case None:
                return None
            case Exception() as error:
                raise error
        return SimpleNamespace(json=lambda: asked["answer"])

    module: Any = ModuleType("c2pa")
    module.C2paError = C2paError
    module.Reader = SimpleNamespace(try_create=try_create)
    module.Context = SimpleNamespace(from_dict=lambda settings: settings)
    monkeypatch.setitem(sys.modules, "c2pa", module)

    def reading(said: Any) -> Provenance:
        asked["answer"] = C2paError("damaged") if said == "raise" else said
        found = read(data)
        assert asked["mime"] == "image/jpeg" and asked["data"] == data
        assert asked["settings"] == {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
        return found

    return reading


def store(failure: tuple[str, ...] = (), informational: tuple[str, ...] = (), **more: Any) -> str:
    """The reader's answer on a file whose bytes and signature match, with further results."""
    results = {
        "success": [{"code": "claimSignature.validated"}, {"code": "assertion.dataHash.match"}],
        "informational": [{"code": code} for code in informational],
        "failure": [{"code": code} for code in failure],
    }
    whole = {"active_manifest": "a", "manifests": {"a": {}}, "validation_results": {"activeManifest": results}}
    return json.dumps(whole | more)


@pytest.mark.parametrize(
    ("said", "state"),
    [
        (None, "none"),
        ("raise", "unreadable"),
        ("{}", "unreadable"),
        ("[1]", "unreadable"),
        ("no JSON", "unreadable"),
        ("[" * 100_000, "unreadable"),
        ('{"active_manifest": "a", "manifests": {"a": 1}}', "unreadable"),
        ('{"active_manifest": ["a"], "manifests": {"a": {}}}', "unreadable"),
        ('{"active_manifest": "a", "manifests": {"a": {}}}', "unclear"),
        ('{"active_manifest": "a", "manifests": {"a": {"claim_generator_info": [1], "ingredients": 3}}}', "unclear"),
    ],
)
def test_any_answer_is_survived(answer: Reader, said: str | None, state: str) -> None:
    assert answer(said).state == state


@pytest.mark.parametrize("code", ["signingCredential.revoked", "signingCredential.ocsp.revoked"])
def test_a_revoked_certificate_is_told_and_is_no_change(answer: Reader, code: str) -> None:
    found = answer(store((code,)))
    assert found.state == "intact" and "the certificate was revoked" in (found.headline or "")
    assert not ACCUSING.search(words(found))


def test_checks_without_words_are_told_by_their_codes(answer: Reader) -> None:
    found = answer(store(("assertion.action.malformed", "new.\u202ecode")))
    assert found.state == "intact"
    assert "further checks failed (assertion.action.malformed, new.\\u202ecode)" in (found.headline or "")
    assert provenance.Reason("new.\\u202ecode", "The reader reports that this check failed.") in found.reasons


def test_what_the_signer_left_out_is_told(answer: Reader) -> None:
    found = answer(store((), ("assertion.dataHash.additionalExclusionsPresent",)))
    assert "the bytes match, but for parts that the signer left out" in (found.headline or "")


def test_a_result_on_a_box_of_another_manifest_is_not_of_this_file(answer: Reader) -> None:
    place = "self#jumbf=/c2pa/{}/c2pa.assertions/c2pa.hash.data"
    matches = [{"code": "claimSignature.validated"}, {"code": "assertion.dataHash.match", "url": place.format("a")}]
    for label, state in (("a", "changed"), ("b", "intact")):
        failed = [{"code": "assertion.dataHash.mismatch", "url": place.format(label)}]
        found = answer(store(validation_results={"activeManifest": {"success": matches, "failure": failed}}))
        assert found.state == state
        assert ("not of this file" in words(found)) == (label == "b")


@pytest.mark.parametrize("kind", ["dataHash", "collectionHash"])
def test_every_hash_of_the_bytes_counts(answer: Reader, kind: str) -> None:
    found = answer(store((f"assertion.{kind}.mismatch", "signingCredential.expired")))
    assert found.state == "changed" and "The bytes of this file" in (found.headline or "")


def test_without_results_the_list_of_failures_is_read(answer: Reader) -> None:
    def listed(*statuses: tuple[str, str]) -> Provenance:
        status = [{"code": code, "url": f"self#jumbf=/c2pa/{label}/x"} for code, label in statuses]
        return answer(store(validation_results=None, validation_status=status))

    assert listed(("signingCredential.expired", "a")).state == "unclear"
    assert not ACCUSING.search(words(listed(("signingCredential.expired", "a"))))
    assert listed(("assertion.dataHash.mismatch", "a")).state == "changed"
    other = listed(("assertion.dataHash.mismatch", "b"))
    assert other.state == "unclear" and "not of this file" in other.reasons[0].text


def test_the_answer_is_plain_and_flat(answer: Reader) -> None:
    for said in (None, "raise", store(("signingCredential.untrusted",))):
        row = answer(said).to_dict()
        assert json.loads(json.dumps(row)) == row
        assert list(row) == ["state", "meaning", "headline", "generator", "reasons", "says", "fields"]
        assert row["state"] in get_args(provenance.State)
        assert all(list(entry) == ["code", "text"] for entry in (*row["reasons"], *row["says"]))
