"""How good the neighbours are, by their labels."""
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import helpers
from lookalike.folders import from_here, scan
from lookalike.quality import has_kind, interval, label_precision, nearest_of_each


def test_label_precision_by_hand():
    vectors = torch.tensor([[0.0], [1.0], [2.1], [10.0], [11.0], [99.0]])
    labels = ["a", "a", "b", "b", "a", "Not sure"]
    # nearest: 0->1 (a, right), 1->0 (a, right), 2->1 (a, wrong), 3->4 (a, wrong), 4->3 (b, wrong)
    assert label_precision(vectors, labels, k=1) == pytest.approx(2 / 5)


@pytest.mark.parametrize("labels, right", [("AB", 0), ("AABB", 1 / 3), ("AA", 1)])
def test_sets_smaller_than_k(labels, right):
    """Asked for five of two photos, faiss fills up with -1, the last photo for Python."""
    vectors = np.arange(len(labels), dtype=np.float32)[:, None]
    assert label_precision(vectors, list(labels)) == pytest.approx(right)


def test_labels_that_name_no_kind():
    none = ["Not sure", "Other", "skip", "", " ", None, float("nan")]
    assert has_kind(["Hat", *none, "Skirt"]).tolist() == [True, *[False] * len(none), True]
    with pytest.raises(ValueError, match="1 of 3 photos have a label that names a kind"):
        label_precision(np.zeros((3, 2), np.float32), ["Hat", "Other", ""])


def test_duplicates_are_neighbours_and_a_photo_never_its_own():
    vectors = np.float32([[0, 0], [0, 0], [0, 0], [5, 5], [5, 6]])
    found = nearest_of_each(vectors, 2)
    assert all(i not in row for i, row in enumerate(found))
    assert [set(row) for row in found[:3].tolist()] == [{1, 2}, {0, 2}, {0, 1}]


@pytest.mark.parametrize("vectors, labels, k, why", [
    (np.full((4, 3), np.nan), "aabb", 5, "not finite"), (np.eye(4), "aabb", 0, "k is 0"),
    (np.eye(4), "aab", 5, "4 vectors and 3 labels")])
def test_what_has_no_precision(vectors, labels, k, why):
    """Of vectors that are not finite faiss finds -1, the last photo for Python."""
    with pytest.raises(ValueError, match=why):
        label_precision(vectors.astype(np.float32), list(labels), k)


def test_one_person_gives_no_interval():
    assert np.isnan(interval([0.5, 0.6], ["a", "a"])).all()
    with pytest.raises(ValueError, match="2 values and 1 names"):
        interval([0.5, 0.6], ["a"])


@pytest.mark.slow
def test_the_shipped_vectors_are_the_photos_and_as_good_as_the_readme_says(backbone):
    images = from_here(os.environ.get("FASHION_IMAGES") or "images")
    names, vectors = helpers.load_embeddings(helpers.EMB_FILENAME)
    names = [Path(name).name for name in names]
    if not (images / names[0]).is_file():
        pytest.skip("needs the real photos: set FASHION_IMAGES, or let a notebook download them")
    again = helpers.extract_embeddings(names[::500], backbone, images).img_emb_tensors
    assert torch.nn.functional.cosine_similarity(again, vectors[::500]).min() > 0.9999
    labels = list(map(scan(images).labels.get, names))
    compressed = helpers.Catalogue(images, names, vectors, labels, {}).compressed[:, :300]
    assert label_precision(compressed, labels) == pytest.approx(0.709, abs=0.003)
