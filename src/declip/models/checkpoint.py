"""Weight files: a DeclipNet and its ModelSpec in one .safetensors, and the reading of official .pth files.

A file holds every tensor that is not a frozen published backbone's; those are found by (weights, sha256) when it is
opened. The spec is JSON under the key "declip" of the safetensors header. Loads are strict.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from declip.errors import SpecError, WeightsError
from declip.files import write_atomic
from declip.nn.backbones import Backbone, load_tensors, neighbours
from declip.nn.model import Network, build, build_network
from declip.nn.rivals import conversion
from declip.nn.rivals.net import RivalNet
from declip.spec import SPEC_KEY, BackboneSpec, DecoderSpec, ModelSpec, check_choice

__all__ = ["convert", "load", "load_learnt", "read_spec", "save", "with_spec"]

VIT = "vit_large_patch14_clip_quickgelu_224.openai"
RN50 = "resnet50_clip_gap.openai"
Tower = Literal["vit", "rn50", "fusion"]


def save(net: Network, spec: ModelSpec, path: Path) -> Path:
    """Write net and spec as .safetensors; published backbones' tensors stay out. Returns path."""
    published = _published(spec)
    tensors = {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items() if not k.startswith(published)}
    return _write(tensors, spec, path)


def read_spec(path: Path) -> ModelSpec:
    """The ModelSpec in a .safetensors header, without reading the tensors."""
    return _read(path, tensors=False)[0]


def with_spec(path: Path, spec: ModelSpec, out: Path) -> Path:
    """Write the tensors of path as they are, under another description, to out; no network is built. Returns out."""
    _, tensors = _read(path, tensors=True)
    return _write(tensors, spec, out)


def load(path: Path, *, offline: bool = False) -> tuple[Network, ModelSpec]:
    """Open a .safetensors file: the network, in eval mode, and its spec. offline: never download a backbone.

    Raises WeightsError for a missing or damaged file, or tensors that are not exactly those of the spec.
    """
    spec, tensors = _read(path, tensors=True)
    # A rival's weights are all its own: what it started from is of no further use.
    with _Undrawn():
        net = build_network(spec, load_weights=spec.traits.has_decoder, offline=offline)
    _fill(net, tensors, _published(spec), str(path))
    return net, spec


class _Undrawn(TorchFunctionMode):
    """Within it, tensors are not filled at random: a file gives every value, and drawing 300 million takes seconds.

    Nor is what was drawn moved to its range: timm draws normal values from uniform ones, in steps.
    """

    DRAWING = (
        Tensor.uniform_,
        Tensor.normal_,
        Tensor.erfinv_,
        nn.init.kaiming_normal_,
        nn.init.kaiming_uniform_,
        nn.init.normal_,
        nn.init.trunc_normal_,
        nn.init.uniform_,
        nn.init.xavier_uniform_,
    )
    MOVING = (Tensor.mul_, Tensor.add_, Tensor.clamp_)
    _drawn: Tensor | None = None  # last

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.DRAWING:
            self._drawn = args[0] if args else kwargs["tensor"]
            return self._drawn
        if func in self.MOVING and args[0] is self._drawn:
            return self._drawn
        return func(*args, **(kwargs or {}))


def load_learnt(net: Network, spec: ModelSpec, path: Path) -> None:
    """Copy what is learnt (the decoder, or all of a rival) of a .safetensors file into a network of the same parts.

    Raises WeightsError where the file's model is another one, or as `load` does.
    """
    found, tensors = _read(path, tensors=True)
    parts = [(s.architecture, s.backbones, s.decoder, s.width) for s in (found, spec)]
    if parts[0] != parts[1]:
        raise WeightsError(f"{path} holds another model: its architecture, backbones or decoder are not the recipe's")
    if isinstance(net, RivalNet):
        _fill(net, tensors, (), str(path))
        return
    learnt = {k.removeprefix("decoder."): v for k, v in tensors.items() if k.startswith("decoder.")}
    _fill(net.decoder, learnt, (), str(path))


