"""The same retraining in PyTorch: what `benchmarks/retrain_throughput.py` compares with.

Three ways to use a CPU: one process with all threads, one single-threaded process a core, and
`torch.func.vmap` over members. The convolutional networks run in channels-last memory, which is
faster here than the default.
"""

import copy
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 10


@dataclass(frozen=True)
class Case:
    """One model and how it is trained."""

    name: str
    width: int
    batch_size: int
    steps: int


LEARNING_RATE, MOMENTUM = 0.05, 0.9


class StackableGroupNorm(nn.GroupNorm):
    """The same from simple operations, as `torch.func.vmap` refuses PyTorch's own here."""

    def forward(self, input: Tensor) -> Tensor:
        grouped = input.reshape(input.shape[0], self.num_groups, -1)
        variance, mean = torch.var_mean(grouped, dim=2, correction=0, keepdim=True)
        normal = ((grouped - mean) * torch.rsqrt(variance + self.eps)).reshape(input.shape)
        return normal * self.weight[:, None, None] + self.bias[:, None, None]


class Block(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, pool: int = 1):
        super().__init__()
        self.convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(4, channels_out)
        self.pool = pool

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.norm(self.convolution(images))
        return F.relu(F.max_pool2d(hidden, self.pool) if self.pool > 1 else hidden)


