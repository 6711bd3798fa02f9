"""The verb that tests a photo with known edits: detectability."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from declip.cli import options
from declip.cli.terminal import line, print_row
from declip.errors import ImageError

__all__ = ["detectability"]


def detectability(
    photo: Annotated[Path, typer.Argument(metavar="PHOTO", help="The photo to put test edits into.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FOLDER",
            help="Folder to write the facts (.json) and small pictures of all edits (.png) to. File names start with "
            "the name of the photo.",
        ),
    ] = None,
    model: options.Model = "mini",
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as one line of JSON.")] = False,
    force: options.Force = False,
) -> None:
    """Test which edits would have been found in a photo: put small known ones into it and look for them.

    The photo itself gets no verdict by this: it shows how much “nothing found” is worth for this very file.

    Example: declip detectability photo.jpg --out edits
    """
    from declip.localize.localizer import load
    from declip.report.detectability import detectability

    if out is not None:
        options.check_free(out / f"{photo.name}.edits.json", force)
    try:
        found = detectability(load(model), photo)
    except (ImageError, MemoryError) as error:
        failure = error if isinstance(error, ImageError) else ImageError.out_of_memory(str(photo))
        print_row({"image": str(photo), "error": str(failure), "kind": failure.kind}, as_json)
        raise typer.Exit(1) from error
    if out is not None:
        found.save(out, force=force)
    for said in (json.dumps(found.to_dict()),) if as_json else found.sentences:
        line(said)
