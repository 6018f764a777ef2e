"""Colour: 27 numbers per photo, and what they do beside the factors."""
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from lookalike import build_compressed_index, nearest, open_catalogue, pil_loader, recommender
from lookalike.colour import colour_histogram
from lookalike.vectors import concatenate


def garment(colour, background="white"):
    """A rectangle on a background: two fifths of the middle half of the photo."""
    photo = Image.new("RGB", (300, 400), background)
    photo.paste(colour, (100, 140, 200, 260))
    return photo


def apart(one, other):
    return float(((colour_histogram(one) - colour_histogram(other)) ** 2).sum())


# ---- the numbers -----------------------------------------------------------------------------
@pytest.mark.parametrize("size", [(300, 400), (1, 1), (1, 20), (30, 3)])
def test_27_numbers_of_length_1(size):
    numbers = colour_histogram(Image.new("RGB", size, "red"))
    assert numbers.shape == (27,) and numbers.dtype == np.float32 and (numbers >= 0).all()
    assert np.linalg.norm(numbers) == pytest.approx(1)


def test_equal_colours_are_near():
    red = garment("red")
    assert apart(red, red) == 0 and apart(red, garment((235, 15, 15))) < 0.1
    assert apart(red, garment("blue")) > 1
    assert apart(*[Image.new("RGB", (40, 60), one) for one in ("black", "yellow")]) > 1.9


def test_neither_size_nor_border_decide():
    red = garment("red", "lightgrey")
    assert apart(red, red.resize((900, 1200))) < 0.01
    for border in ("black", "green"):
        framed = Image.new("RGB", red.size, border)
        framed.paste(red.crop((75, 100, 225, 300)), (75, 100))
        assert apart(red, framed) < 0.01


def test_near_white_counts_only_where_there_is_hardly_anything_else():
    """So a red shirt on white is a red one, where on grey the background counts."""
    red = Image.new("RGB", (300, 400), "red")
    on_white, on_grey = garment("red"), garment("red", "lightgrey")
    assert apart(on_white, red) < 0.05 < 0.5 < apart(on_grey, red)
    assert apart(on_white, garment("red", (250, 250, 248))) < 0.01
    button = Image.new("RGB", (300, 400), "white")
    button.paste("red", (140, 190, 170, 220))  # 3% of the middle half
    assert apart(button, Image.new("RGB", (300, 400), "white")) < 0.1 < apart(button, red)


def test_grey_and_transparent_photos(tmp_path):
    garment("grey").convert("L").save(tmp_path / "grey.png")
    assert apart(pil_loader(tmp_path / "grey.png"), garment("grey")) < 0.01
    Image.new("RGBA", (300, 400), (0, 0, 0, 0)).save(tmp_path / "nothing.png")
    assert apart(pil_loader(tmp_path / "nothing.png"), Image.new("RGB", (300, 400), "white")) == 0


# ---- the recommender -------------------------------------------------------------------------
def test_without_colour_the_distances_are_the_articles(catalogue):
    """To the digit; with it, they are the two parts' squared distances, each of length 1."""
    pca, index = build_compressed_index(30, catalogue)
    D, I = index.search(pca.transform(catalogue.img_emb_tensors[7:8].numpy()), 6)
    for found in (nearest(7, 30, 5, catalogue), nearest(7, 30, 5, catalogue, colour=0)):
        assert [one.index for one in found] == I[0][1:].tolist()
        assert [one.distance for one in found] == pytest.approx(D[0][1:], rel=1e-5)
    factors = catalogue.compressed[:, :30]
    factors = factors / np.linalg.norm(factors, axis=1, keepdims=True)
    expected = ((factors - factors[7]) ** 2).sum(1) + 0.25 * (
        (catalogue.colours - catalogue.colours[7]) ** 2).sum(1)
    found = nearest(7, 30, 5, catalogue, colour=0.5)
    assert [one.index for one in found] == np.argsort(expected)[1:6].tolist()
    assert [one.distance for one in found] == pytest.approx(np.sort(expected)[1:6], rel=1e-4)


def test_colours_are_those_of_the_photos_and_stored(known, home, photos):
    """Made at the first search, where a photo was embedded before; else along with it."""
    catalogue = open_catalogue(photos)
    for i, colours in enumerate(catalogue.colours):
        assert (colours == colour_histogram(catalogue.photo(i))).all()
    shutil.copytree(photos, home / "mine")
    for name in ("new-00.jpg", "new-01.jpg"):
        (home / "mine" / name).unlink()
    garment("red").save(home / "mine" / "z.png")
    mine = open_catalogue(home / "mine", labels=lambda name: "a")
    shutil.rmtree(home / "mine")
    assert (mine.colours[:-1] == catalogue.colours).all()
    assert (mine.colours[-1] == colour_histogram(garment("red"))).all()


def test_a_photo_that_is_gone_or_changed_has_no_colours(known, home, photos, capsys):
    """Never one photo's vector beside another's colour."""
    shutil.copytree(photos, home / "mine")
    catalogue = open_catalogue(home / "mine")
    shutil.copy(photos / "hat-00.jpg", home / "mine" / "bag-00.jpg")
    (home / "mine" / "bag-01.jpg").unlink()
    assert catalogue.colours.any(axis=1).sum() == 54 and not catalogue.colours[:2].any()
    assert "of 2 photos are unknown" in capsys.readouterr().out
    assert len(nearest(0, 30, 4, catalogue, colour=1)) == 4


def test_colour_decides_between_two_of_a_category(home, tiny):
    """Of one shape in six colours, the nearest is the one of nearly the query's colour."""
    (home / "mine").mkdir()
    for name, colour in {"a red": "red", "blue": "blue", "green": "green", "yellow": "yellow",
                         "another red": (235, 25, 25), "black": "black"}.items():
        garment(colour, "lightgrey").save(home / "mine" / f"{name}.png")
    catalogue = open_catalogue(home / "mine", tiny)
    assert nearest(0, 6, 1, catalogue, colour=1)[0].name == "another red.png"


def test_a_query_from_outside_in_every_way(catalogue, photos):
    """A path, an upload and an image of a new photo get the same answers, colour counted."""
    new = photos / "new-00.jpg"
    upload = SimpleNamespace(value=({"name": "new.jpg", "content": new.read_bytes()},))
    photo = pil_loader(new)
    factors = catalogue.pca.transform(catalogue.backbone.embed([photo]).numpy())
    vector = concatenate((factors, 1), (colour_histogram(photo)[None], 0.3))
    expected = ((vector - catalogue.vectors(56, 0.3)) ** 2).sum(axis=1)
    for query in (new, str(new), upload, photo):
        found = nearest(query, 56, catalogue=catalogue, colour=0.3)
        assert [one.index for one in found] == np.argsort(expected)[:4].tolist()
    liked = nearest([3, new], 56, catalogue=catalogue, colour=0.3)
    mean = (vector + catalogue.vectors(56, 0.3)[3]) / 2
    expected = ((mean - catalogue.vectors(56, 0.3)) ** 2).sum(axis=1)
    assert [one.index for one in liked] == [i for i in np.argsort(expected) if i != 3][:4]


@pytest.mark.parametrize("weight", [-0.1, 101, "much", None, True, float("nan"), 10**400], ids=str)
def test_what_is_not_a_weight(catalogue, weight):
    with pytest.raises(ValueError, match="a weight is .*. It must be a number from 0"):
        nearest(0, 10, catalogue=catalogue, colour=weight)
    assert recommender.opened == [catalogue]
