"""The command `declip`: a verb parses its arguments and calls the library; nothing else lives here.

stdout carries results, stderr the log and progress bars. Exit 0: all went well; 1: some images failed, all others
are written; 2: wrong usage, a missing path, or a DeclipError before any image; 130: Ctrl-C. Imports stand inside the
verbs: `declip --help` loads no NumPy, and `declip localize` with an .onnx model no torch.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import sys
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from declip._version import __version__
from declip.errors import DeclipError, ImageError, MissingExtraError
from declip.files import local_path

if TYPE_CHECKING:
    from declip.calibration import Outcome
    from declip.evaluation import Evaluation
    from declip.files import Skipped
    from declip.results import Sample
    from declip.spec import Mode

__all__ = ["app", "main"]

app = typer.Typer(
    name="declip",
    help="Shows where a photograph has been manipulated.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# Which options of `declip index` describe which layout; they mean nothing to the others.
_LAYOUTS = {
    "dolos": ("generator", "faces", "split", "reals"),
    "autosplice": ("quality", "split", "reals"),
    "coco-sd": ("split",),
    "folder": ("masks", "mask_name", "fake_is", "group", "split"),
    "imdl": ("split",),
}

# A progress bar from this many images on.
_MANY = 4


class Precision(StrEnum):
    """How the engine computes."""

    exact = "exact"
    fast = "fast"


class Pages(StrEnum):
    """Which pictures of a file that holds several."""

    first = "first"
    all = "all"


class Device(StrEnum):
    """What a worker computes on."""

    cpu = "cpu"
    cuda = "cuda"


class Polarity(StrEnum):
    """Which value of a mask file is manipulated."""

    white = "white"
    black = "black"


class Faces(StrEnum):
    """The two collections of Dolos."""

    celebahq = "celebahq"
    ffhq = "ffhq"


class Tower(StrEnum):
    """What an official checkpoint's decoder stands on."""

    vit = "vit"
    rn50 = "rn50"
    fusion = "fusion"


class Experiment(StrEnum):
    """What `reproduce` repeats of the paper."""

    dolos = "dolos"
    layers = "layers"
    decoders = "decoders"
    backbones = "backbones"
    generators = "generators"
    detection = "detection"
    autosplice = "autosplice"
    robustness = "robustness"
    leave_one_out = "leave-one-out"
    rivals = "rivals"


class Scale(StrEnum):
    """The paper's own data and recipe, or minutes on two CPU cores."""

    full = "full"
    tiny = "tiny"


class Layout(StrEnum):
    """Where synthesized files lie."""

    manifest = "manifest"
    dolos = "dolos"


Model = Annotated[str, typer.Option("--model", help="A name of `declip models`, a .onnx or a .safetensors file.")]
Precise = Annotated[Precision, typer.Option(help="exact is fp32; fast is bf16 where the processor has it.")]
MaxPixels = Annotated[float, typer.Option("--max-megapixels", min=0.0001, max=1e6, help="Larger pictures are refused.")]
MaxBytes = Annotated[float, typer.Option("--max-megabytes", min=0.001, max=1e6, help="Larger files are refused.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what exists.")]


