"""Backbones: what they give, where their weights come from, what is refused."""

import os

import numpy as np
import pytest
import torch

import helpers
from helpers import extract_embeddings, list_photos, load_backbone, photo_path, pil_loader
from lookalike import networks


def random_resnet50(path, classes=1000, seed=0):
    from torchvision.models import resnet50

    torch.manual_seed(seed)
    torch.save(resnet50(num_classes=classes).state_dict(), path)
    return path


def test_resnet50_from_a_file(tmp_path, photos):
    backbone = load_backbone("resnet50", random_resnet50(tmp_path / "mine.pth", classes=7))
    photo = pil_loader(photo_path(list_photos(photos)[0][0], photos))
    assert (
        backbone.n_features == 2048
        and backbone.weights == "mine.pth"
        and backbone.classifier.out_features == 7
    )
    vectors = backbone.embed([photo])
    assert vectors.shape == (1, 2048) and vectors.dtype == torch.float32
    with torch.inference_mode():
        plain = backbone.network(backbone.preprocess(photo).unsqueeze(0))
    assert torch.nn.functional.cosine_similarity(vectors, plain) > 0.99


def test_resnet50_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNET50_WEIGHTS", str(random_resnet50(tmp_path / "mine.pth")))
    assert load_backbone().weights == "mine.pth"
    monkeypatch.setenv("RESNET50_WEIGHTS", str(tmp_path / "lost.pth"))
    with pytest.raises(FileNotFoundError, match="lost.pth"):
        load_backbone()


def test_without_weights_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(
        "urllib.request.urlopen", lambda *_, **__: (_ for _ in ()).throw(OSError("no network"))
    )
    monkeypatch.delenv("RESNET50_WEIGHTS", raising=False)
    with pytest.raises(OSError, match="RESNET50_WEIGHTS.*efficientnet_lite0"):
        load_backbone("resnet50")


def test_a_network_that_leads_nowhere_is_given_up_within_seconds(tmp_path, monkeypatch):
    """A server that takes the connection and never answers: torchvision itself would wait for
    ever.
    """
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        monkeypatch.delenv("RESNET50_WEIGHTS", raising=False)
        set_timeout = socket.setdefaulttimeout
        monkeypatch.setattr(
            socket, "setdefaulttimeout", lambda seconds: set_timeout(seconds and min(seconds, 1))
        )
        from torchvision.models import ResNet50_Weights

        weights = type(
            "Weights",
            (),
            {
                "get_state_dict": staticmethod(
                    lambda **_: torch.hub.load_state_dict_from_url(
                        f"http://127.0.0.1:{silent.getsockname()[1]}/resnet50.pth",
                        model_dir=str(tmp_path),
                    )
                )
            },
        )
        with pytest.raises(OSError, match="efficientnet_lite0"):
            networks._torchvision_state(weights)
        assert socket.getdefaulttimeout() is None and ResNet50_Weights.DEFAULT


def test_weights_that_do_not_fit(tmp_path):
    torch.save({"fc.bias": torch.zeros(5)}, tmp_path / "mine.pth")
    with pytest.raises(ValueError, match="mine.pth.*do not fit resnet50"):
        load_backbone("resnet50", tmp_path / "mine.pth")
    (tmp_path / "mine.pth").write_text("no weights")
    with pytest.raises(ValueError, match="mine.pth"):
        load_backbone("resnet50", tmp_path / "mine.pth")


def test_unknown_backbone():
    with pytest.raises(ValueError, match="'resnet51'.*efficientnet_lite0"):
        load_backbone("resnet51")


def test_efficientnet_scales_its_own_way(backbone):
    """(x - 127) / 128; with ImageNet's mean and deviation the precision of the neighbours falls
    from 0.683 to 0.659.
    """
    from PIL import Image

    pixels = backbone.preprocess(Image.new("RGB", (300, 300), (255, 127, 0)))
    assert pixels.shape == (3, 224, 224)
    assert [round(float(p), 3) for p in pixels[:, 0, 0]] == [1.0, 0.0, -0.992]


def test_other_weights_have_another_fingerprint(tmp_path, backbone):
    one, two = (
        load_backbone("resnet50", random_resnet50(tmp_path / f"{seed}.pth", seed=seed))
        for seed in (1, 2)
    )
    assert len({one.fingerprint, two.fingerprint, backbone.fingerprint}) == 3


def test_bfloat16_keeps_the_neighbours(photos):
    """ResNet50 in this processor's format against float32: of the five nearest 0.95 stay (random
    weights are harder still).
    """
    if "RESNET50_WEIGHTS" not in os.environ:
        pytest.skip("needs trained weights: set RESNET50_WEIGHTS")
    images = helpers.get_images()
    img_names = list_photos(images)[0][:400]
    backbone = load_backbone("resnet50")
    fast = extract_embeddings(img_names, backbone, images=images)[1]
    backbone.fast = networks.for_extraction(backbone.network, bfloat16=False)
    full = extract_embeddings(img_names, backbone, images=images)[1]
    nearest = [
        torch.cdist(v, v).fill_diagonal_(torch.inf).topk(5, largest=False).indices.tolist()
        for v in (fast, full)
    ]
    overlap = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(*nearest)])
    labels = list(map(helpers.read_labels(images).get, img_names))
    assert overlap >= 0.95, overlap
    assert (
        abs(helpers.label_precision(fast, labels) - helpers.label_precision(full, labels)) <= 0.005
    )


@pytest.mark.parametrize(
    "has, expected",
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_the_processor_chooses_the_format(monkeypatch, has, expected):
    """bfloat16 without the instructions for it would be slower than float32."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()
    assert networks.for_extraction(network, bfloat16=True)[2] is expected
    assert networks.for_extraction(network, bfloat16=False)[2] is torch.float32
