"""The example networks of the workbench and the networks its benchmarks measure.

The ``digits_*`` networks take [N, 1, 32, 32] pictures with values in [0, 1]. `resnet18`,
`resnet50` and `mobilenet_v2` have the structure and the layer names their published
versions are known by (He et al. 2015, arXiv:1512.03385; Sandler et al. 2018,
arXiv:1801.04381), take [N, 3, 224, 224] and come with random weights only.

Every network can be exported with a dynamic batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

DIGITS_CLASSES = 10
IMAGE_SIZE = 32


class ConvBN(nn.Module):
    """Convolution without bias and batch normalisation, [N, Cin, H, W] to [N, Cout, H', W']."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.conv(x))
        return out


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        result: Tensor = self.relu2(out + self.downsample(x))
        return result


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; the stride sits on the 3x3 one."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        result: Tensor = self.relu3(out + self.downsample(x))
        return result


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def _stage(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, width: int, count: int, stride: int
) -> nn.Sequential:
    outputs = width * block.expansion
    first = block(inputs, width, stride)
    return nn.Sequential(first, *(block(outputs, width) for _ in range(count - 1)))


class DigitsResNet(nn.Module):
    """ResNet-20 (three stages of three basic blocks), narrow, its stem halving the picture."""

    def __init__(self, widths: Sequence[int] = (8, 16, 32)) -> None:
        super().__init__()
        first, second, third = widths
        self.conv1 = nn.Conv2d(1, first, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU()
        self.layer1 = _stage(BasicBlock, first, first, 3, stride=1)
        self.layer2 = _stage(BasicBlock, first, second, 3, stride=2)
        self.layer3 = _stage(BasicBlock, second, third, 3, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(third, DIGITS_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        out: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return out


class SeparableBlock(nn.Module):
    """Depthwise 3x3 and pointwise 1x1 convolution, each with batch normalisation and ReLU.

    ReLU, not ReLU6: a channel may be scaled by any positive factor in front of it, which
    is what `workbench.zoo.unbalance` needs.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = ConvBN(inputs, inputs, 3, stride, groups=inputs)
        self.relu1 = nn.ReLU()
        self.pointwise = ConvBN(inputs, outputs, 1)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.depthwise(x))
        out: Tensor = self.relu2(self.pointwise(x))
        return out


_MOBILENET_BLOCKS = (
    (24, 1), (32, 2), (32, 1), (48, 1), (64, 2), (64, 1), (64, 1), (64, 1), (64, 1), (64, 1),
    (96, 1), (96, 1), (96, 1),
)  # fmt: skip


class DigitsMobileNet(nn.Module):
    """Thirteen depthwise-separable blocks after a stem (Howard et al. 2017, arXiv:1704.04861)."""

    def __init__(self, blocks: Sequence[tuple[int, int]] = _MOBILENET_BLOCKS) -> None:
        super().__init__()
        width = 16
        self.stem = ConvBN(1, width, 3, stride=2)
        self.relu = nn.ReLU()
        self.blocks = nn.Sequential()
        for outputs, stride in blocks:
            self.blocks.append(SeparableBlock(width, outputs, stride))
            width = outputs
        self.pool = nn.AvgPool2d(4)
        self.fc = nn.Linear(width, DIGITS_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.relu(self.stem(x)))
        out: Tensor = self.fc(torch.flatten(self.pool(x), 1))
        return out


class Attention(nn.Module):
    """Multi-head self-attention over [N, T, D], written out so that every product is visible."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = dim // heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.shape[1]
        split = (-1, tokens, self.heads, self.head_dim)
        query = self.query(x).reshape(split).transpose(1, 2)
        key = self.key(x).reshape(split).permute(0, 2, 3, 1)
        value = self.value(x).reshape(split).transpose(1, 2)
        scores = torch.matmul(query, key) * self.head_dim**-0.5
        mixed = torch.matmul(torch.softmax(scores, dim=-1), value)
        out: Tensor = self.output(
            mixed.transpose(1, 2).reshape(-1, tokens, self.heads * self.head_dim)
        )
        return out


class TransformerBlock(nn.Module):
    """Pre-norm attention and a GELU multilayer perceptron, each with a residual."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.gelu = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.fc2(self.gelu(self.fc1(self.norm2(x))))
        return out


class DigitsViT(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2020, arXiv:2010.11929), tiny, mean-pooled."""

    def __init__(self, dim: int = 64, depth: int = 4, heads: int = 4, patch: int = 8) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(1, dim, patch, stride=patch)
        self.position = nn.Parameter(torch.randn(1, (IMAGE_SIZE // patch) ** 2, dim) * 0.02)
        self.blocks = nn.Sequential(*(TransformerBlock(dim, heads, 2 * dim) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, DIGITS_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2) + self.position
        x = self.norm(self.blocks(x))
        out: Tensor = self.head(x.mean(dim=1))
        return out


class DigitsAutoencoder(nn.Module):
    """Convolutional autoencoder with a [N, 8, 4, 4] code; the output has the input's shape."""

    def __init__(self, width: int = 16, code: int = 8) -> None:
        super().__init__()
        wide = 2 * width
        self.encoder = nn.Sequential(
            ConvBN(1, width, 3, stride=2), nn.ReLU(),
            ConvBN(width, wide, 3, stride=2), nn.ReLU(),
            ConvBN(wide, wide, 3, stride=2), nn.ReLU(),
            nn.Conv2d(wide, code, 1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            ConvBN(code, wide, 3), nn.ReLU(),
            UpBN(wide, wide), nn.ReLU(),
            UpBN(wide, width), nn.ReLU(),
            UpBN(width, width // 2), nn.ReLU(),
            nn.Conv2d(width // 2, 1, 3, padding=1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.encoder(x))
        return out


class UpBN(nn.Module):
    """Transposed convolution that doubles height and width, and batch normalisation."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.conv(x))
        return out


class ResNet(nn.Module):
    """ResNet for [N, 3, 224, 224] pictures; ``counts`` blocks in its four stages."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        counts: Sequence[int],
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        grow = block.expansion
        self.layer1 = _stage(block, 64, 64, counts[0], stride=1)
        self.layer2 = _stage(block, 64 * grow, 128, counts[1], stride=2)
        self.layer3 = _stage(block, 128 * grow, 256, counts[2], stride=2)
        self.layer4 = _stage(block, 256 * grow, 512, counts[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * grow, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        out: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return out


def resnet18(num_classes: int = 1000) -> ResNet:
    """ResNet-18 with random weights."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes)


def resnet50(num_classes: int = 1000) -> ResNet:
    """ResNet-50 with random weights."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes)


def _conv_bn_relu6(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """Expand, filter depthwise, project; a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        self.use_shortcut = stride == 1 and inputs == outputs
        self.conv = nn.Sequential()
        if expand != 1:
            self.conv.append(_conv_bn_relu6(inputs, hidden, 1))
        self.conv.append(_conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden))
        self.conv.append(nn.Conv2d(hidden, outputs, 1, bias=False))
        self.conv.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.use_shortcut else out


class MobileNetV2(nn.Module):
    """MobileNetV2 for [N, 3, 224, 224] pictures."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        settings = (
            (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
            (6, 160, 3, 2), (6, 320, 1, 1),
        )  # fmt: skip
        self.features = nn.Sequential(_conv_bn_relu6(3, 32, 3, stride=2))
        width = 32
        for expand, outputs, count, first_stride in settings:
            for index in range(count):
                stride = first_stride if index == 0 else 1
                self.features.append(InvertedResidual(width, outputs, stride, expand))
                width = outputs
        self.features.append(_conv_bn_relu6(width, 1280, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        out: Tensor = self.classifier(torch.flatten(x, 1))
        return out


def mobilenet_v2(num_classes: int = 1000) -> MobileNetV2:
    """MobileNetV2 (width 1.0) with random weights."""
    return MobileNetV2(num_classes)


class VisionTransformer(nn.Module):
    """Vision transformer on 224×224 images (arXiv:2010.11929), mean-pooled, without class token."""

    def __init__(self, dim: int, depth: int, heads: int, patch: int, num_classes: int) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, patch, stride=patch)
        self.position = nn.Parameter(torch.randn(1, (224 // patch) ** 2, dim) * 0.02)
        self.blocks = nn.Sequential(*(TransformerBlock(dim, heads, 4 * dim) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2) + self.position
        out: Tensor = self.head(self.norm(self.blocks(x)).mean(dim=1))
        return out


def vit_small(num_classes: int = 1000) -> VisionTransformer:
    """ViT-S/16 with random weights."""
    return VisionTransformer(384, 12, 6, 16, num_classes)
