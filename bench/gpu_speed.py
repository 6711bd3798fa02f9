"""Pictures per second on a GPU: frozen features, training steps of the decoder, localizing; and the memory it takes.

    python bench/gpu_speed.py --batch-size 64

The networks are the paper's, of random weights (the time is the same), fed with noise that lies on the GPU already.
fp32 is as torch computes it by default: convolutions in TF32, matrix products in full. Prints a line of JSON per row.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from declip.nn.model import DeclipNet, build
from declip.spec import BackboneSpec, DecoderKind, DecoderSpec, ModelSpec

VIT = BackboneSpec(name="vit_large_patch14_clip_quickgelu_224", layer=20)
RN50 = BackboneSpec(name="resnet50_clip_gap", layer=3)
MODELS = {f"ViT-L/14, {kind}": ((VIT,), kind) for kind in get_args(DecoderKind) if kind != "dilated"} | {
    "ViT-L/14 + RN50, conv-20": ((VIT, RN50), "conv-20")
}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    for name, (backbones, kind) in MODELS.items():
        net = build(ModelSpec(backbones=backbones, decoder=DecoderSpec(kind=kind)))
        net = net.to(arguments.device, memory_format=torch.channels_last)
        for precision in ("fp32", "bf16"):
            row = measure(net, arguments.batch_size, arguments.device, precision == "bf16")
            print(json.dumps({"model": name, "precision": precision} | row), flush=True)


def measure(net: DeclipNet, count: int, device: str, reduced: bool) -> dict[str, float]:
    """Pictures per second of each part, and the peak of GPU memory."""
    torch.cuda.reset_peak_memory_stats()
    images = torch.randn(count, 3, 224, 224, device=device).contiguous(memory_format=torch.channels_last)
    masks = torch.rand(count, 256, 256, device=device).round()
    optimizer = torch.optim.AdamW(net.decoder.parameters(), lr=1e-4)

    @torch.no_grad()
    def features() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=reduced):
            net.features(images)

    @torch.no_grad()
    def localize() -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=reduced):
            return net(images)

    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=reduced):
        kept = net.features(images)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=reduced):
            logits = net.decode(kept).float()
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(logits, masks).backward()
        optimizer.step()

    net.train()
    found = {"features": rate(features, count), "decoder steps": rate(step, count)}
    net.eval()
    found["localize"] = rate(localize, count)
    return found | {"GB": round(torch.cuda.max_memory_allocated() / 1e9, 1)}


def rate(work: Callable[[], object], count: int, repeats: int = 10) -> float:
    """Pictures per second over some repeats, after three that are not counted."""
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    torch.cuda.synchronize()
    return round(count * repeats / (time.perf_counter() - start), 1)


if __name__ == "__main__":
    main()