def main() -> None:
    """Entry point: run the app; declip's own errors and the system's become one line on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what its encoding lacks (Windows' cp1252, say) is escaped
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(format="declip: %(message)s", level=logging.WARNING)
    logging.getLogger("declip").setLevel(logging.INFO)
    try:
        sys.argv[1:] = map(_argument, sys.argv[1:])  # in place: of sys.argv alone click expands Windows' *.jpg
        app()
    except DeclipError as error:
        sys.exit(_fail(error))
    except ModuleNotFoundError as error:
        if missing := MissingExtraError.behind(error):
            sys.exit(_fail(missing))
        raise
    except OSError as error:
        sys.exit(_fail(error))


def _argument(text: str) -> str:
    """An argument, or the value in --option=value, as a path if it is a file: URI."""
    option, sign, value = text.partition("=")
    if sign and option.startswith("--"):
        return f"{option}={local_path(value)}"
    return local_path(text)


def _print_version(wanted: bool) -> None:
    if wanted:
        _line(f"declip {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass  # the callback has done what there is to do


@app.command()
def localize(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Pictures, and folders of pictures.")],
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the maps, named by the paths below what all PATHs have in common.")
    ],
    model: Model = "mini",
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON per image.")] = False,
    tile: Annotated[bool | None, typer.Option("--tile/--whole", help="Native resolution, or squashed.")] = None,
    threshold: Annotated[float | None, typer.Option(min=0, max=1, help="Of the mask.")] = None,
    precision: Precise = Precision.exact,
    batch_size: Annotated[int, typer.Option(min=1, help="Photos or tiles computed at once.")] = 8,
    max_megapixels: MaxPixels = 250,
    max_megabytes: MaxBytes = 200,
    pages: Annotated[Pages, typer.Option(help="Of the pictures in a file that holds several.")] = Pages.first,
    offline: Annotated[bool, typer.Option("--offline", help="Never download.")] = False,
    force: Force = False,
) -> None:
    """Show where photos have been manipulated: scores, mask and overlay of each, at its own size."""
    from declip.localize.localizer import load
    from declip.localize.outputs import find_pictures, localize_files

    pairs, skipped = find_pictures(paths)
    mode: Mode | None = None if tile is None else "tiled" if tile else "whole"
    localizer = load(
        model,
        mode=mode,
        threshold=threshold,
        precision=precision.value,
        offline=offline,
        max_pixels=round(max_megapixels * 1e6),
        max_bytes=round(max_megabytes * 1e6),
    )
    rows = localize_files(localizer, pairs, out, force=force, batch_size=batch_size, pages=pages.value)
    done = [_print_row(row, as_json) for row in _with_bar(rows, len(pairs))]
    failed = sum(done)
    _note(f"{len(done) - failed} localized to {out}, {failed} failed, {skipped} skipped")
    raise typer.Exit(1 if failed else 0)


@app.command()
def report(
    photo: Annotated[Path, typer.Argument(metavar="IMAGE", help="One picture.")],
    out: Annotated[Path, typer.Option("--out", help="The page to write, .html.")],
    model: Model = "mini",
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts of the page as one line of JSON.")] = False,
    gps: Annotated[bool, typer.Option("--gps", help="Tell where the photo was taken, and show free text.")] = False,
    tile: Annotated[bool | None, typer.Option("--tile/--whole", help="Native resolution, or squashed.")] = None,
    threshold: Annotated[float | None, typer.Option(min=0, max=1, help="Of the mask.")] = None,
    max_megapixels: MaxPixels = 250,
    max_megabytes: MaxBytes = 200,
    offline: Annotated[bool, typer.Option("--offline", help="Never download.")] = False,
    force: Force = False,
) -> None:
    """Write a page on one photo, to be filed: verdict, map, stability, second opinions, metadata, limits."""
    _check_free(out, force)
    from datetime import UTC, datetime

    from declip import report as page
    from declip.localize.localizer import load

    mode: Mode | None = None if tile is None else "tiled" if tile else "whole"
    localizer = load(
        model,
        mode=mode,
        threshold=threshold,
        offline=offline,
        max_pixels=round(max_megapixels * 1e6),
        max_bytes=round(max_megabytes * 1e6),
    )
    try:
        found = page.examine(photo, localizer, date=datetime.now(UTC), position=gps)
    except (ImageError, MemoryError) as error:
        failure = error if isinstance(error, ImageError) else ImageError.out_of_memory(str(photo))
        _print_row({"image": str(photo), "error": str(failure), "kind": failure.kind}, as_json)
        raise typer.Exit(1) from error
    found.save(out, force=force)
    _print_row(found.to_dict(), as_json)
    _note(f"the page is in {out}")


@app.command()
def batch(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A folder, a URI, or a list: .jsonl, .txt, .parquet.")
    ],
    out: Annotated[str, typer.Option("--out", help="Folder or URI for the Parquet files.")],
    model: Model = "mini",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the job of --out, if there is one.")] = False,
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster; else workers of this machine.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes, at most.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of each; by default all cores are used.")] = None,
    device: Annotated[Device | None, typer.Option(help="cuda takes one GPU for each worker.")] = None,
    shard_size: Annotated[int | None, typer.Option(min=1, help="Files of a part; a kill loses what is begun.")] = None,
    tile: Annotated[bool | None, typer.Option("--tile/--whole", help="Native resolution, or squashed.")] = None,
    threshold: Annotated[float | None, typer.Option(min=0, max=1, help="Of the mask.")] = None,
    precision: Annotated[
        Precision, typer.Option(help="exact is fp32; fast, where there is it, lower.")
    ] = Precision.exact,
    max_megapixels: MaxPixels = 250,
    max_megabytes: MaxBytes = 200,
    offline: Annotated[bool, typer.Option("--offline", help="Never download.")] = False,
) -> None:
    """Localize any number of photos into Parquet files: by several workers, resumable, here or on a Ray cluster."""
    from declip import batch as job

    mode: Mode | None = None if tile is None else "tiled" if tile else "whole"
    summary = job.run(
        source,
        out,
        model=model,
        mode=mode,
        threshold=threshold,
        precision=precision.value,
        resume=resume,
        address=address,
        workers=workers,
        threads=threads,
        device=device.value if device else None,
        shard_size=shard_size,
        offline=offline,
        max_pixels=round(max_megapixels * 1e6),
        max_bytes=round(max_megabytes * 1e6),
        progress=sys.stderr.isatty(),
    )
    _line(str(summary))
    raise typer.Exit(1 if summary.errors else 0)


@app.command()
def evaluate(
    manifest: Annotated[Path, typer.Argument(metavar="SAMPLES.jsonl", help="A manifest of samples with known masks.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for images.csv, summary.json and report.html.")],
    model: Annotated[str | None, typer.Option("--model", help="As for localize; mini if there are no maps.")] = None,
    maps: Annotated[Path | None, typer.Option("--maps", help="Folder of score maps made elsewhere.")] = None,
    maps_fake_is: Annotated[Polarity, typer.Option(help="What --maps show as manipulated.")] = Polarity.white,
    split: Annotated[str | None, typer.Option(help="Only the samples of this split.")] = None,
    tile: Annotated[bool | None, typer.Option("--tile/--whole", help="Native resolution, or squashed.")] = None,
    threshold: Annotated[float | None, typer.Option(min=0, max=1, help="Of the mask.")] = None,
    score_threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Call pictures of this score or more manipulated.")
    ] = None,
    precision: Precise = Precision.exact,
    batch_size: Annotated[int, typer.Option(min=1, help="Photos or tiles computed at once.")] = 8,
    max_megapixels: MaxPixels = 250,
    max_megabytes: MaxBytes = 200,
    offline: Annotated[bool, typer.Option("--offline", help="Never download.")] = False,
    force: Force = False,
) -> None:
    """Measure a model, or maps made elsewhere, on samples with known masks."""
    from declip import datasets, evaluation
    from declip.localize.localizer import load

    if maps and (model or tile is not None or precision != Precision.exact):
        raise DeclipError("--maps scores what is there: it goes with none of --model, --tile/--whole and --precision")
    evaluation.check_free(out, force=force)
    samples = [sample for sample in datasets.read_manifest(manifest) if split in (None, sample.split)]
    mode: Mode | None = None if tile is None else "tiled" if tile else "whole"
    source = (
        evaluation.Maps(maps, [s.image for s in samples], root=manifest.parent, fake_is=maps_fake_is.value)
        if maps
        else None
    )
    result = evaluation.evaluate(
        source
        or load(
            model,
            mode=mode,
            precision=precision.value,
            offline=offline,
            max_pixels=round(max_megapixels * 1e6),
            max_bytes=round(max_megabytes * 1e6),
        ),
        samples,
        threshold=threshold,
        score_threshold=score_threshold,
        batch_size=batch_size,
        title=str(manifest),
        progress=sys.stderr.isatty(),
    )
    result.save(out, force=force)
    raise typer.Exit(_print_evaluation(result))


@app.command()
def calibrate(
    photos: Annotated[list[Path], typer.Argument(metavar="REAL_PHOTOS", help="Untouched photos of your own; folders.")],
    out: Annotated[Path, typer.Option("--out", help="The model file to write, of the same suffix as the model's.")],
    model: Model = "mini",
    false_alarms: Annotated[
        str, typer.Option(help="Rates for 'manipulated' and 'inconclusive', separated by commas.")
    ] = "0.01,0.05",
    data: Annotated[Path | None, typer.Option("--data", help="Manifest of fakes with masks, to refit with.")] = None,
    split: Annotated[str | None, typer.Option(help="Only the samples of this split.")] = None,
    pieces: Annotated[
        int, typer.Option(min=0, help="Compare large photos with pieces of large photos, too: at most so many of each.")
    ] = 0,
    tile: Annotated[bool | None, typer.Option("--tile/--whole", help="Native resolution, or squashed.")] = None,
    precision: Precise = Precision.exact,
    batch_size: Annotated[int, typer.Option(min=1, help="Photos or tiles computed at once.")] = 8,
    max_megapixels: MaxPixels = 250,
    max_megabytes: MaxBytes = 200,
    offline: Annotated[bool, typer.Option("--offline", help="Never download.")] = False,
    force: Force = False,
) -> None:
    """Set a model's verdicts by untouched photos of your own, and write it as a new file."""
    from declip import calibration, datasets
    from declip.localize.outputs import find_pictures

    if split and not data:
        raise DeclipError("--split chooses among the samples of --data; add --data")
    rates = [_rate(text) for text in false_alarms.split(",")]
    pairs, skipped = find_pictures(photos)
    samples = [s for s in datasets.read_manifest(data) if split in (None, s.split)] if data else None
    mode: Mode | None = None if tile is None else "tiled" if tile else "whole"
    result = calibration.calibrate(
        model,
        [pair.path for pair in pairs],
        out,
        rates=rates,
        samples=samples,
        pieces=pieces,
        mode=mode,
        precision=precision.value,
        batch_size=batch_size,
        offline=offline,
        max_pixels=round(max_megapixels * 1e6),
        max_bytes=round(max_megabytes * 1e6),
        force=force,
        progress=sys.stderr.isatty(),
    )
    _print_calibration(result, out, skipped)
    raise typer.Exit(1 if result.unreadable or result.lost else 0)


