"""Backbones: what they give, where their weights come from, what is refused."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import helpers
from helpers import extract_embeddings, list_photos, load_backbone, photo_path, pil_loader
from lookalike import HERE, networks


def random_resnet50(path, classes=1000, seed=0):
    from torchvision.models import resnet50

    torch.manual_seed(seed)
    torch.save(resnet50(num_classes=classes).state_dict(), path)
    return path


@pytest.mark.slow
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
    with pytest.raises(OSError, match="RESNET50_WEIGHTS.*efficientnet_lite1"):
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
                "url": "http://127.0.0.1/resnet50.pth",
                "get_state_dict": staticmethod(
                    lambda **_: torch.hub.load_state_dict_from_url(
                        f"http://127.0.0.1:{silent.getsockname()[1]}/resnet50.pth",
                        model_dir=str(tmp_path),
                    )
                )
            },
        )
        with pytest.raises(OSError, match="efficientnet_lite1"):
            networks._torchvision_state(weights)
        assert socket.getdefaulttimeout() is None and ResNet50_Weights.DEFAULT


def test_weights_that_do_not_fit(tmp_path):
    torch.save({"fc.bias": torch.zeros(5)}, tmp_path / "mine.pth")
    with pytest.raises(ValueError, match="mine.pth.*do not fit resnet50"):
        load_backbone("resnet50", tmp_path / "mine.pth")
    (tmp_path / "mine.pth").write_text("no weights")
    with pytest.raises(ValueError, match="mine.pth"):
        load_backbone("resnet50", tmp_path / "mine.pth")


@pytest.mark.slow
def test_checkpoints_as_trainings_save_them(tmp_path):
    """Under "state_dict", with "module." of several graphics cards, or without a classifier."""
    state = torch.load(random_resnet50(tmp_path / "mine.pth"))
    plain = load_backbone("resnet50", tmp_path / "mine.pth")
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}},
               tmp_path / "checkpoint.pth")
    same = load_backbone("resnet50", tmp_path / "checkpoint.pth")
    assert same.fingerprint == plain.fingerprint
    torch.save({k: v for k, v in state.items() if not k.startswith("fc.")}, tmp_path / "cut.pth")
    cut = load_backbone("resnet50", tmp_path / "cut.pth")
    photo = [Image.new("RGB", (300, 300), "teal")]
    assert cut.n_features == 2048 and torch.equal(cut.embed(photo), plain.embed(photo))
    with pytest.raises(ValueError, match="without a classifier"):
        cut.classifier(cut.embed(photo))


@pytest.mark.slow
def test_a_whole_model_is_refused_in_our_words(tmp_path):
    from torchvision.models import resnet50

    torch.save(resnet50(), tmp_path / "model.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "epoch.pth")
    for name in ("model.pth", "list.pth", "epoch.pth"):
        with pytest.raises(ValueError, match=f"'{name}' holds no weights.*state_dict") as said:
            load_backbone("resnet50", tmp_path / name)
        assert "weights_only" not in str(said.value)


@pytest.mark.parametrize("content", [b"", b"<html>Please log in</html>", b"PK\3\4cut off"])
def test_a_broken_file_in_torchs_cache_is_named(tmp_path, monkeypatch, content):
    from torchvision.models import ResNet50_Weights

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.delenv("RESNET50_WEIGHTS", raising=False)
    cached = tmp_path / "checkpoints" / ResNet50_Weights.DEFAULT.url.rpartition("/")[2]
    cached.parent.mkdir()
    cached.write_bytes(content)
    with pytest.raises(OSError, match=f"{cached} is broken.*delete it.*efficientnet_lite1"):
        load_backbone("resnet50")


@pytest.mark.parametrize("proxy", ["http://proxy:80 80", "http://proxy:port"])
def test_a_misspelt_proxy_is_named(tmp_path, monkeypatch, proxy):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.delenv("RESNET50_WEIGHTS", raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, proxy)
    monkeypatch.setattr("urllib.request._opener", None)  # it keeps what it read the first time
    with pytest.raises(OSError, match="https_proxy.*is it right.*efficientnet_lite1"):
        load_backbone("resnet50")


def test_unknown_backbone():
    with pytest.raises(ValueError, match="'resnet51'.*efficientnet_lite1"):
        load_backbone("resnet51")


def test_efficientnet_scales_its_own_way(backbone):
    """(x - 127) / 128; with ImageNet's mean and deviation the neighbours get worse.
    """
    pixels = backbone.preprocess(Image.new("RGB", (300, 300), (255, 127, 0)))
    assert pixels.shape == (3, 240, 240)
    assert [round(float(p), 3) for p in pixels[:, 0, 0]] == [1.0, 0.0, -0.992]


@pytest.mark.slow
def test_other_weights_have_another_fingerprint(tmp_path, backbone):
    one, two = (
        load_backbone("resnet50", random_resnet50(tmp_path / f"{seed}.pth", seed=seed))
        for seed in (1, 2)
    )
    assert len({one.fingerprint, two.fingerprint, backbone.fingerprint}) == 3


# ---- made ready for many photos --------------------------------------------------------------
@pytest.fixture(scope="module")
def crops(photos, backbone):
    """Ten garments as bytes."""
    files = [photo_path(name, photos) for name in list_photos(photos)[0][:10]]
    return np.stack([np.asarray(backbone.crop(pil_loader(file))) for file in files])


@pytest.mark.slow
def test_compiled_it_gives_the_same_vectors(backbone, crops):
    compute, engine = backbone.fast
    assert engine == "OpenVINO, float32 on cpu" or not engine.startswith("OpenVINO")
    for batch in (crops, crops[:8], crops[:1]):
        assert np.allclose(compute(batch), backbone.plain[0](batch), atol=1e-3)


def test_the_bytes_are_scaled_as_preprocess_says(backbone, photos, crops):
    photo = pil_loader(photo_path(list_photos(photos)[0][0], photos))
    with torch.inference_mode():
        by_hand = backbone.network(backbone.preprocess(photo).unsqueeze(0)).numpy()
    assert np.allclose(by_hand, backbone.plain[0](crops[:1]), atol=1e-3)


def test_where_openvino_is_missing_torch_goes_on(backbone, crops, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "openvino", None)
    compute, engine = replace(backbone).fast
    assert engine.startswith("torch") and "OpenVINO is not used here" in capsys.readouterr().out
    assert np.allclose(compute(crops), backbone.plain[0](crops), atol=1e-3)


def test_few_photos_do_not_wait_for_the_compiler(backbone):
    fresh = replace(backbone)
    assert fresh.made_ready(networks.MANY - 1)[1] == "torch, float32 on cpu"
    assert "fast" not in vars(fresh)
    fresh.embed([Image.new("RGB", (300, 300))])
    assert "fast" not in vars(fresh)


SILENT = """
import os, socket, subprocess, sys
import numpy as np

