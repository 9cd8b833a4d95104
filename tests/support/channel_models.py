"""Small definitions of the architectures that channel groups must understand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Reference(nn.Module):
    """Network N of specification chapter 40 section 10; input [N, 3, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.c0 = nn.Conv2d(3, 8, 3, padding=1)
        self.b0 = nn.BatchNorm2d(8)
        self.c1 = nn.Conv2d(8, 8, 3, padding=1)
        self.b1 = nn.BatchNorm2d(8)
        self.c2 = nn.Conv2d(8, 10, 3, padding=1)
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b0(self.c0(x)))
        x = F.relu(x + self.b1(self.c1(x)))
        x = F.adaptive_avg_pool2d(F.relu(self.c2(x)), 1)
        return self.fc(torch.flatten(x, 1))


class DenseNet(nn.Module):
    """Two dense blocks with a transition between them."""

    def __init__(self, growth: int = 4) -> None:
        super().__init__()
        width = 6
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList()
        self.transitions = nn.ModuleList()
        for _ in range(2):
            layers = nn.ModuleList()
            for _ in range(3):
                layers.append(
                    nn.Sequential(
                        nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, growth, 3, padding=1)
                    )
                )
                width += growth
            self.blocks.append(layers)
            self.transitions.append(nn.Conv2d(width, width // 2, 1))
            width //= 2
        self.fc = nn.Linear(width * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layers, transition in zip(self.blocks, self.transitions, strict=True):
            for layer in layers:
                x = torch.cat([x, layer(x)], 1)
            x = F.avg_pool2d(transition(x), 2)
        return self.fc(x.flatten(1))


class SqueezeExcite(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(width, 4, 1)
        self.up = nn.Conv2d(4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.silu(self.down(x.mean((2, 3), keepdim=True)))))


class MobileNet(nn.Module):
    """Inverted residual with squeeze-and-excitation, depth multiplier 2, and a mean head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Hardswish())
        self.expand = nn.Sequential(nn.Conv2d(8, 24, 1), nn.BatchNorm2d(24), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.BatchNorm2d(24), nn.SiLU()
        )
        self.excite = SqueezeExcite(24)
        self.project = nn.Sequential(nn.Conv2d(24, 8, 1), nn.BatchNorm2d(8))
        self.multiplied = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.slope = nn.PReLU(16)
        self.head = nn.Conv2d(16, 12, 1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(self.excite(self.depthwise(self.expand(x))))
        x = self.head(self.slope(self.multiplied(x)))
        return self.fc(x.mean((2, 3)))


class ResNeXt(nn.Module):
    """Grouped convolutions in a residual block, two and three groups meeting in an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.two = nn.Conv2d(12, 12, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(12)
        self.three = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.grouped = nn.Conv2d(12, 16, 3, padding=1, groups=4)
        self.fc = nn.Linear(16 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.norm(self.two(x)) + self.three(x))
        return self.fc(F.max_pool2d(self.grouped(x), 4).flatten(1))


class ShuffleUnit(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            nn.Conv2d(half, half, 1), nn.BatchNorm2d(half), nn.ReLU(),
            nn.Conv2d(half, half, 3, padding=1, groups=half), nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 1), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        x = torch.cat([left, self.branch(right)], dim=1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return x.view(batch, channels, height, width)


class ShuffleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.units = nn.Sequential(ShuffleUnit(16), ShuffleUnit(16))
        self.head = nn.Conv2d(16, 12, 1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.head(self.units(self.stem(x))).mean((2, 3)))


class UNet(nn.Module):
    """Skip connections by concatenation, transposed convolutions, pixel shuffle at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 6, 3, padding=1)
        self.down = nn.Sequential(nn.Conv2d(6, 10, 3, 2, padding=1), nn.BatchNorm2d(10), nn.ReLU())
        self.deep = nn.Conv2d(10, 14, 3, 2, padding=1)
        self.up = nn.ConvTranspose2d(14, 8, 2, 2)
        self.join = nn.Conv2d(18, 9, 3, padding=1)
        self.last = nn.ConvTranspose2d(9, 6, 4, 2, padding=1, groups=3)
        self.shuffle = nn.Conv2d(12, 16, 3, padding=1)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.enter(x))
        second = self.down(first)
        x = F.elu(self.up(F.relu(self.deep(second))))
        x = F.relu(self.join(torch.cat([x, second], 1)))
        x = torch.cat([self.last(x), first], 1)
        return self.out(F.pixel_shuffle(torch.tanh(self.shuffle(x)), 2))


class ConvNeXt(nn.Module):
    """Depthwise kernel, LayerNorm over channels last, MLP, layer scale."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.project = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.randn(width))
        self.position = nn.Parameter(torch.randn(1, width, 2, 2))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) + self.position
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.project(F.gelu(self.expand(y)))
        x = x + y.permute(0, 3, 1, 2)
        return self.head(x.mean((-2, -1)))


class FusedAttention(nn.Module):
    """Queries, keys and values from one layer, relative positions, fused attention."""

    def __init__(self, width: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.bias = nn.Parameter(torch.randn(2 * tokens - 1, heads))
        steps = torch.arange(tokens)
        self.register_buffer("steps", steps[:, None] - steps[None] + tokens - 1)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mask = self.bias[self.steps].permute(2, 0, 1).unsqueeze(0)
        x = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], attn_mask=mask)
        return self.proj(x.transpose(1, 2).flatten(2))


class ViT(nn.Module):
    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 5, width))
        self.norm1 = nn.LayerNorm(width)
        self.attention = FusedAttention(width, heads, 5)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 24), nn.GELU(), nn.Linear(24, width))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.head(self.norm(x)[:, 0])