@app.command()
def models() -> None:
    """List the catalogue: licence, size, and what is on this machine."""
    from rich.console import Console
    from rich.table import Column, Table

    from declip.models.catalog import MODELS
    from declip.models.weights import cached

    whole = [Column(title, no_wrap=True) for title in ("name", "size", "here")]
    table = Table(whole[0], "trained on", "licence", *whole[1:], box=None, pad_edge=False)
    for card in MODELS:
        path = cached(card)
        size = "by hand" if card.by_hand and path is None else _size(card.size_bytes, path)
        table.add_row(card.name, card.trained_on, card.license, size, "yes" if path else "no")
    Console(width=None if sys.stdout.isatty() else 120).print(table)


@app.command()
def synthesize(
    photos: Annotated[Path, typer.Argument(metavar="PHOTOS", help="Folder of untouched photos.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the data set; continued if it was interrupted.")],
    generators: Annotated[
        str, typer.Option(help="Names or sets of generators, separated by commas.")
    ] = "all-classical",
    masks: Annotated[
        str, typer.Option(help="Of random, object, grabcut, face, separated by commas.")
    ] = "random,object",
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    size: Annotated[int, typer.Option(min=32, help="Side of the crops, px.")] = 512,
    per_photo: Annotated[int, typer.Option(min=1, help="Manipulated pictures per photo.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    autoencoder: Annotated[str | None, typer.Option(help="Its folder or hub id, for what regenerates.")] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--weights", metavar="NAME=SOURCE", help="A path or hub id for a learnt in-painter; repeatable."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of diffusion; each in-painter has its own.")] = None,
    device: Annotated[str, typer.Option(help="Of the networks: cpu, cuda, cuda:1.")] = "cpu",
    fully_regenerated: Annotated[
        bool, typer.Option("--fully-regenerated", help="Send whole fakes through the autoencoder.")
    ] = False,
    jpeg: Annotated[float, typer.Option(min=0, max=1, help="Share of pairs saved as JPEG.")] = 0.5,
    webp: Annotated[float, typer.Option(min=0, max=1, help="Share saved as WebP; the others are PNG.")] = 0.0,
    resize: Annotated[float, typer.Option(min=0, max=1, help="Share brought to another size before saving.")] = 0.0,
    resize_range: Annotated[
        tuple[float, float], typer.Option(metavar="LOW HIGH", help="Lowest and highest factor of the sides.")
    ] = (0.5, 0.95),
    noise: Annotated[float, typer.Option(min=0, max=1, help="Share with light noise on top.")] = 0.0,
    screenshot: Annotated[
        float, typer.Option(min=0, max=1, help="Share captured from a screen, at another size, as PNG.")
    ] = 0.0,
    social: Annotated[float, typer.Option(min=0, max=1, help="Share saved twice, as a social network does.")] = 0.0,
    social_side: Annotated[int, typer.Option(min=32, help="Longest side that the network keeps, px.")] = 384,
    before: Annotated[
        float, typer.Option(min=0, max=1, help="Share of photos saved as JPEG before they are manipulated.")
    ] = 0.25,
    donor: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the donors of splices saved as JPEG before, on their own.")
    ] = 0.0,
    layout: Annotated[Layout, typer.Option(help="Of the files; the manifest is written in either.")] = Layout.manifest,
    split: Annotated[str, typer.Option(help="Written into the manifest.")] = "train",
) -> None:
    """Make manipulated pictures with masks, and their untouched twins, from photos."""
    from declip import datasets, synthesis
    from declip.localize import outputs

    pictures = [pair.path for pair in outputs.find_pictures([photos])[0]]
    manifest = synthesis.synthesize(
        pictures,
        out,
        generators=generators.split(","),
        masks=masks.split(","),
        seed=seed,
        size=size,
        per_photo=per_photo,
        workers=workers,
        autoencoder=autoencoder,
        models=dict(_pair(given) for given in models or []),
        steps=steps,
        device=device,
        fully_regenerated=fully_regenerated,
        jpeg_share=jpeg,
        webp_share=webp,
        resize_share=resize,
        resize_range=resize_range,
        noise_share=noise,
        screenshot_share=screenshot,
        social_share=social,
        social_side=social_side,
        before_share=before,
        donor_share=donor,
        layout=layout.value,
        split=split,
        progress=sys.stderr.isatty(),
    )
    made = sum(sample.label == "fake" for sample in datasets.read_manifest(manifest))
    _line(str(manifest))
    raise typer.Exit(0 if made == len(pictures) * per_photo else 1)


@app.command()
def convert(
    official: Annotated[
        Path, typer.Argument(metavar="OFFICIAL.pth", help="Of DeCLIP's or a rival's authors; PSCC-Net: the folder.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The .safetensors file to write.")],
    tower: Annotated[Tower | None, typer.Option(help="DeCLIP: the backbone, where the file leaves it open.")] = None,
    fake_class: Annotated[
        int | None, typer.Option(min=0, max=1, help="Patch Forensics: the class that is manipulated. [default: 0]")
    ] = None,
    force: Force = False,
) -> None:
    """Turn an official .pth checkpoint, DeCLIP's or a rival's, into a .safetensors file."""
    _check_free(out, force)
    from declip.models import checkpoint

    chosen = cast("Literal[0, 1] | None", fake_class)
    spec = checkpoint.convert(official, out, tower=tower.value if tower else None, fake_class=chosen)
    kind = spec.architecture if spec.decoder is None else spec.decoder.kind
    backbones = " + ".join(f"{b.name} layer {b.layer}" for b in spec.backbones)
    _line(f"{out}: {backbones}, {kind}" if backbones else f"{out}: {kind}")


@app.command("export")
def export_(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name of `declip models` or a .safetensors file.")],
    out: Annotated[Path, typer.Option("--out", help="The .onnx file to write.")],
    offline: Annotated[bool, typer.Option("--offline", help="Never download.")] = False,
    force: Force = False,
) -> None:
    """Export a model to ONNX, kept only if it computes what torch computes."""
    _check_free(out, force)
    from declip.models import checkpoint, export, weights

    source = weights.resolve(model, offline=offline)
    if source.suffix == ".pth":
        checkpoint.convert(source, source.with_suffix(".safetensors"))
        source = source.with_suffix(".safetensors")
    _line(str(export.to_onnx(source, out)))


@app.command()
def index(
    context: typer.Context,
    layout: Annotated[str, typer.Argument(metavar="LAYOUT", help=f"{', '.join(_LAYOUTS)}; or a manifest (.jsonl).")],
    root: Annotated[Path | None, typer.Argument(metavar="ROOT", help="The data set's folder; imdl: or file.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The manifest to write.")] = None,
    split: Annotated[
        str | None, typer.Option(help="dolos, coco-sd: only this one. Others: written into the manifest.")
    ] = None,
    generator: Annotated[str, typer.Option(help="dolos: names, separated by commas.")] = "",
    faces: Annotated[Faces, typer.Option(help="dolos.")] = Faces.celebahq,
    quality: Annotated[int | None, typer.Option(help="autosplice: 75, 90 or 100. [default: all]")] = None,
    reals: Annotated[
        bool | None, typer.Option("--reals/--no-reals", help="autosplice (default: yes), dolos (no): untouched photos.")
    ] = None,
    masks: Annotated[Path | None, typer.Option(help="folder: the masks. Without them all pictures are real.")] = None,
    mask_name: Annotated[str, typer.Option(help="folder: of a picture's mask; or with {name}.")] = "{stem}.png",
    fake_is: Annotated[Polarity, typer.Option(help="folder: what the masks show as manipulated.")] = Polarity.white,
    group: Annotated[str | None, typer.Option(help="folder: expression whose (…) in a stem is the photo.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Print what is wrong; exit 1 if there are errors.")] = False,
    fix: Annotated[bool, typer.Option("--fix", help="Write a corrected manifest; pictures are not touched.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what is wrong as JSON.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes that check.")] = 1,
    force: Force = False,
) -> None:
    """Write the manifest of a data set; or check and fix a manifest."""
    from declip import datasets

    _check_index(context)
    target = Path(layout) if fix and out is None else out
    if target is not None:
        _check_free(target, force)
    if root is None:
        rows = datasets.read_records(layout)
    else:
        split_ = split or ""
        match layout:
            case "dolos":
                samples = _dolos(root, generator.split(","), split, faces.value, reals or False)
            case "autosplice":
                known = cast("Literal[75, 90, 100] | None", quality)  # the library says if it is not
                samples = datasets.autosplice(root, quality=known, reals=reals is not False, split=split_)
            case "coco-sd":
                samples = datasets.coco_sd(root, split=split)
            case "folder":
                samples = datasets.folder(
                    root, masks, fake_is=fake_is.value, mask_name=mask_name, group=group, split=split_
                )
            case _:
                samples = datasets.imdl(root, split=split_)
        rows = [(sample, {}) for sample in samples]
    errors = 0
    if check or fix:
        rows, errors = _audited(rows, fix=fix, show=check, as_json=as_json, workers=workers)
    if target is not None:
        datasets.write_manifest(target, [sample for sample, _ in rows], [extra or None for _, extra in rows])
        fakes = sum(sample.label == "fake" for sample, _ in rows)
        _note(f"{target}: {fakes} manipulated and {len(rows) - fakes} real samples")
    raise typer.Exit(1 if errors else 0)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="As in recipes/.")],
    data: Annotated[list[Path], typer.Option("--data", help="Manifest with the splits train and valid; repeatable.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the run.")],
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run stopped.")] = False,
    cache: Annotated[Path | None, typer.Option(help="Folder of frozen features, shared by runs.")] = None,
    start: Annotated[Path | None, typer.Option(help="A checkpoint whose decoder is the starting point.")] = None,
) -> None:
    """Train a model as a recipe says."""
    from declip import datasets, training

    config = training.TrainConfig.from_toml(recipe, changes or [])
    samples = [sample for manifest in data for sample in datasets.read_manifest(manifest)]
    parts = {split: [s for s in samples if s.split == split] for split in ("train", "valid")}
    run = training.train(
        config, train=parts["train"], valid=parts["valid"], out=out, resume=resume, cache=cache, start=start
    )
    _line(str(run.best))