class ResNet(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.stem = nn.Sequential(Block(1, width), Block(width, 2 * width, 2))
        self.first = nn.Sequential(Block(2 * width, 2 * width), Block(2 * width, 2 * width))
        self.middle = nn.Sequential(Block(2 * width, 4 * width, 2), Block(4 * width, 8 * width, 2))
        self.second = nn.Sequential(Block(8 * width, 8 * width), Block(8 * width, 8 * width))
        self.output = nn.Linear(8 * width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.stem(images)
        hidden = self.middle(hidden + self.first(hidden))
        return self.output((hidden + self.second(hidden)).amax((2, 3)))


class EncoderLayer(nn.Module):
    def __init__(self, features: int, heads: int):
        super().__init__()
        self.attention_norm, self.dense_norm = nn.LayerNorm(features), nn.LayerNorm(features)
        self.inward, self.outward = nn.Linear(features, 3 * features), nn.Linear(features, features)
        self.wide, self.narrow = (
            nn.Linear(features, 4 * features),
            nn.Linear(4 * features, features),
        )
        self.heads = heads

    def forward(self, hidden: Tensor) -> Tensor:
        batch, length, features = hidden.shape
        parts = self.inward(self.attention_norm(hidden)).view(batch, length, 3, self.heads, -1)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        hidden = hidden + self.outward(mixed.transpose(1, 2).reshape(batch, length, features))
        wide = F.gelu(self.wide(self.dense_norm(hidden)), approximate="tanh")
        return hidden + self.narrow(wide)


class Transformer(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.embed = nn.Linear(16, width)
        self.positions = nn.Parameter(0.02 * torch.randn(49, width))
        layers = [EncoderLayer(width, width // 32) for _ in range(2)]
        self.layers = nn.Sequential(*layers)
        self.norm, self.output = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        pieces = images.reshape(-1, 7, 4, 7, 4).transpose(2, 3).reshape(-1, 49, 16)
        hidden = self.layers(self.embed(pieces) + self.positions)
        return self.output(self.norm(hidden).mean(1))


def build(case: Case) -> nn.Module:
    width = case.width
    match case.name:
        case "mlp":
            return nn.Sequential(
                nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, CLASSES)
            )
        case "cnn":
            return nn.Sequential(
                nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
                nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
                nn.Flatten(), nn.Linear(49 * 2 * width, CLASSES),
            )  # fmt: skip
        case "resnet":
            return ResNet(width).to(memory_format=torch.channels_last)
        case "transformer":
            return Transformer(width)
    raise ValueError(case.name)


@dataclass(frozen=True)
class Data:
    """Normalised training images, their labels, and targets."""

    images: Tensor
    labels: Tensor
    targets: Tensor


def as_data(images: np.ndarray, labels: np.ndarray, targets: int, case: Case) -> Data:
    """Once for all members, in the memory layout that suits the model."""
    scaled = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2)
    scaled = (scaled - scaled.mean()) / scaled.std()
    if case.name in ("cnn", "resnet"):
        scaled = scaled.contiguous(memory_format=torch.channels_last)
    return Data(scaled, torch.from_numpy(labels.astype(np.int64)), scaled[:targets])


def train(case: Case, data: Data, kept: np.ndarray) -> Tensor:
    """One member: trained on what is kept, and the logits of its targets."""
    model = build(case)
    if case.name == "cnn":
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, nesterov=True
    )
    batches = batches_of(case, kept)
    for batch in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(data.images[batch]), data.labels[batch]).backward()
        optimizer.step()
    with torch.inference_mode():
        return model(data.targets)


def batches_of(case: Case, kept: np.ndarray) -> Tensor:
    """Epochs over the kept examples, each shuffled anew."""
    visits = case.steps * case.batch_size
    epochs = -(-visits // len(kept))
    order = torch.cat([torch.from_numpy(kept)[torch.randperm(len(kept))] for _ in range(epochs)])
    return order[:visits].view(case.steps, case.batch_size)


def train_side_by_side(case: Case, data: Data, kept: list[np.ndarray]) -> Tensor:
    """Several members as one program: `torch.func.vmap` of the gradient over their parameters.

    In the default memory layout, as `vmap` refuses channels-last ones.
    """
    models = [build(case).to(memory_format=torch.contiguous_format) for _ in kept]
    for model in models:
        for block in model.modules():
            if isinstance(block, Block):
                block.norm = StackableGroupNorm(4, block.norm.num_channels)
    images, targets = data.images.contiguous(), data.targets.contiguous()
    parameters, _ = torch.func.stack_module_state(models)
    skeleton = copy.deepcopy(models[0]).to("meta")
    moments = {name: torch.zeros_like(value) for name, value in parameters.items()}
    batches = torch.stack([batches_of(case, one) for one in kept])

    def loss(parameters: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
        logits = torch.func.functional_call(skeleton, (parameters, {}), (images,))
        return F.cross_entropy(logits, labels)

    gradients = torch.func.vmap(torch.func.grad(loss))
    for step in range(case.steps):
        batch = batches[:, step]
        found = gradients(parameters, images[batch], data.labels[batch])
        with torch.no_grad():
            for name, gradient in found.items():
                moments[name].mul_(MOMENTUM).add_(gradient)
                direction = gradient.add(moments[name], alpha=MOMENTUM)
                parameters[name].sub_(direction, alpha=LEARNING_RATE)

    def logits(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(skeleton, (parameters, {}), (targets,))

    with torch.no_grad():
        return torch.func.vmap(logits)(parameters)


def kept_of(examples: int, rng: np.random.Generator) -> np.ndarray:
    """The rows that a mask keeps, at alpha .5."""
    return np.flatnonzero(rng.random(examples) < 0.5)


def one_process(case: Case, data: Data, members: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(members):
        train(case, data, kept_of(len(data.labels), rng))


def stacked(case: Case, data: Data, members: int) -> None:
    rng = np.random.default_rng(0)
    train_side_by_side(case, data, [kept_of(len(data.labels), rng) for _ in range(members)])


def use_one_thread() -> None:
    torch.set_num_threads(1)


def _serve(connection: Connection, images: np.ndarray, labels: np.ndarray, targets: int) -> None:
    use_one_thread()
    while (order := connection.recv()) is not None:
        case, members = order
        one_process(case, as_data(images, labels, targets, case), members)
        connection.send(None)


class Processes:
    """One single-threaded process a core, kept alive between calls."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, targets: int):
        context = multiprocessing.get_context("spawn")
        cores = len(os.sched_getaffinity(0))
        pairs = [context.Pipe() for _ in range(cores)]
        self.connections = [mine for mine, _ in pairs]
        self.processes: list[Any] = [
            context.Process(target=_serve, args=(theirs, images, labels, targets), daemon=True)
            for _, theirs in pairs
        ]
        for process in self.processes:
            process.start()

    def run(self, case: Case, members: int) -> None:
        """Train `members` in each process."""
        for connection in self.connections:
            connection.send((case, members))
        for connection in self.connections:
            connection.recv()

    def close(self) -> None:
        for connection in self.connections:
            connection.send(None)
        for process in self.processes:
            process.join()


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def product_flops(size: int) -> float:
    """FLOP a second of a square float32 product with all threads; the best of several."""
    square = torch.ones(size, size)
    return 2 * size**3 / min(seconds(lambda: square @ square) for _ in range(20))
