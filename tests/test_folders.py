"""A folder of photos: where it comes from, which photos are in it, and its table."""
import contextlib
import hashlib
import io
import os
import socket
import ssl
import threading
import zipfile
from pathlib import Path
from urllib.error import URLError

import pytest

from lookalike import folders, placeholder
from lookalike.folders import get_images, labels_by_folder, photo_files, read_table, values_of


def put(folder, *names):
    """Files under these names; what is in them does not matter here."""
    for name in names:
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def table(folder, text, name="images.csv"):
    data = text if isinstance(text, bytes) else text.encode()
    (folder / name).write_bytes(data)
    return folder


def read(folder):
    """The folder's table, where each name is a photo of its own."""
    return read_table(folder, {name: name.encode() for name in photo_files(folder)})


def labels(folder):
    found = read(folder)
    return found.columns.get(found.label)


# ---- which photos are in it ------------------------------------------------------------------
def test_a_folder_without_a_photo_and_no_folder(tmp_path):
    put(tmp_path, "notes.txt")
    with pytest.raises(FileNotFoundError, match="no photo in .*jpg"):
        photo_files(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder 'nosuch'"):
        photo_files("nosuch")


def test_what_is_passed_over_is_counted(tmp_path, capsys):
    put(tmp_path, "a.JPG", "sub/b.jfif", "c.jpe", "d.HEIC", "e.avif", "images.csv",
        "clip.mov", "clip2.MOV", "raw.dng", "LICENSE", ".DS_Store", "recommendations.html")
    (tmp_path / "link").symlink_to(tmp_path)
    open(os.fsencode(tmp_path) + b"/caf\xe9.jpg", "wb").close()
    assert photo_files(tmp_path) == photo_files(tmp_path) == [
        "a.JPG", "c.jpe", "d.HEIC", "e.avif", "sub/b.jfif"]
    line, *others = capsys.readouterr().out.splitlines()
    assert others == [] and line.startswith("Passed over: ")
    assert sorted(line[13:].split(", ")) == [
        "1 .dng", "1 linked folder", "1 whose names are not UTF-8 (rename them)",
        "1 without an extension", "2 .mov"]


def test_the_list_of_what_is_passed_over_is_short(tmp_path, capsys):
    put(tmp_path, "a.jpg", *(f"x.{i}{'y' * 200}" for i in range(300)))
    photo_files(tmp_path)
    said = capsys.readouterr().out
    assert len(said) < 400 and "and 290 more" in said


def test_control_characters_do_not_reach_the_screen(tmp_path, capsys):
    put(tmp_path, *(f"{one}\x1b[2J\n/{one}.jpg" for one in "abcdefg"), "c.\x1b[31m")
    labels_by_folder(photo_files(tmp_path), tmp_path)
    assert capsys.readouterr().out == (
        "Passed over: 1 .?[31m\nLabels from the folders' names, 7 categories: "
        "a?[2J?, b?[2J?, c?[2J?, d?[2J?, e?[2J? and 2 more\n")


def test_what_systems_put_next_to_peoples_files(tmp_path, capsys):
    put(tmp_path, "a.jpg", "#1 dress.jpg", "@home/b.jpg", "._a.jpg", ".Trashes/b.jpg",
        "@eaDir/a.jpg", "__MACOSX/a.jpg", "$RECYCLE.BIN/x.jpg", "#recycle/x.jpg", "#snapshot/x.jpg",
        "@Recycle/x.jpg", "System Volume Information/x.jpg")
    assert photo_files(tmp_path) == ["#1 dress.jpg", "@home/b.jpg", "a.jpg"]
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
    assert photo_files(tmp_path) == ["a.jpg"]
    assert capsys.readouterr().out == (
        "Folders that cannot be read, so their photos are missing: "
        "Photos Library.photoslibrary/ (Operation not permitted)\n")


# ---- labels from the folders' names ----------------------------------------------------------
@pytest.mark.parametrize("expected", [
    {"dress/a.jpg": "dress", "coat/a.jpg": "coat", "c.jpg": None},
    {"women/dress/a.jpg": "dress", "men/coat/b.jpg": "coat", "men/shoes/c.jpg": "shoes"},
    {"Train/dress/a.jpg": "dress", "Train/coat/a.jpg": "coat", "test/dress/b.jpg": "dress"},
    {"train/a.jpg": None, "val/b.jpg": None}, {"DCIM/a.jpg": None, "DCIM/b.jpg": None},
    {"images/a.jpg": None, "dresses/b.jpg": "dresses", "shoes/c.jpg": "shoes"},
    {"2023/01/a.jpg": None, "2023/02/b.jpg": None, "2024-05/c.jpg": None},
    {"100APPLE/a.jpg": None, "101APPLE/b.jpg": None, "102CANON/c.jpg": None},
    {"3 dresses/a.jpg": "3 dresses", "платья/b.jpg": "платья"},
], ids=lambda expected: next(iter(expected)))
def test_the_innermost_folder_is_the_category(expected, tmp_path):
    assert labels_by_folder(expected, tmp_path) == {
        name: label for name, label in expected.items() if label}


# ---- tables ----------------------------------------------------------------------------------
TABLE = ("image,label\na,Hat\nb.JPG,Coat\nПлатье Й,Dress\nf.png,Bag\nsub/g,Shoes\n"
         "1,\n2,nan\n3,None\n4,N/A\n5, - \n")
LABELS = {"a.jpg": "Hat", "B.jpg": "Coat", "Платье Й.jpeg": "Dress", "f.png": "Bag",
          "sub/g.heic": "Shoes", **{f"{i}.jpg": "" for i in range(1, 6)}}


@pytest.mark.parametrize("text", [
    TABLE.encode(),
    TABLE.replace(",", ";").encode("utf-8-sig"),
    TABLE.replace(",", "\t").encode("utf-16"),
    TABLE.replace("Й", "И\u0306").replace("\n", "\r\n").replace("sub/", ".\\sub\\").encode(),
], ids=["UTF-8", "BOM and semicolons", "UTF-16 with tabs", "NFD, CRLF and backslashes"])
@pytest.mark.parametrize("beside", [True, False])
def test_tables_as_spreadsheets_save_them(tmp_path, text, beside):
    images = put(tmp_path / "images", *LABELS, "new.jpg")
    table(tmp_path if beside else images, text)
    assert labels(images) == LABELS


STYLES = ('id,gender,articleType,productDisplayName\n1163,Men,Tshirts,"Nike, blue"\n'
          "1164,Women,Shirts,Red, with a collar\n7,Men,Ties,Gone\n").encode("utf-8-sig")
LINKS = "filename,link\n1163.jpg,http://example.org/1163.jpg\n"


@pytest.mark.parametrize("links", [None, LINKS, LINKS + "9.jpg,http://example.org/9,2.jpg\n"],
                         ids=["small", "full", "full, with a comma"])
@pytest.mark.parametrize("place, inside", [(".", "images/"), ("images", "")])
def test_the_articles_data_set_as_kaggle_packs_it(tmp_path, capsys, links, place, inside):
    """The full packing has an images.csv of links beside styles.csv."""
    put(tmp_path, "images/1163.jpg", "images/1164.jpg", "images/9.jpg")
    table(tmp_path, STYLES, "styles.csv")
    if links:
        table(tmp_path, links)
    found = read(tmp_path / place)
    assert found.columns[found.label] == {f"{inside}1163.jpg": "Tshirts",
                                          f"{inside}1164.jpg": "Shirts"}
    assert found.columns["gender"][f"{inside}1164.jpg"] == "Women"
    *others, unused = capsys.readouterr().out.splitlines()
    assert "styles.csv: 1 rows fit no photo. The first is '7'; the first photo is" in unused
    assert len(others) == bool(links)
    assert all("images.csv has no columns 'image' and 'label'" in line for line in others)


QUOTED = "image,label\n" + "x,Hat\n" * 3 + 'a,"Hat\n' + "".join(f"b{i},Coat\n" for i in range(9))


@pytest.mark.parametrize("content, words", [
    ("image,label\nПальто,Пальто\n".encode("cp1251"), "not UTF-8 text.*CSV UTF-8"),
    (b"image,label\n" + b"a" * 200_000, "line 2: field larger"),
    (QUOTED.encode(), "line 5: unexpected end of data"),
    (QUOTED.encode() + b'd,Bag"\n', "line 5: 'a' has several lines: close the quotation marks"),
    (b"image,label\na,Hat\nb,Bag\na,Coat\n", "line 4: 'a' has two labels, 'Hat' and 'Coat'"),
    (b"image,title,label\na,Nice, warm,Hat\n", "line 2: more columns than the first line"),
    (b"image,label,label\na,Hat,Coat\n", "line 1: two columns have the same name")],
    ids=lambda value: value[:20] if isinstance(value, str) else "")
def test_tables_that_cannot_be_read(tmp_path, content, words):
    with pytest.raises(ValueError, match=f"images.csv, {words}") as said:
        read(table(put(tmp_path, "a.jpg"), content))
    assert len(str(said.value)) < 300


@pytest.mark.parametrize("content", [b"image,kind\na,Hat\n", b"", b"url,width\nx,3\n",
                                     "image,label\na,Hat\n".encode("utf-16-le")])
def test_a_table_without_the_two_columns_is_another_table(tmp_path, capsys, content):
    assert labels(table(put(tmp_path, "a.jpg"), content)) is None
    assert capsys.readouterr().out == (
        "Not a table of labels: images.csv has no columns 'image' and 'label'\n")


@pytest.mark.parametrize("rows, expected, unclear", [
    ("a,Hat", {}, "a"),  # a.jpg, a.png or one of the two in folders?
    ("a.jpg,Hat", {}, "a.jpg"), ("b.jpg,Bag\na,Hat", {"b.jpg": "Bag"}, "a"),
    ("a.jpg,Hat\n1/a,Bag\n2/a.jpg,", {"1/a.jpg": "Bag", "2/a.jpg": "", "a.jpg": "Hat"}, None),
    ("a.png,Hat", {"a.png": "Hat"}, None), ("c.jpg,Hat", {"1/c.jpg": "Hat"}, None),
    ("b,Hat\nb,Hat", {"b.jpg": "Hat"}, None)])
def test_no_photo_gets_another_photos_label(tmp_path, capsys, rows, expected, unclear):
    put(tmp_path, "a.jpg", "a.png", "1/a.jpg", "2/a.jpg", "b.jpg", "1/c.jpg")
    assert (labels(table(tmp_path, f"image,label\n{rows}\n")) or {}) == expected
    assert capsys.readouterr().out == (
        f"images.csv: 1 rows fit several photos each, so we use none of them. The first is "
        f"{unclear!r}: give each photo a row, by its path with extension\n" if unclear else "")


def test_rows_that_fit_no_photo_are_counted(tmp_path, capsys):
    """Excel turns 00007 into 7."""
    put(tmp_path, "00007.jpg", "00008.jpg", "a.jpg")
    assert labels(table(tmp_path, "image,label\n7,Hat\n8,Hat\na,Bag\n")) == {"a.jpg": "Bag"}
    assert capsys.readouterr().out == (
        "images.csv: 2 rows fit no photo. The first is '7'; the first photo is '00007.jpg'\n")


def test_a_table_next_to_the_folder_may_be_of_other_photos(tmp_path, capsys):
    """Such a table closes nothing; the data set's own does."""
    put(tmp_path, "cats/1.jpg", "images/1.jpg")
    table(tmp_path, "image,label\nimages/1.jpg,Hat\n")
    assert labels(tmp_path / "cats") is None and labels(tmp_path / "images") == {"1.jpg": "Hat"}
    table(tmp_path, b"image,label\n1,Hat\n1,Coat\n")
    capsys.readouterr()
    assert labels(tmp_path / "cats") is None
    assert "Not a table of these photos: ../images.csv, line 3" in capsys.readouterr().out
    with pytest.raises(ValueError, match="../images.csv, line 3: '1' has two labels"):
        read(tmp_path / "images")


# ---- labels and groups that a reader passes --------------------------------------------------
PHOTOS = {name: name.encode() for name in ("sub/A.jpg", "b.png", "c.jpg")}


@pytest.mark.parametrize("given, error, words", [
    ("sender_id", ValueError, "groups='sender_id', but there is no table images.csv"),
    ({"d.jpg": 1}, ValueError, "groups gives none of the photos a value.*for example 'sub/A.jpg'"),
    (lambda name: None, ValueError, "none of the photos"), ({}, ValueError, "none of the photos"),
    (lambda name: name.split("."), TypeError, "groups gives .'sub/A', 'jpg'. for a photo"),
    (5, TypeError, "groups is 5: pass a column's name, a dict .* or a function")])
def test_values_that_fit_nothing(given, error, words):
    with pytest.raises(error, match=words):
        values_of(given, "groups", PHOTOS, folders.NO_TABLE)


def test_a_column_that_is_missing_is_named(tmp_path):
    found = read(table(put(tmp_path, "a.jpg"), "image,label,sender_id\na,Hat,7\n"))
    assert values_of("sender_id", "groups", PHOTOS, found) == {"a.jpg": "7"}
    with pytest.raises(ValueError, match="'sender', but images.csv has the columns label, sender"):
        values_of("sender", "groups", PHOTOS, found)


# ---- where the photos come from: a server on this machine ------------------------------------
FILES = {"images/a.jpg": b"first photo", "images/b.jpg": b"second photo",
         "images.csv": b"image,sender_id,label,kids\na,1,Hat,False\n"}
SUM = hashlib.sha256("".join(sorted(
    f"{hashlib.sha256(content).hexdigest()}  {name.split('/')[-1]}\n"
    for name, content in FILES.items())).encode()).hexdigest()


def archive(files):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as z:
        for name, content in {**files, "README.md": b"not a photo"}.items():
            z.writestr(f"clothing-dataset-7ed86a9/{name}", content)
    return data.getvalue()


def reply(body, *headers, status="200 OK"):
    """What a web server sends."""
    lines = [f"HTTP/1.1 {status}", *headers, "Connection: close", "", ""]
    return "\r\n".join(lines).encode() + body


GOOD = archive(FILES)
FLIPPED = GOOD.replace(b"second photo", b"second phot\x00", 1)


@contextlib.contextmanager
def serving(reply, times=2):
    """The address of a server that sends these bytes, whatever it is asked for."""
    def answer(server):
        for _ in range(times):
            with contextlib.suppress(OSError), server.accept()[0] as connection:
                connection.recv(10_000)
                connection.sendall(reply)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer, args=(server,), daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/photos.zip"


@pytest.mark.parametrize("sent, error, words", [
    (reply(b"", status="404 Not Found"), OSError, "404"),
    (reply(b"<html>Please log in to the Wi-Fi</html>"), ValueError, "sent a damaged archive"),
    (reply(FLIPPED), ValueError, "damaged archive .Bad CRC"),
    (reply(archive({**FILES, "images/b.jpg": b"another photo"})), ValueError, "not the data set"),
    (reply(archive({"images/a.jpg": b"first photo"})), ValueError, "1 files that are not"),
    (reply(archive({"images/../../a.jpg": b"x"})), ValueError, "0 files that are not"),
    (reply(GOOD[:200], "Content-Length: 5000"), (OSError, ValueError), "archive|broke off"),
    (reply(b"ffff\r\n" + GOOD[:200], "Transfer-Encoding: chunked"), OSError, "IncompleteRead"),
    (reply(b"zz\r\n", "Transfer-Encoding: chunked"), OSError, "IncompleteRead"),
    (b"SSH-2.0-OpenSSH_9.6\r\n", OSError, "not? a web server's .BadStatusLine"),
    (b"", OSError, "RemoteDisconnected|Remote end closed"),
    (reply(GOOD, *["X-Header: 1"] * 101), OSError, "more than 100 headers"),
    (reply(GOOD, "X-Header: " + "1" * 70_000), OSError, "LineTooLong")],
    ids=["404", "web page", "one bit", "another photo", "a photo less", "climbs out", "cut off",
         "chunks cut off", "bad chunk", "not HTTP", "no reply", "headers", "long header"])
def test_bad_download_leaves_nothing(tmp_path, sent, error, words):
    with serving(sent) as url, pytest.raises(error, match=words):
        folders.download_photos(tmp_path / "images", url, SUM)
    assert list(tmp_path.iterdir()) == [] and socket.getdefaulttimeout() is None


def test_a_server_that_never_answers_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(OSError):
        folders.download_photos(tmp_path / "images", f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert list(tmp_path.iterdir()) == []


def test_a_copy_of_the_photos_comes_first(home, photos, monkeypatch, capsys, tmp_path_factory):
    (home / "images").mkdir()
    monkeypatch.setenv("FASHION_IMAGES", str(photos))
    assert get_images() == photos.resolve()
    assert capsys.readouterr().out == "Photos: the folder images/\n"
    (home / "mine").symlink_to(photos)  # named from the checkout; notebooks run in notebooks/
    monkeypatch.chdir(tmp_path_factory.mktemp("notebooks"))
    monkeypatch.setenv("FASHION_IMAGES", "mine")
    assert get_images() == photos.resolve()
    monkeypatch.setenv("HOME", str(photos.parent))
    monkeypatch.setenv("FASHION_IMAGES", "~/images")
    assert get_images() == photos.resolve()


def test_two_first_notebooks_at_once(home, monkeypatch, capsys, tmp_path_factory):
    """The second finds the photos that the first has downloaded meanwhile."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "images").mkdir()  # another's, where the code happens to run
    monkeypatch.chdir(elsewhere)
    killed = home / ".images-killed"  # a run of long ago
    killed.mkdir()
    os.utime(killed, (0, 0))
    download = folders.download_photos

    def both(images):
        with serving(reply(GOOD)) as url:
            download(images, url, SUM)
            download(images, url, SUM)
        raise OSError("the connection broke off")

    monkeypatch.setattr(folders, "download_photos", both)
    assert get_images() == get_images() == home / "images"
    assert capsys.readouterr().out == "Photos: the clothing data set in images/\n" * 2
    assert labels(home / "images") == {"a.jpg": "Hat"}
    assert sorted(path.name for path in home.rglob("*")) == ["a.jpg", "b.jpg", "images",
                                                             "images.csv"]


NOT_TRUSTED = ssl.SSLCertVerificationError(1, "certificate verify failed: unable to get local "
                                              "issuer certificate")


@pytest.mark.parametrize("error, words", [
    (OSError("no network"), ["(no network). Run this again", "FASHION_IMAGES"]),
    (URLError(NOT_TRUSTED), ["unable to get local issuer certificate", "SSL_CERT_FILE",
                             "Install Certificates.command"]),
    (URLError(ssl.SSLError(1, "wrong version number")), ["wrong version number). Run this again"])])
def test_drawn_garments_where_nothing_can_be_downloaded(home, monkeypatch, capsys, error, words):
    def download(images):
        raise error

    monkeypatch.setattr(folders, "download_photos", download)
    monkeypatch.setattr(placeholder.draw_catalogue, "__defaults__", (0, 1, iter))
    assert get_images() == home / "drawn_images"
    said = capsys.readouterr().out
    assert said.startswith("Photos: drawn garments in drawn_images/") and said.count("\n") == 2
    assert all(word in said for word in words), said
    drawn = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    get_images()
    assert drawn == {path: path.stat().st_mtime_ns for path in home.rglob("*")}, "drawn once"


def test_nowhere_to_write(home, monkeypatch):
    """An administrator may write anywhere, but not in a file."""
    monkeypatch.setattr(folders.common, "HERE", put(home, "checkout") / "checkout")
    with pytest.raises(OSError, match="_images/ has to be made, but .*checkout cannot be written "
                                      "to .*: copy the project to a folder of your own"):
        get_images()
