"""A folder of photos: where it comes from, what is in it, and its labels."""

import hashlib
import io
import os
import shutil
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
from PIL import Image

import helpers
from helpers import list_photos, read_labels
from lookalike import folders, stand_in
from lookalike.photos import BadPhoto


@pytest.fixture(autouse=True)
def said_anew():
    folders._say_once.cache_clear()


def put(folder, *names):
    """Small photos under these names."""
    for name in names:
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 40), "teal").save(path, "JPEG")
    return folder


def test_folder_without_a_photo(tmp_path):
    (tmp_path / "notes.txt").write_text("no photos yet")
    with pytest.raises(FileNotFoundError, match="no photo in .*jpg"):
        helpers.list_photos(tmp_path)


def test_photos_without_a_label_are_kept_aside(photos):
    img_names, new_photos = helpers.list_photos(photos)
    assert len(img_names) == 56 and new_photos == ["images/new-00.jpg", "images/new-01.jpg"]
    assert set(img_names) == set(helpers.read_labels(photos))


def test_a_folder_of_ones_own_needs_no_labels(tmp_path):
    (tmp_path / "summer").mkdir()
    put(tmp_path, "summer/a.JPG", "b.png")
    assert helpers.list_photos(tmp_path) == (["images/b.png", "images/summer/a.JPG"], [])

# ---- labels from where people have them ------------------------------------------------------
def test_a_folder_a_class_gives_the_labels(tmp_path):
    put(tmp_path, "dress/a.jpg", "dress/more/b.jpg", "coat/a.jpg", "c.jpg")
    assert read_labels(tmp_path) == {
        "images/c.jpg": "",
        "images/coat/a.jpg": "coat",
        "images/dress/a.jpg": "dress",
        "images/dress/more/b.jpg": "dress",
    }
    assert list_photos(tmp_path) == (sorted(read_labels(tmp_path)), [])


def test_a_kind_that_is_not_utf_8_can_be_drawn(tmp_path):
    put(tmp_path, os.fsdecode(b"v\xeatement/a.jpg"), "coat/a.jpg")
    assert sorted(read_labels(tmp_path).values()) == ["coat", "v?tement"]


def test_training_and_test_are_no_classes(tmp_path):
    put(tmp_path, "Train/dress/a.jpg", "Train/coat/a.jpg", "test/dress/b.jpg")
    assert [*read_labels(tmp_path).values()] == ["coat", "dress", "dress"]
    put(tmp_path / "flat", "train/a.jpg", "val/b.jpg")
    assert read_labels(tmp_path / "flat") == {}


def test_labels_by_folders_are_said(tmp_path, capsys):
    """Folders may be years, or cameras, and not kinds."""
    put(tmp_path, *(f"{year}/a.jpg" for year in range(2019, 2026)))
    list_photos(tmp_path)
    assert capsys.readouterr().out == ("Labels by the folders' names, 7 kinds: 2019, 2020, 2021, "
                                       "2022, 2023, ...\n")


def test_one_folder_in_a_folder_is_no_class(tmp_path):
    put(tmp_path, "DCIM/a.jpg", "DCIM/b.jpg")
    assert read_labels(tmp_path) == {} and len(list_photos(tmp_path)[0]) == 2


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
    assert read_labels(images) == {f"images/{name}": label for name, label in LABELS.items()}
    assert list_photos(images)[1] == ["images/new.jpg"]


def test_names_that_a_mac_wrote(tmp_path):
    put(tmp_path, "И\u0306.jpg")
    (tmp_path / "images.csv").write_text("image,label\nЙ,Hat\n", encoding="utf-8")
    assert list(read_labels(tmp_path).values()) == ["Hat"]


