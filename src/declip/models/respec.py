"""The description of a model in its weight file: read it, and write a file anew with another one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from declip.errors import DeclipError, SpecError, WeightsError, naming_extras
from declip.files import write_atomic
from declip.models import photo_mean
from declip.spec import SPEC_KEY, ModelSpec

__all__ = ["check_calibration", "check_target", "onnx_bytes", "parse_onnx", "spec_of", "with_spec"]


def with_spec(path: str | Path, spec: ModelSpec, out: str | Path, *, force: bool = False) -> Path:
    """Write a weight file anew with another ModelSpec; every weight stays as it is, and no network is built.

    An .onnx file whose statistics become those of the photo gets an input for them (`photo_mean.open_up`).

    path: a .onnx or .safetensors. out: of the same suffix, not there yet unless force; it appears whole or not at all.
    Returns out. Raises as `check_target`, WeightsError for a bad file, SpecError for a calibration of other statistics,
    MissingExtraError where .safetensors needs torch and it is absent.
    """
    path, out = Path(path), Path(out)
    check_target(path, out, force=force)
    if path.suffix.lower() == ".onnx":
        return _onnx_with_spec(path, spec, out)
    with naming_extras():
        from declip.models import checkpoint
    return checkpoint.with_spec(path, spec, out)


def check_target(path: str | Path, out: str | Path, *, force: bool = False) -> None:
    """Check, before hours of computing, that `with_spec` can write out from path.

    Raises WeightsError for a path that is neither .onnx nor .safetensors, or an out of another suffix; DeclipError if
    out exists, unless force.
    """
    path, out = Path(path), Path(out)
    if path.suffix.lower() not in (".onnx", ".safetensors"):
        raise WeightsError(f"{path}: expected a .onnx or .safetensors file")
    if out.suffix.lower() != path.suffix.lower():
        raise WeightsError(
            f"{out} cannot hold the weights of {path}: expected a name that ends in {path.suffix.lower()} "
            "(`declip export` turns .safetensors into .onnx)"
        )
    if out.is_dir():
        raise DeclipError(f"{out} is a folder; expected a file to write")
    if out.exists() and not force:
        raise DeclipError(f"{out} exists; --force (force=True) overwrites it")


def _onnx_with_spec(path: Path, spec: ModelSpec, out: Path) -> Path:
    model = parse_onnx(path, onnx_bytes(path))
    entry = next((entry for entry in model.metadata_props if entry.key == SPEC_KEY), None)
    if entry is None:
        raise WeightsError(f"{path} has no declip model description; make it with `declip export`")
    check_calibration(spec_of(path, {SPEC_KEY: entry.value}), spec)
    if spec.statistics == "photo":
        photo_mean.open_up(model, str(path))
    entry.value = spec.to_json()
    write_atomic(out, model.SerializeToString())
    return out


def check_calibration(old: ModelSpec, new: ModelSpec) -> None:
    """Raise SpecError where a calibration is kept while the statistics change: what it promises was not measured."""
    if new.statistics != old.statistics and new.calibration is not None and new.calibration == old.calibration:
        raise SpecError(
            f"the calibration was measured with statistics of the {old.statistics}, and does not hold for those of the "
            f"{new.statistics}: leave it out, and calibrate anew"
        )


def onnx_bytes(path: Path) -> bytes:
    """Read an ONNX file. Raises WeightsError if there is none."""
    if not path.is_file():
        raise WeightsError(f"no ONNX file at {path}")
    return path.read_bytes()


def parse_onnx(path: Path, content: bytes) -> Any:
    """Return the ModelProto of a file's bytes. Raises WeightsError, which names the file, if they are none."""
    import onnx

    try:
        return onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own, of a package that declip does not name
        raise WeightsError(f"{path} cannot be read as ONNX: {error}") from error


def spec_of(path: Path, metadata: Mapping[str, str]) -> ModelSpec:
    """Return the description in a weight file's metadata. Raises WeightsError if it is missing or wrong."""
    if SPEC_KEY not in metadata:
        maker = "make it with `declip export`"
        if path.suffix.lower() == ".safetensors":
            maker = "official .pth files go through `declip convert`"
        raise WeightsError(f"{path} has no declip model description; {maker}")
    try:
        return ModelSpec.from_json(metadata[SPEC_KEY])
    except SpecError as error:
        raise WeightsError(f"{path}: {error}") from error
