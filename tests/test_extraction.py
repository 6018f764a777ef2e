"""Photos to vectors: what comes out, what is passed over, and what survives an interruption."""

import os
import shutil
import signal
import subprocess
import sys
import time
import weakref

import numpy as np
import pytest
import torch

import helpers
from helpers import extract_embeddings, list_photos, open_catalogue, photo_path, pil_loader
import lookalike
from lookalike import HERE, extraction, networks
from lookalike.networks import BATCH


def test_the_vectors_are_the_networks(photos, backbone, embedded):
    img_names, img_emb_tensors = embedded
    assert img_names == list_photos(photos)[0]
    assert img_emb_tensors.dtype == torch.float32 and img_emb_tensors.shape == (56, 1280)
    with torch.inference_mode():
        for i in (0, 30, 55):
            plain = backbone.network(
                backbone.preprocess(pil_loader(photo_path(img_names[i], photos))).unsqueeze(0)
            )[0]
            assert torch.allclose(plain, img_emb_tensors[i], atol=1e-3)


def test_broken_photos_are_named_counted_and_passed_over(
    tmp_path, photos, backbone, embedded, capsys
):
    for path in photos.glob("*.jpg"):
        shutil.copy(path, tmp_path)
    (tmp_path / "hat-00.jpg").write_text("no photo")
    (tmp_path / "skirt-02.jpg").write_bytes((tmp_path / "skirt-02.jpg").read_bytes()[:900])
    (tmp_path / "a loop.jpg").symlink_to(tmp_path / "a loop.jpg")
    os.mkfifo(tmp_path / "труба.jpg")
    found = list_photos(tmp_path)[0] + ["images/lost.jpg"]
    img_names, img_emb_tensors, skipped = extract_embeddings(found, backbone, images=tmp_path)
    said = capsys.readouterr().out
    assert f"Embedded {len(found) - 5} of {len(found)} photos; skipped 5" in said
    for name, why in [
        ("hat-00", "not a photo"),
        ("skirt-02", "truncated"),
        ("a loop", "link"),
        ("труба", "pipe"),
        ("lost", "no photo"),
    ]:
        (line,) = [line for line in said.splitlines() if f"images/{name}.jpg" in line]
        assert any(word in line for word in why.split("|")), line
    assert len(img_names) == len(img_emb_tensors) == len(found) - 5
    assert set(skipped) == set(found) - set(img_names)
    good = dict(zip(*embedded))
    for name, vector in zip(img_names, img_emb_tensors):
        assert name not in good or torch.allclose(vector, good[name], atol=1e-3), (
            f"{name} has the vector of another photo"
        )


def test_a_batch_of_bad_ones_only(tmp_path, photos, backbone):
    for i in range(BATCH):
        (tmp_path / f"a{i}.jpg").write_text("no photo")
    shutil.copy(photos / "hat-00.jpg", tmp_path / "b.jpg")
    names, vectors, skipped = extract_embeddings(
        list_photos(tmp_path)[0], backbone, images=tmp_path
    )
    assert names == ["images/b.jpg"] and vectors.shape == (1, 1280) and len(skipped) == BATCH


def test_a_worker_holds_one_whole_photo_at_a_time(photos, backbone, monkeypatch):
    """A photo of 48 megapixels takes 144 MB; eight of them on each core filled the memory."""
    seen, alive, load = [], [], pil_loader

    def listen(path, small):
        photo = load(path, small)
        seen.append(weakref.ref(photo))
        alive.append(sum(one() is not None for one in seen))
        return photo
    monkeypatch.setattr(networks, "pil_loader", listen)
    files = [photo_path(name, photos) for name in list_photos(photos)[0][:BATCH]]
    backbone.embed_files(files, backbone.plain[0])
    assert len(alive) == BATCH and max(alive) <= 2


def test_the_cores_are_those_that_this_process_may_use(monkeypatch):
    """In a container os.cpu_count() is the host's."""
    import lookalike.extraction as room
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    if hasattr(os, "sched_getaffinity"):
        assert room.cpu_count() <= len(os.sched_getaffinity(0))


def test_no_paths_at_all(backbone):
    with pytest.raises(ValueError, match="list of paths is empty"):
        extract_embeddings([], backbone)


# ---- interruptions ---------------------------------------------------------------------------
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
import os, sys
from pathlib import Path

import helpers

