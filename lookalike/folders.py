"""A folder of photos: where it comes from, which photos are in it, and its table."""
import collections
import contextlib
import csv
import functools
import hashlib
import io
import os
import re
import shutil
import socket
import ssl
import tempfile
import time
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

from lookalike import common
from lookalike.common import AnyPath, listed, say, say_once, shown
from lookalike.vectors import is_missing

# The clothing data set, CC0, https://github.com/alexeygrigorev/clothing-dataset. GitHub does not
# promise that the bytes of an archive stay the same, so we check the content: the SHA-256 of the
# list of all files' SHA-256 sums.
PHOTOS_COMMIT = "7ed86a9cc56763b6acb35e41cb35184e43a5d218"
PHOTOS_URL = f"https://github.com/alexeygrigorev/clothing-dataset/archive/{PHOTOS_COMMIT}.zip"
PHOTOS_SHA256 = "57ce6e8cb41d5fa7fffbb5ad67abf6fef766fb67fb1115d49c6b257f7e18ddf6"
PHOTO_ENDINGS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif",
                 ".tiff", ".heic", ".heif", ".avif"}
# what systems put next to people's files, besides all that starts with a dot
NOT_THEIRS = {"@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "__macosx",
              "system volume information", "lost+found"}
# folders that are not categories; cameras call theirs 100APPLE
NO_CATEGORY = re.compile(r"images|train|training|val|valid|validation|test|testing|\d{3}\w{5}"
                         r"|[\W\d_]*", re.IGNORECASE)
NO_LABEL = {"", "nan", "none", "n/a", "-"}
TABLES = {"images.csv": ("image", "label"), "styles.csv": ("id", "articleType")}
OURS = {"recommendations.csv", "recommendations.html"}  # of save_recommendations
PATIENCE = 20  # seconds without a byte after which we give up a download


# ---- where the photos come from --------------------------------------------------------------
def get_images() -> Path:
    """Find the tutorial's photos: a copy that FASHION_IMAGES names, images/, or a download.

    Prints which it is. The download (154 MB) happens once. Where it fails, we draw 660 garments
    instead (about 10 s, once), and the next call tries the download again.
    """
    if os.environ.get("FASHION_IMAGES"):
        return own_folder(os.environ["FASHION_IMAGES"], "FASHION_IMAGES")
    images = common.HERE / "images"
    if not images.is_dir():
        try:
            download_photos(images)
        except (OSError, ValueError) as error:
            if not images.is_dir():  # another notebook may have been quicker
                return _drawn(error)
    say("Photos: the clothing data set in images/")
    return images


def own_folder(path: AnyPath, named_by: str = "images") -> Path:
    """Find a folder that a reader names, and print which it is."""
    if not isinstance(path, str | Path):
        raise TypeError(f"{named_by} is {shown(path)}: pass the path of a folder of photos")
    images = from_here(path)
    if not str(path) or not os.path.isdir(images):
        raise FileNotFoundError(f"{named_by} is {shown(str(path))}, which is not a folder: correct "
                                "it, or leave it out")
    images = images.resolve()
    say(f"Photos: the folder {images.name}/")
    return images


def expanded(path: AnyPath) -> Path:
    """Replace a leading ~ by the reader's own folder; a file may be called ~1.jpg."""
    path = Path(path)
    return path.expanduser() if path.parts[:1] == ("~",) else path


def from_here(path: AnyPath) -> Path:
    """Resolve a reader's path relative to where the code runs, or else to the checkout."""
    path = expanded(path)
    in_checkout = common.HERE / path
    return in_checkout if not os.path.exists(path) and os.path.exists(in_checkout) else path