@app.command()
def features(
    manifests: Annotated[list[Path], typer.Argument(metavar="SAMPLES.jsonl…", help="Manifests of samples.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of frozen features: --cache of train.")],
    backbone: Annotated[str | None, typer.Option(metavar="NAME", help="Of timm, with its tag.")] = None,
    layers: Annotated[list[int] | None, typer.Option("--layer", min=0, help="Repeatable; one pass for all.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="What it trains on; else every sample, as the paper.")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Of the recipe.")] = None,
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster; else workers of this machine.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes, at most.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of each; by default all cores are used.")] = None,
    device: Annotated[Device | None, typer.Option(help="cuda takes one GPU for each worker.")] = None,
) -> None:
    """Compute frozen features by several workers, once for any number of trainings."""
    from declip import batch
    from declip.reproduce.setup import parse_layers

    config = batch.recipe_for(parse_layers(backbone, layers or []), recipe, changes or [])
    filled = batch.fill_cache(
        manifests,
        out,
        config=config,
        every=recipe is None,
        address=address,
        workers=workers,
        threads=threads,
        device=device.value if device else None,
        progress=sys.stderr.isatty(),
    )
    _line(str(filled))


@app.command()
def reproduce(
    experiment: Annotated[Experiment, typer.Argument(metavar="EXPERIMENT", help=f"One of {', '.join(Experiment)}.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of all experiments; what is finished there is reused.")],
    data: Annotated[Path | None, typer.Option(help="full: folder with celebahq/ of Dolos, and AutoSplice/.")] = None,
    backbone: Annotated[
        str | None,
        typer.Option(metavar="NAME[:LAYER][+…]", help="Of timm, with its tag; + is fusion. [default: paper's]"),
    ] = None,
    scale: Annotated[Scale, typer.Option(help="The paper's data and recipe, or minutes on a CPU.")] = Scale.full,
    photos: Annotated[Path | None, typer.Option(help="tiny: folder of photos that data are made from.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the trainings; data stay the same.")] = 0,
) -> None:
    """Repeat an experiment of the paper: train, test, and show the numbers beside the paper's."""
    from rich.console import Console

    from declip import reproduce as experiments
    from declip.localize import outputs

    pictures = None if photos is None else [pair.path for pair in outputs.find_pictures([photos])[0]]
    found = experiments.reproduce(
        experiment.value, out, scale=scale.value, data=data, photos=pictures, backbone=backbone, seed=seed
    )
    Console(width=None if sys.stdout.isatty() else 120).print(experiments.render(found))
    _line(str(out / experiment.value / "table.md"))


