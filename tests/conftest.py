"""What the tests share: a small drawn catalogue, its vectors, and an empty checkout."""

import matplotlib
import pytest

import helpers
import lookalike
from lookalike.stand_in import draw_catalogue

matplotlib.use("agg")


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A small drawn catalogue: 56 labelled photos and 2 new ones."""
    return draw_catalogue(tmp_path_factory.mktemp("catalogue") / "images", a_kind=4, new=2)


@pytest.fixture(scope="session")
def backbone():
    return helpers.load_backbone("efficientnet_lite1")


@pytest.fixture(scope="session")
def embedded(photos, backbone):
    """(img_names, img_emb_tensors) of the small catalogue."""
    return helpers.extract_embeddings(helpers.list_photos(photos)[0], backbone, images=photos)[:2]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder in the place of the checkout."""
    monkeypatch.setattr(lookalike, "HERE", tmp_path)
    monkeypatch.setattr(helpers, "_default", None)
    monkeypatch.delenv("FASHION_IMAGES", raising=False)
    return tmp_path


@pytest.fixture
def catalogue(home, photos, embedded, backbone, monkeypatch):
    """The small catalogue, opened as a reader opens it."""
    monkeypatch.setenv("FASHION_IMAGES", str(photos))
    helpers.save_embeddings(helpers.embeddings_file(photos), *embedded, backbone)
    return helpers.open_catalogue()
