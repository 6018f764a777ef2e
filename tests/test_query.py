"""What a reader searches with: numbers, paths, images, uploads, several of them, and mistakes."""
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lookalike.photos import BadPhoto, pil_loader
from lookalike.query import find
from lookalike.recommender import nearest, open_catalogue


def upload(path, name="IMG_1.jpg"):
    """As ipywidgets 8 gives it."""
    return {"name": name, "content": memoryview(path.read_bytes())}


@pytest.fixture
def mine(known, home, photos):
    """A folder of one's own, without a table: 58 photos, and copies of one of them."""
    shutil.copytree(photos, home / "mine")
    (home / "mine" / "images.csv").unlink()
    for folder in "ab":
        (home / "mine" / folder).mkdir()
        shutil.copy(photos / "hat-00.jpg", home / "mine" / folder / "x.jpg")
    shutil.copy(photos / "hat-00.jpg", home / "mine" / "a" / "once.jpg")
    return open_catalogue(home / "mine")


# ---- one photo -------------------------------------------------------------------------------
def test_a_photo_of_the_catalogue_by_whatever_way(catalogue, photos, home, monkeypatch):
    """A path, a link, another spelling, a copy, an upload: the query is that photo."""
    name = catalogue.img_names[7]
    shutil.copy(photos / name, home / "t-shirt.jpg")
    (home / "a link.jpg").symlink_to(photos / name)
    monkeypatch.chdir(photos.parent)
    for query in (7, np.int64(7), np.array(7), torch.tensor(7), str(photos / name), photos / name,
                  name, f"images/../images/{name}", "t-shirt.jpg", home / "a link.jpg",
                  upload(photos / name), (upload(photos / name),),
                  SimpleNamespace(value=(upload(photos / name),))):
        assert find(query, catalogue) == [7], query
    found = find(query, catalogue)
    assert find(found, catalogue) == found, "what was found can be searched with"


def test_a_bare_file_name(mine):
    """One that occurs once is found; of several, none is picked."""
    hat = mine.img_names.index("a/once.jpg")
    assert find("once.jpg", mine) == find("hat-00.jpg", mine) == find("b/x.jpg", mine) == [hat]
    with pytest.raises(ValueError, match="2 photos are called 'x.jpg': pass the path of one, for "
                                         "example 'a/x.jpg'"):
        find("x.jpg", mine)


def test_a_photo_that_was_changed_since_the_opening_is_another(mine, photos):
    name = mine.img_names[7]
    shutil.copy(photos / "new-00.jpg", mine.images / name)
    assert find(mine.images / name, mine) == [mine.img_names.index("new-00.jpg")]
    Image.new("RGB", (9, 9)).save(mine.images / name)
    (found,) = find(name, mine)
    assert found.size == (9, 9)


def test_a_photo_from_outside_loses_no_neighbour(catalogue, photos):
    new = photos / "new-00.jpg"
    vector = catalogue.pca.transform(catalogue.backbone.embed([pil_loader(new)]).numpy())[:, :30]
    expected = ((catalogue.compressed[:, :30] - vector) ** 2).sum(axis=1).argsort()[:4]
    for query in (new, str(new), upload(new), Image.open(new)):
        assert [one.index for one in nearest(query, 30)] == expected.tolist()


# ---- several photos --------------------------------------------------------------------------
def test_several_photos_count_by_their_mean(catalogue, photos):
    new = photos / "new-00.jpg"
    outside = catalogue.pca.transform(catalogue.backbone.embed([pil_loader(new)]).numpy())
    two, with_new = catalogue.compressed[[3, 17]], np.vstack([catalogue.compressed[[3]], outside])
    for query, vectors in (([3, 17], two), ([3, 3, photos / catalogue.img_names[3], 17], two),
                           ([3, str(new)], with_new), ((3, Image.open(new)), with_new)):
        mean = vectors[:, :30].mean(axis=0)
        distances = ((catalogue.compressed[:, :30] - mean) ** 2).sum(axis=1)
        distances[[3, 17] if vectors is two else [3]] = np.inf
        assert [one.index for one in nearest(query, 30)] == distances.argsort()[:4].tolist()
    found = nearest([3, 17], 30, k=56)
    assert len(found) == 54 and not {3, 17} & {one.index for one in found}


# ---- mistakes --------------------------------------------------------------------------------
@pytest.mark.parametrize("query, error, words", [
    (56, ValueError, "the query is 56. It must be from 0 to 55: pass a photo's number"),
    (-1, ValueError, "is -1. It must be from 0 to 55"), (10**5000, ValueError, "thousands of digi"),
    ([], ValueError, "the query is empty: pass at least one photo"),
    (SimpleNamespace(value=()), ValueError, "the query is empty"),
    (1.0, TypeError, "1.0. It must be a whole number: pass"), (None, TypeError, "None. It must"),
    (True, TypeError, "True. It must"), ([1, 2.5], TypeError, "2.5. It must"),
    (b"a.jpg", TypeError, "It must"), (np.zeros((1, 9)), TypeError, "It must"),
    (torch.zeros(9), TypeError, "It must"), ({"a": 1}, TypeError, "It must"),
    (SimpleNamespace(value={"IMG_1.jpg": {"metadata": {}, "content": b"x" * 999}}),  # ipywidgets 7
     TypeError, "the query is {'IMG_1.jpg'.*an image, an upload or a list of these"),
    ("7", FileNotFoundError, "'7'. To search with the photo of that number, leave out the quot"),
    ("t-shirt.jpg", FileNotFoundError, "no photo 't-shirt.jpg'"),
    ("https://example.org/a.jpg", ValueError, "Download a photo from the web first"),
    ("", ValueError, "the query is '': pass"), ("~1.jpg", FileNotFoundError, "'~1.jpg'"),
    ("a" * 300, FileNotFoundError, "check its name"), ("a\0.jpg", FileNotFoundError, "check its"),
    ("\x1b[2J", FileNotFoundError, r"no photo '\\x1b\[2J'"), ("~", BadPhoto, "a folder"),
    (Image.new("RGB", (0, 0)), BadPhoto, "your image: it has no pixels"),
    (Image.new("RGB", (1, 8000)), BadPhoto, "your image: 1x8000.*crop it first"),
    ({"name": "list.jpg", "content": b"milk, bread"}, BadPhoto, "list.jpg: not a readable photo"),
    ({"name": "\x1b.jpg", "content": b""}, BadPhoto, r"\?.jpg: the file is empty")],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value[:20])
def test_what_is_no_query_is_an_error_in_a_sentence(catalogue, tmp_path, monkeypatch, query, error,
                                                    words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words) as said:
        nearest(query, 20)
    assert len(str(said.value)) < 300 and "\x1b" not in str(said.value)


def test_an_image_that_is_cut_off(catalogue, tmp_path):
    Image.linear_gradient("L").save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:600])
    with pytest.raises(BadPhoto, match="your image: damaged"):
        nearest(Image.open(tmp_path / "cut.jpg"), 20)
