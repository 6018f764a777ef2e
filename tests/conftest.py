"""Fixtures, and how the notebooks are checked: nbval runs every cell and compares the marked ones with a reference.

With the real photos and the pickle that we ship, the reference is what is saved in the notebooks. With the drawn
stand-in it is tests/stand_in_outputs.json, which tests/record_stand_in.py writes. With photos or embeddings of
your own there is none, and the cells are only run.
"""
import json
import os
from pathlib import Path

import nbformat
import pytest

import helpers
from sample_images import draw_catalogue

HERE = Path(__file__).parent
REAL_PHOTOS = len(os.environ.get("FASHION_IMAGES", "")) > 0 or (helpers.HERE / "images").is_dir()


def reference():
    """'saved', 'stand-in' or 'none': which outputs the marked cells must give here."""
    images = helpers.get_images()
    if images.name == "drawn_images":
        return "stand-in"
    shipped = helpers.embeddings_file(images) == helpers.EMB_FILENAME and len(helpers.list_photos(images)[0]) == 5398
    return "saved" if shipped and helpers.about_embeddings(helpers.EMB_FILENAME)["backbone"] == "efficientnet_lite0" else "none"


def pytest_collection_modifyitems(items):
    cells = [item for item in items if type(item).__name__ == "IPyNbCell"]
    if not cells:
        return
    kind = reference()
    print(f"\nNotebooks: every cell is run; the marked ones are compared with: {kind}")
    expected = json.loads((HERE / "stand_in_outputs.json").read_text(encoding="utf-8")) if kind == "stand-in" else {}
    for cell in cells:
        if kind == "none":
            cell.options["check"] = False
        elif kind == "stand-in" and cell.options["check"]:
            outputs = expected[cell.parent.path.name][str(cell.cell_num)]
            cell.cell.outputs = [nbformat.from_dict(output) for output in outputs]


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A small drawn catalogue: 56 labelled photos and 2 new ones."""
    return draw_catalogue(tmp_path_factory.mktemp("catalogue") / "images", a_kind=4, new=2)


@pytest.fixture(scope="session")
def backbone():
    return helpers.load_backbone("efficientnet_lite0")


@pytest.fixture(scope="session")
def embedded(photos, backbone):
    """(img_names, img_emb_tensors) of the small catalogue."""
    return helpers.extract_embeddings(helpers.list_photos(photos)[0], backbone, images=photos)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder in the place of the checkout."""
    monkeypatch.setattr(helpers, "HERE", tmp_path)
    monkeypatch.setattr(helpers, "EMB_FILENAME", tmp_path / "fashion_images_embs.pickle")
    monkeypatch.setattr(helpers, "_opened", None)
    monkeypatch.delenv("FASHION_IMAGES", raising=False)
    return tmp_path


@pytest.fixture
def catalogue(home, photos, embedded, backbone, monkeypatch):
    """The small catalogue, opened as a reader opens it."""
    monkeypatch.setenv("FASHION_IMAGES", str(photos))
    helpers.save_embeddings(helpers.EMB_FILENAME, *embedded, backbone, helpers.read_labels(photos))
    return helpers.open_catalogue()