calls = []
sys.addaudithook(lambda event, args: calls.append(event) if event in (
    "socket.connect", "socket.getaddrinfo", "socket.sendto", "os.fork", "os.system") else None)
from lookalike.networks import load_backbone

compute, engine = load_backbone("efficientnet_lite1").fast
compute(np.zeros((2, 240, 240, 3), np.uint8))
print(engine, calls, sys.modules["openvino_telemetry"])
"""


@pytest.mark.slow
def test_nothing_is_sent_anywhere(tmp_path):
    """OpenVINO by itself reports each import and conversion to its makers, from a fork."""
    said = subprocess.run([sys.executable, "-c", SILENT], cwd=HERE, capture_output=True, text=True,
                          env=os.environ | {"HOME": str(tmp_path)}, check=True).stdout
    assert said.splitlines()[-1] == "OpenVINO, float32 on cpu [] None"
    assert not (tmp_path / "intel").exists()


@pytest.mark.slow
def test_compiled_resnet50_keeps_the_neighbours():
    """In this processor's numbers, against float32: of the five nearest 0.95 stay."""
    if "RESNET50_WEIGHTS" not in os.environ:
        pytest.skip("needs trained weights: set RESNET50_WEIGHTS")
    images = helpers.get_images()
    img_names = list_photos(images)[0][:300]
    backbone = load_backbone("resnet50")
    fast = extract_embeddings(img_names, backbone, images=images)[1]
    backbone.fast = backbone.plain
    full = extract_embeddings(img_names, backbone, images=images)[1]
    near = [torch.cdist(v, v).fill_diagonal_(torch.inf).topk(5, largest=False).indices.tolist()
            for v in (fast, full)]
    overlap = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(*near)])
    labels = list(map(helpers.read_labels(images).get, img_names))
    assert overlap >= 0.95, overlap
    assert helpers.label_precision(fast, labels) == pytest.approx(
        helpers.label_precision(full, labels), abs=0.005)
