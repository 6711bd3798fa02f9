"""The values that describe how a file was made, and the words of the standards' codes."""

from __future__ import annotations

import dataclasses
import importlib.resources
import math
import tomllib
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, TypeAlias

from declip.files import visible

__all__ = [
    "LONGEST",
    "Field",
    "Generator",
    "Provenance",
    "Reason",
    "State",
    "Statement",
    "Words",
    "cut",
    "quoted",
    "to_plain",
    "words",
]

LONGEST = 160  # characters of a value that are kept
_NAME = 60  # characters of a name in a sentence

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


class Field(NamedTuple):
    """A name and its value, both as text."""

    name: str
    value: str


class Reason(NamedTuple):
    """A code as its standard writes it, and its meaning in plain words."""

    code: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """What a file says about how it was made, and how far that can be checked.

    state: of the content credentials.
        "valid": the bytes and the signature match, and a trusted list vouches for the signer.
        "intact": the bytes and the signature match, but something about the signer is open (see reasons).
        "changed": the bytes, or statements of the credentials, are not the ones that were signed.
        "signature wrong": the signature is missing or does not fit, so nothing is known to have been signed.
        "unclear": the credentials were read, but the reader reports neither a match nor a mismatch.
        "elsewhere": the file names the address of its credentials, which is not fetched.
        "unreadable": present and damaged. "present, not read": c2pa-python is not installed. "none": no credentials.
    meaning: the state in plain words. headline: the one sentence that must stand beside any verdict on the pixels;
    None if the file does not say how it was made.
    generator: what the file says about generators: "whole" (a generator created it), "parts" (a generator made parts
    of it), "text" (it holds a text of the kind that generators leave), None (nothing, which does not mean that no
    generator was used).
    reasons: the checks, with their C2PA status codes. says: the file's own statements, with the codes of IPTC's digital
    source types, C2PA's actions, or names of texts. fields: who made and signed the credentials, and their actions.
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
        return dict(to_plain(self))


class Statement(NamedTuple):
    """A statement on how the file was made.

    by: the program that it names. where: its place in the file. edit: it is an action that changes what is seen.
    """

    code: str
    words: str
    by: str
    generator: Generator | None
    where: str
    edit: bool = False

    def text(self, *after: str, before: tuple[str, ...] = ()) -> str:
        """Return the words with details in one pair of brackets: those before, the program's name, those after."""
        by = self.by and f"by {quoted(self.by)}"
        return f"{self.words} ({', '.join(detail for detail in (*before, by, *after) if detail)})"


class Words(NamedTuple):
    """The words of `words.toml`, by their codes, which says more about them.

    groups: codes of checks by what they decide. sources: with what each says about generators. texts: words that a text
    must hold, and who writes it.
    """

    states: dict[str, str]
    standings: dict[str, str]
    checks: dict[str, str]
    expired: dict[str, str]
    groups: dict[str, frozenset[str]]
    sources: dict[str, tuple[Generator | None, str]]
    actions: dict[str, str]
    edits: dict[str, str]
    texts: dict[str, tuple[list[str], str]]


@cache
def words() -> Words:
    """Read the words of the standards' codes, once in a process."""
    found = tomllib.loads((importlib.resources.files(__package__) / "words.toml").read_text(encoding="utf-8"))
    checks, sources = found["checks"], found["sources"]
    kinds: dict[str, Generator | None] = {"whole": "whole", "parts": "parts", "none": None}
    return Words(
        states=found["states"],
        standings=found["standings"],
        checks={code: text for group in checks.values() for code, text in group.items()},
        expired=found["expired"],
        groups={name: frozenset(group) for name, group in checks.items()},
        sources={code: (kinds[name], text) for name, group in sources.items() for code, text in group.items()},
        actions=found["actions"]["kept"],
        edits=found["actions"]["edits"],
        texts={key: (row["holds"], row["by"]) for key, row in found["texts"].items()},
    )


def to_plain(value: Any) -> Any:
    """Return facts ready for JSON: dataclasses and named tuples as dicts, other tuples as lists, nan as None.

    Fields that are left out of a dataclass's repr (pixels, scores, masks) are left out here, too.
    """
    if dataclasses.is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value) if field.repr}
    if isinstance(value, tuple):
        names = getattr(value, "_fields", None)
        parts = [to_plain(part) for part in value]
        return dict(zip(names, parts, strict=True)) if names else parts
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cut(text: str, length: int | None = None) -> str:
    """Return at most LONGEST characters, with a note on how long the text is in the file (length, if it is longer)."""
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}… (cut: {length or len(text)} in the file)"


def quoted(text: str) -> str:
    """Return a name from the file for use in a sentence: cut, in quotes that it cannot close, unprintables as codes."""
    seen = visible(" ".join(text[: 4 * _NAME].split())).replace("“", '"').replace("”", '"')
    return f"“{seen if len(seen) <= _NAME else seen[:_NAME] + '…'}”"
