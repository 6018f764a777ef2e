"""A folder of photos: where it comes from, what is in it, and its labels."""

import hashlib
import io
import os
import shutil
import socket
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import helpers
import lookalike
from helpers import get_images, scan
from lookalike import folders, stand_in


def put(folder, *names):
    """Small photos under these names."""
    for name in names:
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 40), "teal").save(path, "JPEG")
    return folder


def table(folder, text, name="images.csv"):
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_folder_without_a_photo(tmp_path):
    (tmp_path / "notes.txt").write_text("no photos yet")
    with pytest.raises(FileNotFoundError, match="no photo in .*jpg"):
        scan(tmp_path)


def test_photos_without_a_label_are_kept_aside(photos):
    found = scan(photos)
    assert len(found.names) == 56 and found.new == ["new-00.jpg", "new-01.jpg"]
    assert found.names == sorted(found.labels)


def test_a_folder_of_ones_own_needs_no_labels(tmp_path):
    put(tmp_path, "summer/a.JPG", "b.png")
    assert scan(tmp_path) == (["b.png", "summer/a.JPG"], [], {"b.png": "", "summer/a.JPG": ""})


def test_one_walk_finds_all(photos, monkeypatch):
    walks, walk = [], os.walk
    monkeypatch.setattr(os, "walk", lambda *args, **more: walks.append(args) or walk(*args, **more))
    scan(photos)
    assert len(walks) == 1


# ---- labels from where people have them ------------------------------------------------------
@pytest.mark.parametrize("labels", [
    {"dress/a.jpg": "dress", "coat/a.jpg": "coat", "c.jpg": ""},
    {"clothes/dress/a.jpg": "dress", "clothes/coat/b.jpg": "coat"},
    {"women/dress/a.jpg": "dress", "men/coat/b.jpg": "coat", "men/shoes/c.jpg": "shoes"},
    {"train_set/dress/a.jpg": "dress", "test_set/coat/b.jpg": "coat"},
    {"Train/dress/a.jpg": "dress", "Train/coat/a.jpg": "coat", "test/dress/b.jpg": "dress"},
    {"train/a.jpg": "", "val/b.jpg": ""}, {"DCIM/a.jpg": "", "DCIM/b.jpg": ""},
    {"images/a.jpg": "", "dresses/b.jpg": "dresses", "shoes/c.jpg": "shoes"},
], ids=lambda labels: next(iter(labels)))
def test_the_innermost_folder_is_the_class(tmp_path, labels):
    assert scan(put(tmp_path, *labels)) == (sorted(labels), [], labels)


def test_labels_by_folders_are_said(tmp_path, capsys):
    """Folders may be years, or cameras, and not kinds."""
    put(tmp_path, *(f"{year}/a.jpg" for year in range(2019, 2026)))
    scan(tmp_path)
    assert capsys.readouterr().out == ("Labels by the folders' names, 7 kinds: 2019, 2020, 2021, "
                                       "2022, 2023, ...\n")


TABLE = "image,label\na,Hat\nb.JPG,Coat\nПлатье Й,Dress\nd,\ne\nf.png,Bag\nsub/g,Shoes\n"
LABELS = {"a.jpg": "Hat", "B.jpg": "Coat", "Платье Й.jpeg": "Dress", "d.jpg": "", "e.jpg": "",
          "f.png": "Bag", "sub/g.heic": "Shoes"}


@pytest.mark.parametrize("text", [
    TABLE.encode(),
    TABLE.encode("utf-8-sig"),
    TABLE.replace(",", ";").encode("utf-8-sig"),
    TABLE.replace(",", "\t").encode("utf-16"),
    TABLE.replace("Й", "И\u0306").replace("\n", "\r\n").encode(),
], ids=["UTF-8", "with BOM", "semicolons", "UTF-16 with tabs", "NFD and CRLF"])
@pytest.mark.parametrize("beside", [True, False])
def test_tables_as_spreadsheets_save_them(tmp_path, text, beside):
    images = put(tmp_path / "images", *LABELS, "new.jpg")
    (tmp_path if beside else images).joinpath("images.csv").write_bytes(text)
    assert scan(images) == (sorted(LABELS), ["new.jpg"], LABELS)