@app.command()
def serve(
    models: Annotated[
        list[str] | None,
        typer.Option("--model", help="As for localize; repeatable, the first is the default. [default: mini]"),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 is every one of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, help="Pictures computed at once; they share the cores.")] = 1,
    keep: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Keep every picture and its maps. [default: nothing is kept]")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A name it may be called by; repeatable. [default: this machine's, or any]"),
    ] = None,
    trust_proxy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS",
            help="A proxy, as 127.0.0.1 or 10.0.0.0/8, whose X-Forwarded-For is believed; repeatable. [default: none]",
        ),
    ] = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Let everybody who reaches another address than this machine's use it.")
    ] = False,
    access_log: Annotated[
        bool, typer.Option("--access-log/--no-access-log", help="Write one line of JSON on each request to stderr.")
    ] = True,
    max_megabytes: Annotated[float, typer.Option(min=0.001, max=1e6, help="Of a request's body.")] = 200,
    max_megapixels: Annotated[float, typer.Option(min=0.0001, max=1e6, help="Of a picture.")] = 100,
    max_files: Annotated[int, typer.Option(min=1, help="Of a request.")] = 16,
    max_memory: Annotated[float, typer.Option(min=1, help="Megabytes of uploads and answers held at once.")] = 1000,
    requests: Annotated[int, typer.Option(min=1, help="In flight at once.")] = 64,
    client_requests: Annotated[int, typer.Option(min=1, help="Of one address in flight at once.")] = 16,
    queue: Annotated[int, typer.Option(min=1, help="Pictures that wait.")] = 128,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds from a request's last byte to its answer.")] = 120,
    precision: Precise = Precision.exact,
    batch_size: Annotated[int, typer.Option(min=1, help="Photos or tiles computed at once.")] = 8,
    offline: Annotated[bool, typer.Option("--offline", help="Never download.")] = False,
) -> None:
    """Serve models over HTTP (docs/serve.md); a bearer token is read from the environment, DECLIP_TOKEN."""
    from declip import serve
    from declip.localize.localizer import load

    limits = serve.Limits(
        request_bytes=round(max_megabytes * 1e6),
        pixels=round(max_megapixels * 1e6),
        files=max_files,
        held_bytes=round(max_memory * 1e6),
        requests=requests,
        client_requests=client_requests,
        queue=queue,
        seconds=timeout,
        batch_size=batch_size,
    )
    token = os.environ.get("DECLIP_TOKEN")
    local = host in serve.LOOPBACK
    if token and no_token:
        raise DeclipError("there are both a DECLIP_TOKEN and --no-token: unset the one, or leave out the other")
    if no_token:
        token = None
    elif token is None and not local:
        raise DeclipError(
            f"everybody who reaches {host} could use this service: set DECLIP_TOKEN to a long random word, "
            "which requests then carry, or add --no-token"
        )
    hosts = {host, *serve.LOOPBACK, *(allow_host or ())} if local else allow_host
    localizers = [load(name, precision=precision.value, offline=offline) for name in models or ["mini"]]
    served = serve.create_app(localizers, limits, workers=workers, token=token, hosts=hosts, keep=keep)
    names = ", ".join(localizer.model for localizer in localizers)
    serve.serve(
        served,
        host=host,
        port=port,
        proxies=trust_proxy or (),
        access_log=access_log,
        started=lambda url: _note(f"{names} on {url}"),
    )


