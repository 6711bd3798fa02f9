"""The official way of computing a DeCLIP, for comparison: what it runs, in the order and the layout it does.

Written for this bench from what is known of the official code, none of which is used here. In fp32 and eager mode:

- all 24 blocks of ViT-L/14 run although block 20 is read, and all four stages of RN50 although layer3 is;
- attention writes its matrix of scores out: softmax(Q Kᵀ) V as two matrix products and a softmax between them;
- QuickGELU is a product with a sigmoid, LayerNorm computes in fp32, tokens come before pictures: (L, N, C);
- tokens become a grid in a loop over the tokens;
- the decoder is convolution, BatchNorm, ReLU one after the other, on maps in the order N, C, H, W.

Matrix products and convolutions are torch's, as there. The weights are those of a declip network, so that both compute
the same logits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from declip.nn.backbones import Backbone
from declip.nn.decoders import ConvDecoder

__all__ = ["OfficialResNet", "OfficialViT", "OfficialWay"]


class OfficialBlock(nn.Module):
    """A residual block of CLIP's vision transformer; attention with its scores written out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(L, N, C) → (L, N, C)."""
        tokens = tokens + self.attention(self.norm1(tokens.float()))
        hidden = self.fc1(self.norm2(tokens.float()))
        out: Tensor = tokens + self.fc2(hidden * torch.sigmoid(1.702 * hidden))
        return out

    def attention(self, tokens: Tensor) -> Tensor:
        """(L, N, C) → (L, N, C)."""
        length, count, width = tokens.shape
        size = width // self.heads
        # each (N · heads, L, C / heads)
        q, k, v = (
            part.reshape(length, count * self.heads, size).transpose(0, 1) for part in self.qkv(tokens).chunk(3, dim=-1)
        )
        scores = torch.bmm(q * size**-0.5, k.transpose(1, 2))  # (N · heads, L, L)
        attended = torch.bmm(torch.softmax(scores, dim=-1), v)
        out: Tensor = self.proj(attended.transpose(0, 1).reshape(length, count, width))
        return out


class OfficialViT(nn.Module):
    """CLIP's vision transformer, run to its end; gives the tokens behind one block as a grid."""

    def __init__(self, backbone: Backbone) -> None:
        """backbone: a CLIP ViT of one layer, whole (not yet pruned). Its weights are copied."""
        super().__init__()
        model = backbone.model
        (self.layer,) = backbone.layers
        width, heads = model.embed_dim, model.blocks[0].attn.num_heads
        self.patches = nn.Conv2d(3, width, model.patch_embed.patch_size, model.patch_embed.patch_size, bias=False)
        self.cls_token = nn.Parameter(torch.empty_like(model.cls_token))
        self.pos_embed = nn.Parameter(torch.empty_like(model.pos_embed))
        self.norm_pre = nn.LayerNorm(width)
        self.blocks = nn.ModuleList([OfficialBlock(width, heads) for _ in model.blocks])
        names = (("patch_embed.proj.", "patches."), ("attn.", ""), ("mlp.", ""))
        state = {}
        for key, value in model.state_dict().items():
            if not key.startswith(("norm.", "head.")):
                for old, new in names:
                    key = key.replace(old, new)
                state[key] = value
        self.load_state_dict(state)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) → (N, C, h, h)."""
        grid = self.patches(images)  # (N, C, h, h)
        tokens = grid.flatten(2).permute(0, 2, 1)  # (N, h·h, C)
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), tokens], dim=1) + self.pos_embed
        tokens = self.norm_pre(tokens.float()).permute(1, 0, 2)  # (L, N, C)
        kept = tokens
        for number, block in enumerate(self.blocks):
            tokens = block(tokens)
            if number == self.layer:
                kept = tokens
        return as_grid(kept, grid.shape[-1])


def as_grid(tokens: Tensor, side: int) -> Tensor:
    """(1 + side · side, N, C), the class token first → (N, C, side, side), token by token."""
    grid = tokens.new_empty(tokens.shape[1], tokens.shape[2], side, side)
    for number, token in enumerate(tokens[1:]):
        grid[:, :, number // side, number % side] = token
    return grid


class OfficialResNet(nn.Module):
    """CLIP's ResNet, all of its stages run; gives the map behind one of them."""

    def __init__(self, backbone: Backbone) -> None:
        """backbone: a CLIP ResNet of one layer, whole (not yet pruned), which is used as it is."""
        super().__init__()
        self.model = backbone.model
        (self.layer,) = backbone.layers

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) → (N, C, h, h)."""
        maps = self.model.forward_intermediates(images, intermediates_only=True, stop_early=False)
        kept: Tensor = maps[self.layer]
        return kept


class OfficialWay(nn.Module):
    """(N, 3, S, S) → logits (N, T, T)."""

    def __init__(self, towers: list[nn.Module], decoder: ConvDecoder) -> None:
        """decoder: its layers run as they are, one after the other."""
        super().__init__()
        self.towers = nn.ModuleList(towers)
        self.decoder = decoder
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """images, float32, in the order N, C, H, W."""
        maps = [tower(images) for tower in self.towers]
        size = maps[0].shape[-2:]
        others = [F.interpolate(one, size, mode="bilinear", align_corners=False) for one in maps[1:]]
        fused = torch.cat([maps[0], *others], dim=1) if others else maps[0]
        logits: Tensor = self.decoder.layers(fused)
        return logits[:, 0]