def _drawn(error):
    """The folder of drawn garments, which are drawn first if they are not there."""
    images = common.HERE / "drawn_images"
    if not images.is_dir():
        from tqdm import tqdm

        from lookalike.placeholder import draw_catalogue
        with _whole_or_not_at_all(images) as unfinished:
            draw_catalogue(unfinished, progress=functools.partial(tqdm, desc="Drawing garments"))
    reason = getattr(error, "reason", error)  # what urllib wraps
    cure = ("Run this again with an internet connection, or set FASHION_IMAGES to a copy of the "
            "photos")
    if isinstance(reason, ssl.SSLCertVerificationError):
        cure = ("Your Python does not trust the server's certificate. On a Mac with Python from "
                "python.org, run 'Install Certificates.command' in its folder. Behind a company's "
                "proxy, set SSL_CERT_FILE to the file with its certificate")
    say(f"Photos: drawn garments in {images.name}/, since the real photos could not be downloaded "
        f"({' '.join(str(reason).split())[:300]}). {cure}.",
        "The text speaks of the real photos, so its numbers differ from what you see.")
    return images


@contextlib.contextmanager
def _whole_or_not_at_all(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill, which becomes `folder` at the end, if that is not there yet."""
    for left in folder.parent.glob(f".{folder.name}-*"):  # of a run that was killed
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > 24 * 3600:
                shutil.rmtree(left)
    try:
        work = tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-")
    except OSError as error:
        raise OSError(f"{folder.name}/ has to be made, but {folder.parent} cannot be written to "
                      f"({error.strerror}): copy the project to a folder of your own") from None
    with work:
        unfinished = Path(work.name, folder.name)
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
        The download failed.
    ValueError
        What arrived is not the data set.

    Source: torch.hub.download_url_to_file.
    """
    from torch.hub import download_url_to_file
    with _whole_or_not_at_all(Path(images)) as whole:
        archive, work = whole.parent / "photos.zip", whole.parent / "archive"
        with downloading():
            download_url_to_file(url, str(archive))
        try:
            shutil.unpack_archive(archive, work)  # leaves out names that would climb out
        except Exception as error:  # zipfile raises nearly anything on a damaged one
            raise ValueError(f"{url} sent a damaged archive ({error})") from None
        for file in [*work.glob("*/images/*"), *work.glob("*/images.csv")]:
            file.rename(whole / file.name)
        sums = sorted(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"
                      for file in whole.iterdir())
        if hashlib.sha256("".join(sums).encode()).hexdigest() != sha256:
            raise ValueError(f"{url} sent {len(sums)} files that are not the data set")


@contextlib.contextmanager
def downloading() -> Iterator[None]:
    """Turn all that can go wrong on the way into OSError, and give up after 20 silent seconds."""
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)  # by itself, urllib would wait for minutes
    try:
        yield
    except HTTPException as error:  # a reply that is cut off, or that is not HTTP
        raise OSError(f"the reply broke off, or is not a web server's ({error!r})") from error
    finally:
        socket.setdefaulttimeout(patience)


# ---- which photos are in a folder ------------------------------------------------------------
def photo_files(images: AnyPath) -> list[str]:
    """List the photos in a folder and its subfolders, sorted; print what was passed over.

    A photo's name is its path in the folder, with / between folders. Raises FileNotFoundError if
    there is no such folder, or no photo in it.
    """
    if not str(images) or not os.path.isdir(images):
        raise FileNotFoundError(f"no folder {shown(str(images))}: check its path")
    found, passed_over, unread = _walked(images)
    if passed_over:
        counts = [f"{n:,} {what}" for what, n in passed_over.most_common()]
        say_once(f"Passed over: {listed(counts, 10)}", images)
    if unread:
        say_once(f"Folders that cannot be read, so their photos are missing: {listed(unread)}",
                 images)
    if not found:
        raise FileNotFoundError(f"no photo in {shown(str(images))}: none of its files ends in "
                                f"{', '.join(sorted(PHOTO_ENDINGS))}")
    return sorted(found)