# --- what `index` is made of ----------------------------------------------------------------------------------------


def _check_index(context: typer.Context) -> None:
    """Raise DeclipError where the arguments of `index` contradict each other."""
    layout, root, out = (context.params[name] for name in ("layout", "root", "out"))
    check, fix = context.params["check"], context.params["fix"]
    manifest = layout.endswith(".jsonl")
    if not manifest and layout not in _LAYOUTS:
        raise DeclipError(f"{layout} is neither a manifest (.jsonl) nor a layout; those are {', '.join(_LAYOUTS)}")
    for option in {name for names in _LAYOUTS.values() for name in names}.difference(_LAYOUTS.get(layout, ())):
        source = context.get_parameter_source(option)
        if source is not None and source.name == "COMMANDLINE":
            raise DeclipError(f"--{option.replace('_', '-')} is not for {'a manifest' if manifest else layout}")
    if context.params["as_json"] and not check:
        raise DeclipError("--json prints what --check finds; add --check")
    if manifest and root is not None:
        raise DeclipError(f"{layout} is a manifest; expected nothing after it, got {root}")
    if manifest and not (check or fix):
        raise DeclipError(f"{layout} is a manifest; add --check, --fix, or both")
    if manifest and out is not None and not fix:
        raise DeclipError("--out says where --fix writes; add --fix")
    if not manifest and root is None:
        raise DeclipError(f"{layout} needs the data set's folder: declip index {layout} ROOT --out samples.jsonl")
    if not manifest and out is None and (fix or not check):
        raise DeclipError("--out is missing: the manifest to write, samples.jsonl")