def test_names_that_a_mac_wrote(tmp_path):
    put(tmp_path, "И\u0306.jpg")
    assert [*scan(table(tmp_path, "image,label\nЙ,Hat\n")).labels.values()] == ["Hat"]


def test_the_table_of_the_articles_data_set(tmp_path):
    """As on Kaggle: BOM, quotes, commas without quotes, the data set's root as the folder."""
    put(tmp_path, "images/1163.jpg", "images/1164.jpg", "images/9.jpg")
    (tmp_path / "styles.csv").write_bytes(
        'id,gender,articleType,productDisplayName\n1163,Men,Tshirts,"Nike, blue"\n'
        "1164,Women,Shirts,Red, with a collar\n".encode("utf-8-sig"))
    before = sorted(tmp_path.rglob("*"))
    for images, inside in ((tmp_path, "images/"), (tmp_path / "images", "")):
        labels = {f"{inside}1163.jpg": "Tshirts", f"{inside}1164.jpg": "Shirts"}
        assert scan(images) == (sorted(labels), [f"{inside}9.jpg"], labels)
        assert scan(images, "gender").labels[f"{inside}1164.jpg"] == "Women"
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written there"


QUOTED = 'image,label\n' + 'x,Hat\n' * 3 + 'a,"Hat\n' + "".join(f"b{i},Coat\n" for i in range(9))


@pytest.mark.parametrize("content, words", [
    ("image,label\nПальто,Пальто\n".encode("cp1251"), "not UTF-8 text.*CSV UTF-8"),
    (b"image,kind\na,Hat\n", "line 1: there is no column 'label'"),
    (b"", "line 1: there is no column"),
    ("image,label\na,Hat\n".encode("utf-16-le"), "line 1: there is no column"),
    (b"image,label\n" + b"a" * 200_000, "line 2: field larger"),
    (QUOTED.encode(), "line 5: unexpected end of data"),
    ((QUOTED + 'c,"Dress"\n').encode(), "line 5: ',' expected after"),
    (QUOTED.encode() + b'd,Bag"\n', "line 5: 'a' has a second label, or one of several lines"),
    (b"image,label\na,Hat\nb,Bag\na,Coat\n", "line 4: 'a' has a second label"),
    (b"image,title,label\na,Nice, warm,Hat\n", "line 2: more columns than the first line"),
    (b"image,label,label\na,Hat,Coat\n", "line 1: there is a second column 'label'"),
])
def test_tables_that_cannot_be_read(tmp_path, content, words):
    put(tmp_path, "a.jpg").joinpath("images.csv").write_bytes(content)
    with pytest.raises(ValueError, match=f"images.csv, {words}") as said:
        scan(tmp_path)
    assert len(str(said.value)) < 300


@pytest.mark.parametrize("rows, labels", [
    ("a,Hat", {}),  # a.jpg, a.png or one of the two in folders?
    ("a.jpg,Hat", {"a.jpg": "Hat"}), ("a.png,Hat", {"a.png": "Hat"}),
    ("1/a,Hat", {"1/a.jpg": "Hat"}), ("2/a.jpg,Hat\n1/a.jpg,Coat",
                                      {"2/a.jpg": "Hat", "1/a.jpg": "Coat"}),
    ("b,Hat", {"b.jpg": "Hat"}), ("b.jpg,Bag\na,Hat", {"b.jpg": "Bag"}),
    ("c.jpg,Hat", {"1/c.jpg": "Hat"}), ("d.jpg,Hat", {"1/d.jpg": "Hat"}),
    ("images/b.jpg,Hat\nb.jpg,Coat", {"images/b.jpg": "Hat", "b.jpg": "Coat"}),
])
def test_no_photo_gets_another_photos_label(tmp_path, rows, labels, capsys):
    put(tmp_path, "a.jpg", "a.png", "1/a.jpg", "2/a.jpg", "b.jpg", "1/c.jpg", "1/d.jpg",
        "d.jpg.png", *["images/b.jpg"] * ("images/" in rows))
    found = scan(table(tmp_path, f"image,label\n{rows}\n"))
    assert {name: label for name, label in found.labels.items() if found.new} == labels
    said = capsys.readouterr().out
    assert ("1 rows fit several photos each, and so none, the first is 'a'" in said) == (
        "a,Hat" in rows.split("\n"))