def convert(
    official: Path, out: Path, *, tower: Tower | None = None, fake_class: conversion.FakeClass | None = None
) -> ModelSpec:
    """Read an official checkpoint (.pth) of DeCLIP or a rival and write it as .safetensors; returns its spec.

    official: a file; for PSCC-Net, whose weights are three files, a folder that holds them, itself or further down.
    A rival is known by the names of its tensors. Of DeCLIP, layer and decoder are read from the file, the backbone from
    its tensors; `tower` settles what they leave open (a decoder alone, for RN50's layer4 or a fusion with ViT's).
    fake_class: of Patch Forensics, the class of the file that is the manipulated one (None = 0, its authors' default).
    Backbone tensors in the file (`model.*`) are kept inside the result (it then needs no other download);
    without them the result refers to OpenAI's published weights.
    Raises WeightsError for a file that does not fit, SpecError for an option that the file's model does not have.
    """
    if tower is not None:
        check_choice(tower, Tower, "tower")
    if fake_class is not None:
        check_choice(fake_class, conversion.FakeClass, "fake_class")
    if official.is_dir():
        files = {path: _open_official(path) for path in sorted(official.rglob("*.pth"))}
        rival = conversion.join_pscc_net(files, official)
        _refuse_options(official, rival[1], tower, fake_class)
        save(*rival, out)
        return rival[1]
    opened = _open_official(official)
    known = conversion.read_rival(opened, official, fake_class or 0)
    if known is not None:
        _refuse_options(official, known[1], tower, fake_class)
        save(*known, out)
        return known[1]
    content = _check_official(opened, official)
    if fake_class is not None:
        raise SpecError(
            f"{official} is of DeCLIP, which has one class; fake_class is for Patch Forensics: leave it out"
        )
    tensors: dict[str, Tensor] = content["model"]
    learnt = {k: v for k, v in tensors.items() if not k.startswith("model.")}
    frozen = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.visual.")}
    kind = content.get("decoder_type")
    if kind not in ("linear", "attention", "conv-4", "conv-12", "conv-20"):
        raise WeightsError(f"{official} says decoder_type={kind!r}; expected linear, attention, conv-4, -12 or -20")
    layer = re.fullmatch(r"layer(\d+)", str(content.get("feature_layer")))
    if layer is None:
        raise WeightsError(f"{official} says feature_layer={content.get('feature_layer')!r}; expected 'layerK'")
    tower = tower or _guess_tower(official, learnt, frozen, int(layer[1]))
    spec = _official_spec(tower, int(layer[1]), kind)
    if frozen:
        if tower == "fusion":
            raise WeightsError(f"{official} holds one backbone's tensors; a fusion file was expected to hold none")
        spec = dataclasses.replace(
            spec, backbones=tuple(dataclasses.replace(b, weights=None, sha256=None) for b in spec.backbones)
        )
    net = build(spec, load_weights=False)
    if frozen:
        (whole,) = _whole_backbones(spec)
        load_tensors(whole, frozen, str(official))
        whole.prune()
        net.backbones[0].load_state_dict(whole.state_dict())
    renamed = _rename_decoder(learnt, net.decoder, official)
    _fill(net, renamed, ("backbones.",), str(official))
    save(net, spec, out)
    return spec


def _refuse_options(official: Path, spec: ModelSpec, tower: Tower | None, fake_class: int | None) -> None:
    """Raises SpecError for what is said of a rival's file and means nothing there."""
    if tower is not None:
        raise SpecError(f"{official} is of {spec.architecture}, which has no tower: leave it out")
    if fake_class is not None and spec.architecture != "patch-forensics":
        raise SpecError(
            f"{official} is of {spec.architecture}, whose classes are known; fake_class is for Patch Forensics: leave "
            "it out"
        )


def _whole_backbones(spec: ModelSpec) -> list[Backbone]:
    return [Backbone(b.name, [b.layer], spec.input_size) for b in spec.backbones]


def _published(spec: ModelSpec) -> tuple[str, ...]:
    """Prefixes of the state dict whose tensors are published elsewhere."""
    if not spec.traits.has_decoder:
        return ()
    groups = neighbours(spec.backbones)
    return tuple(f"backbones.{i}." for i, group in enumerate(groups) if group[0].weights is not None)


def _fill(net: nn.Module, tensors: dict[str, Tensor], published: tuple[str, ...], source: str) -> None:
    """Load tensors strictly; exactly the published ones must be absent."""
    state = net.state_dict()
    wanted = {k for k in state if not k.startswith(published)} if published else set(state)
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


