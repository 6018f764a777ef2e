"""A photo is what it holds: what is embedded again, what is not, and what a reader is told."""
import errno
import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lookalike import open_catalogue, pil_loader, shipped, store
from lookalike.common import HERE
from lookalike.networks import Backbone
from lookalike.photos import BadPhoto, photo_hash
from lookalike.store import keep, open_store, vectors_of


@pytest.fixture
def own(home, photos):
    """A folder of twelve photos of one's own."""
    own = home / "mine"
    own.mkdir()
    for path in sorted(photos.glob("*.jpg"))[:12]:
        shutil.copy(path, own)
    return own


@pytest.fixture
def computed(monkeypatch):
    """The names of the files that are embedded."""
    computed, embed_files = [], Backbone.embed_files

    def listen(self, files, compute, load):
        computed.extend(file.name for file in files)
        return embed_files(self, files, compute, load)

    monkeypatch.setattr(Backbone, "embed_files", listen)
    return computed


@pytest.fixture
def database(home):
    return home / "embeddings" / "vectors.db"


def faulty(backbone, fault, name="bag-00.jpg"):
    """The network, where preparing one photo fails."""
    def crop(photo):
        if Path(photo.filename).name == name:
            raise fault
        return backbone.crop(photo)

    return replace(backbone, crop=crop)


def right(catalogue, backbone):
    """Whether each photo's embedding is that of its file as it is now, but for the last digits."""
    now = backbone.embed([pil_loader(catalogue.images / name) for name in catalogue.img_names])
    return torch.allclose(now, catalogue.img_emb_tensors, atol=1e-4)


# ---- what need not be embedded again ---------------------------------------------------------
def test_a_folder_is_embedded_once(own, computed, tiny, database, capsys):
    (own / "broken.jpg").write_text("no photo")
    first = open_catalogue(own, tiny)
    assert len(first.img_names) == 12 and len(computed) == 13 and right(first, tiny)
    assert "Left out, 1 photos: broken.jpg: not a readable photo" in capsys.readouterr().out
    again = open_catalogue(own)
    assert len(computed) == 13 and torch.equal(first.img_emb_tensors, again.img_emb_tensors)
    assert list(again.skipped) == ["broken.jpg"] and "Left out, 1" in capsys.readouterr().out
    assert [*database.parent.iterdir()] == [database]


def test_a_file_is_read_again_only_when_it_changed(own, tiny, monkeypatch):
    read, file_digest = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, digest: read.append(
        Path(file.name).name) or file_digest(file, digest))
    for _ in range(2):
        open_catalogue(own, tiny)
    assert len(read) == 24, "what was changed seconds ago could change again and keep its time"
    monkeypatch.setattr(store, "SETTLED", -10**9)
    open_catalogue(own)
    read.clear()
    os.utime(own / "bag-00.jpg", ns=(1, 1))
    open_catalogue(own)
    assert read == ["bag-00.jpg"]


def test_renamed_moved_and_copied(own, computed, tiny, home):
    """Names of 250 bytes, and a folder whose name is not UTF-8, too."""
    open_catalogue(own, tiny)
    computed.clear()
    moved = own.rename(os.fsdecode(os.fsencode(home) + b"/caf\xe9"))
    shutil.copytree(moved, home / "copy" / "deeper")
    (moved / "bag-00.jpg").rename(moved / f"{'Платье' * 20}.jpg")
    (home / "copy" / "deeper" / "bag-00.jpg").unlink()
    for folder, count in ((moved, 12), (home / "copy", 11)):
        after = open_catalogue(folder, tiny)
        assert len(after.img_names) == count and right(after, tiny)
    assert computed == []


def test_another_network_and_back(own, computed, tiny, photos):
    """The folder's last network is used, and vectors of two networks never mix."""
    other = replace(tiny, name="efficientnet_lite1", fingerprint="other", weights="others")
    first = open_catalogue(own, tiny)
    assert open_catalogue(own, other).about["weights"] == "others" and len(computed) == 24
    assert open_catalogue(own).about["fingerprint"] == "other"
    back = open_catalogue(own, tiny)
    assert len(computed) == 24 and torch.equal(first.img_emb_tensors, back.img_emb_tensors)
    open_catalogue(own, other)
    shutil.copy(photos / "skirt-02.jpg", own)
    with pytest.raises(ValueError, match="made with 'others'.*distances between the two"):
        open_catalogue(own)