def test_the_table_of_the_articles_data_set(tmp_path):
    """As on Kaggle: BOM, quotes, commas without quotes, the data set's root in FASHION_IMAGES."""
    put(tmp_path, "images/1163.jpg", "images/1164.jpg", "images/9.jpg")
    (tmp_path / "styles.csv").write_bytes(
        'id,gender,articleType,productDisplayName\n1163,Men,Tshirts,"Nike, blue"\n'
        "1164,Women,Shirts,Red, with a collar\n".encode("utf-8-sig")
    )
    before = sorted(tmp_path.rglob("*"))
    images = folders.own_folder(tmp_path)
    assert images == tmp_path / "images"
    assert read_labels(images) == {"images/1163.jpg": "Tshirts", "images/1164.jpg": "Shirts"}
    assert read_labels(images, "gender")["images/1164.jpg"] == "Women"
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written there"


@pytest.mark.parametrize("content, words", [
    ("image,label\nПальто,Пальто\n".encode("cp1251"), "images.csv is not UTF-8.*CSV UTF-8"),
    (b"image,kind\na,Hat\n", "images.csv has no column 'label'"),
    (b"", "images.csv has no column 'image'"),
    ("image,label\na,Hat\n".encode("utf-16-le"), "images.csv has no column"),
    (b"image,label\n" + b"a" * 200_000, "images.csv is no table"),
])
def test_tables_that_cannot_be_read(tmp_path, content, words):
    put(tmp_path, "a.jpg").joinpath("images.csv").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        list_photos(tmp_path)


def test_a_table_of_other_photos_is_said(tmp_path, capsys):
    put(tmp_path, "a/1.jpg", "b/2.jpg").joinpath("images.csv").write_text("image,label\n77,Hat\n")
    assert len(list_photos(tmp_path)[0]) == 2 and list_photos(tmp_path)[1] == []
    said = capsys.readouterr().out
    assert said == ("images.csv names none of the photos: its first is '77', the first photo is "
                    "'a/1.jpg'\nLabels by the folders' names, 2 kinds: a, b\n"), "once"
    assert read_labels(tmp_path)["images/b/2.jpg"] == "b"


# ---- what lies in a folder beside the photos -------------------------------------------------
def test_what_is_passed_over_is_counted(tmp_path, capsys):
    put(tmp_path, "a.jpg", "b.jfif", "c.jpe", "d.HEIC", "e.avif")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("clip.mov", "clip2.MOV", "raw.dng", "LICENSE", ".DS_Store"):
        (tmp_path / name).touch()
    assert len(list_photos(tmp_path)[0]) == len(list_photos(tmp_path)[0]) == 5
    assert capsys.readouterr().out == (
        "Passed over: 1 .dng, 2 .mov, 1 linked folder, 1 without an ending\n")


def test_hidden_files_and_folders_are_passed_over(tmp_path, capsys):
    put(tmp_path, "a.jpg", "._a.jpg", ".Trashes/b.jpg", ".thumbnails/c.jpg", "@eaDir/a.jpg",
        "__MACOSX/a.jpg", ".ipynb_checkpoints/a-checkpoint.jpg", "$RECYCLE.BIN/x.jpg")
    assert list_photos(tmp_path) == (["images/a.jpg"], [])
    assert capsys.readouterr().out == ""


def test_a_name_that_is_not_utf_8_is_shown(tmp_path, backbone):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.jpg", "wb") as f:
        Image.new("RGB", (300, 400), "teal").save(f, "JPEG")
    (tmp_path / "b.jpg").write_text("no photo")
    os.rename(tmp_path / "b.jpg", os.fsencode(tmp_path) + b"/b\xe9.jpg")
    names, vectors, skipped = helpers.extract_embeddings(
        list_photos(tmp_path)[0], backbone, images=tmp_path)  # says what it skipped
    assert len(names) == 1 and len(skipped) == 1
    helpers.save_embeddings(tmp_path / "e.safetensors", names, vectors, backbone)
    assert helpers.load_embeddings(tmp_path / "e.safetensors")[0] == names
    for one in (helpers.Neighbour(names[0], "", 1.0, 0), folders.photo_path(names[0], tmp_path)):
        shown = repr(one) if isinstance(one, tuple) else str(BadPhoto(one, "no photo"))
        assert "caf?.jpg" in shown and shown.encode("utf-8")


# ---- where the photos come from: a server on this machine ------------------------------------
FILES = {
    "images/a.jpg": b"first photo",
    "images/b.jpg": b"second photo",
    "images.csv": b"image,sender_id,label,kids\na,1,Hat,False\n",
}


