"""What the tests share: a small drawn catalogue, its vectors, and an empty checkout."""
import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # others spin in waiting

import matplotlib  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

import helpers  # noqa: E402
import lookalike  # noqa: E402
from lookalike.photos import photo_hash  # noqa: E402
from lookalike.stand_in import draw_catalogue  # noqa: E402
from lookalike.store import keep, open_store  # noqa: E402

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
    return helpers.extract_embeddings(helpers.scan(photos).names, backbone, photos)[:2]


@pytest.fixture(scope="session")
def resnet50_weights(tmp_path_factory):
    """A state dict of a ResNet50 that learnt nothing, as a file."""
    from torchvision.models import resnet50
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(resnet50().state_dict(), path)
    return path


@pytest.fixture(autouse=True)
def said_anew():
    """What is said once is said once a test."""
    lookalike.say_once.cache_clear()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder in the place of the checkout."""
    monkeypatch.setattr(lookalike, "HERE", tmp_path)
    monkeypatch.setattr(helpers, "opened", [])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))  # no cache of the reader's
    monkeypatch.delenv("FASHION_IMAGES", raising=False)
    return tmp_path


@pytest.fixture
def known(home, photos, embedded, backbone):
    """The small catalogue's vectors are kept: opening it, or a copy of it, embeds nothing."""
    with open_store() as store:
        keep(store, backbone.fingerprint, {photo_hash(photos / name): vector.numpy().tobytes()
                                           for name, vector in zip(*embedded)})


@pytest.fixture
def catalogue(known, photos, monkeypatch):
    """The small catalogue, opened as a reader opens it."""
    monkeypatch.setenv("FASHION_IMAGES", str(photos))
    return helpers.open_catalogue()
