"""Networks for the benchmark of the doctor, small enough to train on digits in a second or two.

Each is built from a factory of norms, so that ours and PyTorch's go through the same rules. The second half
is written as the big model zoos write: an activation inside the norm, dict and tuple outputs, auxiliary
heads, frozen norms whose scale is a buffer, scripted parts.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnbook import data, layers

Norm1d = Norm2d = Callable[[int], nn.Module]


def conv(c_in: int, c_out: int, k: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, k, stride, k // 2, groups=groups, bias=False)


class Mlp(nn.Sequential):
    def __init__(self, norm1, norm2):
        super().__init__(
            nn.Flatten(),
            *[nn.Linear(256, 48, bias=False), norm1(48), nn.ReLU()],
            *[nn.Linear(48, 48, bias=False), norm1(48), nn.ReLU()],
            *[nn.Linear(48, 48, bias=False), norm1(48), nn.ReLU()],
            nn.Linear(48, 10),
        )


class Vgg(nn.Module):
    def __init__(self, norm1, norm2):
        super().__init__()
        self.features = nn.Sequential(
            *[conv(1, 8), norm2(8), nn.ReLU(inplace=True), conv(8, 8), norm2(8), nn.ReLU(inplace=True)],
            *[nn.MaxPool2d(2), conv(8, 16), norm2(16), nn.ReLU(inplace=True), nn.MaxPool2d(2)],
        )
        self.classifier = nn.Sequential(nn.Linear(256, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))

    def forward(self, x):
        return self.classifier(torch.flatten(self.features(x), 1))


class BasicBlock(nn.Module):
    def __init__(self, c_in, c_out, stride, norm2):
        super().__init__()
        self.conv1, self.bn1 = conv(c_in, c_out, 3, stride), norm2(c_out)
        self.conv2, self.bn2 = conv(c_out, c_out), norm2(c_out)
        self.downsample = None
        if stride > 1 or c_in != c_out:
            self.downsample = nn.Sequential(conv(c_in, c_out, 1, stride), norm2(c_out))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, norm1, norm2):
        super().__init__()
        self.conv1, self.bn1 = conv(1, 8), norm2(8)
        self.layer1 = nn.Sequential(BasicBlock(8, 8, 1, norm2))
        self.layer2 = nn.Sequential(BasicBlock(8, 16, 2, norm2), BasicBlock(16, 16, 1, norm2))
        self.fc = nn.Linear(16, 10)

    def body(self, x):
        return self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))

    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))


class DenseNet(nn.Module):
    def __init__(self, norm1, norm2):
        super().__init__()
        self.stem = conv(1, 8)
        self.norms = nn.ModuleList(norm2(8 + 8 * k) for k in range(3))
        self.convs = nn.ModuleList(conv(8 + 8 * k, 8, 3) for k in range(3))
        self.last, self.head = norm2(32), nn.Linear(32, 10)

    def forward(self, x):
        x = F.max_pool2d(self.stem(x), 2)
        for norm, convolution in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, convolution(F.relu(norm(x)))], 1)
        return self.head(F.relu(self.last(x)).mean((2, 3)))


class InvertedResidual(nn.Module):
    """MobileNetV2's block: the last norm has no activation behind it, depthwise in the middle."""

    def __init__(self, c, norm2):
        super().__init__()
        self.block = nn.Sequential(
            *[conv(c, 4 * c, 1), norm2(4 * c), nn.ReLU6()],
            *[conv(4 * c, 4 * c, 3, groups=4 * c), norm2(4 * c), nn.ReLU6(), conv(4 * c, c, 1), norm2(c)],
        )

    def forward(self, x):
        return x + self.block(x)


class MobileNet(nn.Sequential):
    def __init__(self, norm1, norm2):
        super().__init__(
            *[conv(1, 8, 3, 2), norm2(8), nn.ReLU6(), InvertedResidual(8, norm2), InvertedResidual(8, norm2)],
            *[nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)],
        )


