"""Engines: normalised pictures → logits, by ONNX Runtime (the light core) or torch.

`open_engine` picks by the file's suffix. Both are thread-safe and give the same numbers (export is checked to 1e-4).
`with_spec` writes a weight file anew with another description, its weights untouched.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from declip.errors import DeclipError, MissingExtraError, SpecError, WeightsError
from declip.types import Engine, ModelSpec
from declip.weights import sha256_of

__all__ = ["OnnxEngine", "TorchEngine", "Wrapped", "check_target", "open_engine", "with_spec"]

SPEC_KEY = "declip"


class Wrapped:
    """An engine that does what another one does; subclasses change a part of it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def spec(self) -> ModelSpec:
        """The other's."""
        return self.engine.spec

    @property
    def model(self) -> str:
        """The other's."""
        return self.engine.model

    @property
    def sha256(self) -> str:
        """The other's."""
        return self.engine.sha256

    def logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """As `Engine.logits`."""
        return self.engine.logits(inputs)


class OnnxEngine:
    """An exported .onnx on ONNX Runtime; the ModelSpec travels in its metadata.

    threads: within one run (None = ONNX Runtime's choice, all cores). device: "cpu" or "cuda"; None = the CPU.
    """

    def __init__(self, path: Path, *, threads: int | None = None, device: str | None = None) -> None:
        # Since 1.29 its builds send usage to its maker, unless they find this before anything else.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        provider = {None: "CPUExecutionProvider", "cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
        if provider.get(device) not in onnxruntime.get_available_providers():
            raise SpecError(
                f"this ONNX Runtime cannot use device {device!r}; expected 'cpu', or 'cuda' with onnxruntime-gpu"
            )
        if not path.is_file():
            raise WeightsError(f"no ONNX file at {path}")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # its warnings are about graph clean-ups, not about results
        if threads is not None:
            options.intra_op_num_threads = threads
        content = path.read_bytes()
        try:
            self._session = onnxruntime.InferenceSession(
                content, options, providers=list(dict.fromkeys((provider[device], "CPUExecutionProvider")))
            )
        except Exception as error:  # onnxruntime's exceptions share no public base class
            raise WeightsError(f"{path} cannot be opened by ONNX Runtime: {error}") from error
        text = self._session.get_modelmeta().custom_metadata_map.get(SPEC_KEY)
        if text is None:
            raise WeightsError(f"{path} has no declip model description; make it with `declip export`")
        try:
            self.spec: ModelSpec = ModelSpec.from_json(text)
        except SpecError as error:
            raise WeightsError(f"{path}: {error}") from error
        self.model = path.stem
        self.sha256 = hashlib.sha256(content).hexdigest()

    def logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """{"image": (N, 3, S, S) float32} → (N, T, T) float32; CAT-Net: "coefficients" and "table", too."""
        (logits,) = self._session.run(["logits"], dict(inputs))
        result: NDArray[np.float32] = logits
        return result


class TorchEngine:
    """A .safetensors checkpoint on torch, in fp32.

    device: "cpu", "cuda", "cuda:1", "mps"…; None = CUDA where there is one, else the CPU. threads is torch's own
    setting, which is global to the process; None leaves it. offline: never download a backbone's weights.
    """

    def __init__(
        self, path: Path, *, threads: int | None = None, device: str | None = None, offline: bool = False
    ) -> None:
        try:
            import torch

            from declip.nn import backbones, checkpoint
        except ModuleNotFoundError as error:
            if missing := MissingExtraError.behind(error):
                raise missing from error
            raise
        if threads is not None:
            torch.set_num_threads(threads)
        self._torch = torch
        self._exact = backbones.exact
        net, self.spec = checkpoint.load(path, offline=offline)
        try:
            self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            self._net = net.to(self._device).eval()
        except (RuntimeError, AssertionError) as error:  # an unknown word, or a device this machine or torch lacks
            raise SpecError(f"torch cannot use device {device!r}: {error}") from error
        self.model = path.stem
        self.sha256 = sha256_of(path)

    def logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """{"image": (N, 3, S, S) float32} → (N, T, T) float32; CAT-Net: "coefficients" and "table", too."""
        with self._torch.inference_mode(), self._exact():
            tensors = {k: self._torch.from_numpy(np.ascontiguousarray(v)).to(self._device) for k, v in inputs.items()}
            logits: NDArray[np.float32] = self._net(**tensors).float().cpu().numpy()
        return logits


def open_engine(
    path: str | Path, *, threads: int | None = None, device: str | None = None, offline: bool = False
) -> Engine:
    """Open a weight file: .onnx with ONNX Runtime, .safetensors with torch.

    Raises WeightsError for another suffix or a bad file, MissingExtraError if torch is needed and absent, SpecError
    for a device that cannot be had.
    """
    path = Path(path)
    match path.suffix.lower():
        case ".onnx":
            return OnnxEngine(path, threads=threads, device=device)
        case ".safetensors":
            return TorchEngine(path, threads=threads, device=device, offline=offline)
        case ".pth" | ".pt":
            raise WeightsError(f"{path} is a pickle; turn it into .safetensors with `declip convert {path} --out …`")
    raise WeightsError(f"{path}: expected a .onnx or .safetensors file")


def with_spec(path: str | Path, spec: ModelSpec, out: str | Path, *, force: bool = False) -> Path:
    """Write a weight file anew with another ModelSpec; every tensor stays as it is, and no network is built.

    path: a .onnx or .safetensors. out: of the same suffix, not there yet unless force; it appears whole or not at all.
    Returns out. Raises as `check_target`, WeightsError for a bad file, MissingExtraError where .safetensors needs
    torch and it is absent.
    """
    path, out = Path(path), Path(out)
    check_target(path, out, force=force)
    if path.suffix.lower() == ".onnx":
        return _onnx_with_spec(path, spec, out)
    try:
        from declip.nn import checkpoint
    except ModuleNotFoundError as error:
        if missing := MissingExtraError.behind(error):
            raise missing from error
        raise
    return checkpoint.with_spec(path, spec, out)


def check_target(path: str | Path, out: str | Path, *, force: bool = False) -> None:
    """Whether `with_spec` can write out from path: to be asked before hours of computing.

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
    import onnx

    if not path.is_file():
        raise WeightsError(f"no ONNX file at {path}")
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except Exception as error:  # protobuf's own, of a package that declip does not name
        raise WeightsError(f"{path} cannot be read as ONNX: {error}") from error
    entry = next((entry for entry in model.metadata_props if entry.key == SPEC_KEY), None)
    if entry is None:
        raise WeightsError(f"{path} has no declip model description; make it with `declip export`")
    entry.value = spec.to_json()
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".part")
    try:
        partial.write_bytes(model.SerializeToString())
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return out
