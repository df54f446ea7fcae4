"""The naive way: what a reader of the post would write, plainly and without tricks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tasks.rungs.building import initialize
from tasks.rungs.models import MODELS

RUNGS = [
    ("linear", "sigmoid_mse"),
    ("linear", "softmax_mse"),
    ("linear", "cross_entropy"),
    ("mlp", "cross_entropy"),
]
# As the post writes them, for autograd.
PLAIN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sigmoid_mse": lambda z, y: F.mse_loss(z.sigmoid(), F.one_hot(y, z.shape[1]).to(z.dtype)),
    "softmax_mse": lambda z, y: F.mse_loss(z.softmax(1), F.one_hot(y, z.shape[1]).to(z.dtype)),
    "cross_entropy": F.cross_entropy,
}


def stacks(folder: Path) -> list[Tensor]:
    """One images[N, H, W] uint8 for each class folder of a split, file by file."""
    return [
        torch.stack([torch.tensor(np.array(Image.open(file))) for file in sorted(each.iterdir())])
        for each in sorted(folder.iterdir())
    ]


def predictions(model: nn.Module, files: list[Path]) -> Iterator[Tensor]:
    """Probabilities [B, C] float32 of batches of files, opened one by one."""
    with torch.no_grad():
        for start in range(0, len(files), 1000):
            images = [np.array(Image.open(file)) for file in files[start : start + 1000]]
            yield model(torch.from_numpy(np.stack(images)).float() / 255).softmax(1)


def labelled(classes: list[Tensor]) -> tuple[Tensor, Tensor]:
    """x[N, H, W] float32, 0 to 1, and y[N] int64."""
    y = torch.cat([torch.full((len(images),), label) for label, images in enumerate(classes)])
    return torch.cat(classes).float() / 255, y


# The engine, where it is imported, has put one that takes notes in its place.
_STAT = getattr(os.stat, "__wrapped__", os.stat)


def listed(folder: Path) -> None:
    """List and stat every file."""
    for split in os.listdir(folder):
        for label in os.listdir(folder / split):
            place = os.path.join(folder, split, label)
            for name in os.listdir(place):
                _STAT(os.path.join(place, name))


def listed_relative(folder: Path) -> None:
    """The same with names relative to an open folder, the least that Python can do."""
    for split in os.listdir(folder):
        for label in os.listdir(folder / split):
            place = os.open(folder / split / label, os.O_RDONLY)
            for name in os.listdir(place):
                _STAT(name, dir_fd=place)
            os.close(place)


def baselines(training: list[Tensor], x: Tensor, y: Tensor) -> list[float]:
    """Accuracy of the nearest mean by absolute and by squared error, broadcast."""
    means = torch.stack([images.float().div(255).mean(0) for images in training])
    accuracies = []
    for distance in (torch.abs, torch.square):
        said = [distance(part[:, None] - means).mean((2, 3)).argmin(1) for part in x.split(1000)]
        accuracies.append((torch.cat(said) == y).float().mean().item())
    return accuracies


def train(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    data: list[tuple[Tensor, Tensor]],
    valid: list[tuple[Tensor, Tensor]],
    *,
    epochs: int,
    lr: float = 1.0,
    batch_size: int = 256,
    generator: torch.Generator,
) -> float:
    """The post's loop: parameters updated by hand; gives the last mean of batch accuracies."""
    accuracies = []
    for _ in range(epochs):
        model.train()
        order = torch.randperm(len(data), generator=generator).tolist()
        for xb, yb in DataLoader(data, batch_size=batch_size, sampler=order):
            loss(model(xb), yb).backward()
            for p in model.parameters():
                p.data -= p.grad * lr
                p.grad.zero_()
        model.eval()
        with torch.no_grad():
            batches = DataLoader(valid, batch_size=256)
            accuracies = [(model(xb).argmax(1) == yb).float().mean() for xb, yb in batches]
    return torch.stack(accuracies).mean().item()


def pairs(classes: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The data set as the post makes it."""
    return list(zip(*labelled(classes), strict=True))


def rung(
    name: str,
    loss: str,
    data: list[tuple[Tensor, Tensor]],
    valid: list[tuple[Tensor, Tensor]],
    epochs: int,
) -> nn.Module:
    """One of the four small rungs, with the initial weights and the order of seed 0."""
    generator = torch.Generator().manual_seed(0)
    model = MODELS[name](data[0][0].shape, 10)
    initialize(model, "randn", generator)
    train(model, PLAIN[loss], data, valid, epochs=epochs, generator=generator)
    return model


def exactly(name: str, loss: str, training: list[Tensor], epochs: int) -> nn.Module:
    """The same in float64, from the same weights in the same order."""
    generator = torch.Generator().manual_seed(0)
    model = MODELS[name](training[0].shape[1:], 10)
    initialize(model, "randn", generator)
    model.double()
    images = torch.cat(training)
    y = torch.cat([torch.full((len(each),), label) for label, each in enumerate(training)])
    for _ in range(epochs):
        for part in torch.randperm(len(y), generator=generator).split(256):
            PLAIN[loss](model(images[part].double() / 255), y[part]).backward()
            for p in model.parameters():
                assert p.grad is not None
                p.data -= p.grad
                p.grad.zero_()
    return model


def convnet(classes: int = 10) -> nn.Module:
    """The ladder's convnet for images[B, 28, 28], of torch's own layers."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28)),
        *(nn.Conv2d(1, 16, 5, 2), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3), nn.MaxPool2d(2), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 128, 3), nn.BatchNorm2d(128), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(128 * 3 * 3, classes)),
    )


def resnet18(classes: int = 10) -> nn.Module:
    """ResNet18 for one channel, of torch's own convolutions."""
    blocks = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1)]
    blocks += [(128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1)]
    stem = [nn.Conv2d(1, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes)]
    return nn.Sequential(*stem, nn.MaxPool2d(3, 2, 1), *(Block(*each) for each in blocks), *tail)


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Identity()
        if inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """x[B, inputs, H, W] -> [B, outputs, H / stride, W / stride], rounded up."""
        return F.relu(self.body(x) + self.shortcut(x))


def script(folder: Path, epochs: int, convnet_epochs: int) -> None:
    """The post from end to end, with the convnet as its last rung instead of ResNet18."""
    training, testing = stacks(folder / "training"), stacks(folder / "testing")
    baselines(training, *labelled(testing))
    data, valid = pairs(training), pairs(testing)
    for name, loss in RUNGS:
        rung(name, loss, data, valid, epochs)
    generator = torch.Generator().manual_seed(0)
    train(
        convnet(), F.cross_entropy, data, valid,
        epochs=convnet_epochs, lr=0.1, batch_size=64, generator=generator,
    )  # fmt: skip


def step(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """One step of the loop, in fp32."""
    F.cross_entropy(model(x), y).backward()
    for p in model.parameters():
        p.data -= p.grad * 0.01
        p.grad.zero_()


if __name__ == "__main__":
    script(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
