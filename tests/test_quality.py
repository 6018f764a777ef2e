"""How good the neighbours are, by their labels."""

import numpy as np
import pytest
import torch

import helpers
from helpers import Catalogue, label_precision, nearest_of_each
from lookalike import HERE


def test_label_precision_by_hand():
    vectors = torch.tensor([[0.0], [1.0], [2.1], [10.0], [11.0], [99.0]])
    labels = ["a", "a", "b", "b", "a", "Not sure"]
    # nearest: 0->1 (a, right), 1->0 (a, right), 2->1 (a, wrong), 3->4 (a, wrong), 4->3 (b, wrong)
    assert label_precision(vectors, labels, k=1) == pytest.approx(2 / 5)


@pytest.mark.slow
def test_the_shipped_pickle_is_as_good_as_the_readme_says(backbone):
    names, vectors, about = helpers.read_embeddings(helpers.EMB_FILENAME)
    assert about["backbone"] == backbone.name and about["fingerprint"] == backbone.fingerprint
    catalogue = Catalogue(None, names, vectors, [about["labels"][name] for name in names], about)
    precision = label_precision(catalogue.compressed[:, :300], catalogue.labels)
    assert precision == pytest.approx(0.709, abs=0.003)
    notebook = (HERE / "notebooks" / "04_recommender.ipynb").read_text(encoding="utf-8")
    assert "P@5 at 300 factors: 0.709 over 5,096 photos of 17 kinds; by chance 0.106" in notebook


@pytest.mark.slow
def test_the_shipped_vectors_are_those_of_the_photos(backbone):
    from notebook_checks import reference

    if reference() != "saved":
        pytest.skip("needs the real photos: set FASHION_IMAGES, or let a notebook download them")
    images = helpers.get_images()
    names, vectors = helpers.load_embeddings(helpers.EMB_FILENAME)
    again = helpers.extract_embeddings(names[::500], backbone, images=images)[1]
    assert torch.nn.functional.cosine_similarity(again, vectors[::500]).min() > 0.9999


def test_duplicates_are_neighbours_and_a_photo_never_its_own():
    vectors = np.float32([[0, 0], [0, 0], [0, 0], [5, 5], [5, 6]])
    found = nearest_of_each(vectors, 2)
    assert all(i not in row for i, row in enumerate(found))
    assert [set(row) for row in found[:3].tolist()] == [{1, 2}, {0, 2}, {0, 1}]


@pytest.mark.parametrize("labels, right", [("AB", 0), ("AABB", 1 / 3), ("AA", 1)])
def test_sets_smaller_than_k(labels, right):
    """Asked for five of two photos, faiss fills up with -1, the last photo for Python."""
    vectors = np.arange(len(labels), dtype=np.float32)[:, None]
    assert label_precision(vectors, list(labels)) == pytest.approx(right)


@pytest.mark.parametrize("labels", [["", "", ""], ["Hat", "Other", ""]])
def test_no_labels_to_measure_by(labels):
    with pytest.raises(ValueError, match="of 3 photos have a label that names a kind"):
        label_precision(np.zeros((3, 2), np.float32), labels)