def _walked(images):
    """(Names of all photos, {what: how many} was passed over, folders that cannot be read)."""
    found, passed_over, unread = [], collections.Counter(), []
    for folder, folders, files in os.walk(images, onerror=lambda error: unread.append(
            f"{os.path.relpath(error.filename, images)}/ ({error.strerror})")):
        folders[:] = filter(_theirs, folders)
        # links are not followed: one to a folder above would never end
        passed_over["linked folder"] += sum(os.path.islink(Path(folder, one)) for one in folders)
        for file in filter(_theirs, files):
            name = Path(folder, file).relative_to(images).as_posix()
            ending = os.path.splitext(file)[1].lower()
            if name.encode("utf-8", "replace").decode() != name:
                passed_over["whose names are not UTF-8 (rename them)"] += 1
            elif ending in PHOTO_ENDINGS:
                found.append(name)
            elif file not in TABLES and file not in OURS:
                passed_over[ending[:20] or "without an extension"] += 1
    return found, +passed_over, unread


def _theirs(name):
    return not name.startswith(".") and name.lower() not in NOT_THEIRS


# ---- labels and groups -----------------------------------------------------------------------
class Table(NamedTuple):
    """A table of photos; each photo is identified by its SHA-256."""
    name: str                              # "images.csv", "../styles.csv", or "" for no table
    label: str                             # its column of labels
    columns: dict[str, dict[str, str]]     # {column: {photo's name: value}}


NO_TABLE = Table("", "", {})


def read_table(images: Path, photos: dict[str, bytes], of_the_tutorial: bool = False) -> Table:
    """Read images.csv (image, label) or styles.csv (id, articleType), in the folder or above it.

    `photos` are the folder's photos, {name: SHA-256}. We print nothing about the tutorial's
    table, whose five rows without a photo are known. Raises ValueError for a table of these photos
    that cannot be read. Another table is passed over, with a line that says why.
    """
    for path, called, its_own in _tables(images):
        key, label = TABLES[path.name]
        try:
            head, rows = _rows(path, key, label)
        except (ValueError, OSError) as error:
            if its_own:
                raise ValueError(f"{called}, {error}. Correct it there, or save the table as 'CSV "
                                 "UTF-8' from a spreadsheet program") from None
            say_once(f"Not a table of these photos: {called}, {error}", images)
            continue
        if not {key, label} <= {*head}:
            say_once(f"Not a table of labels: {called} has no columns {key!r} and {label!r}",
                     images)
            continue
        found = match(rows, photos, "" if of_the_tutorial else f"{called}: ", images)
        if found:
            return Table(called, label, {column: {name: row[column] for name, row in found.items()}
                                         for column in head if column != key})
    return NO_TABLE


def _tables(images):
    """Which tables there are, what to call each, and whether it is surely of these photos."""
    for name in TABLES:
        for place, called in ((images, name), (images.parent, f"../{name}")):
            if (place / name).is_file():  # the data set's is next to its folder images/
                yield place / name, called, place == images or images.name == "images"


def _rows(table, key, label):
    """(The columns, {what a row calls a photo, as `_plain` has it: {column: value}})."""
    rows, line = {}, 1
    try:
        data = table.read_bytes()
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True,
                                delimiter=max(",;\t", key=text.partition("\n")[0].count))
        reader.fieldnames = [word.strip() for word in reader.fieldnames or []]
        if len({*reader.fieldnames}) < len(reader.fieldnames):
            raise csv.Error("two columns have the same name")
        line = reader.line_num + 1
        if not {key, label} <= {*reader.fieldnames}:
            return reader.fieldnames, {}
        for row in reader:
            _add(row, rows, key, label)
            if None in row and table.name == "images.csv":  # styles.csv has commas in its last
                raise csv.Error("more columns than the first line has: put texts with commas in "
                                "quotation marks")
            line = reader.line_num + 1
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    except csv.Error as error:
        raise ValueError(f"line {line}: {error}") from None
    return reader.fieldnames, rows


def _add(row, rows, key, label):
    """Add a row; where a second one for the same photo disagrees, the value is none."""
    row = {column: "" if (value or "").strip().casefold() in NO_LABEL else value.strip()
           for column, value in row.items() if column is not None}
    name = _plain(row.pop(key, ""))
    if "\n" in name + row.get(label, ""):
        raise csv.Error(f"{shown(name)} has several lines: close the quotation marks before it")
    before = rows.setdefault(name, row)
    if before.get(label) != row.get(label):
        raise csv.Error(f"{shown(name)} has two labels, {before[label]!r} and {row[label]!r}: keep "
                        "one of the rows")
    rows[name] = {column: value if before[column] == value else "" for column, value in row.items()}
    rows.pop("", None)


