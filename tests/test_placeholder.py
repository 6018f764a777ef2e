"""The drawn garments: enough of them, always the same, with neighbours that make sense."""
import csv
import hashlib

import numpy as np
import pytest
from PIL import Image

from lookalike.placeholder import CATEGORIES, draw_catalogue
from lookalike.vectors import label_precision


def test_fourteen_categories_with_labels_and_some_grey(photos):
    with open(photos / "images.csv", encoding="utf-8") as f:
        labels = [row["label"] for row in csv.DictReader(f)]
    assert len(CATEGORIES) == 14 and len(labels) == 56 and {*labels} == {*CATEGORIES}
    pictures = [Image.open(path) for path in photos.glob("*.jpg")]
    modes = [picture.mode for picture in pictures]
    assert modes.count("L") == 2 and modes.count("RGB") == 56
    assert {picture.size for picture in pictures} == {(300, 400)}


def test_the_whole_catalogue_has_over_600(tmp_path):
    drawn = []
    draw_catalogue(tmp_path, progress=lambda categories: drawn.extend(categories) or [])
    assert len(drawn) == 660 and all(drawn.count(one) > 40 for one in CATEGORIES)


def test_always_the_same(photos, tmp_path):
    def sums(folder):
        return {hashlib.sha256(path.read_bytes()).digest() for path in folder.glob("*-00.jpg")}

    assert sums(draw_catalogue(tmp_path, per_category=1, new=0)) < sums(photos)


def test_no_two_are_alike(photos):
    small = [np.asarray(Image.open(path).convert("RGB").resize((30, 40)), int)
             for path in photos.glob("*.jpg")]
    assert min(abs(a - b).mean() for i, a in enumerate(small) for b in small[:i]) > 2


def test_an_interrupted_drawing_is_seen(tmp_path):
    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_catalogue(tmp_path, per_category=1, new=0, progress=stop)
    assert not (tmp_path / "images.csv").exists()


def test_neighbours_are_of_the_same_category(embedded):
    names, vectors = embedded
    assert label_precision(vectors, [name[:-7] for name in names], k=1) > 0.6  # by chance 0.05
