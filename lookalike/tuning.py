"""A head trained on the photos, its file, and the backbone that the two make (notebook 06)."""
import contextlib
import copy
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from lookalike import AnyPath, shown
from lookalike.colour import as_weight, side_by_side
from lookalike.networks import BACKBONES, Backbone, load_backbone


def projection_head(n_features: int, n_out: int = 512) -> nn.Sequential:
    """Make a small network that projects vectors, (B, n_features) to (B, n_out), of one length.

    That length is sqrt(n_out). Dropout, a half of all numbers at random, keeps it from learning
    the photos by heart. Source: Khosla and others 2020, arxiv.org/abs/2004.11362.
    """
    return nn.Sequential(nn.BatchNorm1d(n_features), nn.Dropout(0.5), nn.Linear(n_features, 512),
                         nn.BatchNorm1d(512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, n_out),
                         nn.RMSNorm(n_out, elementwise_affine=False))


class BesideOld(nn.Module):
    """The old vector and the head's side by side, (B, n_features) to (B, n_features + n_out)."""

    def __init__(self, head: nn.Module, look: float):
        super().__init__()
        self.head, self.look = head, look

    def forward(self, x):
        return side_by_side((x, self.look), (self.head(x), 1))


def train_epochs(network: nn.Module, inputs: torch.Tensor, labels: Sequence[str],
                 epochs: int = 60, batch: int = 512, learning_rate: float = 1e-3, seed: int = 0
                 ) -> Iterator[float]:
    """Train `network` so that inputs of one label come near each other.

    Parameters
    ----------
    network
        Left in evaluation mode at each yield, so that it can be looked at, and the caller may
        stop there. BatchNorm2d keeps the statistics that it came with.
    inputs, labels
        (N, ...), what the network takes, and N labels.
    epochs, batch, learning_rate, seed
        Rounds over all inputs, inputs a step, AdamW's step at the start (it falls to zero along a
        cosine), and what decides order and dropout.

    Yields
    ------
    float
        The mean loss after each epoch: supervised contrastive, temperature 0.1.

    Raises
    ------
    ValueError
        There is nothing to tell apart.

    Source: pytorch-metric-learning, losses.SupConLoss.
    """
    from pytorch_metric_learning.losses import SupConLoss
    kinds, y = np.unique(labels, return_inverse=True)
    if len(labels) != len(inputs) or len(kinds) < 2:
        raise ValueError(f"{len(inputs)} inputs with {len(labels)} labels of {len(kinds)} kinds: "
                         "training takes one label an input, and two kinds or more")
    y, loss_of = torch.from_numpy(y), SupConLoss(temperature=0.1)
    order = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # for dropout
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=1e-3)
    steps = -(-len(inputs) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    for _ in range(epochs):
        _training_mode(network)
        losses = []
        # nearly equal parts: a last batch of one photo would have nothing to be compared with
        for part in torch.randperm(len(inputs), generator=order).tensor_split(steps):
            loss = loss_of(network(inputs[part].float()), y[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        network.eval()
        yield float(np.mean(losses))


def _training_mode(network):
    """But BatchNorm2d: a small batch says too little about the mean of a feature map."""
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def save_tuned(filename: AnyPath, backbone: Backbone, head: nn.Module,
               last_block: nn.Module | None = None, look: float = 0, colour: float = 0) -> None:
    """Write a trained head in the safetensors format, replaced whole or not at all.

    Parameters
    ----------
    filename
        Its folder is made if it is not there.
    backbone
        What the head was trained on; the file says which, and which weights of it.
    head
        As `projection_head` makes it.
    last_block
        ResNet50's `layer4`, if that was trained as well.
    look, colour
        What it is to be used with: the weight of the old vector beside the head's, and that of
        colour beside the two.

    Source: huggingface.co/docs/safetensors.
    """
    modules = {"head": head} | ({"layer4": last_block} if last_block else {})
    tensors = {f"{part}.{key}": value.contiguous() for part, module in modules.items()
               for key, value in module.state_dict().items()}
    if not all(torch.isfinite(value).all() for value in tensors.values()):
        raise ValueError("the head holds NaN or infinity, so nothing was written: train it anew")
    content = save(tensors, backbone.about | {"look": repr(as_weight(look)),
                                              "colour": repr(as_weight(colour))})
    path = Path(filename)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.tmp")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def load_tuned(filename: AnyPath, backbone: Backbone | None = None) -> Backbone:
    """Load what `save_tuned` wrote, as a Backbone whose network ends in the head.

    `backbone` is the one that it belongs to, loaded if not given. The new one has a fingerprint
    of its own, so its vectors never mix with the others. Raises FileNotFoundError, or ValueError
    for a file that is damaged or belongs to another backbone.
    """
    path = Path(filename)
    if not path.is_file():
        raise FileNotFoundError(f"no tuned recommender {shown(str(path))}: notebook 06 trains one")
    with _damaged(path), safe_open(path, "pt") as f:
        belongs, tensors = f.metadata() or {}, {key: f.get_tensor(key) for key in f.keys()}
        name = belongs["backbone"]
        look, colour = (as_weight(float(belongs.get(key, 0))) for key in ("look", "colour"))
        if name not in BACKBONES:
            raise ValueError(f"no network is called {shown(name)}")
    backbone = backbone or load_backbone(name)
    if (backbone.name, backbone.fingerprint) != (name, belongs.get("fingerprint")):
        raise ValueError(f"{path.name} belongs to {name} ({shown(belongs.get('weights'))}), and "
                         f"this is {backbone.name} ({backbone.weights}): take the one it was "
                         "trained on")
    network, last_block = copy.deepcopy(backbone.network), _part("layer4.", tensors)
    with _damaged(path):
        n_out = len(tensors["head.6.bias"])
        with torch.device("meta"):  # the shapes that it must have, before any memory is taken
            head = projection_head(backbone.n_features, n_out)
        _load(head, _part("head.", tensors))
        if last_block:
            _load(network.layer4, last_block)
    content = hashlib.sha256(f"{backbone.fingerprint}{look}".encode())
    for key in sorted(tensors):
        content.update(key.encode() + tensors[key].numpy().tobytes())
    return replace(backbone, base=backbone, last_block=bool(last_block), colour=colour,
                   network=nn.Sequential(network, BesideOld(head, look) if look else head).eval(),
                   n_features=n_out + backbone.n_features * bool(look),
                   weights=f"{backbone.weights}, tuned by {path.name}",
                   fingerprint=content.hexdigest()[:16])


@contextlib.contextmanager
def _damaged(path):
    try:
        yield
    except (ValueError, SafetensorError, KeyError, RuntimeError, AttributeError, TypeError,
            OSError) as error:
        raise ValueError(f"{path.name} is damaged, or save_tuned did not write it "
                         f"({shown(error)}): train it anew in notebook 06") from None


def _load(module, tensors):
    """Numbers into a module whose shapes they have, if all are finite."""
    has, wanted = ({key: (value.shape, value.dtype) for key, value in one.items()}
                   for one in (tensors, module.state_dict()))
    if has != wanted:
        raise ValueError("its tensors have other names or shapes than the network's")
    if not all(torch.isfinite(value).all() for value in tensors.values()):
        raise ValueError("some of its numbers are NaN or infinite")
    module.load_state_dict(tensors, assign=True)


def _part(prefix, tensors):
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
