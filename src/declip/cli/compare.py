"""The verb compare: what differs between a photo and its original."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from declip.cli import options
from declip.cli.terminal import line, note, print_row
from declip.errors import ImageError

__all__ = ["compare"]


def compare(
    photo: Annotated[Path, typer.Argument(metavar="PHOTO", help="The photo in question.")],
    original: Annotated[Path, typer.Argument(metavar="ORIGINAL", help="What was found as its original.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder to write overlay, mask, facts and page to. Default: print the result only."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as one line of JSON.")] = False,
    force: options.Force = False,
) -> None:
    """Say what differs between a photo and its original, which may be larger, cropped, mirrored, turned or scaled.

    What saving, scaling and tone change over the whole picture is evened out and not marked. It says what differs, not
    which of the two was changed.

    Example: declip compare photo.jpg original.jpg --out compared
    """
    from datetime import UTC, datetime

    from declip.report import comparing

    try:
        found, now = comparing.compare(photo, original), datetime.now(UTC)
    except (ImageError, MemoryError) as error:
        failure = error if isinstance(error, ImageError) else ImageError.out_of_memory(str(photo))
        print_row({"image": failure.image, "error": str(failure), "kind": failure.kind}, as_json)
        raise typer.Exit(1) from error
    written = [] if out is None else comparing.save(found, out, date=now, force=force)
    for said in [json.dumps(comparing.facts(found, now))] if as_json else found.sentences:
        line(said)
    for notice in () if as_json else (*found.photo.notes, *found.original.notes):
        note(notice)
    if written:
        note(f"the page is in {written[-1]}")
