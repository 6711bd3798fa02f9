"""The verb that lists and checks data sets: index."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from declip.cli import options
from declip.cli.terminal import console, line, note
from declip.errors import DatasetError, DeclipError

if TYPE_CHECKING:
    from declip.results import Sample

__all__ = ["index"]


def index(
    layout: Annotated[
        str,
        typer.Argument(
            metavar="LAYOUT",
            help="Layout of the data set: dolos, autosplice, coco-sd, folder or imdl; or a manifest (.jsonl).",
        ),
    ],
    root: Annotated[
        Path | None, typer.Argument(metavar="ROOT", help="Folder of the data set. For imdl, a folder or a JSON file.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Manifest to write.")] = None,
    split: Annotated[
        str | None, typer.Option(help="dolos, coco-sd: index only this split. Others: the split to write.")
    ] = None,
    generator: Annotated[str, typer.Option(help="dolos: names of generators, separated by commas.")] = "",
    faces: Annotated[
        Literal["celebahq", "ffhq"] | None, typer.Option(help="dolos: collection of faces. Default: celebahq.")
    ] = None,
    quality: Annotated[int | None, typer.Option(help="autosplice: JPEG quality 75, 90 or 100. Default: all.")] = None,
    reals: Annotated[
        bool | None,
        typer.Option(
            "--reals/--no-reals", help="dolos, autosplice: add the untouched photos. Default: autosplice only."
        ),
    ] = None,
    masks: Annotated[
        Path | None, typer.Option(help="folder: folder of the masks. Without it all pictures are real.")
    ] = None,
    mask_name: Annotated[
        str | None, typer.Option(help="folder: name of a picture's mask, with {stem} or {name}. Default: {stem}.png.")
    ] = None,
    fake_is: Annotated[
        Literal["white", "black"] | None, typer.Option(help="folder: colour that means manipulated. Default: white.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="folder: regular expression; its (…) in a file name is the photo's name.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Print what is wrong with the data. The exit code is 1 if there are errors.")
    ] = False,
    fix: Annotated[bool, typer.Option("--fix", help="Write a manifest without the broken samples.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --check: print what is wrong as JSON.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Number of processes for --check and --fix.")] = 1,
    force: options.Force = False,
) -> None:
    """Write the manifest of a data set, or check a manifest and leave out broken samples.

    Example: declip index folder pictures/ --masks masks/ --out samples.jsonl --check
    """
    from declip import datasets

    chosen = {
        "split": split,
        "generator": generator.split(",") if generator else None,
        "faces": faces,
        "quality": quality,
        "reals": reals,
        "masks": masks,
        "mask_name": mask_name,
        "fake_is": fake_is,
        "group": group,
    }
    datasets.check_options(layout, chosen)
    _check_index(layout, root, out, check=check, fix=fix, as_json=as_json)
    target = Path(layout) if fix and out is None else out
    if target is not None:
        options.check_free(target, force)
    if root is None:
        rows = datasets.read_records(layout)
    else:
        rows = [(sample, {}) for sample in datasets.load_layout(layout, root, chosen)]
    errors = 0
    if check or fix:
        rows, errors = _audited(rows, fix=fix, show=check, as_json=as_json, workers=workers)
    if target is not None:
        datasets.write_manifest(target, [sample for sample, _ in rows], [extra or None for _, extra in rows])
        fakes = sum(sample.label == "fake" for sample, _ in rows)
        note(f"{target}: {fakes} manipulated and {len(rows) - fakes} real samples")
    raise typer.Exit(1 if errors else 0)


def _check_index(layout: str, root: Path | None, out: Path | None, *, check: bool, fix: bool, as_json: bool) -> None:
    """Raise DeclipError where the arguments of `index` contradict each other."""
    manifest = layout.endswith(".jsonl")
    rules = (
        (as_json and not check, "--json prints what --check finds; add --check"),
        (manifest and root, f"{layout} is a manifest; expected nothing after it, got {root}"),
        (manifest and not (check or fix), f"{layout} is a manifest; add --check, --fix, or both"),
        (manifest and out and not fix, "--out says where --fix writes; add --fix"),
        (not (manifest or root), f"{layout} needs its folder: declip index {layout} ROOT --out samples.jsonl"),
        (not (manifest or out) and (fix or not check), "--out is missing: the manifest to write, samples.jsonl"),
    )
    for broken, message in rules:
        if broken:
            raise DeclipError(message)


def _audited(
    rows: list[tuple[Sample, dict[str, Any]]], *, fix: bool, show: bool, as_json: bool, workers: int
) -> tuple[list[tuple[Sample, dict[str, Any]]], int]:
    """Print what is wrong with samples. Return them, if fix without the broken ones, and how many errors they have."""
    from declip.datasets import audit

    if not rows:
        raise DatasetError("there are no samples to check")
    progress = sys.stderr.isatty()
    report = audit.check([sample for sample, _ in rows], workers=workers, progress=progress)
    if show and as_json:
        print(report.to_json(), flush=True)
    elif show:
        audit.render(report, console())
    broken = audit.broken(report) if fix else {}
    if not broken:
        return rows, report.errors
    for i, why in sorted(broken.items()):
        (note if as_json else line)(f"{rows[i][0].image} is left out: {why}")
    kept = [row for i, row in enumerate(rows) if i not in broken]
    left = audit.check([sample for sample, _ in kept], workers=workers, progress=progress).errors
    if left:
        note(f"errors that are left, which --fix cannot mend: {left}; --check shows them")
    return kept, left
