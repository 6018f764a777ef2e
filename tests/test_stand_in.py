"""The stand-in catalogue: enough garments, always the same, and neighbours that make sense."""

import hashlib

import numpy as np
import pytest
from PIL import Image

import helpers
from lookalike.stand_in import KINDS, draw_catalogue


def test_fourteen_kinds_with_labels_and_some_gray(photos):
    labels = helpers.read_labels(photos)
    assert len(KINDS) == 14 and len(labels) == 56 and set(labels.values()) == set(KINDS)
    modes = [Image.open(path).mode for path in photos.glob("*.jpg")]
    assert modes.count("L") == 2 and modes.count("RGB") == 56
    assert {Image.open(path).size for path in photos.glob("*.jpg")} == {(300, 400)}


def test_the_whole_catalogue_has_over_600():
    assert len(KINDS) * draw_catalogue.__defaults__[0] >= 600


@pytest.mark.slow
def test_always_the_same(photos, tmp_path):
    again = draw_catalogue(tmp_path, a_kind=4, new=2)
    assert [hashlib.sha256(p.read_bytes()).digest() for p in sorted(photos.iterdir())] == [
        hashlib.sha256(p.read_bytes()).digest() for p in sorted(again.iterdir())
    ]


def test_no_two_are_alike(photos):
    small = {
        path.name: np.asarray(Image.open(path).convert("RGB").resize((30, 40)), int)
        for path in photos.glob("*.jpg")
    }
    names = sorted(small)
    assert min(abs(small[a] - small[b]).mean() for i, a in enumerate(names) for b in names[:i]) > 2


def test_an_interrupted_drawing_is_seen(tmp_path, monkeypatch):
    def stop(_):
        raise KeyboardInterrupt

    try:
        draw_catalogue(tmp_path, a_kind=1, new=0, progress=stop)
    except KeyboardInterrupt:
        pass
    assert not (tmp_path / "images.csv").exists()


def test_neighbours_are_of_the_same_kind(photos, embedded):
    img_names, img_emb_tensors = embedded
    labels = list(map(helpers.read_labels(photos).get, img_names))
    assert helpers.label_precision(img_emb_tensors, labels, k=1) > 0.6  # by chance 0.07
