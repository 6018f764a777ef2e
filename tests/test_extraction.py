"""Networks, and photos to vectors: what comes out, what is passed over, and what survives an interruption."""
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import helpers
from helpers import BadPhoto, extract_embeddings, list_photos, load_backbone, photo_path, pil_loader


# ---- backbones ---------------------------------------------------------------------------------------------------------------
def random_resnet50(path, classes=1000, seed=0):
    from torchvision.models import resnet50
    torch.manual_seed(seed)
    torch.save(resnet50(num_classes=classes).state_dict(), path)
    return path


def test_resnet50_from_a_file(tmp_path, photos):
    backbone = load_backbone("resnet50", random_resnet50(tmp_path / "mine.pth", classes=7))
    photo = pil_loader(photo_path(list_photos(photos)[0][0], photos))
    assert backbone.n_features == 2048 and backbone.weights == "mine.pth" and backbone.classifier.out_features == 7
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
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    monkeypatch.delenv("RESNET50_WEIGHTS", raising=False)
    with pytest.raises(OSError, match="RESNET50_WEIGHTS.*efficientnet_lite0"):
        load_backbone("resnet50")


def test_a_network_that_leads_nowhere_is_given_up_within_seconds(tmp_path, monkeypatch):
    """A server that takes the connection and never answers: torchvision itself would wait for ever."""
    import socket
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        monkeypatch.delenv("RESNET50_WEIGHTS", raising=False)
        set_timeout = socket.setdefaulttimeout
        monkeypatch.setattr(socket, "setdefaulttimeout", lambda seconds: set_timeout(seconds and min(seconds, 1)))
        from torchvision.models import ResNet50_Weights
        weights = type("Weights", (), {"get_state_dict": staticmethod(lambda **_: torch.hub.load_state_dict_from_url(
            f"http://127.0.0.1:{silent.getsockname()[1]}/resnet50.pth", model_dir=str(tmp_path)))})
        with pytest.raises(OSError, match="efficientnet_lite0"):
            helpers._torchvision_state(weights)
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
    """(x - 127) / 128; with ImageNet's mean and deviation the precision of the neighbours falls from 0.683 to 0.659."""
    from PIL import Image
    pixels = backbone.preprocess(Image.new("RGB", (300, 300), (255, 127, 0)))
    assert pixels.shape == (3, 224, 224)
    assert [round(float(p), 3) for p in pixels[:, 0, 0]] == [1.0, 0.0, -0.992]


def test_other_weights_have_another_fingerprint(tmp_path, backbone):
    one, two = (load_backbone("resnet50", random_resnet50(tmp_path / f"{seed}.pth", seed=seed)) for seed in (1, 2))
    assert len({one.fingerprint, two.fingerprint, backbone.fingerprint}) == 3


def test_short_numbers_keep_the_neighbours(photos):
    """ResNet50 in this processor's format against float32: of the five nearest 0.95 stay (random weights are harder still)."""
    if "RESNET50_WEIGHTS" not in os.environ:
        pytest.skip("needs trained weights: set RESNET50_WEIGHTS")
    images = helpers.get_images()
    img_names = list_photos(images)[0][:400]
    backbone = load_backbone("resnet50")
    fast = extract_embeddings(img_names, backbone, images=images)[1]
    backbone.fast = helpers.for_extraction(backbone.network, short_numbers=False)
    full = extract_embeddings(img_names, backbone, images=images)[1]
    nearest = [torch.cdist(v, v).fill_diagonal_(torch.inf).topk(5, largest=False).indices.tolist() for v in (fast, full)]
    overlap = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(*nearest)])
    labels = list(map(helpers.read_labels(images).get, img_names))
    assert overlap >= 0.95, overlap
    assert abs(helpers.label_precision(fast, labels) - helpers.label_precision(full, labels)) <= 0.005


def test_import_is_quick():
    """`import helpers` brings in neither torch nor faiss, scikit-learn or matplotlib."""
    program = "import sys, helpers; print(*(m for m in ('torch', 'faiss', 'sklearn', 'matplotlib', 'pooch') if m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], cwd=helpers.HERE, capture_output=True, text=True, check=True).stdout.strip() == ""


# ---- photos to vectors ---------------------------------------------------------------------------------------------------------
def test_the_vectors_are_the_networks(photos, backbone, embedded):
    img_names, img_emb_tensors = embedded
    assert img_names == list_photos(photos)[0]
    assert img_emb_tensors.dtype == torch.float32 and img_emb_tensors.shape == (56, 1280)
    with torch.inference_mode():
        for i in (0, 30, 55):
            plain = backbone.network(backbone.preprocess(pil_loader(photo_path(img_names[i], photos))).unsqueeze(0))[0]
            assert torch.allclose(plain, img_emb_tensors[i], atol=1e-3)


