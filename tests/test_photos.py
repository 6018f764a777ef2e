"""A file to an upright RGB image, or a sentence that says why not; a folder; its download."""

import hashlib
import io
import os
import shutil
import threading
import time
import warnings
import zipfile
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import requests
from PIL import Image

import helpers
import lookalike.photos as photos_room
from lookalike import stand_in
from lookalike.photos import BadPhoto, pil_loader


@pytest.fixture
def gradient():
    """200x100: dark on the left, light on the right; red at the top, blue below."""
    ramp = np.tile(np.linspace(0, 255, 200, dtype=np.uint8), (100, 1))
    return Image.merge("RGB", [Image.fromarray(a) for a in (ramp, ramp // 2, np.flipud(ramp))])


def loaded(image, path, **options):
    image.save(path, **options)
    result = pil_loader(path)
    assert result.mode == "RGB"
    return np.asarray(result, int)


@pytest.mark.parametrize(
    "name", ["a.jpg", "a.png", "a.webp", "a.gif", "a.bmp", "a.tiff", "рубашка в полоску.jpg"]
)
def test_common_formats(gradient, tmp_path, name):
    assert abs(loaded(gradient, tmp_path / name) - np.asarray(gradient, int)).mean() < 12


def test_grayscale_stays_gray(gradient, tmp_path):
    pixels = loaded(gradient.convert("L"), tmp_path / "a.png")
    assert (pixels[..., 0] == pixels[..., 1]).all() and (
        pixels[..., 0] == np.asarray(gradient.convert("L"))
    ).all()


def test_transparent_ground_becomes_white(tmp_path):
    pixels = loaded(Image.new("RGBA", (20, 20), (10, 20, 30, 0)), tmp_path / "a.png")
    assert (pixels == 255).all()


def test_transparent_palette_becomes_white(tmp_path):
    image = Image.new("P", (20, 20), 0)
    image.putpalette([0, 0, 0, 200, 10, 10])
    assert (loaded(image, tmp_path / "a.png", transparency=0) == 255).all()


def test_cmyk(gradient, tmp_path):
    pixels = loaded(gradient.convert("CMYK"), tmp_path / "a.jpg")
    assert abs(pixels - np.asarray(gradient, int)).mean() < 12


def test_16_bit_is_not_all_white(tmp_path):
    ramp = np.tile(np.linspace(0, 65535, 200).astype(np.uint16), (50, 1))
    pixels = loaded(Image.fromarray(ramp), tmp_path / "a.png")
    assert (
        pixels[:, 0].max() == 0 and pixels[:, -1].min() == 255 and 120 < pixels[:, 100].mean() < 136
    )


@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_float_tiff_is_not_all_black(tmp_path, scale):
    ramp = np.tile(np.linspace(0, scale, 200, dtype=np.float32), (50, 1))
    pixels = loaded(Image.fromarray(ramp), tmp_path / "a.tiff")
    assert pixels[:, 0].max() == 0 and pixels[:, -1].min() == 255


def test_exif_turn(gradient, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # 'turn by 90 degrees clockwise'
    pixels = loaded(gradient, tmp_path / "a.jpg", exif=exif)
    assert pixels.shape == (200, 100, 3) and pixels[0].mean() < pixels[-1].mean()


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    pixels = loaded(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixels[..., 0].min() > 200 and pixels[..., 2].max() < 50


def test_one_pixel(tmp_path, backbone):
    loaded(Image.new("RGB", (1, 1), "red"), tmp_path / "a.png")
    assert np.isfinite(backbone.embed([pil_loader(tmp_path / "a.png")]).numpy()).all()


def refused(path, *words):
    start = time.perf_counter()
    with pytest.raises(BadPhoto) as error:
        pil_loader(path)
    assert time.perf_counter() - start < 5
    assert str(error.value).startswith(f"{path}: ") and all(
        word in error.value.args[1] for word in words
    ), error.value


def test_truncated(gradient, tmp_path):
    gradient.resize((800, 400)).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    refused(tmp_path / "a.jpg", "damaged", "truncated")


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_damaged_png(gradient, tmp_path, place):
    gradient.save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    start = int(len(content) * place)
    content[start : start + 4] = bytes(255 - b for b in content[start : start + 4])
    (tmp_path / "a.png").write_bytes(content)
    refused(tmp_path / "a.png", "not a photo" if place == 0.1 else "damaged")


def test_empty_file(tmp_path):
    (tmp_path / "a.jpg").touch()
    refused(tmp_path / "a.jpg", "empty")


def test_text_renamed_to_jpg(tmp_path):
    (tmp_path / "a.jpg").write_text("milk, bread")
    refused(tmp_path / "a.jpg", "not a photo", "JPEG")


def test_format_that_is_not_listed(gradient, tmp_path):
    gradient.save(tmp_path / "a.jpg", format="PPM")
    refused(tmp_path / "a.jpg", "not a photo")


def test_1x8000_would_fill_the_memory_when_resized(tmp_path):
    Image.new("L", (1, 8000)).save(tmp_path / "a.png")
    refused(tmp_path / "a.png", "1x8000", "crop it")


@pytest.mark.parametrize("side", [9_000, 40_000])
def test_decompression_bomb(tmp_path, side):
    row = zlib.compress(bytes((side + 1) * 8), 9) * 2

    def chunk(kind, data):
        return (
            len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        )

    header = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", row) + chunk(b"IEND", b"")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused(tmp_path / "a.png", "million pixels", "scale it down")


def test_jpeg_of_thousands_of_scans(gradient, tmp_path):
    gradient.save(tmp_path / "a.jpg", progressive=True)
    pil_loader(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    last_scan = content[content.rindex(b"\xff\xda") : -2]
    (tmp_path / "a.jpg").write_bytes(content[:-2] + last_scan * 2000 + b"\xff\xd9")
    refused(tmp_path / "a.jpg", "scans")


def test_baseline_jpeg_of_thousands_of_scans(gradient, tmp_path):
    gradient.save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    scan = content[content.index(b"\xff\xda") : -2]
    (tmp_path / "a.jpg").write_bytes(content[:-2] + scan * 2000 + b"\xff\xd9")
    refused(tmp_path / "a.jpg", "scans")


def test_motion_photo(gradient, tmp_path):
    """A film behind the picture, full of bytes that look like scans, is not the picture."""
    gradient.save(tmp_path / "a.jpg", progressive=True)
    with open(tmp_path / "a.jpg", "ab") as f:
        f.write(b"\0\0\0\x18ftypmp42" + b"\xff\xda\x00\x02film" * 50_000)
    assert pil_loader(tmp_path / "a.jpg").size == (200, 100)


def test_thumbnail_inside_a_photo(gradient, tmp_path):
    """A whole JPEG in the EXIF block has an end of its own, which is not the photo's."""
    exif = Image.Exif()
    exif[0x010E] = "\xff\xd9"
    gradient.save(tmp_path / "a.jpg", exif=exif)
    assert pil_loader(tmp_path / "a.jpg").size == (200, 100)


@pytest.mark.parametrize("size, small", [((4000, 3000), (1000, 750)), ((3000, 4400), (750, 1100)),
                                         ((1000, 750), (1000, 750)), ((400, 533), (400, 533))])
def test_large_jpegs_may_be_decoded_small(tmp_path, size, small):
    Image.linear_gradient("L").resize(size).convert("RGB").save(tmp_path / "a.jpg")
    assert pil_loader(tmp_path / "a.jpg").size == size
    assert pil_loader(tmp_path / "a.jpg", small=True).size == small


def test_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    refused(tmp_path / "a.jpg", "not a file")


def test_link_to_itself(tmp_path):
    (tmp_path / "a.jpg").symlink_to(tmp_path / "a.jpg")
    refused(tmp_path / "a.jpg", "not a file", "link")


def test_folder(tmp_path):
    (tmp_path / "a.jpg").mkdir()
    refused(tmp_path / "a.jpg", "not a file", "folder")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="jacket.jpg.*check its name"):
        pil_loader(tmp_path / "jacket.jpg")


def test_folder_without_a_photo(tmp_path):
    (tmp_path / "notes.txt").write_text("no photos yet")
    with pytest.raises(FileNotFoundError, match="no photo in .*jpg"):
        helpers.list_photos(tmp_path)


def test_photos_without_a_label_are_kept_aside(photos):
    img_names, new_photos = helpers.list_photos(photos)
    assert len(img_names) == 56 and new_photos == ["images/new-00.jpg", "images/new-01.jpg"]
    assert set(img_names) == set(helpers.read_labels(photos))


def test_a_folder_of_ones_own_needs_no_labels(tmp_path, gradient):
    (tmp_path / "summer").mkdir()
    gradient.save(tmp_path / "summer" / "a.JPG")
    gradient.save(tmp_path / "b.png")
    assert helpers.list_photos(tmp_path) == (["images/b.png", "images/summer/a.JPG"], [])


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
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}/photos.zip"

    yield serve
    for one in servers:
        one.shutdown()
        one.server_close()


def test_good_download(server, tmp_path):
    photos_room.download_photos(tmp_path / "images", server(archive(FILES)), SUM)
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
        photos_room.download_photos(tmp_path / "images", server(body, **options), SUM)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_download_leaves_nothing(server, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "unpack_archive", stop)
    with pytest.raises(KeyboardInterrupt):
        photos_room.download_photos(tmp_path / "images", server(archive(FILES)), SUM)
    assert list(tmp_path.iterdir()) == []


def test_names_in_the_archive_cannot_climb_out(server, tmp_path):
    with pytest.raises(ValueError, match="1 files, is not the data set"):
        photos_room.download_photos(
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
        photos_room, "download_photos", lambda images: pytest.fail("downloaded again")
    )
    assert helpers.get_images() == home / "images"
    assert capsys.readouterr().out.count("\n") == 1


def test_download_before_stand_in(home, server, monkeypatch):
    download = photos_room.download_photos
    monkeypatch.setattr(
        photos_room, "download_photos", lambda images: download(images, server(archive(FILES)), SUM)
    )
    assert helpers.get_images() == home / "images" and (home / "images" / "a.jpg").exists()


def test_stand_in_without_a_network(home, monkeypatch, capsys):
    def no_network(images):
        raise requests.ConnectionError

    monkeypatch.setattr(photos_room, "download_photos", no_network)
    monkeypatch.setattr(stand_in.draw_catalogue, "__defaults__", (2, 1, iter))
    assert helpers.get_images() == home / "drawn_images"
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "stand in" in said and "FASHION_IMAGES" in said
    drawn = {p: p.stat().st_mtime_ns for p in (home / "drawn_images").iterdir()}
    helpers.get_images()
    assert drawn == {p: p.stat().st_mtime_ns for p in (home / "drawn_images").iterdir()}, (
        "drawn once, not at every call"
    )
