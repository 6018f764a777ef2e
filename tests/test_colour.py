"""Colour beside the network's vector: on three sorts of folders, by whatever way one asks."""
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import helpers
from helpers import nearest, open_catalogue, pil_loader
from lookalike import colour
from lookalike.colour import colour_histogram, side_by_side


def garment(colour, ground="white"):
    """A square on a ground."""
    photo = Image.new("RGB", (300, 400), ground)
    photo.paste(colour, (70, 95, 230, 305))
    return photo


def apart(one, other):
    return float(((colour_histogram(one) - colour_histogram(other)) ** 2).sum())


# ---- the numbers -----------------------------------------------------------------------------
def test_its_length_is_1_and_equal_colours_are_near():
    red = garment("red")
    assert np.linalg.norm(colour_histogram(red)) == pytest.approx(1)
    assert apart(red, red) == 0 and apart(red, garment((230, 20, 20))) < 0.8
    assert apart(red, garment("blue")) == pytest.approx(2, abs=0.5)
    flat = [Image.new("RGB", (40, 60), colour) for colour in ("red", "blue")]
    assert apart(*flat) == pytest.approx(2)


def test_neither_size_nor_border_decide():
    red = garment("red")
    assert apart(red, red.resize((900, 1200))) < 0.01
    middle = red.crop((75, 100, 225, 300))
    for ground in ("black", "green"):
        framed = Image.new("RGB", red.size, ground)
        framed.paste(middle, (75, 100))
        assert apart(red, framed) < 0.01


@pytest.mark.parametrize("size", [(1, 1), (1, 20), (30, 3)])
def test_small_pictures(size):
    assert np.linalg.norm(colour_histogram(Image.new("RGB", size, "red"))) == pytest.approx(1)


def test_gray_and_transparent_photos(tmp_path):
    garment("gray").convert("L").save(tmp_path / "gray.png")
    assert apart(pil_loader(tmp_path / "gray.png"), garment("gray")) < 0.01
    Image.new("RGBA", (300, 400), (0, 0, 0, 0)).save(tmp_path / "nothing.png")
    assert apart(pil_loader(tmp_path / "nothing.png"), Image.new("RGB", (300, 400), "white")) == 0


def test_side_by_side_adds_the_distances_by_their_weights():
    a, b = torch.rand(2, 5), torch.rand(2, 3)
    unit_a, unit_b = (torch.nn.functional.normalize(one) for one in (a, b))
    both = side_by_side((a, 1), (b, 0.3))
    expected = ((unit_a[0] - unit_a[1]) ** 2).sum() + 0.09 * ((unit_b[0] - unit_b[1]) ** 2).sum()
    assert ((both[0] - both[1]) ** 2).sum() == pytest.approx(float(expected), rel=1e-4)


# ---- the recommender -------------------------------------------------------------------------
def flat(folder, photos):
    """As from a camera, one of them gray, one no photo, one a copy."""
    for path in sorted(photos.glob("*.jpg"))[:24]:
        shutil.copy(path, folder)
    (folder / "broken.jpg").write_text("no photo")
    shutil.copy(folder / "hat-00.jpg", folder / "z.jpg")


def in_classes(folder, photos):
    for path in photos.glob("*-0[01].jpg"):
        (folder / path.name[:-7]).mkdir(exist_ok=True)
        Image.open(path).convert("RGB").save(folder / path.name[:-7] / f"{path.stem}.png")


def with_a_table(folder, photos):
    shutil.copytree(photos, folder, dirs_exist_ok=True)


@pytest.mark.parametrize("fill", [flat, in_classes, with_a_table], ids=lambda fill: fill.__name__)
def test_any_folder_has_the_dial(known, fill, home, photos, capsys):
    (home / "mine").mkdir()
    fill(home / "mine", photos)
    plain = open_catalogue(home / "mine")
    coloured = open_catalogue(home / "mine", colour=0.3)
    assert coloured.img_names == plain.img_names and coloured.skipped == plain.skipped
    assert coloured.img_emb_tensors.shape[1] == plain.img_emb_tensors.shape[1] + 343
    assert repr(coloured).endswith(", and colour with a weight of 0.3")
    capsys.readouterr()
    assert torch.equal(open_catalogue(home / "mine", colour=0.3).img_emb_tensors,
                       coloured.img_emb_tensors)
    assert "Photos to vectors" not in capsys.readouterr().out, "kept, as vectors are"
    assert open_catalogue(home / "mine").about == plain.about, "colour is no network"