folder, emb_filename = map(Path, sys.argv[1:])
finished = helpers.Backbone.embed_files
def embed_files(self, files, compute):
    result = finished(self, files, compute)
    os.write(2, b"finished a batch\n")
    return result
helpers.Backbone.embed_files = embed_files
backbone = helpers.load_backbone("efficientnet_lite1")
names = helpers.list_photos(folder)[0]
made = helpers.extract_embeddings(names, backbone, emb_filename, folder)
helpers.save_embeddings(emb_filename, *made[:2], backbone)
"""


def start(folder, emb_filename, program=RUN):
    return subprocess.Popen(
        [sys.executable, "-c", program, str(folder), str(emb_filename)],
        cwd=HERE,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def interrupted(folder, emb_filename, stop, after):
    """Start an extraction and send it the signal `stop` after so many batches.

    Returns how many batches were finished, and all that it said.
    """
    process = start(folder, emb_filename)
    for _ in range(after):
        assert process.stderr.readline() == "finished a batch\n"
    process.send_signal(stop)
    out, err = process.communicate(timeout=60)
    return after + err.count("finished"), out + err


def went_on_from(emb_filename, many, backbone, monkeypatch):
    """(what the next call gives, how many photos it embedded)."""
    embedded = []
    with monkeypatch.context() as patch:
        embed_files = helpers.Backbone.embed_files
        patch.setattr(
            helpers.Backbone,
            "embed_files",
            lambda self, files, *rest: embedded.extend(files) or embed_files(self, files, *rest),
        )
        return extract_embeddings(list_photos(many)[0], backbone, emb_filename, many), len(embedded)


@pytest.mark.slow
def test_kill_9_loses_at_most_a_batch_a_core(tmp_path, many, backbone, monkeypatch, capsys):
    finished, _ = interrupted(many, tmp_path / "e", signal.SIGKILL, after=20)
    result, embedded = went_on_from(tmp_path / "e", many, backbone, monkeypatch)
    # the batch with the broken photo is looked at again each time
    assert embedded <= 500 - BATCH * finished + BATCH * (os.cpu_count() + 1)
    unbroken = extract_embeddings(list_photos(many)[0], backbone, images=many)
    assert "skipped 1" in capsys.readouterr().out and len(result[0]) == 499
    assert result[0] == unbroken[0] and torch.equal(result[1], unbroken[1])
    assert result[2] == unbroken[2] and "images/250.jpg" in result[2]


@pytest.mark.slow
def test_ctrl_c_keeps_the_work(tmp_path, many, backbone, monkeypatch):
    """Ctrl-C in a terminal and the stop button of a notebook are the same signal."""
    finished, said = interrupted(many, tmp_path / "e", signal.SIGINT, after=4)
    assert said.rstrip().endswith("KeyboardInterrupt") and finished < 30, "no more was begun"
    assert f"{finished * BATCH} of 500 photos are kept: run this again to go on" in said
    result, embedded = went_on_from(tmp_path / "e", many, backbone, monkeypatch)
    assert embedded <= 500 - finished * BATCH + BATCH
    helpers.save_embeddings(tmp_path / "e", *result[:2], backbone)
    assert os.listdir(tmp_path) == ["e"], "the kept work is cleared when the result is safe"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows cannot limit the size of a file")
def test_a_full_disk_is_met_before_the_work(tmp_path, many):
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
    out, err = start(many, tmp_path / "e", limit + RUN).communicate()
    last = err.splitlines()[-1]
    assert "OSError: could not write e." in last and "make room" in last and "finished" not in err
    assert not [name for name in os.listdir(tmp_path) if not name.endswith(".lock")]


@pytest.mark.slow
def test_two_processes_do_not_mix(tmp_path, many, backbone):
    slowly = RUN.replace("    result =", "    __import__('time').sleep(0.3)\n    result =")
    assert slowly != RUN
    one = start(many, tmp_path / "e", slowly)
    assert one.stderr.readline() == "finished a batch\n"
    other = start(many, tmp_path / "e")
    assert "another notebook or program is embedding these photos" in other.communicate()[1]
    one.communicate()
    assert one.returncode == 0
    unbroken = extract_embeddings(list_photos(many)[0], backbone, images=many)
    assert torch.equal(helpers.load_embeddings(tmp_path / "e")[1], unbroken[1])


@pytest.mark.slow
def test_kept_work_of_other_photos_is_not_used(tmp_path, many, photos, backbone):
    names = list_photos(many)[0][:16]
    extract_embeddings(names, backbone, tmp_path / "e", many)
    other = list_photos(photos)[0][:16]
    assert extract_embeddings(other, backbone, tmp_path / "e", photos)[0] == other
    changed = tmp_path / "changed"
    changed.mkdir()
    for path, name in zip(sorted(photos.glob("*.jpg")), names, strict=False):
        shutil.copy(path, photo_path(name, changed))
    first = extract_embeddings(names, backbone, tmp_path / "f", changed)[1]
    time.sleep(0.01)
    shutil.copy(photos / "skirt-02.jpg", photo_path(names[0], changed))
    again = extract_embeddings(names, backbone, tmp_path / "f", changed)[1]
    assert not torch.equal(first[0], again[0]), "a photo was replaced, and its old vector came back"


# ---- a folder, kept up to date ---------------------------------------------------------------
@pytest.fixture
def own(home, photos, monkeypatch):
    """A folder of twelve photos of one's own, and a list of the files that are embedded."""
    own = home / "mine"
    own.mkdir()
    for path in sorted(photos.glob("*.jpg"))[:12]:
        shutil.copy(path, own)
    monkeypatch.setenv("FASHION_IMAGES", str(own))
    return own


