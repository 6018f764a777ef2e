"""Vectors: concatenated, their nearest neighbours, and how good these are by their labels."""
import os

import numpy as np
import pytest
import torch

from lookalike.extraction import extract_embeddings
from lookalike.folders import from_here
from lookalike.recommender import open_catalogue
from lookalike.vectors import chance_precision, concatenate, has_category, interval
from lookalike.vectors import label_precision, nearest_of_each

NAN = float("nan")


def test_concatenation_adds_the_distances_by_their_weights():
    a, b = torch.rand(2, 5), np.random.default_rng(0).random((2, 3))
    both = concatenate((a, 1), (b, 0.3))
    unit_a, unit_b = a / a.norm(dim=1, keepdim=True), b / np.linalg.norm(b, axis=1, keepdims=True)
    expected = ((unit_a[0] - unit_a[1]) ** 2).sum() + 0.09 * ((unit_b[0] - unit_b[1]) ** 2).sum()
    assert both.dtype == np.float32 and both.shape == (2, 8)
    assert ((both[0] - both[1]) ** 2).sum() == pytest.approx(float(expected), rel=1e-4)
    assert not concatenate((np.zeros((1, 3)), 1), (torch.zeros(1, 2).bfloat16(), 2)).any()


@pytest.mark.parametrize("weight", [-0.1, 101, "much", None, True, NAN, 10**400])
def test_weights_that_are_none(weight):
    with pytest.raises(ValueError, match="a weight is .*must be a number from 0 .* to 100"):
        concatenate((np.eye(2), weight))


# ---- nearest neighbours ----------------------------------------------------------------------
def test_duplicates_are_neighbours_and_a_photo_never_its_own():
    found = nearest_of_each(np.float32([[0, 0], [0, 0], [0, 0], [5, 5], [5, 6]]), 2)
    assert all(i not in row for i, row in enumerate(found))
    assert [set(row) for row in found[:3].tolist()] == [{1, 2}, {0, 2}, {0, 1}]


def test_neighbours_are_of_other_groups():
    vectors = np.float32([[0], [1], [2], [4], [8], [16]])
    assert nearest_of_each(vectors, 2, ["a", "a", "b", "b", "", None]).tolist() == [
        [2, 3], [2, 3], [1, 0], [1, 0], [3, 2], [4, 3]]
    assert nearest_of_each(vectors, 5, [1, 1, 1, 2, NAN, NAN]).shape == (6, 3), "all have three"
    assert nearest_of_each(vectors, 1, [NAN, np.datetime64("NaT")] * 3).tolist() == \
        nearest_of_each(vectors, 1).tolist()
    with pytest.raises(ValueError, match="all photos are in one group"):
        nearest_of_each(vectors, 5, ["a"] * 6)


# ---- quality ---------------------------------------------------------------------------------
def test_label_precision_by_hand():
    vectors = torch.tensor([[0.0], [1.0], [2.1], [10.0], [11.0], [99.0]])
    labels = ["a", "a", "b", "b", "a", "Not sure"]
    # nearest: 0->1 (a, right), 1->0 (a, right), 2->1 (a, wrong), 3->4 (a, wrong), 4->3 (b, wrong)
    assert label_precision(vectors, labels, k=1) == pytest.approx(2 / 5)
    # 0 and 1 by one person: 0->2 (b, wrong), 1->2 (b, wrong)
    assert label_precision(vectors, labels, 1, ["x", "x", "y", "z", "", ""]) == 0


@pytest.mark.parametrize("labels, right", [("AB", 0), ("AABB", 1 / 3), ("AA", 1)])
def test_sets_smaller_than_k(labels, right):
    """Searched for five of two photos, faiss fills up with -1, the last photo for Python."""
    vectors = np.arange(len(labels), dtype=np.float32)[:, None]
    assert label_precision(vectors, list(labels)) == pytest.approx(right)
    assert chance_precision([*labels, "Other"]) == pytest.approx(right)


def test_labels_that_name_no_category():
    none = ["Not sure", "Other", "skip", "", " ", None, NAN]
    assert has_category(["Hat", *none, "Skirt"]).tolist() == [True, *[False] * len(none), True]
    with pytest.raises(ValueError, match="1 of 3 photos have a label that names a category"):
        label_precision(np.zeros((3, 2), np.float32), ["Hat", "Other", ""])


@pytest.mark.parametrize("vectors, labels, k, why", [
    (np.full((4, 3), np.nan), "aabb", 5, "not finite"), (np.eye(4), "aabb", 0, "k=0: k must"),
    (np.eye(4), "aab", 5, "4 vectors and 3 labels")])
def test_what_has_no_precision(vectors, labels, k, why):
    """Of vectors that are not finite faiss finds -1, the last photo for Python."""
    with pytest.raises(ValueError, match=why):
        label_precision(vectors.astype(np.float32), list(labels), k)


def test_intervals_resample_people():
    low, high = interval([0.0, 1.0] * 50, [*range(100)])
    wide = interval([0.0] * 50 + [1.0] * 50, ["a"] * 50 + ["b"] * 50)
    assert 0.35 < low < 0.5 < high < 0.65 and wide == (0, 1)
    assert np.isnan(interval([0.5, 0.6], ["a", "a"])).all()
    with pytest.raises(ValueError, match="2 values and 1 people"):
        interval([0.5, 0.6], ["a"])


@pytest.mark.slow
def test_the_shipped_vectors_are_the_photos_and_as_good_as_the_readme_says(backbone, request):
    images = from_here(os.environ.get("FASHION_IMAGES") or "images").resolve()
    request.getfixturevalue("home")
    catalogue = open_catalogue(images) if images.is_dir() else None
    if not catalogue or len(catalogue.img_names) != 5398:
        pytest.skip("needs the real photos: set FASHION_IMAGES, or let a notebook download them")
    files = [images / name for name in catalogue.img_names[::500]]
    again = extract_embeddings(files, backbone).img_emb_tensors
    close = torch.nn.functional.cosine_similarity(again, catalogue.img_emb_tensors[::500])
    assert close.min() > 0.999 and len(catalogue.new_photos) == 357
    measured = catalogue.vectors(300), catalogue.labels
    assert label_precision(*measured) == pytest.approx(0.709, abs=0.003)
    assert label_precision(*measured, groups=catalogue.column("sender_id")) == pytest.approx(
        0.670, abs=0.003)