def _dolos(
    root: Path, generators: list[str], split: str | None, faces: Literal["celebahq", "ffhq"], reals: bool
) -> list[Sample]:
    """Of several generators; the untouched photos, which all share, once."""
    from declip import datasets

    samples = []
    for number, generator in enumerate(dict.fromkeys(generators)):
        samples += datasets.dolos(root, generator, split=split, faces=faces, reals=reals and number == 0)
    return samples


def _audited(
    rows: list[tuple[Sample, dict[str, Any]]], *, fix: bool, show: bool, as_json: bool, workers: int
) -> tuple[list[tuple[Sample, dict[str, Any]]], int]:
    """Print what is wrong with the samples of rows; (the rows, corrected if fix, and how many errors these have)."""
    from rich.console import Console

    from declip.datasets import audit

    progress = sys.stderr.isatty()
    samples = [sample for sample, _ in rows]
    report = audit.check(samples, workers=workers, progress=progress)
    if show and as_json:
        print(report.to_json(), flush=True)
    elif show:
        audit.render(report, Console(width=None if sys.stdout.isatty() else 120))
    if not fix:
        return rows, report.errors
    fixed, changes = audit.fix(samples, report)
    for change in changes:
        (_note if as_json else _line)(change)
    kept = [(sample, extra) for sample, (_, extra) in zip(fixed, rows, strict=True) if sample is not None]
    if not changes:
        return kept, report.errors
    left = audit.check([sample for sample, _ in kept], workers=workers, progress=progress).errors
    if left:
        _note(f"{left} errors are left, which --fix cannot mend; --check shows them")
    return kept, left


