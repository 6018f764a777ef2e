"""What the tests share: a small drawn catalogue, its vectors, and an empty checkout."""
import pytest

import helpers
from sample_images import draw_catalogue


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
