"""Turn the official checkpoints of DeCLIP and the rivals (.pth) into .safetensors files.

Their tensors are renamed by rules and loaded strictly. The names tell which model a file belongs to.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from declip.errors import SpecError, WeightsError
from declip.models import checkpoint
from declip.nn.backbones import Backbone, load_tensors
from declip.nn.model import Network, build
from declip.nn.rivals.cat_net import CatNet
from declip.nn.rivals.net import RivalNet
from declip.nn.rivals.pscc_net import PsccNet
from declip.nn.rivals.xception import XCEPTION, PatchForensics
from declip.spec import BackboneSpec, DecoderKind, DecoderSpec, ModelSpec, check_choice

__all__ = ["FakeClass", "Tower", "convert", "load_renamed"]

# What the decoder of an official DeCLIP checkpoint stands on.
Tower = Literal["vit", "rn50", "fusion"]
# Which of the two classes of a Patch Forensics file is the manipulated one: the authors' --fake_class_id, 0 by default.
FakeClass = Literal[0, 1]

VIT = "vit_large_patch14_clip_quickgelu_224.openai"
RN50 = "resnet50_clip_gap.openai"
HALF = (0.5, 0.5, 0.5)
PATCHES = {1: 74, 2: 37, 3: 19, 4: 19, 5: 19}  # sides of the map behind each block, of 299 px

# Regular expressions of the beginning of an official name → what takes its place; the first that fits counts.
Rules = Mapping[str, str]
PATCH_FORENSICS: Rules = {r"convout\.": "head.", r"(?=conv\d\.|bn\d\.|block\d\.)": ""}
CAT_NET: Rules = {
    r"(?=conv\d\.|bn\d\.|layer1\.|transition[123]\.|stage[234]\.)": "rgb.",
    r"dc_layer0_dil\.": "dct.dilated.",
    r"dc_layer1_tail\.": "dct.narrow.",
    r"dc_layer2\.": "dct.blocks.",
    r"dc_transition2\.": "dct.transition3.",
    r"dc_stage3\.": "dct.stage3.",
    r"dc_transition3\.": "dct.transition4.",
    r"dc_stage4\.": "dct.stage4.",
    r"transition4\.": "transition.",
    r"stage5\.": "fusion.",
    r"last_layer\.": "head.",
}
_CORRELATION: Rules = {
    "gamma_s$": "spatial_gain",
    "gamma_c$": "channel_gain",
    r"g\.": "value.",
    r"theta\.": "query.",
    r"phi\.": "key.",
    r"W_s\.": "spatial.",
    r"W_c\.": "channel.",
    r"getmask\.": "mask.",
}
# PSCC-Net's three files: a name that only this one has, and its rules.
PSCC_NET: Mapping[str, tuple[str, Rules]] = {
    "FENet": ("stage4.", {r"(?=conv\d\.|bn\d\.|layer1\.|transition\d\.|stage\d\.)": ""}),
    "SegNet": (
        "getmask1.",
        {rf"getmask{i + 1}\.{theirs}": f"{i}.{ours}" for i in range(4) for theirs, ours in _CORRELATION.items()},
    ),
    "ClsNet": (
        "incre_modules.",
        {
            r"incre_modules\.": "widen.",
            r"downsamp_modules\.": "down.",
            r"final_layer\.": "final.",
            r"classifier\.": "classifier.",
        },
    ),
}
_BLOCK: Rules = {
    r"attn\.in_proj_": "qkv.",
    r"attn\.out_proj\.": "proj.",
    r"ln_1\.": "norm1.",
    r"ln_2\.": "norm2.",
    r"mlp\.c_fc\.": "fc1.",
    r"mlp\.c_proj\.": "fc2.",
}
_ATTENTION: Rules = {
    **{rf"att{i + 1}\.{theirs}": f"blocks.{i}.{ours}" for i in range(2) for theirs, ours in _BLOCK.items()},
    r"fc\.0\.": "head.",
}


def convert(official: Path, out: Path, *, tower: Tower | None = None, fake_class: FakeClass | None = None) -> ModelSpec:
    """Read an official checkpoint (.pth) of DeCLIP or a rival, write it as .safetensors, and return its spec.

    official: a file. PSCC-Net has three: a folder that holds them, at any depth.
    tower: the backbone of a DeCLIP file that leaves it open, as a decoder alone for RN50's layer4 does. The file itself
    names layer and decoder. The result holds the tensors of a backbone that the file has (`model.*`); otherwise it
    refers to OpenAI's published weights.
    fake_class: the class of a Patch Forensics file that is the manipulated one; nothing in the tensors says which it
    is. None = 0, its authors' default.
    Raises WeightsError for a file that does not fit, SpecError for an option that the file's model does not have.
    """
    if tower is not None:
        check_choice(tower, Tower, "tower")
    if fake_class is not None:
        check_choice(fake_class, FakeClass, "fake_class")
    content = None if official.is_dir() else _open(official)
    state = _state_dict(content)
    model = "PSCC-Net" if content is None else _model_of(state, official)
    if tower is not None and model != "DeCLIP":
        raise SpecError(f"{official} is of {model}, which has no tower: leave it out")
    if fake_class is not None and model != "Patch Forensics":
        raise SpecError(
            f"{official} is of {model}, whose classes are known; fake_class is for Patch Forensics: leave it out"
        )
    net: Network
    match model:
        case "PSCC-Net":
            net, spec = _read_pscc_net(official)
        case "Patch Forensics":
            net, spec = _read_patch_forensics(state, official, fake_class or 0)
        case "CAT-Net":
            net, spec = _read_cat_net(state, official)
        case _:
            net, spec = _read_declip(content, official, tower)
    checkpoint.save(net, spec, out)
    return spec


def _model_of(state: Mapping[str, Tensor], official: Path) -> str:
    """Return whose network the tensors of a file belong to."""
    if any(key.startswith("convout.") for key in state):
        return "Patch Forensics"
    if any(key.startswith("dc_layer0_dil.") for key in state):
        return "CAT-Net"
    if part := next((part for part in PSCC_NET if _is_part(state, part)), None):
        names = ", ".join(PSCC_NET)
        raise WeightsError(f"{official} is {part}, one of PSCC-Net's three files; give the folder that holds {names}")
    return "DeCLIP"


def load_renamed(net: nn.Module, state: Mapping[str, Tensor], rules: Rules, source: str) -> None:
    """Rename each tensor by the first rule that fits its name, and load all of them strictly.

    Raises WeightsError where no rule fits, two tensors get the same name, or they are not exactly the network's.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        rule = next((pattern for pattern in rules if re.match(pattern, key)), None)
        if rule is None:
            raise WeightsError(f"unexpected tensor {key!r}; expected names that begin like {', '.join(rules)}")
        name = re.sub(f"^(?:{rule})", rules[rule], key)
        if name in renamed:
            raise WeightsError(f"{key!r} and another tensor would both be {name!r}: this is not one network's state")
        renamed[name] = value
    checkpoint.fill(net, renamed, source)