@pytest.fixture
def pickled(home, photos, embedded, monkeypatch):
    """A file as the shipped one, of the small catalogue."""
    hashes = [photo_hash(photos / name).hex() for name in embedded[0]]
    content = pickle.dumps([*embedded]) + json.dumps({"photos": hashes}).encode()
    (home / "e.pickle").write_bytes(content)
    monkeypatch.setattr(shipped, "EMB_FILENAME", home / "e.pickle")
    monkeypatch.setattr(shipped, "EMB_SHA256", hashlib.sha256(content).hexdigest())
    return home / "e.pickle"


def test_the_shipped_file_goes_before_the_database(own, computed, embedded, backbone, pickled):
    """Whatever the photos are called."""
    with open_store() as opened:
        keep(opened, backbone.fingerprint, {photo_hash(path): bytes(4 * 1280)
                                            for path in own.iterdir()})
    (own / "bag-00.jpg").rename(own / "z.jpg")
    catalogue = open_catalogue(own)
    assert computed == [] and torch.equal(catalogue.img_emb_tensors[-1], embedded[1][0])


def test_a_shipped_file_that_is_damaged_costs_time_only(own, computed, pickled, tiny, capsys):
    pickled.write_bytes(pickled.read_bytes()[:-1])
    tiny = replace(tiny, fingerprint=shipped.SHIPPED_BY["fingerprint"])
    assert len(open_catalogue(own, tiny).img_names) == len(computed) == 12
    assert "was not loaded" in capsys.readouterr().out


# ---- what must be embedded again -------------------------------------------------------------
def test_only_new_and_changed_photos(own, computed, photos, tiny):
    (own / "broken.jpg").write_text("no photo")
    open_catalogue(own, tiny)
    computed.clear()
    shutil.copy(photos / "skirt-02.jpg", own / "another.jpg")  # new
    shutil.copy(photos / "skirt-03.jpg", own / "bag-00.jpg")  # replaced under its name
    shutil.copy(photos / "shoes-03.jpg", own / "broken.jpg")  # mended
    (own / "bag-01.jpg").unlink()  # gone
    after = open_catalogue(own, tiny)
    assert sorted(computed) == ["another.jpg", "bag-00.jpg", "broken.jpg"] and not after.skipped
    assert len(after.img_names) == 13 and right(after, tiny)


def test_turned_by_a_program_that_keeps_size_and_time(own, tiny, monkeypatch):
    monkeypatch.setattr(store, "SETTLED", -10**9)
    path = own / "a.bmp"
    Image.open(own / "bag-00.jpg").save(path)
    before = path.stat()
    open_catalogue(own, tiny)
    Image.open(path).transpose(Image.Transpose.ROTATE_180).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    assert right(open_catalogue(own, tiny), tiny)


def test_a_photo_that_is_changed_while_it_is_embedded(own, photos, tiny, monkeypatch):
    embed_files = Backbone.embed_files

    def slowly(self, files, compute, load):
        if files[0].name == "bag-00.jpg":
            shutil.copy(photos / "skirt-02.jpg", files[0])
        return embed_files(self, files, compute, load)

    with monkeypatch.context() as patched:
        patched.setattr(Backbone, "embed_files", slowly)
        assert "changed meanwhile" in open_catalogue(own, tiny).skipped["bag-00.jpg"]
    after = open_catalogue(own, tiny)
    assert len(after.img_names) == 12 and right(after, tiny)


# ---- faults of the machine are not the photo's -----------------------------------------------
@pytest.mark.parametrize("fault", [OSError(errno.EIO, "Input/output error"), MemoryError(),
                                   OSError("out of memory error when reading image file")], ids=str)
def test_a_passing_fault_is_said_and_the_photo_tried_again(own, computed, tiny, fault, capsys):
    first = open_catalogue(own, faulty(tiny, fault))
    assert list(first.skipped) == ["bag-00.jpg"] and "bag-00.jpg: " in capsys.readouterr().out
    computed.clear()
    assert not open_catalogue(own, tiny).skipped and computed == ["bag-00.jpg"]


