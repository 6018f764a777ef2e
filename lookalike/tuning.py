"""A head trained on the photos, its file, and the backbone that the two make (notebook 06)."""
import copy
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from lookalike.embeddings import replace_whole
from lookalike.networks import Backbone, load_backbone


def projection_head(n_features: int, n_out: int = 512) -> nn.Sequential:
    """Make a small network that projects vectors, (B, n_features) to (B, n_out), of one length.

    That length is sqrt(n_out). Dropout, a half of all numbers at random, keeps it from learning
    the photos by heart. Source: Khosla and others 2020, arxiv.org/abs/2004.11362.
    """
    return nn.Sequential(nn.BatchNorm1d(n_features), nn.Dropout(0.5), nn.Linear(n_features, 512),
                         nn.BatchNorm1d(512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, n_out),
                         nn.RMSNorm(n_out, elementwise_affine=False))


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


def save_tuned(filename: str | Path, backbone: Backbone, head: nn.Module,
               last_block: nn.Module | None = None) -> None:
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

    Source: huggingface.co/docs/safetensors.
    """
    modules = {"head": head} | ({"layer4": last_block} if last_block else {})
    tensors = {f"{part}.{key}": value.contiguous() for part, module in modules.items()
               for key, value in module.state_dict().items()}
    belongs = {"backbone": backbone.name, "weights": backbone.weights,
               "fingerprint": backbone.fingerprint}
    content = save(tensors, belongs)
    replace_whole(Path(filename), lambda f: f.write(content))


def load_tuned(filename: str | Path, backbone: Backbone | None = None) -> Backbone:
    """Load what `save_tuned` wrote, as a Backbone whose network ends in the head.

    `backbone` is the one that it belongs to, loaded if not given. The new one has a fingerprint
    of its own, so its vectors never mix with the others. Raises FileNotFoundError, or ValueError
    for a file that is damaged or belongs to another backbone.
    """
    path = Path(filename)
    tensors, belongs = _read_tuned(path)
    name, fingerprint = belongs["backbone"], belongs["fingerprint"]
    backbone = backbone or load_backbone(name)
    if (backbone.name, backbone.fingerprint) != (name, fingerprint):
        raise ValueError(f"{path.name} belongs to {name} ({belongs.get('weights')}), and this is "
                         f"{backbone.name} ({backbone.weights}): take the one it was trained on, "
                         "or train it anew in notebook 06")
    head = projection_head(tensors["head.2.weight"].shape[1], len(tensors["head.6.bias"]))
    network = copy.deepcopy(backbone.network)
    parts = {part: {key.partition(".")[2]: value for key, value in tensors.items()
                    if key.startswith(f"{part}.")} for part in ("head", "layer4")}
    try:
        head.load_state_dict(parts["head"])
        if parts["layer4"]:
            network.layer4.load_state_dict(parts["layer4"])
    except (RuntimeError, AttributeError) as error:
        raise ValueError(f"{path.name} does not fit {name}: {str(error)[:300]}") from None
    content = hashlib.sha256(fingerprint.encode())
    for key in sorted(tensors):
        content.update(key.encode() + tensors[key].numpy().tobytes())
    return Backbone(name, nn.Sequential(network, head).eval(), backbone.preprocess,
                    backbone.classifier, len(tensors["head.6.bias"]),
                    f"{backbone.weights}, tuned by {path.name}", content.hexdigest()[:16],
                    base=fingerprint, last_block=bool(parts["layer4"]))


def _read_tuned(path):
    """(tensors, metadata) of a file that has all that `save_tuned` writes."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no tuned recommender at {str(path)!r}: train one in "
                                "notebook 06")
    try:
        with safe_open(path, "pt") as f:
            belongs, tensors = f.metadata() or {}, {key: f.get_tensor(key) for key in f.keys()}
        for table, key in ((belongs, "backbone"), (belongs, "fingerprint"),
                           (tensors, "head.2.weight"), (tensors, "head.6.bias")):
            table[key]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path.name} is damaged, or save_tuned did not write it ({error}): train "
                         "it anew in notebook 06") from None
    return tensors, belongs
