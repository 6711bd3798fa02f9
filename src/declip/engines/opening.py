"""Open the engine that a weight file needs."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from declip.engines.base import Engine
from declip.engines.onnx_engine import OnnxEngine
from declip.engines.openvino_engine import OpenVinoEngine
from declip.engines.torch_engine import TorchEngine
from declip.errors import MissingExtraError, WeightsError, naming_extras
from declip.models import catalog, resolve
from declip.spec import Precision, check_choice

__all__ = ["model_file", "open_engine", "portable", "reopen"]


def open_engine(
    path: str | Path,
    *,
    threads: int | None = None,
    device: str | None = None,
    precision: Precision = "exact",
    offline: bool = False,
) -> Engine:
    """Open a weight file: .onnx with ONNX Runtime, or OpenVINO where precision is "fast"; .safetensors with torch.

    Raises WeightsError for another suffix or a bad file, MissingExtraError if torch or OpenVINO is needed and absent,
    SpecError for a device that cannot be had, or a fast engine that is not exact enough here.
    """
    check_choice(precision, Precision, "precision")
    path = Path(path)
    match path.suffix.lower():
        case ".onnx" if precision == "fast":
            return OpenVinoEngine(path, threads=threads, device=device)
        case ".onnx":
            return OnnxEngine(path, threads=threads, device=device)
        case ".safetensors":
            return TorchEngine(path, threads=threads, device=device, precision=precision, offline=offline)
        case ".pth" | ".pt":
            raise WeightsError(f"{path} is a pickle; turn it into .safetensors with `declip convert {path} --out …`")
    raise WeightsError(f"{path}: expected a .onnx or .safetensors file")


def model_file(model: str | Path | None = None, *, offline: bool = False) -> Path:
    """Return the file that `load` opens: of the embedded model (None), of a name of `declip.models.catalog`, or a path.

    An official checkpoint is downloaded, and converted to .safetensors beside it; not where torch, which it needs, is
    missing. Raises as `load` does.
    """
    if model is None:
        return resolve.embedded_path()
    if not isinstance(model, str | os.PathLike):
        raise WeightsError(
            f"got <{type(model).__name__}>; expected a name of `declip models` or the path of a weight file"
        )
    if resolve.is_fetched(model):
        for package in ("torch", "timm", "safetensors"):  # rather than after hundreds of megabytes
            if importlib.util.find_spec(package) is None:
                raise MissingExtraError(package, "torch")
    path = resolve.resolve(model, offline=offline)
    if path.suffix != ".pth" or path.parent != resolve.cache_dir():
        return path
    out = path.with_suffix(".safetensors")
    if not out.exists():
        with naming_extras():
            from declip.models import official
        official.convert(path, out)
    return out


def portable(path: Path) -> str | Path:
    """How another process, or another machine, finds a weight file: as `model_file` takes it."""
    for card in catalog.MODELS:
        if path == resolve.cached(card):
            return card.name
    return path.absolute()


def reopen(
    source: str | Path,
    sha256: str,
    threads: int | None,
    device: str | None,
    precision: Precision,
    offline: bool,
) -> Engine:
    """Open the pickled engine in this process. Raises as `open_engine`, WeightsError if the weights are others."""
    path = model_file(source, offline=offline)
    engine = open_engine(path, threads=threads, device=device, precision=precision, offline=offline)
    if engine.sha256 != sha256:
        raise WeightsError(f"{path} has SHA-256 {engine.sha256}; what was pickled has {sha256}")
    return engine