def _open(path: Path) -> Any:
    """Return what a .pth file holds; nothing in it is run."""
    if not path.is_file():
        raise WeightsError(f"no file at {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of damaged files torch's unpickler raises whatever it stumbles over, IndexError say
        cause = str(error).rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0]
        raise WeightsError(f"{path} cannot be opened as a checkpoint of plain tensors: {cause}") from error


def _state_dict(content: Any) -> dict[str, Tensor]:
    """Return the tensors by name, without the prefix of torch's DataParallel; empty where there is no state dict."""
    inner = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(inner, dict) or not all(isinstance(value, Tensor) for value in inner.values()):
        return {}
    prefix = "module." if all(key.startswith("module.") for key in inner) else ""
    return {key.removeprefix(prefix): value for key, value in inner.items()}


# --- rivals ---------------------------------------------------------------------------------------------------------


def _read_patch_forensics(state: Mapping[str, Tensor], source: Path, fake_class: int) -> tuple[RivalNet, ModelSpec]:
    """Return the network of a Patch Forensics file, in which the manipulated class is the second one."""
    block = max((int(found[1]) for key in state if (found := re.match(r"block(\d+)\.", key))), default=0)
    if block not in PATCHES:
        raise WeightsError(f"{source} looks like Patch Forensics, cut behind block {block}; expected 1, 2, 3, 4 or 5")
    net = PatchForensics(block)
    if fake_class == 0:
        state = {k: v.flip(0) if k.startswith("convout.") else v for k, v in state.items()}
    load_renamed(net, state, PATCH_FORENSICS, str(source))
    spec = ModelSpec(
        architecture="patch-forensics",
        backbones=(BackboneSpec(name=XCEPTION, layer=block),),
        input_size=299,
        output_size=PATCHES[block],
        mean=HALF,
        std=HALF,
    )
    return RivalNet(net).eval(), spec


def _read_cat_net(state: Mapping[str, Tensor], source: Path) -> tuple[RivalNet, ModelSpec]:
    """Return the network of a CAT-Net file."""
    net = CatNet()
    load_renamed(net, state, CAT_NET, str(source))
    spec = ModelSpec(
        architecture="cat-net", mode="tiled", input_size=512, output_size=128, overlap=64, mean=HALF, std=HALF
    )
    return RivalNet(net).eval(), spec


def _read_pscc_net(folder: Path) -> tuple[RivalNet, ModelSpec]:
    """Join PSCC-Net's three files, among those of a folder. Raises WeightsError where one is missing or there twice."""
    states = {path: _state_dict(_open(path)) for path in sorted(folder.rglob("*.pth"))}
    found = {part: [path for path, state in states.items() if _is_part(state, part)] for part in PSCC_NET}
    if any(len(paths) != 1 for paths in found.values()):
        counts = ", ".join(f"{len(paths)} of {part}" for part, paths in found.items())
        raise WeightsError(f"{folder} holds {counts}; expected one .pth file of each of PSCC-Net's three parts")
    net = PsccNet()
    modules = (net.encoder, net.localization, net.detection)
    for module, (path,), (_, rules) in zip(modules, found.values(), PSCC_NET.values(), strict=True):
        load_renamed(module, states[path], rules, str(path))
    spec = ModelSpec(
        architecture="pscc-net", input_size=256, output_size=256, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )
    return RivalNet(net).eval(), spec