def archive(files):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as z:
        for name, content in {**files, "README.md": b"not a photo"}.items():
            z.writestr(f"clothing-dataset-7ed86a9/{name}", content)
    return data.getvalue()


SUM = hashlib.sha256(
    "".join(
        sorted(
            f"{hashlib.sha256(content).hexdigest()}  {name.split('/')[-1]}\n"
            for name, content in FILES.items()
        )
    ).encode()
).hexdigest()


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
    folders.download_photos(tmp_path / "images", server(archive(FILES)), SUM)
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == [
        "a.jpg",
        "b.jpg",
        "images.csv",
    ]
    assert helpers.read_labels(tmp_path / "images") == {"images/a.jpg": "Hat"}
    assert [p.name for p in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize(
    "body, options, error, words",
    [
        (
            archive(FILES)[:200],
            {"length": 5000},
            OSError,
            "IncompleteRead|Connection",
        ),  # the connection breaks half-way
        (b"", {"status": 404}, requests.HTTPError, "404"),
        (b"<html>Please log in to the Wi-Fi</html>", {}, OSError, "not a zip"),
        (archive({**FILES, "images/b.jpg": b"another photo"}), {}, ValueError, "not the data set"),
        (archive({"images/a.jpg": b"first photo"}), {}, ValueError, "not the data set"),
    ],
)
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


def test_names_in_the_archive_cannot_climb_out(server, tmp_path):
    with pytest.raises(ValueError, match="1 files, is not the data set"):
        folders.download_photos(
            tmp_path / "images",
            server(archive({"images/../../a.jpg": b"x", "images/b.jpg": b"y"})),
            SUM,
        )
    assert list(tmp_path.iterdir()) == []


def test_own_folder_comes_first(home, photos, monkeypatch, capsys):
    (home / "images").mkdir()
    monkeypatch.setenv("FASHION_IMAGES", str(photos))
    assert helpers.get_images() == photos.resolve()
    assert "FASHION_IMAGES" in capsys.readouterr().out


def test_own_folder_relative_to_the_checkout(home, photos, monkeypatch, tmp_path_factory):
    """Notebooks run in notebooks/, and the reader gave the path from the folder above."""
    (home / "mine").symlink_to(photos)
    monkeypatch.chdir(tmp_path_factory.mktemp("notebooks"))
    monkeypatch.setenv("FASHION_IMAGES", "mine")
    assert helpers.get_images() == photos.resolve()


def test_own_folder_must_exist(home, monkeypatch):
    monkeypatch.setenv("FASHION_IMAGES", "/no/such/folder")
    with pytest.raises(FileNotFoundError, match="/no/such/folder"):
        helpers.get_images()


def test_images_before_download(home, monkeypatch, capsys):
    (home / "images").mkdir()
    monkeypatch.setattr(
        folders, "download_photos", lambda images: pytest.fail("downloaded again")
    )
    assert helpers.get_images() == home / "images"
    assert capsys.readouterr().out.count("\n") == 1


def test_download_before_stand_in(home, server, monkeypatch):
    download = folders.download_photos
    monkeypatch.setattr(
        folders, "download_photos", lambda images: download(images, server(archive(FILES)), SUM)
    )
    assert helpers.get_images() == home / "images" and (home / "images" / "a.jpg").exists()


def test_stand_in_without_a_network(home, monkeypatch, capsys):
    def no_network(images):
        raise requests.ConnectionError

    monkeypatch.setattr(folders, "download_photos", no_network)
    monkeypatch.setattr(stand_in.draw_catalogue, "__defaults__", (2, 1, iter))
    assert helpers.get_images() == home / "drawn_images"
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "stand in" in said and "FASHION_IMAGES" in said
    drawn = {p: p.stat().st_mtime_ns for p in (home / "drawn_images").iterdir()}
    helpers.get_images()
    assert drawn == {p: p.stat().st_mtime_ns for p in (home / "drawn_images").iterdir()}, (
        "drawn once, not at every call"
    )