@pytest.fixture
def asked(monkeypatch):
    """The names of the files that are embedded."""
    asked, embed_files = [], helpers.Backbone.embed_files

    def listen(self, files, compute):
        asked.extend(file.name for file in files)
        return embed_files(self, files, compute)

    monkeypatch.setattr(helpers.Backbone, "embed_files", listen)
    return asked


def test_a_folder_is_embedded_once(home, own, asked, capsys):
    (own / "broken.jpg").write_text("no photo")
    catalogue = open_catalogue()
    assert len(catalogue.img_names) == 12 and len(asked) == 13
    assert "skipped 1" in capsys.readouterr().out
    assert list(catalogue.about["skipped"]) == ["images/broken.jpg"]
    assert open_catalogue().img_names == catalogue.img_names and len(asked) == 13
    assert [p.suffix for p in (home / "embeddings").iterdir()] == [".safetensors"]


def test_only_new_and_changed_photos_are_embedded(own, asked, photos, backbone):
    (own / "broken.jpg").write_text("no photo")
    before = open_catalogue()
    asked.clear()
    shutil.copy(photos / "skirt-02.jpg", own / "another.jpg")  # new
    shutil.copy(photos / "skirt-02.jpg", own / "bag-00.jpg")  # replaced under its name
    shutil.copy(photos / "skirt-02.jpg", own / "broken.jpg")  # mended
    (own / "bag-01.jpg").unlink()  # gone
    after = open_catalogue()
    assert sorted(asked) == ["another.jpg", "bag-00.jpg", "broken.jpg"]
    assert set(after.img_names) == {
        *before.img_names,
        "images/another.jpg",
        "images/broken.jpg",
    } - {"images/bag-01.jpg"}
    vectors = dict(zip(after.img_names, after.img_emb_tensors, strict=True))
    skirt = backbone.embed([pil_loader(photos / "skirt-02.jpg")])[0]
    assert torch.allclose(vectors["images/bag-00.jpg"], skirt, atol=1e-3)
    kept = before.img_names.index("images/bag-02.jpg")
    assert torch.equal(vectors["images/bag-02.jpg"], before.img_emb_tensors[kept])
    assert not after.about["skipped"]


def test_a_new_photo_that_is_broken_stops_nothing(own, asked):
    assert len(open_catalogue().img_names) == 12
    (own / "z.jpg").write_text("no photo")
    assert len(open_catalogue().img_names) == 12 and list(open_catalogue().about["skipped"]) == [
        "images/z.jpg"
    ]
    assert asked.count("z.jpg") == 1, "looked at once, until it changes"


def test_a_photo_that_may_not_be_read_is_tried_again(own, monkeypatch):
    """Allowing it changes neither its size nor its time."""
    embed_files, access = helpers.Backbone.embed_files, os.access
    (own / "bag-00.jpg").rename(own / "locked.jpg")

    def locked(self, files, compute):
        vectors, why = embed_files(self, files, compute)
        for i, file in enumerate(files):
            if file.name == "locked.jpg":
                vectors[i], why[i] = np.nan, "Permission denied"
        return vectors, why

    with monkeypatch.context() as patched:  # an administrator may read anything
        patched.setattr(helpers.Backbone, "embed_files", locked)
        patched.setattr(os, "access", lambda path, mode: "locked" not in str(path) and
                        access(path, mode))
        assert open_catalogue().about["skipped"] == {"images/locked.jpg": "Permission denied"}
        assert len(open_catalogue().img_names) == 11
    assert len(open_catalogue().img_names) == 12 and not open_catalogue().about["skipped"]


