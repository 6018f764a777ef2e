"""A photo is known by what it is: what is embedded again, what is not, and what is said."""
import errno
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import helpers
import lookalike
from helpers import Backbone, open_catalogue, pil_loader
from lookalike import HERE, extraction, networks, store
from lookalike.photos import BadPhoto


@pytest.fixture
def tiny(backbone, monkeypatch):
    """A network that is quick: the mean colours of 4 x 4 squares."""
    network = torch.nn.Sequential(torch.nn.AvgPool2d(60), torch.nn.Flatten())
    tiny = replace(backbone, network=network, n_features=48)
    monkeypatch.setattr(extraction, "load_backbone", lambda name: tiny)
    return tiny


@pytest.fixture
def own(home, photos, tiny, monkeypatch):
    """A folder of twelve photos of one's own."""
    own = home / "mine"
    own.mkdir()
    for path in sorted(photos.glob("*.jpg"))[:12]:
        shutil.copy(path, own)
    monkeypatch.setenv("FASHION_IMAGES", str(own))
    return own


@pytest.fixture
def asked(monkeypatch):
    """The names of the files that are embedded."""
    asked, embed_files = [], Backbone.embed_files

    def listen(self, files, compute):
        asked.extend(file.name for file in files)
        return embed_files(self, files, compute)

    monkeypatch.setattr(Backbone, "embed_files", listen)
    return asked


def vector_of(catalogue, name):
    return catalogue.img_emb_tensors[catalogue.img_names.index(name)]


def right(catalogue, backbone):
    """Whether each photo's vector is that of its file as it is now."""
    now = backbone.embed([pil_loader(catalogue.images / name) for name in catalogue.img_names])
    return torch.allclose(now, catalogue.img_emb_tensors, atol=1e-3)


# ---- what need not be embedded again ---------------------------------------------------------
def test_a_folder_is_embedded_once(own, asked, home, capsys):
    (own / "broken.jpg").write_text("no photo")
    first = open_catalogue()
    assert len(first.img_names) == 12 and len(asked) == 13
    said = capsys.readouterr().out
    assert "skipped 1:\n  broken.jpg: not a photo" in said
    assert "Left out: 1 photos; catalogue.skipped says why" in said
    again = open_catalogue()
    assert len(asked) == 13 and torch.equal(first.img_emb_tensors, again.img_emb_tensors)
    assert list(again.skipped) == ["broken.jpg"] and "Left out: 1" in capsys.readouterr().out
    assert [path.name for path in (home / "embeddings").iterdir()] == ["vectors.db"]


def test_a_file_is_read_again_only_when_it_changed(own, monkeypatch):
    read, photo_hash = [], store.photo_hash
    monkeypatch.setattr(store, "photo_hash",
                        lambda file: read.append(file.name) or photo_hash(file))
    open_catalogue()
    open_catalogue()
    assert len(read) == 24, "what was changed seconds ago could change again and keep its time"
    monkeypatch.setattr(store, "SETTLED", -10**9)
    open_catalogue()
    read.clear()
    os.utime(own / "bag-00.jpg", ns=(1, 1))
    open_catalogue()
    assert read == ["bag-00.jpg"]


def test_renamed_moved_and_copied(own, asked, home, monkeypatch):
    before = open_catalogue()
    asked.clear()
    own = own.rename(home / "renamed")
    shutil.copytree(own, home / "copy" / "deeper")
    (own / "bag-00.jpg").rename(own / "z.jpg")
    (home / "copy" / "deeper" / "bag-00.jpg").unlink()
    for folder, count in ((own, 12), (home / "copy", 11)):
        after = open_catalogue(images=folder)
        assert len(after.img_names) == count
    assert asked == [] and torch.equal(vector_of(open_catalogue(images=own), "z.jpg"),
                                       vector_of(before, "bag-00.jpg"))


