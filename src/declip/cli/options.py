"""Options that several verbs share, and what they mean to the library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from declip.errors import DeclipError

Model = Annotated[str, typer.Option("--model", help="Name from `declip models`, or a .onnx or .safetensors file.")]
Tile = Annotated[
    bool, typer.Option("--tile", help="Examine photos in tiles at full resolution. Default: as the model says.")
]
Whole = Annotated[bool, typer.Option("--whole", help="Examine photos shrunk to one input of the network.")]
Threshold = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Minimum score for a pixel to be in the mask. With it there is no verdict."),
]
Precise = Annotated[
    Literal["exact", "fast"],
    typer.Option(help="exact: compute in fp32. fast: compute in bf16, if the processor has it."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Number of photos or tiles that are computed together.")]
MaxPixels = Annotated[
    float, typer.Option("--max-megapixels", min=0.0001, max=1e6, help="Refuse pictures with more megapixels.")
]
MaxBytes = Annotated[
    float, typer.Option("--max-megabytes", min=0.001, max=1e6, help="Refuse files with more megabytes.")
]
Clues = Annotated[
    bool,
    typer.Option(
        "--clues/--no-clues", help="Also look for clues, such as copied parts, or leave the verdict to the model."
    ),
]
Offline = Annotated[bool, typer.Option("--offline", help="Never download anything.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing files.")]


def mode_of(tile: bool, whole: bool) -> Literal["whole", "tiled"] | None:
    """Return the mode that --tile or --whole asks for; None = the model's own. Raises DeclipError for both."""
    if tile and whole:
        raise DeclipError("--tile and --whole contradict each other; give one, or none for the model's own mode")
    return "tiled" if tile else "whole" if whole else None


def millions(number: float) -> int:
    """Return a number of megapixels or megabytes as pixels or bytes."""
    return round(number * 1e6)


def check_free(out: Path, force: bool) -> None:
    """Raise DeclipError if there is a file or folder of this name and it is not to be overwritten."""
    if out.exists() and not force:
        raise DeclipError(f"{out} exists; --force overwrites it")