class UNet(nn.Module):
    """A denoiser with transposed convolutions; a linear head so that the same labels serve."""

    def __init__(self, norm1, norm2):
        super().__init__()
        self.down1 = nn.Sequential(conv(1, 8), norm2(8), nn.ReLU())
        self.down2 = nn.Sequential(conv(8, 16, 3, 2), norm2(16), nn.ReLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(16, 8, 2, 2, bias=False), norm2(8), nn.ReLU())
        self.out = nn.Sequential(conv(16, 8), norm2(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
        self.head = nn.Linear(2 * 16, 10)

    def forward(self, x):
        fine = self.down1(x)
        merged = self.out(torch.cat([fine, self.up(self.down2(fine))], 1))
        return self.head(F.adaptive_avg_pool2d(merged, 4).flatten(1))


class Waves(nn.Module):
    """Convolutions in one dimension: the 256 pixels as a signal."""

    def __init__(self, norm1, norm2):
        super().__init__()
        self.net = nn.Sequential(
            *[nn.Conv1d(1, 8, 9, 4, 4, bias=False), norm1(8), nn.ReLU()],
            *[nn.Conv1d(8, 16, 9, 4, 4, bias=False), norm1(16), nn.ReLU()],
            *[nn.Conv1d(16, 32, 5, 2, 2, bias=False), norm1(32), nn.ReLU(), nn.Flatten()],
        )
        self.head = nn.Linear(32 * 8, 10)

    def forward(self, x):
        return self.head(self.net(x.flatten(2).reshape(len(x), 1, -1)))


class Transformer(nn.Module):
    """Rows as tokens; batch norm over features in the feed-forward part, as in time-series transformers."""

    def __init__(self, norm1, norm2):
        super().__init__()
        self.embed, self.place = nn.Linear(16, 32), nn.Parameter(0.1 * torch.randn(1, 16, 32))
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.norm1, self.norm2, self.last = norm1(32), norm1(32), nn.LayerNorm(32)
        self.up, self.down, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x):
        x = self.embed(x.squeeze(1)) + self.place
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = self.norm1(x.transpose(1, 2)).transpose(1, 2)
        x = x + self.down(F.gelu(self.up(x)))
        x = self.norm2(x.transpose(1, 2)).transpose(1, 2)
        return self.head(self.last(x).mean(1))


class Detector(nn.Module):
    """A backbone, a neck, and a head that group norm shares over the levels; a dict comes out."""

    def __init__(self, norm1, norm2):
        super().__init__()
        self.backbone = nn.Sequential(
            conv(1, 8), norm2(8), nn.ReLU(), conv(8, 16, 3, 2), norm2(16), nn.ReLU()
        )
        self.neck = nn.Sequential(conv(16, 16, 3, 2), norm2(16), nn.ReLU())
        self.tower = nn.Sequential(conv(16, 16), nn.GroupNorm(2, 16), nn.ReLU())
        self.score, self.box = nn.Conv2d(16, 10, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        levels = [fine := self.backbone(x), self.neck(fine)]
        towers = [self.tower(level) for level in levels]
        scores = [self.score(tower).flatten(2) for tower in towers]
        return {"boxes": [self.box(t) for t in towers], "logits": torch.cat(scores, 2).mean(2)}


class Generator(nn.Module):
    """DCGAN's generator, which here paints a digit's class from noise and is read by a linear head."""

    def __init__(self, norm1, norm2):
        super().__init__()
        self.code = nn.Linear(256, 16)
        self.net = nn.Sequential(
            *[nn.ConvTranspose2d(16, 16, 4, 1, 0, bias=False), norm2(16), nn.ReLU()],
            *[nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False), norm2(8), nn.ReLU()],
            *[nn.ConvTranspose2d(8, 1, 4, 2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(256, 10)],
        )

    def forward(self, x):
        return self.net(self.code(x.flatten(1))[:, :, None, None])


class NormAct2d(nn.BatchNorm2d):
    """timm's way: the activation lives inside the norm."""

    def __init__(self, channels):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class Timm(nn.Module):
    """Norms with their activation, and squeeze-excite with a batch norm on a 1x1 map; a tuple comes out."""

    def __init__(self, norm1, norm2):
        super().__init__()
        self.conv1, self.bn1 = conv(1, 8), NormAct2d(8)
        self.conv2, self.bn2 = conv(8, 16, 3, 2), NormAct2d(16)
        self.squeeze, self.bn3, self.excite = nn.Conv2d(16, 8, 1), NormAct2d(8), nn.Conv2d(8, 16, 1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        gate = torch.sigmoid(self.excite(self.bn3(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.fc((x * gate).mean((2, 3))), x


class Inception(ResNet):
    """An auxiliary head that runs in training only, as in GoogLeNet; then a tuple comes out."""

    def __init__(self, norm1, norm2):
        super().__init__(norm1, norm2)
        self.aux = nn.Sequential(conv(16, 8, 1), norm2(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 10))

    def forward(self, x):
        features = self.body(x)
        out = self.fc(features.mean((2, 3)))
        return (out, self.aux(features)) if self.training else out


class FrozenBatchNorm2d(nn.Module):
    """torchvision's and detectron2's: scale and statistics are buffers, nothing ever moves."""

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels) - eps)

    def forward(self, x):
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]


class FrozenStem(ResNet):
    """Frozen norms in the stem, ordinary ones behind it, as detectors are fine-tuned."""

    def __init__(self, norm1, norm2):
        super().__init__(norm1, norm2)
        self.bn1 = FrozenBatchNorm2d(8)


OURS = (layers.BatchNorm, layers.BatchNorm)
TORCH = (nn.BatchNorm1d, nn.BatchNorm2d)

#: Name -> how to build it, given the two factories of norms.
ZOO: dict[str, Callable[[Norm1d, Norm2d], nn.Module]] = {
    "mlp": Mlp,
    "vgg": Vgg,
    "residual": ResNet,
    "dense": DenseNet,
    "inverted residual": MobileNet,
    "u-net": UNet,
    "1-d convolution": Waves,
    "transformer": Transformer,
    "detector": Detector,
    "generator": Generator,
    "norm with activation": Timm,
    "auxiliary head": Inception,
    "frozen stem": FrozenStem,
}


def digits(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Digits enlarged to 16x16: training images and labels, then those of the test."""
    d = data.digits()
    images = [torch.from_numpy(x).reshape(-1, 1, 8, 8) for x in (d.x_train, d.x_test)]
    large = [F.interpolate(x, scale_factor=2, mode="bilinear") for x in images]
    return large[0], torch.from_numpy(d.y_train), large[1], torch.from_numpy(d.y_test)


def output(model: nn.Module, x: Tensor) -> Tensor:
    """The class scores, whatever the model returns."""
    out = model(x)
    return out["logits"] if isinstance(out, dict) else out[0] if isinstance(out, tuple) else out


def batches(
    seed: int = 1, size: int = 16, count: int = 10, test: bool = False
) -> list[tuple[Tensor, Tensor]]:
    """Batches of training or test images, shuffled."""
    x, y, x_test, y_test = digits()
    x, y = (x_test, y_test) if test else (x, y)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return [(x[i], y[i]) for i in order[: size * count].split(size)]


def trained(name: str, norms=TORCH, seed: int = 0, steps: int = 150, size: int = 32) -> nn.Module:
    """A network of the zoo, trained; in evaluation mode."""
    torch.manual_seed(seed)
    model = ZOO[name](*norms)
    fit(model, steps, size, seed)
    return model.eval()


def fit(
    model: nn.Module, steps: int, size: int = 32, seed: int = 0, rate: float = 0.01, ready=lambda x: x
) -> None:
    """Train with Adam, its rate going to 0 linearly."""
    x, y, _, _ = digits()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    model.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        i = torch.randint(len(x), (size,), generator=generator)
        loss = F.cross_entropy(output(model, ready(x[i])), y[i])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """On the test images, in evaluation mode."""
    _, _, x, y = digits()
    return float((output(model.eval(), x).argmax(1) == y).float().mean())
