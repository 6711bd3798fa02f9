"""Read and write weight files: a network and its ModelSpec in one .safetensors.

A file holds every tensor except those of frozen published backbones, which are found by (weights, sha256) when it is
opened. The spec is JSON under the key "declip" of the safetensors header. Loads are strict.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from declip.errors import WeightsError
from declip.files import write_atomic
from declip.models.respec import check_calibration, spec_of
from declip.nn.backbones import neighbours
from declip.nn.model import Network, build_network
from declip.nn.rivals.net import RivalNet
from declip.spec import SPEC_KEY, ModelSpec

__all__ = ["fill", "load", "load_learnt", "save", "with_spec"]


def save(net: Network, spec: ModelSpec, path: Path) -> Path:
    """Write net and spec as .safetensors, without the tensors of published backbones. Return path."""
    published = _published(spec)
    tensors = {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items() if not k.startswith(published)}
    return _write(tensors, spec, path)


def with_spec(path: Path, spec: ModelSpec, out: Path) -> Path:
    """Write the tensors of path as they are, under another description, to out; build no network. Return out."""
    found, tensors = _read(path)
    check_calibration(found, spec)
    return _write(tensors, spec, out)


def load(path: Path, *, offline: bool = False) -> tuple[Network, ModelSpec]:
    """Open a .safetensors file: return the network, in eval mode, and its spec. offline: never download a backbone.

    Raises WeightsError for a missing or damaged file, or tensors that are not exactly those of the spec.
    """
    spec, tensors = _read(path)
    with _Undrawn():
        # A rival's file has all its weights: those that its training started from are not needed.
        net = build_network(spec, load_weights=spec.traits.has_decoder, offline=offline)
    fill(net, tensors, str(path), published=_published(spec))
    return net, spec


class _Undrawn(TorchFunctionMode):
    """Within it, no tensor is filled at random: a file gives every value, and 300 million draws take seconds."""

    DRAWING = frozenset(
        (
            *(Tensor.uniform_, Tensor.normal_, Tensor.erfinv_),
            *(nn.init.uniform_, nn.init.normal_, nn.init.trunc_normal_),
            *(nn.init.kaiming_uniform_, nn.init.kaiming_normal_, nn.init.xavier_uniform_),
        )
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.DRAWING:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def load_learnt(net: Network, spec: ModelSpec, path: Path) -> None:
    """Copy what is learnt (the decoder, or all of a rival) from a .safetensors file into a network of the same parts.

    Raises WeightsError where the file's model is another one, or as `load` does.
    """
    found, tensors = _read(path)
    parts = [(s.architecture, s.backbones, s.decoder, s.width) for s in (found, spec)]
    if parts[0] != parts[1]:
        raise WeightsError(f"{path} holds another model: its architecture, backbones or decoder are not the recipe's")
    if isinstance(net, RivalNet):
        fill(net, tensors, str(path))
        return
    learnt = {k.removeprefix("decoder."): v for k, v in tensors.items() if k.startswith("decoder.")}
    fill(net.decoder, learnt, str(path))


def fill(net: nn.Module, tensors: dict[str, Tensor], source: str, *, published: tuple[str, ...] = ()) -> None:
    """Load tensors strictly. Those whose names begin like `published`, and only those, must be absent.

    Raises WeightsError, which names the source and the first tensors that are missing, unexpected or of other shapes.
    """
    state = net.state_dict()
    wanted = {k for k in state if not k.startswith(published)}
    missing, unexpected = sorted(wanted - set(tensors)), sorted(set(tensors) - wanted)
    shapes = [
        f"{k}: {tuple(tensors[k].shape)}, expected {tuple(state[k].shape)}"
        for k in sorted(wanted & set(tensors))
        if tensors[k].shape != state[k].shape
    ]
    if missing or unexpected or shapes:
        raise WeightsError(
            f"{source} does not fit its model description: missing {missing[:4] or 'nothing'}, "
            f"unexpected {unexpected[:4] or 'nothing'}, of other shape {shapes[:4] or 'nothing'}"
        )
    net.load_state_dict(state | tensors)


def _published(spec: ModelSpec) -> tuple[str, ...]:
    """Return the prefixes of the state dict whose tensors are published elsewhere."""
    if not spec.traits.has_decoder:
        return ()
    groups = neighbours(spec.backbones)
    return tuple(f"backbones.{i}." for i, group in enumerate(groups) if group[0].weights is not None)


def _read(path: Path) -> tuple[ModelSpec, dict[str, Tensor]]:
    """Return the spec of a file and its tensors."""
    if not path.is_file():
        raise WeightsError(f"no weight file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is no readable .safetensors file: {error}") from error
    return spec_of(path, metadata), tensors


def _write(tensors: dict[str, Tensor], spec: ModelSpec, path: Path) -> Path:
    """Write a file with its spec, whole or not at all. Return path."""
    write_atomic(path, lambda partial: save_file(tensors, partial, metadata={SPEC_KEY: spec.to_json()}))
    return path