def test_a_stick_that_is_not_plugged_in_is_not_gone(own, asked, home, monkeypatch):
    open_catalogue()
    asked.clear()
    other = home / "other"
    other.mkdir()
    shutil.copy(own / "bag-00.jpg", other)
    away = own.rename(home / "away")
    with pytest.raises(FileNotFoundError, match="mine.*not a folder"):
        open_catalogue()
    assert len(open_catalogue(images=other).img_names) == 1
    away.rename(own)
    assert len(open_catalogue().img_names) == 12 and asked == []


def test_another_network_and_back(own, asked, tiny):
    """The folder knows which one it was opened with last."""
    other = replace(tiny, fingerprint="other", weights="others")
    first = open_catalogue()
    assert open_catalogue(backbone=other).about["weights"] == "others" and len(asked) == 24
    assert open_catalogue().about["fingerprint"] == "other"
    back = open_catalogue(backbone=tiny)
    assert len(asked) == 24 and torch.equal(first.img_emb_tensors, back.img_emb_tensors)
    assert open_catalogue().about == tiny.about


def test_a_new_photo_needs_the_network_of_the_others(own, tiny, photos):
    open_catalogue(backbone=replace(tiny, fingerprint="other", weights="others"))
    shutil.copy(photos / "skirt-02.jpg", own)
    with pytest.raises(ValueError, match="made with 'others'.*distances between the two"):
        open_catalogue()


def test_copies_are_embedded_once(own, asked):
    for i in range(5):
        shutil.copy(own / "bag-00.jpg", own / f"copy {i}.jpg")
    assert len(open_catalogue().img_names) == 17 and len(asked) == 12


def test_photos_of_the_shipped_file_under_any_name(own, asked, photos, embedded, monkeypatch):
    shipped = {store.photo_hash(photos / name): vector.numpy().tobytes()
               for name, vector in zip(*embedded)}
    monkeypatch.setattr(extraction, "shipped_vectors", lambda: shipped)
    (own / "bag-00.jpg").rename(own / "renamed.jpg")
    catalogue = open_catalogue()
    assert asked == [] and torch.equal(vector_of(catalogue, "renamed.jpg"), embedded[1][0])


def test_a_shipped_file_that_is_damaged_costs_time_only(own, asked, monkeypatch, capsys):
    def refused():
        raise ValueError("fashion_images_embs.pickle was not loaded")

    monkeypatch.setattr(extraction, "shipped_vectors", refused)
    assert len(open_catalogue().img_names) == len(asked) == 12
    assert "was not loaded. The photos are embedded anew" in capsys.readouterr().out


# ---- what must be embedded again -------------------------------------------------------------
def test_only_new_and_changed_photos(own, asked, photos, tiny):
    (own / "broken.jpg").write_text("no photo")
    open_catalogue()
    asked.clear()
    shutil.copy(photos / "skirt-02.jpg", own / "another.jpg")  # new
    shutil.copy(photos / "skirt-03.jpg", own / "bag-00.jpg")  # replaced under its name
    shutil.copy(photos / "shoes-03.jpg", own / "broken.jpg")  # mended
    (own / "bag-01.jpg").unlink()  # gone
    after = open_catalogue()
    assert sorted(asked) == ["another.jpg", "bag-00.jpg", "broken.jpg"] and not after.skipped
    assert len(after.img_names) == 13 and right(after, tiny)


