"""get_images and the download behind it, against a server on this machine."""
import hashlib
import io
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

import helpers
import sample_images

FILES = {"images/a.jpg": b"first photo", "images/b.jpg": b"second photo", "images.csv": b"image,sender_id,label,kids\na,1,Hat,False\n"}


def archive(files):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as z:
        for name, content in {**files, "README.md": b"not a photo"}.items():
            z.writestr(f"clothing-dataset-7ed86a9/{name}", content)
    return data.getvalue()


SUM = hashlib.sha256("".join(sorted(
    f"{hashlib.sha256(content).hexdigest()}  {name.split('/')[-1]}\n" for name, content in FILES.items())).encode()).hexdigest()


@pytest.fixture
def server():
    """serve(body, length) gives the address of a server that announces `length` bytes and sends `body`."""
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
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}/photos.zip"
    yield serve
    for one in servers:
        one.shutdown()
        one.server_close()


def test_good_download(server, tmp_path):
    helpers.download_photos(tmp_path / "images", server(archive(FILES)), SUM)
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == ["a.jpg", "b.jpg", "images.csv"]
    assert helpers.read_labels(tmp_path / "images") == {"images/a.jpg": "Hat"}
    assert [p.name for p in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize("body, options, error, words", [
    (archive(FILES)[:200], {"length": 5000}, OSError, "IncompleteRead|Connection"),                       # the connection breaks half-way
    (b"", {"status": 404}, requests.HTTPError, "404"),
    (b"<html>Please log in to the Wi-Fi</html>", {}, zipfile.BadZipFile, "not a zip"),
    (archive({**FILES, "images/b.jpg": b"another photo"}), {}, ValueError, "not the data set"),
    (archive({"images/a.jpg": b"first photo"}), {}, ValueError, "not the data set"),
])
def test_bad_download_leaves_nothing(server, tmp_path, body, options, error, words):
    with pytest.raises(error, match=words):
        helpers.download_photos(tmp_path / "images", server(body, **options), SUM)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_download_leaves_nothing(server, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(zipfile.ZipFile, "read", stop)
    with pytest.raises(KeyboardInterrupt):
        helpers.download_photos(tmp_path / "images", server(archive(FILES)), SUM)
    assert list(tmp_path.iterdir()) == []


def test_names_in_the_archive_cannot_climb_out(server, tmp_path):
    with pytest.raises(ValueError, match="1 files"):
        helpers.download_photos(tmp_path / "images", server(archive({"images/../../a.jpg": b"x", "images/b.jpg": b"y"})), SUM)
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
    monkeypatch.setattr(helpers, "download_photos", lambda images: pytest.fail("downloaded again"))
    assert helpers.get_images() == home / "images"
    assert capsys.readouterr().out.count("\n") == 1


def test_download_before_stand_in(home, server, monkeypatch):
    download = helpers.download_photos
    monkeypatch.setattr(helpers, "download_photos", lambda images: download(images, server(archive(FILES)), SUM))
    assert helpers.get_images() == home / "images" and (home / "images" / "a.jpg").exists()


def test_stand_in_without_a_network(home, monkeypatch, capsys):
    def no_network(images):
        raise requests.ConnectionError
    monkeypatch.setattr(helpers, "download_photos", no_network)
    monkeypatch.setattr(sample_images.draw_catalogue, "__defaults__", (2, 1, iter))
    assert helpers.get_images() == home / "drawn_images"
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "stand-in" in said and "FASHION_IMAGES" in said
    drawn = {p: p.stat().st_mtime_ns for p in (home / "drawn_images").iterdir()}
    helpers.get_images()
    assert drawn == {p: p.stat().st_mtime_ns for p in (home / "drawn_images").iterdir()}, "drawn once, not at every call"
