"""What the tests share: a small drawn catalogue, its embeddings, and an empty checkout."""
import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # others spin in waiting

from dataclasses import replace  # noqa: E402

import matplotlib  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from lookalike import common, recommender  # noqa: E402
from lookalike.extraction import extract_embeddings  # noqa: E402
from lookalike.folders import photo_files  # noqa: E402
from lookalike.networks import load_backbone  # noqa: E402
from lookalike.photos import photo_hash  # noqa: E402
from lookalike.placeholder import draw_catalogue  # noqa: E402
from lookalike.shipped import shipped_vectors  # noqa: E402
from lookalike.store import keep, open_store  # noqa: E402

matplotlib.use("agg")


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A small drawn catalogue: 56 labelled photos and 2 new ones."""
    return draw_catalogue(tmp_path_factory.mktemp("catalogue") / "images", per_category=4, new=2)


@pytest.fixture(scope="session")
def backbone():
    return load_backbone("efficientnet_lite1")


@pytest.fixture
def tiny(backbone):
    """A network that is quick: the mean colours of 16 squares."""
    network = torch.nn.Sequential(torch.nn.AvgPool2d(60), torch.nn.Flatten())
    return replace(backbone, name="tiny", network=network, n_features=48, fingerprint="tiny",
                   weights="tiny.pth")


@pytest.fixture(scope="session")
def embedded(photos, backbone):
    """(img_names, img_emb_tensors) of the small catalogue's labelled photos."""
    names = [name for name in photo_files(photos) if not name.startswith("new-")]
    return extract_embeddings(names, backbone, photos)[:2]


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
    """What is said once is said once per test."""
    common.say_once.cache_clear()
    shipped_vectors.cache_clear()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder in the place of the checkout."""
    monkeypatch.setattr(common, "HERE", tmp_path)
    monkeypatch.setattr(recommender, "opened", [])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))  # no cache of the reader's
    monkeypatch.delenv("FASHION_IMAGES", raising=False)
    return tmp_path


@pytest.fixture
def known(home, photos, embedded, backbone):
    """The small catalogue's embeddings are stored: opening it, or a copy of it, embeds nothing."""
    with open_store() as store:
        keep(store, backbone.fingerprint, {photo_hash(photos / name): vector.numpy().tobytes()
                                           for name, vector in zip(*embedded)})


@pytest.fixture
def catalogue(known, photos, monkeypatch):
    """The small catalogue, opened as a reader opens it."""
    monkeypatch.setenv("FASHION_IMAGES", str(photos))
    return recommender.open_catalogue()
