"""The command `declip`: a verb parses its arguments and calls the library; nothing else lives here.

stdout carries results, stderr the log and progress bars. Exit 0: all went well; 1: some images failed, all others
are written; 2: wrong usage, a missing path, or a DeclipError before any image; 130: Ctrl-C. Imports stand inside the
verbs: `declip --help` loads no NumPy, and `declip localize` with an .onnx model no torch.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import declip
from declip.errors import DeclipError, MissingExtraError

if TYPE_CHECKING:
    from declip.types import Mode

__all__ = ["app", "main"]

app = typer.Typer(
    name="declip",
    help="Shows where a photograph has been manipulated.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# A progress bar from this many images on.
_MANY = 4


class Precision(StrEnum):
    """How the engine computes."""

    exact = "exact"
    fast = "fast"


class Tower(StrEnum):
    """What an official checkpoint's decoder stands on."""

    vit = "vit"
    rn50 = "rn50"
    fusion = "fusion"


class Layout(StrEnum):
    """Where synthesized files lie."""

    manifest = "manifest"
    dolos = "dolos"


Model = Annotated[str, typer.Option("--model", help="A name of `declip models`, a .onnx or a .safetensors file.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what exists.")]


def main() -> None:
    """Entry point: run the app; declip's own errors and the system's become one line on stderr and exit code 2."""
    logging.basicConfig(format="declip: %(message)s", level=logging.WARNING)
    logging.getLogger("declip").setLevel(logging.INFO)
    try:
        app()
    except DeclipError as error:
        sys.exit(_fail(error))
    except ModuleNotFoundError as error:
        if missing := MissingExtraError.behind(error):
            sys.exit(_fail(missing))
        raise
    except OSError as error:
        sys.exit(_fail(error))


def _print_version(wanted: bool) -> None:
    if wanted:
        _line(f"declip {declip.__version__}")
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
    out: Annotated[Path, typer.Option("--out", help="Folder for the maps.")],
    model: Model = "mini",
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON per image.")] = False,
    tile: Annotated[bool | None, typer.Option("--tile/--whole", help="Native resolution, or squashed.")] = None,
    threshold: Annotated[float | None, typer.Option(min=0, max=1, help="Of the mask.")] = None,
    precision: Annotated[
        Precision, typer.Option(help="exact is fp32; fast, where a release has it, is lower.")
    ] = Precision.exact,
    batch_size: Annotated[int, typer.Option(min=1, help="Photos or tiles computed at once.")] = 8,
    offline: Annotated[bool, typer.Option("--offline", help="Never download.")] = False,
    force: Force = False,
) -> None:
    """Show where photos have been manipulated: scores, mask and overlay of each, at its own size."""
    from declip.localizer import load
    from declip.outputs import find_pictures, localize_files

    pairs, skipped = find_pictures(paths)
    mode: Mode | None = None if tile is None else "tiled" if tile else "whole"
    localizer = load(model, mode=mode, threshold=threshold, precision=precision.value, offline=offline)
    rows = localize_files(localizer, pairs, out, force=force, batch_size=batch_size)
    failed = sum(_print_row(row, as_json) for row in _with_bar(rows, len(pairs)))
    _note(f"{len(pairs) - failed} localized to {out}, {failed} failed, {skipped} other files skipped")
    raise typer.Exit(1 if failed else 0)


@app.command()
def models() -> None:
    """List the catalogue: licence, size, and what is on this machine."""
    from rich.console import Console
    from rich.table import Table

    from declip.catalog import MODELS
    from declip.weights import cached

    table = Table("name", "trained on", "licence", "size", "here", box=None, pad_edge=False)
    for card in MODELS:
        path = cached(card)
        table.add_row(card.name, card.trained_on, card.license, _size(card.size_bytes, path), "yes" if path else "no")
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
    resize: Annotated[float, typer.Option(min=0, max=1, help="Share made smaller before saving.")] = 0.0,
    social: Annotated[float, typer.Option(min=0, max=1, help="Share saved twice, as a social network does.")] = 0.0,
    social_side: Annotated[int, typer.Option(min=32, help="Longest side that the network keeps, px.")] = 384,
    layout: Annotated[Layout, typer.Option(help="Of the files; the manifest is written in either.")] = Layout.manifest,
    split: Annotated[str, typer.Option(help="Written into the manifest.")] = "train",
) -> None:
    """Make manipulated pictures with masks, and their untouched twins, from photos."""
    from declip import datasets, outputs, synthesis

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
        social_share=social,
        social_side=social_side,
        layout=layout.value,
        split=split,
        progress=sys.stderr.isatty(),
    )
    made = sum(sample.label == "fake" for sample in datasets.read_manifest(manifest))
    _line(str(manifest))
    raise typer.Exit(0 if made == len(pictures) * per_photo else 1)


@app.command()
def convert(
    official: Annotated[Path, typer.Argument(metavar="OFFICIAL.pth", help="A checkpoint of the authors' code.")],
    out: Annotated[Path, typer.Option("--out", help="The .safetensors file to write.")],
    tower: Annotated[Tower | None, typer.Option(help="The backbone, where the file leaves it open.")] = None,
    force: Force = False,
) -> None:
    """Turn an official .pth checkpoint into a .safetensors file."""
    _check_free(out, force)
    from declip.nn import checkpoint

    spec = checkpoint.convert(official, out, tower=tower.value if tower else None)
    _line(f"{out}: {' + '.join(f'{b.name} layer {b.layer}' for b in spec.backbones)}, {spec.decoder.kind}")


@app.command("export")
def export_(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name of `declip models` or a .safetensors file.")],
    out: Annotated[Path, typer.Option("--out", help="The .onnx file to write.")],
    offline: Annotated[bool, typer.Option("--offline", help="Never download.")] = False,
    force: Force = False,
) -> None:
    """Export a model to ONNX, kept only if it computes what torch computes."""
    _check_free(out, force)
    from declip import export, weights
    from declip.nn import checkpoint

    source = weights.resolve(model, offline=offline)
    if source.suffix == ".pth":
        checkpoint.convert(source, source.with_suffix(".safetensors"))
        source = source.with_suffix(".safetensors")
    _line(str(export.to_onnx(source, out)))


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="As in recipes/.")],
    data: Annotated[list[Path], typer.Option("--data", help="Manifest with the splits train and valid; repeatable.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the run.")],
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run stopped.")] = False,
) -> None:
    """Train a model as a recipe says."""
    from declip import datasets, training

    config = training.TrainConfig.from_toml(recipe, changes or [])
    samples = [sample for manifest in data for sample in datasets.read_manifest(manifest)]
    parts = {split: [s for s in samples if s.split == split] for split in ("train", "valid")}
    run = training.train(config, train=parts["train"], valid=parts["valid"], out=out, resume=resume)
    _line(str(run.best))


# --- what the verbs print -------------------------------------------------------------------------------------------


def _print_row(row: dict[str, Any], as_json: bool) -> bool:
    """Print the row of one image; True if it failed."""
    failed = "error" in row
    if as_json:
        _line(json.dumps(row))
    elif failed:
        _note(f"{row['kind']}: {row['error']}")
    else:
        _line(f"{row['verdict'] or '-':<15}  score {row['score']:.3f}  area {row['area']:6.2%}  {row['image']}")
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


def _pair(text: str) -> tuple[str, str]:
    """NAME=VALUE, as it is given on the command line."""
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise DeclipError(f"got {text}; expected NAME=SOURCE")
    return name, value


def _check_free(out: Path, force: bool) -> None:
    if out.exists() and not force:
        raise DeclipError(f"{out} exists; --force overwrites it")