@pytest.mark.parametrize("when", ["its state is looked up", "it is read"])
def test_a_file_that_fails_once_does_not_lose_the_opening(own, tiny, monkeypatch, when):
    """Allowing a file to be read changes neither its size nor its time."""
    stat, file_digest = Path.stat, hashlib.file_digest

    def fail(name):
        if Path(name).name == "bag-00.jpg":
            raise PermissionError(errno.EACCES, "Permission denied", name)

    with monkeypatch.context() as patched:  # an administrator may read anything
        if when == "it is read":
            patched.setattr(hashlib, "file_digest", lambda file, digest: fail(file.name)
                            or file_digest(file, digest))
        else:
            patched.setattr(Path, "stat", lambda path, **options: fail(path)
                            or stat(path, **options))
        catalogue = open_catalogue(own, tiny)
        assert catalogue.skipped == {"bag-00.jpg": "Permission denied"}
        assert len(catalogue.img_names) == 11
    assert not open_catalogue(own, tiny).skipped


def test_a_photo_that_a_newer_version_may_read_is_tried_again(own, computed, tiny, monkeypatch):
    """A reason is Pillow's of that version; a vector stays."""
    cannot = faulty(tiny, BadPhoto("bag-00.jpg", "not a readable photo"))
    for _ in range(2):
        assert open_catalogue(own, cannot).skipped == {"bag-00.jpg": "not a readable photo"}
    assert len(computed) == 12
    monkeypatch.setattr(store, "READER", "a newer one: ")
    for _ in range(2):
        assert not open_catalogue(own, tiny).skipped
    assert computed[12:] == ["bag-00.jpg"]


def test_nothing_but_broken_photos(home, tiny):
    (home / "mine").mkdir()
    (home / "mine" / "a.jpg").write_text("no photo")
    with pytest.raises(ValueError, match="mine: none of its 1 photos can be used.*first: not"):
        open_catalogue(home / "mine", tiny)


def test_vectors_that_are_not_finite_are_not_stored(own, tiny):
    nan = torch.nn.Sequential(tiny.network, torch.nn.Threshold(300, torch.nan))
    with pytest.raises(ValueError, match="its weights are damaged"):
        open_catalogue(own, replace(tiny, network=nan))
    assert right(open_catalogue(own, tiny), tiny)


# ---- interruptions ---------------------------------------------------------------------------
@pytest.fixture
def many(home):
    """40 photos, no two the same, and one of them none."""
    folder = home / "many"
    folder.mkdir()
    for i in range(40):
        Image.new("RGB", (30, 40), (6 * i, 250 - 6 * i, 90)).save(folder / f"{i:02d}.png")
    (folder / "30.png").write_text("no photo")
    return folder


def test_an_interruption_keeps_what_is_done(many, computed, capsys, tiny):
    """Ctrl-C in a terminal and the stop button of a notebook are the same signal."""
    with pytest.raises(KeyboardInterrupt):
        open_catalogue(many, faulty(tiny, KeyboardInterrupt(), "16.png"))
    stored = capsys.readouterr().out.partition(" of 40 photos are stored: run this again")[0]
    stored = int(stored.split()[-1])
    assert 12 <= stored <= 20
    computed.clear()
    after = open_catalogue(many, tiny)
    assert len(computed) == 40 - stored and len(after.img_names) == 39 and right(after, tiny)


def test_several_at_once_end_in_the_same_vectors(many, tiny, monkeypatch):
    monkeypatch.setattr(store, "EVERY", 0)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: open_catalogue(many, tiny), range(4)))
    assert all(one.img_names == found[0].img_names and right(one, tiny) for one in found)


RUN = """
import os, sys
from pathlib import Path
from lookalike import common, extraction
common.HERE, extraction.EVERY = Path(sys.argv[1]), 0.05
from lookalike.networks import Backbone
from lookalike.recommender import open_catalogue
embed_files = Backbone.embed_files
def said(self, *arguments):
    os.write(2, b"begins\\n")
    return embed_files(self, *arguments)
Backbone.embed_files = said
open_catalogue(sys.argv[2])
"""