def test_a_table_of_others_beside_the_folder(tmp_path, capsys):
    """It may be another's, and closes nothing; the data set's own is."""
    put(tmp_path, "cats/1.jpg", "cats/2.jpg", "images/1.jpg")
    table(tmp_path, "image,label\nimages/1.jpg,Hat\n")
    assert not any(scan(tmp_path / "cats").labels.values()) and not scan(tmp_path / "cats").new
    assert scan(tmp_path / "images").labels == {"1.jpg": "Hat"}
    table(tmp_path, "url,width\nx,3\n")
    capsys.readouterr()
    assert len(scan(tmp_path / "cats").names) == 2
    assert "Not taken for a table of these photos: ../images.csv, line 1" in capsys.readouterr().out
    with pytest.raises(ValueError, match="../images.csv, line 1: there is no column"):
        scan(tmp_path / "images")


def test_each_folder_says_its_own(tmp_path, capsys):
    for name in "ab":
        table(put(tmp_path / name, "1.jpg", "2.jpg"), "image,label\n1,Hat\n")
        scan(tmp_path / name)
    assert capsys.readouterr().out.count("Kept aside as new ones: 1 photos") == 2


def test_two_rows_that_call_a_photo_two_things(tmp_path):
    put(tmp_path, "a.jpg")
    with pytest.raises(ValueError, match="'a.jpg' is called more than one thing, 'Coat' the"):
        scan(table(tmp_path, "image,label\na,Hat\na.jpg,Coat\n"))
    assert scan(table(tmp_path, "image,label\na,Hat\na.jpg,Hat\n")).labels == {"a.jpg": "Hat"}


def test_a_table_without_senders_is_named(tmp_path):
    put(tmp_path, "a.jpg")
    with pytest.raises(ValueError, match="no column 'sender_id'"):
        scan(table(tmp_path, "image,label\na,Hat\n"), "sender_id")


def test_who_sent_what(tmp_path):
    put(tmp_path, "dress/a.jpg", "coat/b.jpg")
    catalogue = SimpleNamespace(images=tmp_path, img_names=["coat/b.jpg", "dress/a.jpg"])
    assert folders.who_sent(catalogue) == catalogue.img_names, "no table: nobody sent two"
    table(tmp_path, "image,label\na,Hat\n")
    assert folders.who_sent(catalogue) == catalogue.img_names
    table(tmp_path, "image,label,sender_id\na,Hat,7\nb,Hat,\n")
    assert folders.who_sent(catalogue) == ["coat/b.jpg", "7"]
    table(tmp_path, "image,label,sender_id\na,Hat,7\nb,Hat,7\n")
    assert folders.who_sent(catalogue) == catalogue.img_names, "one person is no sample of people"


def test_a_table_of_other_photos_is_said(tmp_path, capsys):
    table(put(tmp_path, "a/1.jpg", "b/2.jpg"), "image,label\n77,Hat\n")
    assert scan(tmp_path) == scan(tmp_path) == (
        ["a/1.jpg", "b/2.jpg"], [], {"a/1.jpg": "a", "b/2.jpg": "b"})
    assert capsys.readouterr().out == (
        "images.csv names none of the photos: its first is '77', the first photo is 'a/1.jpg'\n"
        "Labels by the folders' names, 2 kinds: a, b\n"), "once"


# ---- what lies in a folder beside the photos -------------------------------------------------
def test_what_is_passed_over_is_counted(tmp_path, capsys):
    put(tmp_path, "a.jpg", "b.jfif", "c.jpe", "d.HEIC", "e.avif")
    (tmp_path / "link").symlink_to(tmp_path)
    with open(os.fsencode(tmp_path) + b"/caf\xe9.jpg", "wb"):
        pass
    for name in ("clip.mov", "clip2.MOV", "raw.dng", "LICENSE", ".DS_Store"):
        (tmp_path / name).touch()
    assert len(scan(tmp_path).names) == len(scan(tmp_path).names) == 5
    assert capsys.readouterr().out == (
        "Passed over: 1 .dng, 2 .mov, 1 linked folder, 1 whose names are not UTF-8 (rename them), "
        "1 without an ending\n")


