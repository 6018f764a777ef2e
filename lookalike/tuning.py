"""A head trained on the photos, its file, and the backbone that the two make (notebook 06)."""
import copy
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from lookalike import AnyPath
from lookalike.embeddings import MADE_BY, replace_whole
from lookalike.networks import Backbone, load_backbone


def projection_head(n_features: int, n_out: int = 512) -> nn.Sequential:
    """Make a small network that projects vectors, (B, n_features) to (B, n_out), of one length.

    That length is sqrt(n_out). Dropout, a half of all numbers at random, keeps it from learning
    the photos by heart. Source: Khosla and others 2020, arxiv.org/abs/2004.11362.
    """
    return nn.Sequential(nn.BatchNorm1d(n_features), nn.Dropout(0.5), nn.Linear(n_features, 512),
                         nn.BatchNorm1d(512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, n_out),
                         nn.RMSNorm(n_out, elementwise_affine=False))


class KindAndLook(nn.Module):
    """The old vector and the tuned one side by side, (B, n_features) to (B, n_features + n_out).

    Each is scaled to length 1, and the tuned one then to `weight`: near 0 the look decides, far
    above 1 the kind.
    """

    def __init__(self, head: nn.Module, weight: float):
        super().__init__()
        self.head, self.weight = head, float(weight)

    def forward(self, x):
        old, tuned = nn.functional.normalize(x), nn.functional.normalize(self.head(x))
        return torch.cat([old, self.weight * tuned], dim=1)


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
               last_block: nn.Module | None = None) -> None:
    """Write a trained head in the safetensors format, replaced whole or not at all.

    Parameters
    ----------
    filename
        Its folder is made if it is not there.
    backbone
        What the head was trained on; the file says which, and which weights of it.
    head
        As `projection_head` makes it, or that in a `KindAndLook`.
    last_block
        ResNet50's `layer4`, if that was trained as well.

    Source: huggingface.co/docs/safetensors.
    """
    weight = {"weight": repr(head.weight)} if isinstance(head, KindAndLook) else {}
    modules = {"head": head.head if weight else head}
    modules |= {"layer4": last_block} if last_block else {}
    tensors = {f"{part}.{key}": value.contiguous() for part, module in modules.items()
               for key, value in module.state_dict().items()}
    belongs = {key: getattr(backbone, attribute) for key, attribute in MADE_BY.items()}
    content = save(tensors, belongs | weight)
    replace_whole(Path(filename), lambda f: f.write(content))


def load_tuned(filename: AnyPath, backbone: Backbone | None = None) -> Backbone:
    """Load what `save_tuned` wrote, as a Backbone whose network ends in the head.

    `backbone` is the one that it belongs to, loaded if not given. The new one has a fingerprint
    of its own, so its vectors never mix with the others. Raises FileNotFoundError, or ValueError
    for a file that is damaged or belongs to another backbone.
    """
    path = Path(filename)
    if not path.is_file():
        raise FileNotFoundError(f"no tuned recommender {str(path)!r}: notebook 06 trains one")
    try:
        with safe_open(path, "pt") as f:
            belongs, tensors = f.metadata() or {}, {key: f.get_tensor(key) for key in f.keys()}
        name, fingerprint = belongs["backbone"], belongs["fingerprint"]
        head = projection_head(tensors["head.2.weight"].shape[1], len(tensors["head.6.bias"]))
        head.load_state_dict(_part("head.", tensors))
        n_out, weight = len(tensors["head.6.bias"]), belongs.get("weight")
        if weight:
            n_out, head = n_out + head[2].in_features, KindAndLook(head, float(weight))
    except (ValueError, SafetensorError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path.name} is damaged, or save_tuned did not write it ({error}): train "
                         "it anew in notebook 06") from None
    backbone = backbone or load_backbone(name)
    if (backbone.name, backbone.fingerprint) != (name, fingerprint):
        raise ValueError(f"{path.name} belongs to {name} ({belongs.get('weights')}), and this is "
                         f"{backbone.name} ({backbone.weights}): take the one it was trained on")
    network, last_block = copy.deepcopy(backbone.network), _part("layer4.", tensors)
    if last_block:
        network.layer4.load_state_dict(last_block)
    content = hashlib.sha256((fingerprint + (weight or "")).encode())
    for key in sorted(tensors):
        content.update(key.encode() + tensors[key].numpy().tobytes())
    return replace(backbone, network=nn.Sequential(network, head).eval(), base=fingerprint,
                   n_features=n_out, last_block=bool(last_block),
                   weights=f"{backbone.weights}, tuned by {path.name}",
                   fingerprint=content.hexdigest()[:16])


def _part(prefix, tensors):
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