def test_broken_photos_are_named_counted_and_passed_over(tmp_path, photos, backbone, embedded, capsys):
    for path in photos.glob("*.jpg"):
        shutil.copy(path, tmp_path)
    (tmp_path / "hat-00.jpg").write_text("no photo")
    (tmp_path / "skirt-02.jpg").write_bytes((tmp_path / "skirt-02.jpg").read_bytes()[:900])
    (tmp_path / "a loop.jpg").symlink_to(tmp_path / "a loop.jpg")
    os.mkfifo(tmp_path / "труба.jpg")
    found = list_photos(tmp_path)[0] + ["images/lost.jpg"]
    img_names, img_emb_tensors = extract_embeddings(found, backbone, images=tmp_path)
    said = capsys.readouterr().out
    assert f"Embedded {len(found) - 5} of {len(found)} photos; skipped 5" in said
    for name, why in [("hat-00", "not a photo"), ("skirt-02", "truncated"), ("a loop", "link"), ("труба", "pipe"), ("lost", "no photo|not there|check")]:
        line, = [line for line in said.splitlines() if f"images/{name}.jpg" in line]
        assert any(word in line for word in why.split("|")), line
    assert len(img_names) == len(img_emb_tensors) == len(found) - 5
    good = dict(zip(*embedded))
    for name, vector in zip(img_names, img_emb_tensors):
        assert name not in good or torch.allclose(vector, good[name], atol=1e-3), f"{name} has the vector of another photo"


def test_a_batch_of_bad_ones_only(tmp_path, photos, backbone):
    for i in range(helpers.BATCH):
        (tmp_path / f"a{i}.jpg").write_text("no photo")
    shutil.copy(photos / "hat-00.jpg", tmp_path / "b.jpg")
    img_names, img_emb_tensors = extract_embeddings(list_photos(tmp_path)[0], backbone, images=tmp_path)
    assert img_names == ["images/b.jpg"] and img_emb_tensors.shape == (1, 1280)
    (tmp_path / "b.jpg").unlink()
    with pytest.raises(BadPhoto, match="none of them is a usable photo"):
        extract_embeddings(list_photos(tmp_path)[0], backbone, images=tmp_path)


def test_no_paths_at_all(backbone):
    with pytest.raises(ValueError, match="list of paths is empty"):
        extract_embeddings([], backbone)


# ---- interruptions -----------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def many(tmp_path_factory, photos):
    """500 photos (links to the same few)."""
    folder = tmp_path_factory.mktemp("many")
    drawn = sorted(photos.glob("*.jpg"))
    for i in range(500):
        os.link(drawn[i % len(drawn)], folder / f"{i:03d}.jpg")
    (folder / "250.jpg").unlink()
    (folder / "250.jpg").write_text("no photo")
    return folder


RUN = r"""
import os
import sys, helpers
from pathlib import Path
folder, emb_filename = map(Path, sys.argv[1:])
extract = helpers.extract_embeddings
names = helpers.list_photos(folder)[0]
backbone = helpers.load_backbone("efficientnet_lite0")
finished = helpers.Backbone.embed
def embed(self, photos):
    result = finished(self, photos)
    os.write(1, b"finished a batch\n")
    return result
helpers.Backbone.embed = embed
helpers.save_embeddings(emb_filename, *extract(names, backbone, emb_filename, folder), backbone)
"""


def kept(path):
    """How many batches stand whole in a .partial file."""
    with open(path, "rb") as f:
        f.readline()
        count = 0
        try:
            while True:
                for _ in range(4):
                    np.load(f)
                count += 1
        except (EOFError, ValueError, OSError):
            return count


