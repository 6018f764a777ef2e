"""A folder of photos: where it comes from, what is in it, and its labels."""
import collections
import contextlib
import csv
import functools
import hashlib
import io
import os
import shutil
import socket
import tempfile
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lookalike
from lookalike import AnyPath, cache_folder, home, readable, say_once, shown

# The clothing data set, CC0, https://github.com/alexeygrigorev/clothing-dataset. GitHub does not
# promise that the bytes of an archive stay the same, so what is checked is the content: the
# SHA-256 of the list of all files' SHA-256 sums.
PHOTOS_COMMIT = "7ed86a9cc56763b6acb35e41cb35184e43a5d218"
PHOTOS_URL = f"https://github.com/alexeygrigorev/clothing-dataset/archive/{PHOTOS_COMMIT}.zip"
PHOTOS_SHA256 = "57ce6e8cb41d5fa7fffbb5ad67abf6fef766fb67fb1115d49c6b257f7e18ddf6"
PHOTO_ENDINGS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif",
                 ".tiff", ".heic", ".heif", ".avif"}
# what systems put beside people's files, beside all that starts with a dot
NOT_THEIRS = {"@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "__macosx",
              "system volume information", "lost+found"}
# what folders are called that are no classes
NO_CLASS = {"images", "train", "training", "val", "valid", "validation", "test", "testing"}
TABLES = {"images.csv": ("image", "label"), "styles.csv": ("id", "articleType")}
PATIENCE = 20  # seconds without a byte after which a network is given up


# ---- where the photos come from --------------------------------------------------------------
def get_images() -> Path:
    """Find the photos: FASHION_IMAGES if set, else images/, else a download, else drawn ones.

    Says in one line which it is. The download (154 MB) happens once; where it fails, a catalogue
    of 660 garments is drawn instead (about 10 s, once), and the next call tries it again.
    """
    if os.environ.get("FASHION_IMAGES"):
        return own_folder(os.environ["FASHION_IMAGES"], "FASHION_IMAGES")
    images = _here("images")
    if not images:
        images = home() / "images"
        try:
            download_photos(images)
        except (OSError, ValueError) as error:
            if not images.is_dir():  # another notebook may have been quicker
                return _drawn(error)
    has_table = any((place / name).is_file() for name in TABLES
                    for place in (images, images.parent))
    print("Photos: the clothing data set in images/" if has_table else
          "Photos: images/, with no table images.csv in it or beside it")
    return images


def tutorial_photos() -> Path:
    """Find the tutorial's own photos, else the drawn ones; downloads nothing."""
    return _here("images") or _drawn("nobody asked for a download")


def own_folder(path: AnyPath, said_by: str = "images") -> Path:
    """Find a folder of a reader's own, and say which it is."""
    images = from_here(path)
    if not str(path) or not os.path.isdir(images):
        raise FileNotFoundError(f"{said_by} is {shown(str(path))}, which is not a folder: mend it, "
                                "or leave it out")
    images = images.resolve()
    print(readable(f"Photos: your own folder {images.name}/"))
    return images


def from_here(path: AnyPath) -> Path:
    """Resolve a path that a reader gave, relative to where the code runs or to the checkout."""
    path = Path(path)
    if path.parts[:1] == ("~",):  # a file may be called ~1.jpg
        path = path.expanduser()
    return path if os.path.exists(path) else _here(path) or path


def _here(path):
    """The path in the checkout or the cache, or None; asks for no right to write."""
    places = lookalike.HERE / path, cache_folder() / path
    return next((place for place in places if os.path.exists(place)), None)


def _drawn(error):
    """The folder of the stand-in, drawn if it is not there."""
    images = _here("drawn_images")
    if not images:
        from tqdm import tqdm

        from lookalike.stand_in import draw_catalogue
        images = home() / "drawn_images"
        with _whole_or_not_at_all(images) as unfinished:
            draw_catalogue(unfinished, progress=functools.partial(tqdm, desc="Drawing garments"))
    print(f"Photos: drawn ones in {images.name}/ stand in for the real ones, which could not be "
          f"downloaded ({shown(error)}); what the text says of photos is about the real ones. "
          "Connect and run this again, or set FASHION_IMAGES to your own")
    return images