def test_what_changes_before_its_colour_is_counted_is_left_out(known, home, photos, monkeypatch):
    """Never one photo's vector beside another's colour."""
    (home / "mine").mkdir()
    flat(home / "mine", photos)
    open_catalogue(home / "mine")
    embed_folder = colour.embed_folder

    def meanwhile(*args):
        shutil.copy(home / "mine" / "hat-00.jpg", home / "mine" / "bag-00.jpg")
        (home / "mine" / "bag-01.jpg").unlink()
        return embed_folder(*args)

    monkeypatch.setattr(colour, "embed_folder", meanwhile)
    catalogue = open_catalogue(home / "mine", colour=0.3)
    assert {"bag-00.jpg", "bag-01.jpg", "broken.jpg"} == catalogue.skipped.keys()
    assert len(catalogue.img_names) == len(catalogue.img_emb_tensors) == len(catalogue.photos) == 23


def test_all_of_them_change_before_their_colour_is_counted(known, home, photos, monkeypatch):
    (home / "mine").mkdir()
    shutil.copy(photos / "hat-00.jpg", home / "mine")
    embed_folder = colour.embed_folder

    def meanwhile(*args):
        shutil.copy(photos / "bag-00.jpg", home / "mine" / "hat-00.jpg")
        return embed_folder(*args)

    monkeypatch.setattr(colour, "embed_folder", meanwhile)
    with pytest.raises(ValueError, match="mine: its photos were changed.*open it again"):
        open_catalogue(home / "mine", colour=0.3)


def test_colour_decides_between_two_of_a_kind(known, home, photos):
    """Of one shape in six colours, the nearest is the one of nearly the query's colour."""
    (home / "mine").mkdir()
    for name, hue in {"a red": "red", "blue": "blue", "green": "green", "yellow": "yellow",
                      "another red": (235, 25, 25), "black": "black"}.items():
        garment(hue, "lightgray").save(home / "mine" / f"{name}.png")
    catalogue = open_catalogue(home / "mine", colour=1)
    assert nearest(0, 6, 1, catalogue)[0].name == "another red.png"
    by_path = nearest(home / "mine" / "a red.png", 6, 5, catalogue)
    assert by_path == nearest(0, 6, 5, catalogue)


def test_asked_from_outside_in_every_way(known, home, photos):
    """A path, an upload and a PIL image of a new photo get the same answers, colour counted."""
    catalogue, new = open_catalogue(photos, colour=0.3), photos / "new-00.jpg"
    upload = SimpleNamespace(value=({"name": "new.jpg", "content": new.read_bytes()},))
    photo = pil_loader(new)
    vector = side_by_side((catalogue.backbone.embed([photo]), 1),
                          (torch.from_numpy(colour_histogram(photo))[None], 0.3))
    expected = ((catalogue.pca.transform(vector.numpy()) - catalogue.compressed) ** 2).sum(axis=1)
    for query in (new, str(new), upload, photo):
        found = nearest(query, 56, catalogue=catalogue)
        assert [one.index for one in found] == np.argsort(expected)[:4].tolist()
    assert len(nearest([3, new], 56, catalogue=catalogue)) == 4


@pytest.mark.parametrize("weight", [-0.1, 101, "much", None, True, float("nan"), 10**400])
def test_weights_that_are_none(known, home, photos, weight):
    if weight is None:
        assert open_catalogue(photos, colour=weight).colour == 0
    else:
        with pytest.raises(ValueError, match="a weight is .*, and must be a number from 0"):
            open_catalogue(photos, colour=weight)
    assert helpers.opened == []
