"""Training a head on embeddings, and the catalogue seen through it."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.model_selection import StratifiedGroupKFold
from torch import nn

from lookalike import nearest, open_catalogue
from lookalike.placeholder import draw_catalogue
from lookalike.tuning import projection_head, train_epochs, with_head
from lookalike.vectors import label_precision

LABELS = np.repeat(["Hat", "Shoes", "Dress"], 20)
RNG = np.random.default_rng(0)
# 60 vectors, a third around each of three points, with so much noise that they mix
VECTORS = torch.tensor(np.repeat(RNG.normal(size=(3, 1280)), 20, axis=0)
                       + RNG.normal(size=(60, 1280)) * 4, dtype=torch.float32)


def new_head():
    torch.manual_seed(1)
    return projection_head(1280)


def trained(epochs=3, **options):
    """A head, and the loss after each epoch."""
    head = new_head()
    return head, list(train_epochs(head, VECTORS, LABELS, epochs, **options))


@pytest.fixture(scope="module")
def head():
    return trained()[0]


# ---- training --------------------------------------------------------------------------------
def test_the_loss_falls_and_every_vector_has_the_same_length():
    head, losses = trained(epochs=8)
    assert losses[-1] < losses[0]
    with torch.inference_mode():
        assert torch.allclose(head(VECTORS).norm(dim=1), torch.tensor(512**0.5), rtol=1e-3)


def test_the_loss_is_supervised_contrastive_at_a_temperature_of_a_tenth():
    """By hand, of a network that changes nothing, before its first step."""
    x = nn.functional.normalize(VECTORS)
    layer = nn.Linear(1280, 1280, bias=False)
    nn.init.eye_(layer.weight)
    loss, = train_epochs(layer, x, LABELS, 1)
    logits = (x @ x.T / 0.1).fill_diagonal_(-torch.inf)
    same = torch.from_numpy(LABELS[:, None] == LABELS).fill_diagonal_(False)
    assert loss == pytest.approx(-logits.log_softmax(1)[same].mean().item(), rel=1e-3)


def test_a_step_falls_to_zero_along_a_cosine():
    """A network that only adds up: AdamW's first steps are as long as the learning rate."""
    layer, lengths, before = nn.Linear(1280, 8, bias=False), [], None
    for _ in train_epochs(layer, VECTORS, LABELS, epochs=20, learning_rate=1e-3):
        after = layer.weight.detach().clone()
        lengths += [] if before is None else [(after - before).norm().item()]
        before = after
    assert lengths[-1] < 0.05 * max(lengths)


def test_the_seed_decides_order_and_dropout():
    """Whatever was sampled before."""
    losses = []
    for seed, before in ((0, 1), (0, 2), (5, 1)):
        head = new_head()
        torch.manual_seed(before)
        losses.append(list(train_epochs(head, VECTORS, LABELS, 2, batch=20, seed=seed)))
    assert losses[0] == losses[1] != losses[2]


def test_the_caller_may_look_after_each_epoch_and_stop():
    head = new_head()
    next(train_epochs(head, VECTORS, LABELS))
    assert not any(module.training for module in head.modules())


def test_a_last_batch_of_one_does_not_stop_the_training():
    assert np.isfinite(trained(epochs=1, batch=59)[1]).all()


@pytest.mark.parametrize("labels, message", [(["Hat"] * 60, "of 1 categories"),
                                             (["Hat", "Shoes"], "60 inputs and 2 labels")])
def test_nothing_to_tell_apart(labels, message):
    with pytest.raises(ValueError, match=message):
        next(train_epochs(new_head(), VECTORS, labels))


# ---- the catalogue seen through a head -------------------------------------------------------
@pytest.mark.parametrize("old", [0, 0.7])
def test_everything_works_as_in_the_catalogue_below(known, photos, head, old):
    """Labels, groups, colours, and queries from outside, which go through the head as well."""
    below = open_catalogue(photos, groups="sender_id")
    seen = with_head(below, head, old)
    assert seen.img_emb_tensors.shape == (56, 512 + 1280 * bool(old))
    assert (seen.labels, seen.groups, seen.new_photos) == (below.labels, below.groups,
                                                           below.new_photos)
    assert (seen.colours == below.colours).all() and "with a head" in repr(seen)
    own = seen.photo(7)
    assert torch.allclose(seen.backbone.embed([own]), seen.img_emb_tensors[7:8], atol=1e-3)
    for query in (7, own):
        found = nearest(query, 30, 20, seen, colour=0.5)
        groups = [below.groups[one.index] for one in found]
        assert len({*groups}) == len(groups) > 5
    assert below.groups[7] not in [below.groups[one.index] for one in nearest(7, 30, 20, seen)]
    if old:  # the squared distances add up, each part scaled to its weight
        with torch.inference_mode():
            parts = below.img_emb_tensors, head(below.img_emb_tensors)
        (a, b), (c, d) = (nn.functional.normalize(one)[:2] for one in parts)
        one, other = seen.img_emb_tensors[:2]
        assert ((one - other)**2).sum().item() == pytest.approx(
            (old**2 * ((a - b)**2).sum() + ((c - d)**2).sum()).item(), rel=1e-3)


def test_the_fingerprint_covers_head_and_weight(catalogue, head):
    other = new_head()
    marks = [one.about["fingerprint"] for one in (
        catalogue, with_head(catalogue, head), with_head(catalogue, head, 0.5),
        with_head(catalogue, other), with_head(with_head(catalogue, nn.Identity()), head))]
    assert len({*marks}) == 5
    assert with_head(catalogue, head).about == with_head(catalogue, head, 0).about


def test_a_head_in_bfloat16(catalogue):
    """It is used in float32, and the reader's own stays as it is."""
    head = nn.Linear(1280, 8).bfloat16().train()
    half = with_head(catalogue, head, 0.5)
    assert half.img_emb_tensors.dtype == torch.float32
    assert len(nearest(catalogue.photo(3), 10, 4, half)) == 4
    assert head.weight.dtype == torch.bfloat16 and head.training


def test_heads_that_do_not_fit(catalogue, head):
    nan = new_head()
    nn.init.constant_(nan[2].bias, torch.nan)
    for wrong, old, words in ((projection_head(2048), 0, "does not fit embeddings of 1,280"),
                              (nan, 0, "not finite: train it again"), (head, -1, "a weight is -1"),
                              (head, float("nan"), "a weight is nan")):
        with pytest.raises(ValueError, match=words):
            with_head(catalogue, wrong, old)


@pytest.mark.slow
def test_held_out_precision_rises_on_drawn_garments(home, backbone):
    """A head trained on four fifths of the people, measured on the others."""
    folder = draw_catalogue(home / "drawn", per_category=10, new=0)
    catalogue = open_catalogue(folder, replace(backbone))
    y, people = np.array(catalogue.labels), catalogue.column("sender_id")
    train, held_out = next(StratifiedGroupKFold(5, shuffle=True, random_state=0).split(
        y, y, people))
    head = new_head()
    list(train_epochs(head, catalogue.img_emb_tensors[train], y[train], epochs=15))
    before, after = (label_precision(one.img_emb_tensors[held_out], y[held_out])
                     for one in (catalogue, with_head(catalogue, head)))
    assert after > before + 0.01, (before, after)