@contextlib.contextmanager
def _whole_or_not_at_all(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill, which becomes `folder` at the end, if that is not there yet."""
    for left in folder.parent.glob(f".{folder.name}-*"):  # of a run that was killed
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > 24 * 3600:
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as work:
        unfinished = Path(work, folder.name)
        unfinished.mkdir()
        yield unfinished
        try:
            os.replace(unfinished, folder)
        except OSError:
            if not folder.is_dir():  # else another notebook was quicker, and it is the same
                raise


def download_photos(images: AnyPath, url: str = PHOTOS_URL, sha256: str = PHOTOS_SHA256) -> None:
    """Download the clothing data set into a folder that appears whole or not at all.

    Parameters
    ----------
    images
        The folder to be made.
    url, sha256
        The archive, and the SHA-256 of the sorted list of its files' SHA-256 sums.

    Raises
    ------
    OSError
        There is no way through.
    ValueError
        What arrived is not the data set.
    """
    with _whole_or_not_at_all(Path(images)) as whole:
        archive, work = whole.parent / "photos.zip", whole.parent / "archive"
        download(url, archive)
        try:
            shutil.unpack_archive(archive, work)  # leaves out names that would climb out
        except Exception as error:  # zipfile raises nearly anything on a damaged one
            raise ValueError(f"what {url} sent is no archive, or damaged ({error})") from None
        for file in [*work.glob("*/images/*"), *work.glob("*/images.csv")]:
            file.rename(whole / file.name)
        sums = sorted(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"
                      for file in whole.iterdir())
        if hashlib.sha256("".join(sums).encode()).hexdigest() != sha256:
            raise ValueError(f"what {url} sent, {len(sums)} files, is not the data set")


def download(url: str, file: Path, hash_prefix: str | None = None) -> None:
    """Download with a progress bar; give up after 20 seconds without a byte.

    Raises OSError, or RuntimeError where the file's SHA-256 does not start with `hash_prefix`.
    Source: torch.hub.download_url_to_file.
    """
    from torch.hub import download_url_to_file
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)  # by itself it would wait for minutes on a dead network
    try:
        download_url_to_file(url, str(file), hash_prefix)
    finally:
        socket.setdefaulttimeout(patience)


# ---- what is in it ---------------------------------------------------------------------------
class Photos(NamedTuple):
    """What is in a folder; a photo's name is its path in the folder, with / between folders."""
    names: list[str]          # those to recommend, sorted
    new: list[str]            # those that a table of labels leaves out, sorted
    labels: dict[str, str]    # for each of `names`, '' where there is none


def scan(images: AnyPath, column: str = "label") -> Photos:
    """Walk a folder once: which photos are in it, which of them are new, and their labels.

    Labels come from images.csv (image, label) or styles.csv (id, articleType), in the folder or
    beside it; where there is no table, from the folders that the photos lie in, as in torchvision's
    ImageFolder. What is left out is said, once.

    Parameters
    ----------
    images
        The folder.
    column
        Which of the table's columns: "sender_id" says who took each photo.

    Raises
    ------
    OSError
        There is no such folder, or no photo in it.
    ValueError
        The table cannot be read, or has no such column.
    """
    if not str(images) or not os.path.isdir(images):
        raise FileNotFoundError(f"no folder {shown(str(images))}: check its path")
    found, passed_over, unread = _files(images)
    if passed_over:
        counts = ", ".join(f"{n} {what}" for what, n in sorted(passed_over.items()))
        say_once(f"Passed over: {counts}", images)
    if unread:
        say_once(f"Could not be read, so its photos are missing: {', '.join(unread)}", images)
    if not found:
        raise FileNotFoundError(f"no photo in {shown(str(images))}, none of "
                                f"{', '.join(sorted(PHOTO_ENDINGS))}")
    table, labels = _labels_by_table(images, found, column)
    new = [name for name in found if table and name not in labels]
    if new:
        say_once(f"Kept aside as new ones: {len(new):,} photos that are not in {table}", images)
    if not table:
        labels = _labels_by_folder(found, images) if column == "label" else \
            dict.fromkeys(found, "")
    return Photos([name for name in found if name in labels], new, labels)


def _files(images):
    """(Sorted names of all photos, {what: how many} was passed over, what could not be read)."""
    found, passed_over, unread = [], collections.Counter(), []
    for folder, folders, files in os.walk(images, onerror=lambda error: unread.append(
            f"{os.path.relpath(error.filename, images)}/ ({error.strerror})")):
        folders[:] = filter(_theirs, folders)
        # links are not followed: one to a folder above would never end
        passed_over["linked folder"] += sum(os.path.islink(Path(folder, one)) for one in folders)
        for file in filter(_theirs, files):
            name = Path(folder, file).relative_to(images).as_posix()
            ending = os.path.splitext(file)[1].lower()
            if readable(name) != name:
                passed_over["whose names are not UTF-8 (rename them)"] += 1
            elif ending in PHOTO_ENDINGS:
                found.append(name)
            elif file not in TABLES:
                passed_over[ending or "without an ending"] += 1
    return sorted(found), +passed_over, unread


def _theirs(name):
    return not name.startswith(".") and name.lower() not in NOT_THEIRS


def _labels_by_folder(found, images):
    """The innermost folder of each photo, images/ and test/ left aside; at least two kinds."""
    labels = {name: Path(name).parent.name for name in found}
    labels = {name: "" if kind.lower() in NO_CLASS else kind for name, kind in labels.items()}
    kinds = sorted({*labels.values()} - {""})
    if len(kinds) < 2:
        return dict.fromkeys(found, "")
    say_once(f"Labels by the folders' names, {len(kinds)} kinds: {', '.join(kinds[:5])}"
             + ", ..." * (len(kinds) > 5), images)
    return labels


def who_sent(catalogue: Any) -> list[str]:
    """Say who sent each photo, by the column sender_id; where none says, nobody sent two.

    Where all are by one person as well: then nothing can be said of other people.
    """
    try:
        senders = scan(catalogue.images, "sender_id").labels
    except ValueError:  # there is no such column
        senders = {}
    people = [senders.get(name) or name for name in catalogue.img_names]
    return people if len({*people}) > 1 else list(catalogue.img_names)


# ---- labels from a table ---------------------------------------------------------------------
def _labels_by_table(images, found, column):
    """(The table's name, {name: label}); ('', {}) where no table names any of the photos."""
    for table, called, its_own in _tables(Path(images)):
        try:
            rows = _rows(table, column)
            labels, unclear = _of_photos(rows, found, its_own)
        except (ValueError, OSError) as error:
            if its_own:
                raise ValueError(f"{called}, {error}. Mend it there, or save the table as 'CSV "
                                 "UTF-8' from a spreadsheet program") from None
            say_once(f"Not taken for a table of these photos: {called}, {error}", images)
            continue
        if unclear:
            say_once(f"{called}: {len(unclear)} rows fit several photos each, and so none, the "
                     f"first is {unclear[0]!r}: write paths, with the files' endings", images)
        if labels:
            return called, labels
        say_once(f"{called} names none of the photos: its first is "
                 f"{shown(next(iter(rows), None))}, the first photo is {found[0]!r}", images)
    return "", {}


def _tables(images):
    """Which tables there are, what to call each, and whether it is surely of these photos."""
    for name in TABLES:
        for place, called in ((images, name), (images.parent, f"../{name}")):
            if (place / name).is_file():  # the data set's lies beside its folder images/
                yield place / name, called, place == images or images.name == "images"


def _rows(table, column):
    """{what a row calls a photo, as `_plain` has it: what stands in the column}."""
    key, label = TABLES[table.name]
    column, rows, line = label if column == "label" else column, {}, 1
    try:
        data = table.read_bytes()
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True,
                                delimiter=max(",;\t", key=text.partition("\n")[0].count))
        reader.fieldnames = [word.strip() for word in reader.fieldnames or []]
        _need_one(reader.fieldnames, key, column)
        line = reader.line_num + 1
        for row in reader:
            name, label = _plain(row[key] or ""), (row[column] or "").strip()
            if "\n" in name + label or rows.get(name, label) != label:
                raise csv.Error(f"{shown(name)} has a second label, or one of several lines")
            if None in row and table.name == "images.csv":  # styles.csv has commas in its last
                raise csv.Error("more columns than the first line has: quote a text with commas")
            rows[name], line = label, reader.line_num + 1
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    except csv.Error as error:
        raise ValueError(f"line {line}: {error}") from None
    rows.pop("", None)
    return rows