@pytest.mark.slow
def test_killed_at_random_moments(many, home, backbone, computed):
    """Whatever it was doing: what is there at the end is what an undisturbed run makes."""
    for _turn in range(2):
        run = subprocess.Popen([sys.executable, "-c", RUN, str(home), str(many)], cwd=HERE,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(10):
            assert "begins" in run.stderr.readline()
        time.sleep(random.uniform(0, 0.3))
        run.send_signal(signal.SIGKILL)
        run.communicate()
    after = open_catalogue(many)
    assert len(computed) < 40 and len(after.img_names) == 39 and right(after, backbone)


# ---- damaged rows ----------------------------------------------------------------------------
ONE = "(SELECT photo FROM vectors WHERE network = 'tiny' ORDER BY photo LIMIT 1)"


def change(database, sql):
    with sqlite3.connect(database) as other:
        other.executescript(sql)
    other.close()


@pytest.mark.parametrize("sql, damaged", [
    (f"UPDATE vectors SET vector = NULL WHERE photo = {ONE}", 1),
    (f"UPDATE vectors SET vector = 'text' WHERE photo = {ONE}", 1),
    (f"UPDATE vectors SET vector = 0.5 WHERE photo = {ONE}", 1),
    # 4 bytes from the end of one to the end of another: together they are as long as before
    ("UPDATE vectors SET vector = substr(vector, 1, length(vector) - 4) "
     f"WHERE photo = {ONE}; UPDATE vectors SET vector = vector || x'00000000' WHERE photo = "
     "(SELECT max(photo) FROM vectors WHERE network = 'tiny')", 2),
    # as earlier versions wrote them: a vector with nothing behind it, here one of NaN
    ("UPDATE vectors SET vector = zeroblob(192)", 12),
    (f"UPDATE vectors SET vector = CAST(x'{'0000c07f' * 48}' AS BLOB)", 12),
    ("UPDATE vectors SET vector = 'Pillow 11.0, pillow-heif 1.0: damaged'", 12),
    # each photo has another one's
    ("CREATE TABLE b AS SELECT *, row_number() OVER (ORDER BY photo) n FROM vectors WHERE "
     "network = 'tiny'; UPDATE vectors SET vector = (SELECT vector FROM b WHERE b.n = 1 + (SELECT "
     "n % 12 FROM b WHERE b.photo = vectors.photo)) WHERE network = 'tiny'; DROP TABLE b", 12)],
    ids=["NULL", "text", "number", "short and long", "earlier version's", "NaN", "reasons",
         "swapped"])
def test_damaged_rows_are_embedded_again(own, tiny, computed, database, capsys, sql, damaged):
    open_catalogue(own, tiny)
    change(database, sql)
    computed.clear()
    capsys.readouterr()
    assert right(open_catalogue(own, tiny), tiny) and len(computed) == damaged
    assert f"{damaged} rows are damaged or from an earlier version" in capsys.readouterr().out
    assert right(open_catalogue(own), tiny) and len(computed) == damaged


@pytest.mark.slow
def test_no_flipped_bit_gives_another_vector(database):
    """In 300 places of the file: a vector is right, or missing, or the file is refused."""
    vectors = {bytes([i]) * 32: np.random.default_rng(i).bytes(5120) for i in range(8)}
    with open_store() as opened:
        keep(opened, "n", vectors)
    content, refused, found = database.read_bytes(), 0, 0
    for place in np.random.default_rng(0).integers(8 * len(content), size=300):
        mutant = bytearray(content)
        mutant[place // 8] ^= 1 << place % 8
        database.write_bytes(mutant)
        try:
            with open_store() as opened:
                mutants = vectors_of(opened, "n", vectors)
            assert mutants.items() <= vectors.items(), place
            found += len(mutants)
        except OSError as error:
            assert str(database) in str(error)
            refused += 1
    assert found > 1800 and refused < 60


# ---- where it is stored ----------------------------------------------------------------------
@pytest.mark.parametrize("content", [b"no database" * 100, None])
def test_a_damaged_database_says_where_it_is(own, tiny, database, content):
    open_catalogue(own, tiny)
    if content is None:  # in the middle, as a bad disk does it
        content = bytearray(database.read_bytes())
        content[4096:-4096] = bytes(len(content) - 8192)
    database.write_bytes(content)
    with pytest.raises(OSError, match=f"{database} .*is damaged: delete it. All photos"):
        open_catalogue(own, tiny)
    database.write_bytes(b"")  # a new one
    assert len(open_catalogue(own, tiny).img_names) == 12


@pytest.mark.parametrize("sql, what", [
    ("CREATE TRIGGER zero AFTER INSERT ON vectors BEGIN UPDATE vectors SET vector = zeroblob(192);"
     "END", "trigger zero"),
    ("CREATE VIEW names AS SELECT path FROM files", "view names"),
    ("DROP TABLE files; CREATE TABLE files (a, b)", "table files")])
def test_a_database_that_holds_anything_but_our_tables_is_refused(own, tiny, database, monkeypatch,
                                                                  sql, what):
    open_catalogue(own, tiny)
    change(database, sql)
    for may_write in (True, False):
        monkeypatch.setattr(os, "access", lambda path, mode: may_write)  # noqa: B023
        with pytest.raises(OSError, match=f"vectors.db holds the {what}, which this tutorial did"):
            open_catalogue(own, tiny)


def full(monkeypatch, table):
    """A disk on which nothing more fits, for that table."""
    connect = sqlite3.connect

    class Full(sqlite3.Connection):
        def executemany(self, sql, rows):
            if table in sql:
                raise sqlite3.OperationalError("database or disk is full")
            return super().executemany(sql, rows)

    monkeypatch.setattr(sqlite3, "connect", lambda path, **options: connect(
        path, factory=Full, **options))


def test_a_full_disk(own, tiny, computed, monkeypatch):
    """It stops nothing that need not be written."""
    with monkeypatch.context() as patched:
        full(patched, "vectors")
        with pytest.raises(OSError, match="vectors.db .*full.: free some disk space"):
            open_catalogue(own, tiny)
    open_catalogue(own, tiny)
    computed.clear()
    full(monkeypatch, "files")
    monkeypatch.setattr(store, "SETTLED", -10**9)
    assert len(open_catalogue(own, tiny).img_names) == 12 and computed == []


def test_a_database_that_another_program_has_locked(own, tiny, database, monkeypatch):
    open_catalogue(own, tiny)
    with sqlite3.connect(database) as other:
        other.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr(store, "WAIT", 0.1)
        with pytest.raises(OSError, match="vectors.db .*another program has locked it, for exampl"):
            open_catalogue(own, tiny)
    other.close()
    assert right(open_catalogue(own, tiny), tiny)


def test_nobody_waits_to_note_which_files_were_seen(own, tiny, database, monkeypatch):
    """While another notebook writes, a folder whose photos are known opens at once."""
    open_catalogue(own, tiny)
    monkeypatch.setattr(store, "SETTLED", -10**9)
    with sqlite3.connect(database) as other:
        other.execute("BEGIN IMMEDIATE")
        start = time.monotonic()
        assert right(open_catalogue(own, replace(tiny, weights="moved.pth")), tiny)
        assert time.monotonic() - start < 15, "it waits 20 s for vectors only"
    other.close()


def test_a_teachers_database_in_a_checkout_that_is_read_only(own, photos, tiny, computed, database,
                                                             monkeypatch, capsys):
    """It is read, and new vectors stay in memory, also those of a second folder."""
    open_catalogue(own, tiny)
    content, known = database.read_bytes(), len(computed)
    shutil.copy(photos / "skirt-02.jpg", own)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    for _ in range(2):
        assert right(open_catalogue(own, tiny), tiny) and computed[known:] == ["skirt-02.jpg"]
    assert capsys.readouterr().out.count("new embeddings stay in memory, until this") == 1
    assert database.read_bytes() == content and [*database.parent.iterdir()] == [database]


def test_a_checkout_that_is_read_only_and_has_no_database(own, tiny, computed, home, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    for _ in range(2):
        assert len(open_catalogue(own, tiny).img_names) == len(computed) == 12
    assert not [*home.rglob("vectors.db")]
