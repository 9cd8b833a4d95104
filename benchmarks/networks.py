"""Networks of the ImageNet age as their papers describe them, for what pruning reaches of each.

Random weights; the numbers of parameters are those of the published models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.zoo import architectures


@dataclass(frozen=True)
class Known:
    """``parameters`` of the published model; ``left``: share after pruning at 0.5 elsewhere.

    ``left`` is that of chapter 40 section 9.2, None where only the hidden layers of its MLPs count.
    """

    make: Callable[[], nn.Module]
    parameters: int
    left: float | None


def conv_bn(
    cin: int, cout: int, kernel: int = 1, *, stride: int = 1, groups: int = 1, act: str = "ReLU"
) -> nn.Sequential:
    layers = [
        nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(cout),
    ]
    return nn.Sequential(*layers, *([getattr(nn, act)()] if act else []))


class DenseLayer(nn.Module):
    """Normalise all that came before, narrow it, make 32 more channels."""

    def __init__(self, cin: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(cin), nn.Conv2d(cin, 128, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(128), nn.Conv2d(128, 32, 3, padding=1, bias=False)

    def forward(self, parts: list[Tensor]) -> Tensor:
        x = self.conv1(F.relu(self.norm1(torch.cat(parts, 1))))
        made: Tensor = self.conv2(F.relu(self.norm2(x)))
        return made


class DenseBlock(nn.Module):
    def __init__(self, count: int, cin: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DenseLayer(cin + 32 * i) for i in range(count))

    def forward(self, x: Tensor) -> Tensor:
        parts = [x]
        for layer in self.layers:
            parts.append(layer(parts))
        return torch.cat(parts, 1)


def densenet121() -> nn.Module:
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]  # fmt: skip
    width = 64
    for count in (6, 12, 24, 16):
        layers.append(DenseBlock(count, width))
        width += 32 * count
        if count != 16:
            layers += [
                nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1, bias=False),
                nn.AvgPool2d(2),
            ]  # fmt: skip
            width //= 2
    layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(width, 1000))


class SqueezeExcite(nn.Module):
    def __init__(self, width: int, narrow: int, act: str = "ReLU") -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, narrow, 1), nn.Conv2d(narrow, width, 1)
        self.act = getattr(nn, act)()

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class Residual(nn.Module):
    """``body(x)``, added to x where the shapes are the same, or to ``skip(x)``."""

    def __init__(self, body: nn.Module, *, add: bool, skip: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.skip, self.add = body, skip, add

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.body(x)
        if not self.add:
            return made
        return made + (x if self.skip is None else self.skip(x))


def inverted(
    cin: int, cout: int, kernel: int, stride: int, grow: int, act: str, narrow: int = 0
) -> nn.Module:
    """An inverted residual block, with squeeze-and-excite where ``narrow`` is not 0."""
    hidden = cin * grow
    body = [] if grow == 1 else [conv_bn(cin, hidden, act=act)]
    body.append(conv_bn(hidden, hidden, kernel, stride=stride, groups=hidden, act=act))
    if narrow:
        body.append(SqueezeExcite(hidden, narrow, "SiLU"))
    body.append(conv_bn(hidden, cout, act=""))
    return Residual(nn.Sequential(*body), add=stride == 1 and cin == cout)


class MeanHead(nn.Module):
    """The mean over all places as a call in the code, then a classifier."""

    def __init__(self, features: nn.Module, width: int) -> None:
        super().__init__()
        self.features, self.classifier = features, nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean([2, 3]))


def mnasnet1_0() -> nn.Module:
    layers: list[nn.Module] = [
        conv_bn(3, 32, 3, stride=2), conv_bn(32, 32, 3, groups=32), conv_bn(32, 16, act=""),
    ]  # fmt: skip
    width = 16
    for cout, kernel, stride, grow, count in (
        (24, 3, 2, 3, 3), (40, 5, 2, 3, 3), (80, 5, 2, 6, 3), (96, 3, 1, 6, 2), (192, 5, 2, 6, 4),
        (320, 3, 1, 6, 1),
    ):  # fmt: skip
        for i in range(count):
            layers.append(inverted(width, cout, kernel, stride if i == 0 else 1, grow, "ReLU"))
            width = cout
    return MeanHead(nn.Sequential(*layers, conv_bn(320, 1280)), 1280)


def efficientnet_b0() -> nn.Module:
    layers: list[nn.Module] = [conv_bn(3, 32, 3, stride=2, act="SiLU")]
    width = 32
    for cout, kernel, stride, grow, count in (
        (16, 3, 1, 1, 1), (24, 3, 2, 6, 2), (40, 5, 2, 6, 2), (80, 3, 2, 6, 3), (112, 5, 1, 6, 3),
        (192, 5, 2, 6, 4), (320, 3, 1, 6, 1),
    ):  # fmt: skip
        for i in range(count):
            step = stride if i == 0 else 1
            layers.append(inverted(width, cout, kernel, step, grow, "SiLU", max(1, width // 4)))
            width = cout
    layers += [conv_bn(320, 1280, act="SiLU"), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(1280, 1000))


class Shuffle(nn.Module):
    """A unit of ShuffleNet V2: half of the channels pass, both halves are shuffled."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        half, self.stride = cout // 2, stride
        first = cin if stride > 1 else half
        self.right = nn.Sequential(
            conv_bn(first, half), conv_bn(half, half, 3, stride=stride, groups=half, act=""),
            conv_bn(half, half),
        )  # fmt: skip
        self.left = nn.Sequential(
            conv_bn(cin, cin, 3, stride=stride, groups=cin, act=""), conv_bn(cin, half)
        ) if stride > 1 else None  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        if self.left is None:
            kept, rest = x.chunk(2, dim=1)
            x = torch.cat((kept, self.right(rest)), 1)
        else:
            x = torch.cat((self.left(x), self.right(x)), 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def shufflenet_v2_x1_0() -> nn.Module:
    layers: list[nn.Module] = [conv_bn(3, 24, 3, stride=2), nn.MaxPool2d(3, 2, 1)]
    width = 24
    for cout, count in ((116, 4), (232, 8), (464, 4)):
        for i in range(count):
            layers.append(Shuffle(width, cout, 2 if i == 0 else 1))
            width = cout
    return MeanHead(nn.Sequential(*layers, conv_bn(464, 1024)), 1024)


def regnet_y_400mf() -> nn.Module:
    layers: list[nn.Module] = [conv_bn(3, 32, 3, stride=2)]
    width = 32
    for cout, count in ((48, 1), (104, 3), (208, 6), (440, 6)):
        for i in range(count):
            stride = 2 if i == 0 else 1
            body = nn.Sequential(
                conv_bn(width, cout), conv_bn(cout, cout, 3, stride=stride, groups=cout // 8),
                SqueezeExcite(cout, max(1, round(0.25 * width))), conv_bn(cout, cout, act=""),
            )  # fmt: skip
            skip = None if i else conv_bn(width, cout, stride=stride, act="")
            layers += [Residual(body, add=True, skip=skip), nn.ReLU()]
            width = cout
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(440, 1000)]
    return nn.Sequential(*layers)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a picture."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, 1e-6)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width, 1, 1), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.scale * self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)


def convnext_tiny() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 96, 4, 4), ChannelNorm(96, 1e-6)]
    for width, count in ((96, 3), (192, 3), (384, 9), (768, 3)):
        layers += [ConvNeXtBlock(width) for _ in range(count)]
        if width < 768:
            layers += [ChannelNorm(width, 1e-6), nn.Conv2d(width, 2 * width, 2, 2)]
    layers += [nn.AdaptiveAvgPool2d(1), ChannelNorm(768, 1e-6), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(768, 1000))


class EncoderBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    def __init__(self, width: int = 768, depth: int = 12, heads: int = 12) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, 197, width) * 0.02)
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width, 1e-6), nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])


NETWORKS: Mapping[str, Known] = {
    "resnet18": Known(architectures.resnet18, 11_689_512, 0.261),
    "densenet121": Known(densenet121, 7_978_856, 0.285),
    "mobilenet_v2": Known(architectures.mobilenet_v2, 3_504_872, 0.349),
    "mnasnet1_0": Known(mnasnet1_0, 4_383_312, 0.335),
    "shufflenet_v2_x1_0": Known(shufflenet_v2_x1_0, 2_278_604, 0.846),
    "efficientnet_b0": Known(efficientnet_b0, 5_288_548, 0.322),
    "regnet_y_400mf": Known(regnet_y_400mf, 4_344_144, 0.277),
    "convnext_tiny": Known(convnext_tiny, 28_589_128, None),
    "vit_b_16": Known(ViT, 86_567_656, None),
}
