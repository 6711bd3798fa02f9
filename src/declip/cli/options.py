"""Options that several verbs share, and what they mean to the library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from declip.errors import DeclipError

__all__ = [
    "BatchSize",
    "Force",
    "MaxBytes",
    "MaxPixels",
    "Model",
    "Offline",
    "Precise",
    "Threshold",
    "Tile",
    "check_free",
    "millions",
    "mode_of",
]

Model = Annotated[str, typer.Option("--model", help="A name of `declip models`, a .onnx or a .safetensors file.")]
Tile = Annotated[
    bool | None, typer.Option("--tile/--whole", help="Read photos at native resolution, or squashed to one input.")
]
Threshold = Annotated[
    float | None, typer.Option(min=0, max=1, help="Minimum score for a pixel to be in the mask; then no verdict.")
]
Precise = Annotated[
    Literal["exact", "fast"], typer.Option(help="exact computes in fp32; fast in bf16, where the processor has it.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Number of photos or tiles computed at once.")]
MaxPixels = Annotated[float, typer.Option("--max-megapixels", min=0.0001, max=1e6, help="Refuse larger pictures.")]
MaxBytes = Annotated[float, typer.Option("--max-megabytes", min=0.001, max=1e6, help="Refuse larger files.")]
Offline = Annotated[bool, typer.Option("--offline", help="Never download anything.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what exists.")]


def mode_of(tile: bool | None) -> Literal["whole", "tiled"] | None:
    """Return the mode that --tile or --whole asks for; None = the model's own."""
    return None if tile is None else "tiled" if tile else "whole"


def millions(number: float) -> int:
    """Return a number of megapixels or megabytes as pixels or bytes."""
    return round(number * 1e6)


def check_free(out: Path, force: bool) -> None:
    """Raise DeclipError if there is a file or folder of this name and it is not to be overwritten."""
    if out.exists() and not force:
        raise DeclipError(f"{out} exists; --force overwrites it")