def _is_part(state: Mapping[str, Tensor], part: str) -> bool:
    """Return whether a state dict is this part of PSCC-Net."""
    return any(key.startswith(PSCC_NET[part][0]) for key in state)


# --- DeCLIP ---------------------------------------------------------------------------------------------------------


def _read_declip(content: Any, source: Path, tower: Tower | None) -> tuple[Network, ModelSpec]:
    """Return the network of a DeCLIP file."""
    tensors = content.get("model") if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise WeightsError(f"{source} is no official DeCLIP checkpoint: expected a dict with tensors under 'model'")
    odd = [key for key in tensors if not re.match(r"model\.|att[12]\.|fc\.\d+\.", key)]
    if odd:
        raise WeightsError(
            f"{source}: unexpected tensors {odd[:4]}; expected those of model.*, att1.*, att2.* and fc.*"
        )
    kind, layer = content.get("decoder_type"), content.get("feature_layer")
    if kind not in get_args(DecoderKind) or kind == "dilated":
        raise WeightsError(f"{source} says decoder_type={kind!r}; expected linear, attention, conv-4, -12 or -20")
    number = re.fullmatch(r"layer(\d+)", str(layer))
    if number is None:
        raise WeightsError(f"{source} says feature_layer={layer!r}; expected 'layerK'")
    learnt = {k: v for k, v in tensors.items() if not k.startswith("model.")}
    frozen = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.visual.")}
    tower = tower or _guess_tower(source, learnt, frozen, int(number[1]))
    if frozen and tower == "fusion":
        raise WeightsError(f"{source} holds one backbone's tensors; a fusion file was expected to hold none")
    spec = _declip_spec(tower, int(number[1]), kind)
    if frozen:
        (backbone,) = spec.backbones
        spec = dataclasses.replace(spec, backbones=(dataclasses.replace(backbone, weights=None),))
    net = build(spec, load_weights=False)
    if frozen:
        whole = Backbone(backbone.name, [backbone.layer], spec.input_size)
        load_tensors(whole, frozen, str(source))
        whole.prune()
        net.backbones[0] = whole
    load_renamed(net.decoder, learnt, _decoder_rules(learnt, net.decoder, source), str(source))
    return net, spec


def _guess_tower(source: Path, learnt: dict[str, Tensor], frozen: dict[str, Tensor], layer: int) -> Tower:
    """Return the backbone that a decoder was made for.

    The backbone's own tensors tell where there are any, otherwise the decoder's channels and the number of its last
    convolution, which is one larger with a resize layer in front (RN50, fusion).
    """
    if frozen:
        return "vit" if "visual.class_embedding" in frozen else "rn50"
    first = learnt.get("fc.0.weight")
    if first is None:
        raise WeightsError(f"{source} has no decoder: expected tensors named fc.*")
    if first.ndim == 2:
        return "vit"
    channels = first.shape[1]
    last = max(int(key.split(".")[1]) for key in learnt if key.startswith("fc."))
    match channels:
        case 256 | 512:
            return "rn50"
        case 1024:
            return "rn50" if last % 4 == 1 else "vit"
        case 2048 if layer != 4:
            return "fusion"
    raise WeightsError(
        f"{source}: a decoder of {channels} channels at layer{layer} leaves the backbone open; "
        "say which (--tower): vit, rn50 or fusion"
    )


def _declip_spec(tower: Tower, layer: int, kind: str) -> ModelSpec:
    """Return the description of an official model. A fusion takes layer 3 of RN50, whatever the layer of the ViT."""
    vit, rn50 = BackboneSpec(name=VIT, layer=layer), BackboneSpec(name=RN50, layer=layer)
    backbones = {"vit": (vit,), "rn50": (rn50,), "fusion": (vit, dataclasses.replace(rn50, layer=3))}[tower]
    decoder = DecoderSpec(kind=cast("DecoderKind", kind), causal=kind == "attention")
    return ModelSpec(backbones=backbones, decoder=decoder)


def _decoder_rules(learnt: dict[str, Tensor], decoder: nn.Module, source: Path) -> Rules:
    """Return how the tensors of a decoder are renamed: those of attention by a table, the others by their order."""
    if any(key.startswith("att1.") for key in learnt):
        return _ATTENTION
    theirs = sorted({int(key.split(".")[1]) for key in learnt if key.startswith("fc.")})
    ours = [name for name, module in decoder.named_modules() if next(module.parameters(False), None) is not None]
    if len(theirs) != len(ours):
        raise WeightsError(f"{source}: the decoder has {len(theirs)} layers with weights; expected {len(ours)}")
    return {rf"fc\.{index}\.": f"{name}." for index, name in zip(theirs, ours, strict=True)}