def test_nothing_but_broken_photos(home, monkeypatch):
    (home / "mine").mkdir()
    (home / "mine" / "a.jpg").write_text("no photo")
    monkeypatch.setenv("FASHION_IMAGES", str(home / "mine"))
    with pytest.raises(ValueError, match="mine: none of its 1 photos can be used"):
        open_catalogue()


def test_a_folder_that_was_renamed(own, asked, home, monkeypatch):
    """Its embeddings go along, its labels too, and nothing is left behind."""
    before = open_catalogue()
    asked.clear()
    for name in ("renamed", "and once more"):
        own = own.rename(home / name)
        monkeypatch.setenv("FASHION_IMAGES", str(own))
        after = open_catalogue()
        assert torch.equal(before.img_emb_tensors, after.img_emb_tensors) and asked == []
        assert [p.name.rpartition("-")[0] for p in (home / "embeddings").iterdir()] == [name]
        assert extraction.left_over() == []


def test_what_is_left_of_a_folder_that_is_gone(own, asked, home, monkeypatch, photos):
    open_catalogue()
    (file,) = (home / "embeddings").iterdir()
    other = home / "other"
    other.mkdir()
    for path in sorted(photos.glob("*.jpg"))[20:24]:
        shutil.copy(path, other)
    shutil.rmtree(own)
    (home / "embeddings" / "broken.safetensors").write_bytes(b"12345678{")
    asked.clear()
    monkeypatch.setenv("FASHION_IMAGES", str(other))
    assert len(open_catalogue().img_names) == len(asked) == 4, "other photos, other vectors"
    assert extraction.left_over() == [file]


@pytest.mark.parametrize("name", [b"caf\xe9", "Платья".encode() * 20])
def test_folders_of_any_name(own, asked, home, monkeypatch, name):
    """Not UTF-8, and as long as a name may be: what is kept of it has room to say more."""
    monkeypatch.setenv("FASHION_IMAGES", os.fsdecode(os.fsencode(home) + b"/" + name))
    own.rename(os.environ["FASHION_IMAGES"])
    assert len(open_catalogue().img_names) == len(open_catalogue().img_names) == 12
    assert len(asked) == 12 and extraction.left_over() == []


def test_a_copy_of_a_folder_is_a_folder_of_its_own(own, asked, home, monkeypatch):
    open_catalogue()
    shutil.copytree(own, home / "copy")
    monkeypatch.setenv("FASHION_IMAGES", str(home / "copy"))
    open_catalogue()
    assert len(list((home / "embeddings").iterdir())) == 2


def test_a_checkout_that_may_not_be_written_to(own, home, monkeypatch, capsys):
    def temporary_file(dir):
        raise PermissionError

    monkeypatch.setattr(lookalike.tempfile, "TemporaryFile", temporary_file)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    lookalike._writable.cache_clear()
    try:
        open_catalogue()
        open_catalogue()
    finally:
        lookalike._writable.cache_clear()
    said = [line for line in capsys.readouterr().out.splitlines() if "written to" in line]
    assert len(said) == 1 and "cache" in said[0]
    assert not (home / "embeddings").exists() and list(home.glob("cache/**/mine-*.safetensors"))


@pytest.mark.slow
def test_another_network_is_asked_for(own, asked, tmp_path, monkeypatch):
    from test_networks import random_resnet50

    open_catalogue()
    resnet = helpers.load_backbone("resnet50", random_resnet50(tmp_path / "mine.pth"))
    assert open_catalogue(backbone=resnet).img_emb_tensors.shape == (12, 2048)
    assert len(asked) == 24
    (own / "bag-00.jpg").write_bytes((own / "bag-01.jpg").read_bytes())
    monkeypatch.setenv("RESNET50_WEIGHTS", str(random_resnet50(tmp_path / "other.pth", seed=1)))
    with pytest.raises(ValueError, match="mine.pth.*other.pth.*distances between the two"):
        open_catalogue()  # the changed photo needs the network that made the others
