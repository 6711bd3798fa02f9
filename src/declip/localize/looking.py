"""Look for clues in a photo, in threads beside the network."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from declip.clues import Clue
from declip.clues.findings import without_doubles
from declip.files import printable
from declip.process import PerProcess, cores
from declip.regions import Finding
from declip.results import Photo

__all__ = ["Looked", "look", "start"]

_log = logging.getLogger(__name__)

# Not those of `process.threads`, where the tiles of the next batch would wait behind clues.
_threads = PerProcess(lambda: ThreadPoolExecutor(cores(), thread_name_prefix="declip-clues"))


class Looked(NamedTuple):
    """What clues found in a photo, the kinds of those that looked, and a sentence for each that could not."""

    findings: tuple[Finding, ...] = ()
    clues: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def start(photo: Photo, clues: Sequence[Clue]) -> Future[Looked]:
    """Look for clues in another thread."""
    if clues:
        return _threads().submit(look, photo, clues)
    nothing: Future[Looked] = Future()
    nothing.set_result(Looked())
    return nothing


def look(photo: Photo, clues: Sequence[Clue]) -> Looked:
    """Look for clues. One that fails takes nothing from the photo but what it might have found, which a note says."""
    findings: list[Finding] = []
    kinds: list[str] = []
    notes: list[str] = []
    for clue in clues:
        try:
            findings += clue.examine(photo)
        except Exception as error:
            _log.error("%s: the clue %s failed", printable(photo.name), clue.kind, exc_info=error)
            said = str(error).strip() or type(error).__name__
            notes.append(
                f"The clue {clue.kind} could not look at this photo ({said}). The verdict stands without it: the rate "
                "of false alarms holds, but what this clue would have found is missing."
            )
        else:
            kinds.append(clue.kind)
    return Looked(tuple(without_doubles(findings)), tuple(kinds), tuple(notes))