def _need_one(head, *columns):
    for column in columns:
        if head.count(column) != 1:
            raise csv.Error(f"there is {'no' if column not in head else 'a second'} column "
                            f"{column!r}")


def _of_photos(rows, found, strip):
    """({name: label} for each photo that a row names, rows that fit several photos)."""
    named, labels, unclear = collections.defaultdict(set), {}, []
    for name in found:
        for key in _keys(name):
            named[key].add(name)
    strip = strip and not any(name.startswith("images/") for name in found)
    for row, label in rows.items():
        key = row.removeprefix("images/") if strip else row
        fits = _fitting(key, named.get(key, set()))
        if len(fits) > 1:
            unclear.append(row)
        elif fits and labels.setdefault(*fits, label) != label:
            raise ValueError(f"{fits.pop()!r} is called more than one thing, {label!r} the last "
                             "time: leave one row of it")
    return labels, unclear


def _fitting(key, names):
    """Those of the names that a row means: a whole path, a whole file's name, a path's stem."""
    for says_more in (0, 2, 1):
        if len(names) > 1:
            names = {name for name in names if _keys(name)[says_more] == key} or names
    return names


def _plain(text):
    """As a table and a file system both may have written it."""
    text = unicodedata.normalize("NFC", text.strip()).casefold().replace("\\", "/")
    return text.removeprefix("./")


def _keys(name):
    """What a table may call a photo: by its path, and by its file alone."""
    path = _plain(name)
    file = path.rpartition("/")[2]
    return path, os.path.splitext(path)[0], file, os.path.splitext(file)[0]