def test_what_systems_put_beside_peoples_files(tmp_path, capsys):
    put(tmp_path, "a.jpg", "#1 dress.jpg", "@home/b.jpg")
    theirs = ("._a.jpg", ".Trashes/b.jpg", ".thumbnails/c.jpg", "@eaDir/a.jpg", "__MACOSX/a.jpg",
              ".ipynb_checkpoints/a-checkpoint.jpg", "$RECYCLE.BIN/x.jpg", "#recycle/x.jpg",
              "#snapshot/x.jpg", "@Recycle/x.jpg", "System Volume Information/x.jpg")
    put(tmp_path, *theirs)
    assert scan(tmp_path).names == ["#1 dress.jpg", "@home/b.jpg", "a.jpg"]
    assert capsys.readouterr().out == ""


def test_a_folder_that_may_not_be_read_is_said(tmp_path, monkeypatch, capsys):
    """macOS's photo library, a share that is offline; an administrator may read anything."""
    put(tmp_path, "a.jpg", "Photos Library.photoslibrary/b.jpg")
    scandir = os.scandir

    def closed(path):
        if "Library" in os.fspath(path):
            raise PermissionError(13, "Operation not permitted", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert scan(tmp_path).names == ["a.jpg"]
    assert capsys.readouterr().out == ("Could not be read, so its photos are missing: "
                                       "Photos Library.photoslibrary/ (Operation not permitted)\n")


# ---- where the photos come from: a server on this machine ------------------------------------
FILES = {"images/a.jpg": b"first photo", "images/b.jpg": b"second photo",
         "images.csv": b"image,sender_id,label,kids\na,1,Hat,False\n"}


def archive(files):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as z:
        for name, content in {**files, "README.md": b"not a photo"}.items():
            z.writestr(f"clothing-dataset-7ed86a9/{name}", content)
    return data.getvalue()


LIST = sorted(f"{hashlib.sha256(content).hexdigest()}  {name.split('/')[-1]}\n"
              for name, content in FILES.items())
SUM = hashlib.sha256("".join(LIST).encode()).hexdigest()


@pytest.fixture
def server():
    """serve(body, length) gives the address of a server that announces `length` bytes and sends
    `body`.
    """
    servers = []

    def serve(body, length=None, status=200):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.send_header("Content-Length", str(length or len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}/photos.zip"

    yield serve
    for one in servers:
        one.shutdown()
        one.server_close()


def test_good_download(server, tmp_path):
    old = tmp_path / ".images-killed"
    old.mkdir()
    os.utime(old, (0, 0))  # of a run that was killed long ago
    folders.download_photos(tmp_path / "images", server(archive(FILES)), SUM)
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == ["a.jpg", "b.jpg",
                                                                      "images.csv"]
    assert scan(tmp_path / "images").labels == {"a.jpg": "Hat"}
    assert [p.name for p in tmp_path.iterdir()] == ["images"]


def flipped():
    data = bytearray(archive(FILES))
    data[data.index(b"second photo")] ^= 1
    return bytes(data)


@pytest.mark.parametrize("body, options, error, words", [
    (archive(FILES)[:200], {"length": 5000}, (OSError, ValueError), "no archive|Incomplete"),
    (b"", {"status": 404}, OSError, "404"),
    (b"<html>Please log in to the Wi-Fi</html>", {}, ValueError, "no archive, or damaged"),
    (flipped(), {}, ValueError, "no archive, or damaged .Bad CRC"),
    (archive({**FILES, "images/b.jpg": b"another photo"}), {}, ValueError, "not the data set"),
    (archive({"images/a.jpg": b"first photo"}), {}, ValueError, "not the data set"),
    (archive({"images/../../a.jpg": b"x", "images/b.jpg": b"y"}), {}, ValueError,
     "1 files, is not the data set"),
], ids=["cut", "404", "web page", "one bit", "another photo", "a photo less", "climbs out"])
def test_bad_download_leaves_nothing(server, tmp_path, body, options, error, words):
    with pytest.raises(error, match=words):
        folders.download_photos(tmp_path / "images", server(body, **options), SUM)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_download_leaves_nothing(server, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "unpack_archive", stop)
    with pytest.raises(KeyboardInterrupt):
        folders.download_photos(tmp_path / "images", server(archive(FILES)), SUM)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_leads_nowhere_is_given_up_within_seconds(tmp_path, monkeypatch):
    """A server that takes the connection and never answers."""
    monkeypatch.setattr(folders, "PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(OSError):
        folders.download(f"http://127.0.0.1:{silent.getsockname()[1]}/a.zip", tmp_path / "a.zip")
    assert socket.getdefaulttimeout() is None and list(tmp_path.iterdir()) == []


def test_own_folder_comes_first(home, photos, monkeypatch, capsys):
    (home / "images").mkdir()
    monkeypatch.setenv("FASHION_IMAGES", str(photos))
    assert get_images() == photos.resolve()
    assert capsys.readouterr().out == "Photos: your own folder images/\n"


def test_own_folder_relative_to_the_checkout(home, photos, monkeypatch, tmp_path_factory):
    """Notebooks run in notebooks/, and the reader gave the path from the folder above."""
    (home / "mine").symlink_to(photos)
    monkeypatch.chdir(tmp_path_factory.mktemp("notebooks"))
    monkeypatch.setenv("FASHION_IMAGES", "mine")
    assert get_images() == photos.resolve()


@pytest.mark.parametrize("path", ["", "/no/such/folder", "a" * 300, "~nobody/photos", "a\0b"])
def test_own_folder_must_exist(home, path):
    with pytest.raises(FileNotFoundError, match="images is '.*which is not a folder"):
        helpers.open_catalogue(images=path)


def test_a_folder_that_is_not_there():
    with pytest.raises(FileNotFoundError, match="no folder 'nosuch'"):
        scan("nosuch")


def test_own_folder_below_the_home_folder(home, photos, monkeypatch):
    monkeypatch.setenv("HOME", str(photos.parent))
    assert folders.own_folder("~/images") == photos.resolve()


def test_images_before_download(home, monkeypatch, capsys, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "images").mkdir()  # another's, where the code happens to run
    monkeypatch.chdir(elsewhere)
    (home / "images").mkdir()
    monkeypatch.setattr(folders, "download_photos", lambda images: pytest.fail("downloaded again"))
    monkeypatch.setattr(folders, "home", lambda: pytest.fail("asked for a place to write"))
    assert get_images() == home / "images"
    assert capsys.readouterr().out == \
        "Photos: images/, with no table images.csv in it or beside it\n"
    (home / "images" / "images.csv").touch()
    get_images()
    assert capsys.readouterr().out == "Photos: the clothing data set in images/\n"


def test_download_before_stand_in(home, server, monkeypatch):
    download = folders.download_photos
    monkeypatch.setattr(folders, "download_photos",
                        lambda images: download(images, server(archive(FILES)), SUM))
    assert get_images() == home / "images" and (home / "images" / "a.jpg").exists()


def test_two_first_notebooks_at_once(home, server, monkeypatch):
    """The second finds the photos that the first has downloaded meanwhile."""
    download = folders.download_photos

    def both(images):
        download(images, server(archive(FILES)), SUM)
        download(images, server(archive(FILES)), SUM)
        raise OSError("the connection broke off")

    monkeypatch.setattr(folders, "download_photos", both)
    assert get_images() == home / "images" and len([*(home / "images").iterdir()]) == 3


def test_stand_in_without_a_network(home, monkeypatch, capsys):
    def no_network(images):
        raise OSError("no network")

    monkeypatch.setattr(folders, "download_photos", no_network)
    monkeypatch.setattr(stand_in.draw_catalogue, "__defaults__", (2, 1, iter))
    assert get_images() == home / "drawn_images"
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "stand in" in said and "FASHION_IMAGES" in said
    drawn = {p: p.stat().st_mtime_ns for p in (home / "drawn_images").iterdir()}
    get_images()
    assert drawn == {p: p.stat().st_mtime_ns for p in (home / "drawn_images").iterdir()}, "once"
    assert [p.name for p in home.iterdir()] == ["drawn_images"]


def test_nowhere_to_draw(home, monkeypatch):
    def closed(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(lookalike.tempfile, "TemporaryFile", closed)
    with pytest.raises(OSError, match="neither .* may be written to"):
        get_images()