def match(rows: dict[str, Any], photos: dict[str, bytes], what: str = "", folder: AnyPath = ""
          ) -> dict[str, Any]:
    """Find each photo's value in `rows`, by its path, file name, or either without extension.

    A row that fits several photos gives none of them its value. Rows that fit none or several are
    counted in a line that begins with `what`, if that is given.
    """
    called = Path(folder).name or "images"
    fits = {name: next((key for key in _keys(name, called) if key in rows), None)
            for name in photos}
    photos_of = collections.defaultdict(set)
    for name, key in fits.items():
        photos_of[key].add(photos[name])
    unclear = [key for key, several in photos_of.items() if key is not None and len(several) > 1]
    unused = [key for key in rows if key not in photos_of]
    if unclear and what:
        say_once(f"{what}{len(unclear):,} rows fit several photos each, so we use none of them. "
                 f"The first is {shown(unclear[0])}: give each photo a row, by its path with "
                 "extension", folder)
    if unused and what:
        say_once(f"{what}{len(unused):,} rows fit no photo. The first is {shown(unused[0])}; the "
                 f"first photo is {shown(next(iter(photos)))}", folder)
    return {name: rows[key] for name, key in fits.items()
            if key is not None and key not in unclear}


def _plain(text):
    """As a table and a file system both may have written it."""
    text = unicodedata.normalize("NFC", text.strip()).casefold().replace("\\", "/")
    return text.removeprefix("./")


def _keys(name, folder):
    """What a table may call a photo: by its path, by its file alone, and from the folder above."""
    path = _plain(name)
    file = path.rpartition("/")[2]
    return (path, os.path.splitext(path)[0], file, os.path.splitext(file)[0],
            _plain(f"{folder}/{path}"))


def values_of(given: str | dict | Callable, what: str, photos: dict[str, bytes], table: Table
              ) -> dict[str, Any]:
    """Give each photo the reader's label or group, {name: value}.

    `given` is a column of the table, a {name: value}, or a function of the photo's name. Raises
    ValueError for a column that is missing, or if no value fits any photo.
    """
    if isinstance(given, str):
        if given not in table.columns:
            has = f"{table.name} has the columns {', '.join(table.columns)}" if table.name else \
                "there is no table images.csv"
            raise ValueError(f"{what}={given!r}, but {has}")
        return table.columns[given]
    if callable(given):
        values = {name: given(name) for name in photos}
    elif isinstance(given, dict):
        exact = {name: given[name] for name in photos if name in given}
        values = match({_plain(str(name)): value for name, value in given.items()
                        if name not in exact}, photos, f"{what}: ") | exact
    else:
        raise TypeError(f"{what} is {shown(given)}: pass a column's name, a dict {{name: value}} "
                        "or a function of a photo's name")
    values = {name: value for name, value in values.items() if not is_missing(value)}
    if not values:
        raise ValueError(f"{what} gives none of the photos a value: a photo's name is its path in "
                         f"the folder, for example {next(iter(photos))!r}")
    several = [value for value in values.values() if not isinstance(value, Hashable)]
    if several:
        raise TypeError(f"{what} gives {shown(several[0])} for a photo: give one text or number")
    return values


def labels_by_folder(names: Iterable[str], images: AnyPath) -> dict[str, str]:
    """Take the innermost folder of each photo as its label, if there are at least two."""
    labels = {name: Path(name).parent.name for name in names}
    labels = {name: folder for name, folder in labels.items() if not NO_CATEGORY.fullmatch(folder)}
    categories = sorted({*labels.values()})
    if len(categories) < 2:
        return {}
    say_once(f"Labels from the folders' names, {len(categories)} categories: {listed(categories)}",
             images)
    return labels