def interrupted(folder, emb_filename, stop, after):
    """Start an extraction and send it the signal `stop` after so many batches; (how many were finished, what it said)."""
    process = subprocess.Popen([sys.executable, "-c", RUN, str(folder), str(emb_filename)], cwd=helpers.HERE, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for _ in range(after):
        assert process.stdout.readline() == "finished a batch\n"
    process.send_signal(stop)
    out, err = process.communicate(timeout=60)
    return after + out.count("finished"), err


def test_kill_9_loses_at_most_one_batch_and_the_result_is_the_same(tmp_path, many, backbone, capsys):
    finished, _ = interrupted(many, tmp_path / "e.pickle", signal.SIGKILL, after=20)
    assert os.listdir(tmp_path) == ["e.pickle.partial"]
    assert kept(tmp_path / "e.pickle.partial") >= finished - os.cpu_count(), "a core lost more than the batch that it had in hand"

    with open(tmp_path / "e.pickle.partial", "ab") as f:  # as if the kill had come in the middle of a write
        f.write(b"\x93NUMPY\x01\x00v\x00{'descr'")
    names = list_photos(many)[0]
    went_on = extract_embeddings(names, backbone, tmp_path / "e.pickle", many)
    assert "Going on" in capsys.readouterr().out
    unbroken = extract_embeddings(names, backbone, images=many)
    assert "skipped 1" in capsys.readouterr().out
    assert went_on[0] == unbroken[0] and len(went_on[0]) == 499 and torch.equal(went_on[1], unbroken[1])


def test_ctrl_c_keeps_the_work(tmp_path, many, backbone, capsys):
    """Ctrl-C in a terminal and the stop button of a notebook are the same signal."""
    finished, said = interrupted(many, tmp_path / "e.pickle", signal.SIGINT, after=4)
    assert said.rstrip().endswith("KeyboardInterrupt") and os.listdir(tmp_path) == ["e.pickle.partial"]
    assert kept(tmp_path / "e.pickle.partial") == finished < 30, "what was in hand was finished and kept, nothing more was begun"
    result = extract_embeddings(list_photos(many)[0], backbone, tmp_path / "e.pickle", many)
    assert "of 500 photos were done before" in capsys.readouterr().out
    helpers.save_embeddings(tmp_path / "e.pickle", *result, backbone)
    assert os.listdir(tmp_path) == ["e.pickle"], "the kept work is cleared when the result is safe"


def test_full_disk_keeps_the_work(tmp_path, many):
    limited = RUN.replace("import sys, helpers", "import sys, helpers, resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))")
    result = subprocess.run([sys.executable, "-c", limited, str(many), str(tmp_path / "e.pickle")], cwd=helpers.HERE,
                            capture_output=True, text=True)
    assert result.returncode == 1 and "make room" in result.stderr.splitlines()[-1] and "e.pickle.partial" in result.stderr
    assert os.listdir(tmp_path) == ["e.pickle.partial"] and kept(tmp_path / "e.pickle.partial") == 300_000 // (8 * 1280 * 4 + 500)


def test_kept_work_of_other_photos_is_not_used(tmp_path, many, photos, backbone):
    names = list_photos(many)[0][:16]
    extract_embeddings(names, backbone, tmp_path / "e.pickle", many)
    other = list_photos(photos)[0][:16]
    assert extract_embeddings(other, backbone, tmp_path / "e.pickle", photos)[0] == other
    changed = tmp_path / "changed"
    changed.mkdir()
    for path, name in zip(sorted(photos.glob("*.jpg")), names):
        shutil.copy(path, photo_path(name, changed))
    first = extract_embeddings(names, backbone, tmp_path / "f.pickle", changed)[1]
    time.sleep(0.01)
    shutil.copy(photos / "skirt-02.jpg", photo_path(names[0], changed))
    again = extract_embeddings(names, backbone, tmp_path / "f.pickle", changed)[1]
    assert not torch.equal(first[0], again[0]), "a photo was replaced, and its old vector came back"


@pytest.mark.parametrize("has, expected", [({"avx512_bf16": True}, torch.bfloat16), ({"avx512_bf16": False}, torch.float32), ({}, torch.float32)])
def test_the_processor_chooses_the_format(monkeypatch, has, expected):
    """bfloat16 without the instructions for it would be slower than float32."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()
    assert helpers.for_extraction(network, short_numbers=True)[2] is expected
    assert helpers.for_extraction(network, short_numbers=False)[2] is torch.float32


def test_the_torn_end_of_a_killed_write_is_cut_off(tmp_path, many, backbone):
    """Left there, its numbers could be taken for those of a batch whose writing was killed in the same place."""
    names = list_photos(many)[0][:24]
    extract_embeddings(names, backbone, tmp_path / "e.pickle", many)
    whole = (tmp_path / "e.pickle.partial").read_bytes()
    (tmp_path / "e.pickle.partial").write_bytes(whole + whole[65:20_000])
    extract_embeddings(names, backbone, tmp_path / "e.pickle", many)
    assert (tmp_path / "e.pickle.partial").read_bytes() == whole