class RotaryAttention(nn.Module):
    """Eight heads of queries share four of keys and values; rotary positions."""

    def __init__(self, width: int = 32, heads: int = 8, kv_heads: int = 4, dim: int = 4) -> None:
        super().__init__()
        self.head_dim = dim
        self.repeats = heads // kv_heads
        self.q_proj = nn.Linear(width, heads * dim, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * dim, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * dim, bias=False)
        self.o_proj = nn.Linear(heads * dim, width, bias=False)

    def rotate(self, x: Tensor, angles: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
        return x * angles.cos() + turned * angles.sin()

    def repeat(self, x: Tensor) -> Tensor:
        batch, heads, tokens, dim = x.shape
        x = x[:, :, None].expand(batch, heads, self.repeats, tokens, dim)
        return x.reshape(batch, heads * self.repeats, tokens, dim)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        shape = (*x.shape[:-1], -1, self.head_dim)
        q, k, v = (
            p(x).view(shape).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = self.repeat(self.rotate(k, angles)), self.repeat(v)
        scores = self.rotate(q, angles) @ k.transpose(2, 3) * self.head_dim**-0.5
        mixed = torch.softmax(scores, -1) @ v
        return self.o_proj(mixed.transpose(1, 2).reshape(*x.shape[:-1], -1).contiguous())


class GQABlock(nn.Module):
    """A decoder block on token ids: grouped-query attention, RMSNorm, gated MLP."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.norm1 = nn.RMSNorm(width)
        self.attention = RotaryAttention(width)
        self.norm2 = nn.RMSNorm(width)
        self.gate = nn.Linear(width, 20, bias=False)
        self.up = nn.Linear(width, 20, bias=False)
        self.down = nn.Linear(20, width, bias=False)
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, 11, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        steps = torch.arange(ids.shape[1], device=ids.device)[:, None] * torch.tensor(
            [1.0, 0.1] * 2
        )
        x = x + self.attention(self.norm1(x), steps)
        y = self.norm2(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return self.head(self.norm(x))


class SequenceNet(nn.Module):
    """One dimension, with a circular convolution and a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8)
        self.up = nn.ConvTranspose1d(8, 6, 2, 2)
        self.b = nn.Conv1d(6, 4, 1)
        self.ring = nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular")
        self.fc = nn.Linear(4 * 6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.mish(self.norm(self.a(x.flatten(2))))
        x = self.b(F.softplus(self.up(x)))
        x = x + self.ring(x)
        return self.fc(F.adaptive_max_pool1d(x, 6).flatten(1))


class VolumeNet(nn.Module):
    """Three dimensions, a grouped transposed convolution, a gate over height."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv3d(3, 8, 1), nn.BatchNorm3d(8)
        self.up = nn.ConvTranspose3d(8, 6, (1, 2, 2), (1, 2, 2), groups=2)
        self.b, self.gate = nn.Conv3d(6, 4, 1), nn.Conv3d(4, 4, 1)
        self.out = nn.Conv3d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.up(self.norm(self.a(x.unsqueeze(2))).clamp(0, 6)))
        x = x * self.gate(x).max(3, keepdim=True).values
        return self.out(F.avg_pool3d(x, (1, 2, 2))).mean((2, 3, 4))


class GroupNormNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.GroupNorm(3, 12)
        self.b = nn.Conv2d(12, 8, 3, padding=1)
        self.instance = nn.InstanceNorm2d(8, affine=True)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.instance(self.b(F.relu(self.norm(self.a(x))))))


class FusedGate(nn.Module):
    """One layer makes gate and value; torch's glu and a split do the rest; tied weights after."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(6, 16)
        self.mix = nn.Linear(8, 12)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.both(x), dim=-1)
        gate, value = self.mix(x).split(6, dim=-1)
        return self.out(torch.sigmoid(gate) * value)


IMAGES = {
    "reference": Reference, "densenet": DenseNet, "mobilenet": MobileNet, "resnext": ResNeXt,
    "shufflenet": ShuffleNet, "unet": UNet, "convnext": ConvNeXt, "vit": ViT,
    "sequence": SequenceNet, "volume": VolumeNet,
}  # fmt: skip


def unsettle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give norms values that hide no error, and put the model into eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name in ("weight", "running_var"):
            value = getattr(module, name, None)
            if isinstance(module, nn.modules.batchnorm._NormBase | nn.PReLU) and value is not None:
                value.data.uniform_(0.5, 2.0, generator=generator)
        for name in ("bias", "running_mean"):
            value = getattr(module, name, None)
            if isinstance(module, nn.modules.batchnorm._NormBase) and value is not None:
                value.data.normal_(generator=generator)
    return model.eval()
