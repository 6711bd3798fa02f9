"""The verb that checks a signed report: verify."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from declip.cli.terminal import line

__all__ = ["verify"]


def verify(
    page: Annotated[Path, typer.Argument(metavar="PAGE", help="The .html file of a signed report.")],
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The public key that should have signed it (PEM).")
    ] = None,
    photo: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The photo. Default: beside the page, by its name.")
    ] = None,
    roots: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificates of time-stamping authorities you trust (PEM).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Check a signed report: whose key signed it, and whether page, mask, photo and model are those that were signed.

    Example: declip verify report.html --key pub.pem
    """
    from declip.report import verification

    found = verification.verify(page, key=key, photo=photo, roots=roots)
    if as_json:
        line(json.dumps(found.to_dict()))
    else:
        line(found.summary)
        for check in found.checks:
            line(f"{check.state:<5} {check.part:<11} {check.says}")
    raise typer.Exit(0 if found.ok else 1)