def _read(path: Path, *, tensors: bool) -> tuple[ModelSpec, dict[str, Tensor]]:
    if not path.is_file():
        raise WeightsError(f"no weight file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(SPEC_KEY)
            content = {k: file.get_tensor(k) for k in file.keys()} if tensors else {}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is no readable .safetensors file: {error}") from error
    if text is None:
        raise WeightsError(f"{path} has no declip model description; official .pth files go through `declip convert`")
    try:
        return ModelSpec.from_json(text), content
    except SpecError as error:
        raise WeightsError(f"{path}: {error}") from error


def _write(tensors: dict[str, Tensor], spec: ModelSpec, path: Path) -> Path:
    write_atomic(path, lambda partial: save_file(tensors, partial, metadata={SPEC_KEY: spec.to_json()}))
    return path


def _open_official(path: Path) -> Any:
    if not path.is_file():
        raise WeightsError(f"no file at {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of damaged files torch's unpickler raises whatever it stumbles over, IndexError say
        raise WeightsError(f"{path} cannot be opened as a checkpoint of plain tensors: {error}") from error


def _check_official(content: Any, path: Path) -> dict[str, Any]:
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not all(isinstance(value, Tensor) for value in model.values()):
        raise WeightsError(f"{path} is no official DeCLIP checkpoint: expected a dict with tensors under 'model'")
    odd = [key for key in model if not re.match(r"model\.|att[12]\.|fc\.\d+\.", key)]
    if odd:
        raise WeightsError(f"{path}: unexpected tensors {odd[:4]}; expected those of model.*, att1.*, att2.* and fc.*")
    return dict(content)


def _guess_tower(path: Path, learnt: dict[str, Tensor], frozen: dict[str, Tensor], layer: int) -> Tower:
    """Which backbone the decoder was made for: by the backbone's own tensors where there are any, else by the
    decoder's channels and the number of its last convolution, which a resize layer in front (RN50, fusion) makes one
    larger."""
    if frozen:
        return "vit" if "visual.class_embedding" in frozen else "rn50"
    first = learnt.get("fc.0.weight")
    if first is None:
        raise WeightsError(f"{path} has no decoder: expected tensors named fc.*")
    if first.ndim == 2:
        return "vit"
    channels = first.shape[1]
    last = max(int(key.split(".")[1]) for key in learnt if key.startswith("fc."))
    resized = last % 4 == 1
    match channels:
        case 256 | 512:
            return "rn50"
        case 1024:
            return "rn50" if resized else "vit"
        case 2048 if layer != 4:
            return "fusion"
    raise WeightsError(
        f"{path}: a decoder of {channels} channels at layer{layer} leaves the backbone open; "
        "say which (--tower): vit, rn50 or fusion"
    )


def _official_spec(tower: Tower, layer: int, kind: Any) -> ModelSpec:
    vit, rn50 = BackboneSpec(name=VIT, layer=layer), BackboneSpec(name=RN50, layer=layer)
    backbones = {
        "vit": (vit,),
        "rn50": (rn50,),
        "fusion": (vit, dataclasses.replace(rn50, layer=3)),
    }[tower]
    return ModelSpec(backbones=backbones, decoder=DecoderSpec(kind=kind, causal=kind == "attention"))


def _rename_decoder(learnt: dict[str, Tensor], decoder: nn.Module, path: Path) -> dict[str, Tensor]:
    """Official decoder keys → ours. conv-N and linear: by order; attention: by name."""
    renamed: dict[str, Tensor] = {}
    if any(key.startswith("att1.") for key in learnt):
        names = {
            r"att(\d)\.attn\.in_proj_": r"blocks.\1.qkv.",
            r"att(\d)\.attn\.out_proj\.": r"blocks.\1.proj.",
            r"att(\d)\.ln_(\d)\.": r"blocks.\1.norm\2.",
            r"att(\d)\.mlp\.c_fc\.": r"blocks.\1.fc1.",
            r"att(\d)\.mlp\.c_proj\.": r"blocks.\1.fc2.",
            r"fc\.0\.": "head.",
        }
        for key, value in learnt.items():
            name = key
            for pattern, replacement in names.items():
                name = re.sub(pattern, replacement, name)
            # Official blocks count from 1.
            renamed["decoder." + re.sub(r"blocks\.(\d)", lambda m: f"blocks.{int(m[1]) - 1}", name)] = value
        return renamed
    modules: dict[int, None] = dict.fromkeys(sorted(int(key.split(".")[1]) for key in learnt if key.startswith("fc.")))
    ours_in_order = [
        name for name, module in decoder.named_modules() if next(module.parameters(False), None) is not None
    ]
    if len(modules) != len(ours_in_order):
        raise WeightsError(f"{path}: the decoder has {len(modules)} layers with weights; expected {len(ours_in_order)}")
    ours = dict(zip(modules, ours_in_order, strict=True))
    for key, value in learnt.items():
        _, index, field = key.split(".", 2)
        renamed[f"decoder.{ours[int(index)]}.{field}"] = value
    return renamed
