"""A head trained on labels, and the catalogue seen through it (notebook 06)."""
import copy
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from lookalike.recommender import Catalogue
from lookalike.vectors import as_weight


def projection_head(n_features: int, n_out: int = 512) -> nn.Sequential:
    """Make a small network that projects embeddings, (B, n_features) to (B, n_out).

    All outputs have the length sqrt(n_out). Dropout sets a random half of the numbers to zero,
    which reduces overfitting.
    Source: Khosla and others 2020, arxiv.org/abs/2004.11362.
    """
    return nn.Sequential(nn.BatchNorm1d(n_features), nn.Dropout(0.5), nn.Linear(n_features, 512),
                         nn.BatchNorm1d(512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, n_out),
                         nn.RMSNorm(n_out, elementwise_affine=False))


def train_epochs(network: nn.Module, inputs: torch.Tensor, labels: Sequence[str],
                 epochs: int = 60, batch: int = 512, learning_rate: float = 1e-3, seed: int = 0
                 ) -> Iterator[float]:
    """Train `network` so that inputs with the same label get nearby outputs.

    Parameters
    ----------
    network
        Left in evaluation mode at each yield, so that the caller can measure it, or stop there.
    inputs, labels
        (N, n_features) tensor, and N labels.
    epochs, batch, learning_rate, seed
        Rounds over all inputs, inputs per step, AdamW's step size at the start (it falls to zero
        along a cosine), and what decides order and dropout.

    Yields
    ------
    float
        The mean loss of each epoch: supervised contrastive, temperature 0.1.

    Raises
    ------
    ValueError
        There are fewer than two labels, or not one per input.

    Source: pytorch-metric-learning, losses.SupConLoss.
    """
    from pytorch_metric_learning.losses import SupConLoss
    categories, y = np.unique(labels, return_inverse=True)
    if len(labels) != len(inputs) or len(categories) < 2:
        raise ValueError(f"{len(inputs)} inputs and {len(labels)} labels of {len(categories)} "
                         "categories: training needs one label per input, and two categories")
    y, loss_of = torch.from_numpy(y), SupConLoss(temperature=0.1)
    order = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # for dropout
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=1e-3)
    steps = -(-len(inputs) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    for _ in range(epochs):
        network.train()
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


class _ThroughHead(nn.Module):
    """(B, n_features) to the head's output, concatenated with the old embedding if that counts."""

    def __init__(self, head, old):
        super().__init__()
        self.head, self.old = head, old

    def forward(self, x):
        new = self.head(x).float()
        if not self.old:
            return new
        unit = nn.functional.normalize
        return torch.cat([self.old * unit(x.float()), unit(new)], dim=1)


def with_head(catalogue: Catalogue, head: nn.Module, old: float = 0) -> Catalogue:
    """See a catalogue through a trained head: its embeddings, and those of queries from outside.

    Parameters
    ----------
    catalogue
        Its embeddings are the head's input. Labels, groups and colours stay.
    head
        Maps (N, n_features) to (N, n_out).
    old
        The weight of the original embedding next to the head's output; with 0, the head's alone.

    Raises
    ------
    ValueError
        The head does not fit the embeddings, gives numbers that are not finite, or `old` is not a
        weight.
    """
    through = _ThroughHead(copy.deepcopy(head).float(), as_weight(old)).eval()
    old_network = catalogue.backbone
    try:
        with torch.inference_mode():
            vectors = through(catalogue.img_emb_tensors).numpy()
    except RuntimeError as error:
        raise ValueError(f"the head does not fit embeddings of {old_network.n_features:,} features "
                         f"({error}): train it on this catalogue") from None
    if not np.isfinite(vectors).all():
        raise ValueError("the head gives numbers that are not finite: train it again")
    content = hashlib.sha256(f"{old_network.fingerprint} {old}".encode())
    for key, value in head.state_dict().items():
        content.update(key.encode() + value.float().contiguous().numpy().tobytes())
    backbone = dataclasses.replace(
        old_network, network=nn.Sequential(old_network.network, through),
        n_features=vectors.shape[1], weights=f"{old_network.weights}, with a head",
        fingerprint=content.hexdigest()[:16])
    seen = dataclasses.replace(catalogue, img_emb_tensors=torch.from_numpy(vectors),
                               about=backbone.about)
    seen.backbone = backbone
    return seen