# --- what the verbs print -------------------------------------------------------------------------------------------


def _print_evaluation(evaluation: Evaluation) -> int:
    """Print the tables to stdout and what failed to stderr; the exit code."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 120).print(evaluation.render())
    for row in evaluation.errors:
        _note(f"{row.kind}: {row.error}")
    return 1 if evaluation.errors else 0


def _print_calibration(result: Outcome, out: Path, skipped: Skipped) -> None:
    """Print what was measured and what it promises to stdout."""
    from rich.console import Console
    from rich.table import Table

    from declip.calibration import false_alarm_range
    from declip.spec import SIZE_CLASSES

    calibration = result.calibration
    table = Table("photos", "untouched", "verdict", "false alarms", "likely range", box=None, pad_edge=False)
    for i, size in enumerate(SIZE_CLASSES):
        count, photos = len(calibration.untouched[i]), calibration.photos[i]
        compared = f"{photos}" if count == photos else f"{photos}, {count} with pieces"
        steps = calibration.steps(i)
        for step in steps:
            low, high = false_alarm_range(step.rate, photos)
            likely = f"{100 * low:.2g} to {100 * high:.2g} %" if count == photos else "-"
            table.add_row(size, compared, step.word, f"at most {100 * step.rate:.2g} %", likely)
        if not steps:
            table.add_row(size, compared, "none: too few photos", "-", "-")
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    _line(
        "Of untouched photos like these at most that share gets the verdict, averaged over calibrations with as many."
    )
    _line("The rate of this very calibration lies within the likely range nine times in ten.")
    fitted = f"refitted on {result.fakes} manipulated pictures" if result.fakes else "kept"
    dropped = f"{result.unreadable} unreadable, {result.repeated} repeated, {result.unfit} that are no photographs"
    _line(f"left out        {dropped}, {skipped} skipped")
    _line(f"temperature     {calibration.temperature:.4g}, {fitted}")
    _line(f"threshold       {calibration.threshold:g}, {fitted}")
    _line(f"verdicts in     {calibration.mode} mode only")
    _line(f"written         {out}")
    if result.lost:
        _note(f"{result.lost} samples of --data were left out")


def _print_row(row: dict[str, Any], as_json: bool) -> bool:
    """Print the row of one image; True if it failed."""
    failed = "error" in row
    if as_json:
        _line(json.dumps(row))
    elif failed:
        _note(f"{row['kind']}: {row['error']}")
    else:
        # Rounded down: a score of 0.9499 is not the 0.95 from which a part is flagged.
        score = "  -  " if row["score"] is None else f"{math.floor(1000 * row['score'] + 1e-9) / 1000:.3f}"
        name = "rank " if row["verdict"] else "score"
        _line(f"{row['verdict'] or 'no verdict':<15}  {name} {score}  area {row['area']:6.2%}  {row['image']}")
        if row["provenance"] and row["provenance"]["headline"]:
            _line(f"{'':<15}  {row['provenance']['headline']}")
        for said in (row["not_examined"], *row["notes"]):
            if said is not None:
                _note(f"{row['image']}: {said}")
    return failed


def _with_bar(rows: Iterable[dict[str, Any]], total: int) -> Iterator[dict[str, Any]]:
    """The rows, under a progress bar on stderr where that is a terminal and there are more than a few."""
    if total < _MANY or not sys.stderr.isatty():
        yield from rows
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("localizing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # On one screen the lines have to go above the bar; into a file or pipe they must not pass through it.
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty()) as progress:
        yield from progress.track(rows, total=total)


def _line(text: str) -> None:
    print(_printable(text), flush=True)


def _note(text: str) -> None:
    print(f"declip: {_printable(text)}", file=sys.stderr, flush=True)


def _fail(error: Exception) -> int:
    _note(str(error))
    return 2


def _printable(text: str) -> str:
    """File names may hold anything: control characters must not reach a terminal, nor lone surrogates an encoder."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _size(published: int | None, path: Path | None) -> str:
    size = path.stat().st_size if path else published
    return "?" if size is None else f"{size / 1e6:.0f} MB"


def _rate(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise DeclipError(f"got the false-alarm rate {text!r}; expected a number in (0, 1), as 0.01 for 1 %") from None


def _pair(text: str) -> tuple[str, str]:
    """NAME=VALUE, as it is given on the command line."""
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise DeclipError(f"got {text}; expected NAME=SOURCE")
    return name, value


def _check_free(out: Path, force: bool) -> None:
    if out.exists() and not force:
        raise DeclipError(f"{out} exists; --force overwrites it")
