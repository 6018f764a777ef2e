"""The stand-in catalogue: enough garments, always the same, and neighbours that make sense."""
import hashlib

import numpy as np
import pytest
from PIL import Image

from helpers import label_precision, scan
from lookalike.stand_in import KINDS, draw_catalogue


def test_fourteen_kinds_with_labels_and_some_gray(photos):
    labels = scan(photos).labels
    assert len(KINDS) == 14 and len(labels) == 56 and {*labels.values()} == {*KINDS}
    pictures = [Image.open(path) for path in photos.glob("*.jpg")]
    modes = [picture.mode for picture in pictures]
    assert modes.count("L") == 2 and modes.count("RGB") == 56
    assert {picture.size for picture in pictures} == {(300, 400)}


def test_the_whole_catalogue_has_over_600(tmp_path):
    asked = []
    draw_catalogue(tmp_path, progress=lambda kinds: asked.extend(kinds) or [])
    assert len(asked) > 600 and all(asked.count(kind) > 40 for kind in KINDS)


def test_always_the_same(photos, tmp_path):
    def sums(folder):
        return {hashlib.sha256(path.read_bytes()).digest() for path in folder.glob("*-00.jpg")}

    assert sums(draw_catalogue(tmp_path, a_kind=1, new=0)) < sums(photos)


def test_no_two_are_alike(photos):
    small = [np.asarray(Image.open(path).convert("RGB").resize((30, 40)), int)
             for path in photos.glob("*.jpg")]
    assert min(abs(a - b).mean() for i, a in enumerate(small) for b in small[:i]) > 2


def test_an_interrupted_drawing_is_seen(tmp_path):
    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_catalogue(tmp_path, a_kind=1, new=0, progress=stop)
    assert not (tmp_path / "images.csv").exists()


def test_neighbours_are_of_the_same_kind(photos, embedded):
    names, vectors = embedded
    assert label_precision(vectors, [*map(scan(photos).labels.get, names)], k=1) > 0.6  # 0.07