def test_turned_by_a_program_that_keeps_size_and_time(own, tiny, monkeypatch):
    monkeypatch.setattr(store, "SETTLED", -10**9)
    path = own / "bag-00.jpg"
    Image.open(path).save(own / "a.bmp")
    before = (own / "a.bmp").stat()
    open_catalogue()
    Image.open(own / "a.bmp").transpose(Image.Transpose.ROTATE_180).save(own / "a.bmp")
    os.utime(own / "a.bmp", ns=(before.st_atime_ns, before.st_mtime_ns))
    after = (own / "a.bmp").stat()
    assert (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    assert right(open_catalogue(), tiny)


def test_photos_that_swap_names(own, tiny, monkeypatch):
    """Of one size and one time."""
    monkeypatch.setattr(store, "SETTLED", -10**9)
    for name, picture in (("x.bmp", "bag-00.jpg"), ("y.bmp", "shoes-00.jpg")):
        source = own / picture if (own / picture).exists() else sorted(own.glob("*.jpg"))[-1]
        Image.open(source).convert("RGB").save(own / name)
        os.utime(own / name, ns=(10**18, 10**18))
    open_catalogue()
    (own / "x.bmp").rename(own / "z.bmp")
    (own / "y.bmp").rename(own / "x.bmp")
    (own / "z.bmp").rename(own / "y.bmp")
    assert right(open_catalogue(), tiny)


def test_a_photo_that_is_changed_while_it_is_embedded(own, photos, tiny, monkeypatch, capsys):
    embed_files = Backbone.embed_files

    def slowly(self, files, compute):
        for file in files:
            if file.name == "bag-00.jpg":
                shutil.copy(photos / "skirt-02.jpg", file)
        return embed_files(self, files, compute)

    with monkeypatch.context() as patched:
        patched.setattr(Backbone, "embed_files", slowly)
        assert "changed meanwhile" in open_catalogue().skipped["bag-00.jpg"]
    after = open_catalogue()
    assert len(after.img_names) == 12 and right(after, tiny)


# ---- faults of the machine are not the photo's -----------------------------------------------
@pytest.mark.parametrize("fault", [OSError(errno.EMFILE, "Too many open files"),
                                   OSError(errno.EIO, "Input/output error"), MemoryError(),
                                   OSError("out of memory error when reading image file")])
def test_a_passing_fault_is_said_and_tried_again(own, asked, monkeypatch, fault, capsys):
    def loader(path, small, pil_loader=pil_loader):
        if path.name == "bag-00.jpg":
            raise fault
        return pil_loader(path, small)

    with monkeypatch.context() as patched:
        patched.setattr(networks, "pil_loader", loader)
        first = open_catalogue()
    assert list(first.skipped) == ["bag-00.jpg"] and "bag-00.jpg: " in capsys.readouterr().out
    asked.clear()
    assert not open_catalogue().skipped and asked == ["bag-00.jpg"]


def test_a_photo_that_may_not_be_read_is_tried_again(own, asked, monkeypatch):
    """Allowing it changes neither its size nor its time."""
    photo_hash = store.photo_hash

    def locked(file):
        if file.name == "bag-00.jpg":
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return photo_hash(file)

    with monkeypatch.context() as patched:  # an administrator may read anything
        patched.setattr(store, "photo_hash", locked)
        assert open_catalogue().skipped == {"bag-00.jpg": "Permission denied"}
    assert not open_catalogue().skipped and len(asked) == 12


def test_a_copy_of_what_could_not_be_embedded_is_named_too(own, monkeypatch):
    for name in ("bag-00 copy.jpg", "z.jpg"):
        shutil.copy(own / "bag-00.jpg", own / name)

    def loader(path, small, pil_loader=pil_loader):
        if path.name == "z.jpg":
            raise OSError(errno.EIO, "Input/output error")
        return pil_loader(path, small)

    with monkeypatch.context() as patched:
        patched.setattr(networks, "pil_loader", loader)
        first = open_catalogue()
    assert len(first.img_names) + len(first.skipped) == 14
    assert "z.jpg, which is the same" in first.skipped["bag-00.jpg"]
    assert len(open_catalogue().img_names) == 14


def test_what_a_newer_reader_may_read_is_tried_again(own, asked, monkeypatch, photos):
    """A reason is Pillow's of that version; a vector stays."""
    def cannot(path, small, pil_loader=pil_loader):
        if path.name == "bag-00.jpg":
            raise BadPhoto(path, "of a kind that cannot be read")
        return pil_loader(path, small)

    with monkeypatch.context() as patched:
        patched.setattr(networks, "pil_loader", cannot)
        assert open_catalogue().skipped == {"bag-00.jpg": "of a kind that cannot be read"}
    asked.clear()
    assert open_catalogue().skipped and asked == []
    monkeypatch.setattr(store, "READER", "a newer one: ")
    for _ in range(2):
        assert not open_catalogue().skipped and asked == ["bag-00.jpg"]


def test_nothing_but_broken_photos(home, tiny):
    (home / "mine").mkdir()
    (home / "mine" / "a.jpg").write_text("no photo")
    with pytest.raises(ValueError, match="mine: none of its 1 photos can be used, the first since"):
        open_catalogue(images=home / "mine")


def test_web_pages_and_long_names(home, photos, tiny, asked):
    """More that is no photo than photos; names of 250 bytes."""
    mine = home / "mine"
    mine.mkdir()
    for i in range(150):
        (mine / f"page {i}.jpg").write_text(f"<html>{i}</html>")
    for i, path in enumerate(sorted(photos.glob("*.jpg"))[:22]):
        shutil.copy(path, mine / f"{'Платье' * 20}{i}.jpg")
    for _ in range(2):
        catalogue = open_catalogue(images=mine)
        assert len(catalogue.img_names) == 22 and len(catalogue.skipped) == 150
    assert len(asked) == 172


def test_a_folder_whose_name_is_not_utf_8(own, asked, home):
    folder = own.rename(os.fsdecode(os.fsencode(home) + b"/caf\xe9"))
    for _ in range(2):
        assert len(open_catalogue(images=folder).img_names) == len(asked) == 12


# ---- interruptions ---------------------------------------------------------------------------
@pytest.fixture
def many(home, photos):
    """40 photos, no two the same, and one of them none."""
    folder = home / "many"
    folder.mkdir()
    for i in range(40):
        Image.new("RGB", (30, 40), (6 * i, 250 - 6 * i, 90)).save(folder / f"{i:02d}.png")
    (folder / "30.png").write_text("no photo")
    return folder


def test_an_interruption_keeps_what_is_done(many, asked, monkeypatch, capsys, tiny):
    """Ctrl-C in a terminal and the stop button of a notebook are the same signal."""
    embed_files = Backbone.embed_files

    def interrupted(self, files, compute):
        if files[0].name > "16":
            raise KeyboardInterrupt
        return embed_files(self, files, compute)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Backbone, "embed_files", interrupted)
        open_catalogue(images=many)
    kept = capsys.readouterr().out.partition(" of 40 photos are kept: run this again")[0]
    kept = int(kept.split()[-1])
    assert 12 <= kept <= 20
    asked.clear()
    after = open_catalogue(images=many)
    assert len(asked) == 40 - kept and len(after.img_names) == 39 and right(after, tiny)


def test_several_at_once_end_in_the_same_vectors(many, tiny, monkeypatch):
    def opened(_):
        names = helpers.scan(many).names
        return extraction.embed_folder(many, names)

    monkeypatch.setattr(extraction, "EVERY", 0)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(opened, range(4)))
    assert len({tuple(one[0].img_names) for one in found}) == 1
    assert all(torch.equal(one[0].img_emb_tensors, found[0][0].img_emb_tensors) for one in found)


RUN = """
import os, sys
from pathlib import Path
import lookalike
lookalike.HERE = Path(sys.argv[1])
import helpers
from lookalike import extraction
extraction.EVERY = 0.05
embed_files = helpers.Backbone.embed_files
def said(self, files, compute):
    os.write(2, b"begins\\n")
    return embed_files(self, files, compute)
helpers.Backbone.embed_files = said
helpers.open_catalogue(images=sys.argv[2])
"""


@pytest.mark.slow
def test_killed_at_random_moments(many, home, backbone, asked):
    """Whatever it was doing: what is there at the end is what an undisturbed run makes."""
    for _turn in range(2):
        run = subprocess.Popen([sys.executable, "-c", RUN, str(home), str(many)], cwd=HERE,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(3):
            assert "begins" in run.stderr.readline()
        time.sleep(random.uniform(0, 0.3))
        run.send_signal(signal.SIGKILL)
        run.communicate()
    after = open_catalogue(images=many)
    assert len(asked) < 40 and len(after.img_names) == 39 and right(after, backbone)


# ---- where it is kept ------------------------------------------------------------------------
@pytest.mark.parametrize("content", [b"no database" * 100, None])
def test_a_damaged_store_says_where_it_lies(own, home, content):
    open_catalogue()
    path = home / "embeddings" / "vectors.db"
    if content is None:  # in the middle, as a bad disk does it
        content = bytearray(path.read_bytes())
        content[4096:-4096] = bytes(len(content) - 8192)
    path.write_bytes(content)
    with pytest.raises(OSError, match=f"{path} .*damaged, or of another version: delete it"):
        open_catalogue()
    path.unlink()
    assert len(open_catalogue().img_names) == 12


def test_a_store_of_another_version(own, home):
    (home / "embeddings").mkdir()
    other = sqlite3.connect(home / "embeddings" / "vectors.db")
    other.execute("CREATE TABLE files (a, b)")
    other.close()
    with pytest.raises(OSError, match="or of another version: delete it, and only time is lost"):
        open_catalogue()


def test_an_empty_store_is_a_new_one(own, home):
    (home / "embeddings").mkdir()
    (home / "embeddings" / "vectors.db").touch()
    assert len(open_catalogue().img_names) == len(open_catalogue().img_names) == 12


def full(monkeypatch, table):
    """A disk on which nothing more fits, for that table."""
    connect = sqlite3.connect

    class Full(sqlite3.Connection):
        def executemany(self, sql, rows):
            if table in sql:
                raise sqlite3.OperationalError("database or disk is full")
            return super().executemany(sql, rows)

    monkeypatch.setattr(store.sqlite3, "connect", lambda path, **options: connect(
        path, factory=Full, **options))


def test_a_full_disk(own, home, monkeypatch):
    with monkeypatch.context() as patched:
        full(patched, "vectors")
        with pytest.raises(OSError, match="vectors.db .disk.*make room there|full.*make room"):
            open_catalogue()
    assert len(open_catalogue().img_names) == 12


def test_a_full_disk_stops_nothing_that_need_not_be_written(own, asked, monkeypatch, capsys):
    open_catalogue()
    full(monkeypatch, "files")
    monkeypatch.setattr(store, "SETTLED", -10**9)
    assert len(open_catalogue().img_names) == len(asked) == 12
    assert "database or disk is full" in capsys.readouterr().out


def test_a_checkout_that_may_not_be_written_to(own, home, monkeypatch, capsys, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TORCH_HOME", str(cache / "torch"))
    make = lookalike.tempfile.TemporaryFile

    def temporary_file(dir):
        if dir == home:
            raise PermissionError(errno.EACCES, "Permission denied")
        return make(dir=dir)

    monkeypatch.setattr(lookalike.tempfile, "TemporaryFile", temporary_file)
    open_catalogue()
    open_catalogue()
    said = [line for line in capsys.readouterr().out.splitlines() if "written to" in line]
    assert len(said) == 1 and str(cache) in said[0]
    assert not (home / "embeddings").exists() and [*cache.rglob("vectors.db")]


def test_where_nothing_may_be_written(own, asked, monkeypatch, capsys, home):
    def temporary_file(dir):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(lookalike.tempfile, "TemporaryFile", temporary_file)
    assert len(open_catalogue().img_names) == len(open_catalogue().img_names) == len(asked) == 12
    assert capsys.readouterr().out.count("vectors are held in memory") == 1
    assert not [*home.rglob("vectors.db")]


def test_a_disk_that_cannot_lock(own, asked, monkeypatch, capsys):
    """Some network drives."""
    def connect(path, connect=sqlite3.connect, **options):
        if path != ":memory:":
            raise sqlite3.OperationalError("locking protocol")
        return connect(path, **options)

    monkeypatch.setattr(store.sqlite3, "connect", connect)
    assert len(open_catalogue().img_names) == 12
    assert "locking protocol" in capsys.readouterr().out


def test_vectors_that_are_not_finite_are_not_kept(own, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(Backbone, "engine", lambda self, photos: extraction.Backbone.with_torch
                        .func(self)._replace(compute=lambda batch: np.full(
                            (len(batch), 48), np.nan, np.float32)))
        with pytest.raises(ValueError, match="its weights are damaged"):
            open_catalogue()
    assert len(open_catalogue().img_names) == 12
