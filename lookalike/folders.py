"""A folder of photos: where it comes from, what is in it, and its labels."""
import collections
import csv
import functools
import hashlib
import io
import os
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import lookalike
from lookalike import AnyPath, home

# The clothing data set, CC0, https://github.com/alexeygrigorev/clothing-dataset. GitHub does not
# promise that the bytes of an archive stay the same, so what is checked is the content: the
# SHA-256 of the list of all files' SHA-256 sums.
PHOTOS_COMMIT = "7ed86a9cc56763b6acb35e41cb35184e43a5d218"
PHOTOS_URL = f"https://github.com/alexeygrigorev/clothing-dataset/archive/{PHOTOS_COMMIT}.zip"
PHOTOS_SHA256 = "57ce6e8cb41d5fa7fffbb5ad67abf6fef766fb67fb1115d49c6b257f7e18ddf6"
PHOTO_ENDINGS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif",
                 ".tiff", ".heic", ".heif", ".avif"}
HIDDEN = (".", "@eaDir", "__MACOSX", "$RECYCLE.BIN")  # what systems put beside people's files
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}  # are no classes
TABLES = {"images.csv": ("image", "label"), "styles.csv": ("id", "articleType")}


# ---- where the photos come from --------------------------------------------------------------
def get_images() -> Path:
    """Find the photos: FASHION_IMAGES if set, else images/, else a download, else drawn ones.

    Says in one line which it is. The download (154 MB) happens once; where it fails, a catalogue
    of 660 garments is drawn instead (about 10 s, once), and the next call tries it again.
    """
    if os.environ.get("FASHION_IMAGES"):
        return own_folder(os.environ["FASHION_IMAGES"])
    images = lookalike.HERE / "images"
    images = images if images.is_dir() else home() / "images"
    if not images.is_dir():
        try:
            download_photos(images)
        except (OSError, ValueError) as error:  # requests' and shutil's errors are OSErrors
            return _drawn(type(error).__name__ if isinstance(error, OSError) else error)
    print("Photos: the clothing data set in images/")
    return images


def own_folder(path: AnyPath) -> Path:
    """Find a folder of photos, or a data set's root with images/ in it, and say which it is."""
    images = from_here(path).resolve()
    if not images.is_dir():
        raise FileNotFoundError(f"FASHION_IMAGES is {str(images)!r}, which is not a folder: mend "
                                "it, or unset it")
    inner = images / "images"
    if inner.is_dir() and not any(_is_photo(file.name) for file in images.iterdir()):
        images = inner
    print(lookalike.readable(f"Photos: your own folder {images.name}/ (FASHION_IMAGES)"))
    return images


def _drawn(reason):
    """The folder of the stand-in, drawn if it is not there."""
    images = home() / "drawn_images"
    if not (images / "images.csv").exists():
        from tqdm import tqdm

        from lookalike.stand_in import draw_catalogue
        draw_catalogue(images, progress=functools.partial(tqdm, desc="Drawing garments"))
    print(f"Photos: drawn ones in {images.name}/ stand in for the real ones, which could not be "
          f"downloaded ({reason}). Connect and run this again, or set FASHION_IMAGES to your own")
    return images


def from_here(path: AnyPath) -> Path:
    """Resolve a path that a reader gave, relative to where the code runs or to the checkout."""
    path = Path(path).expanduser()
    places = (path, lookalike.HERE / path, home() / path)
    return next((place for place in places if place.exists()), path)


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
        There is no way through (requests.RequestException), or it is not an archive.
    ValueError
        What arrived is not the data set.
    """
    import pooch
    images = Path(images)
    pooch.get_logger().setLevel("WARNING")
    # seconds to connect, and to wait for data
    downloader = pooch.HTTPDownloader(progressbar=True, timeout=(5, 20))
    with tempfile.TemporaryDirectory(dir=images.parent, prefix=".download-") as work:
        archive = pooch.retrieve(url, None, path=work, fname="photos.zip", downloader=downloader)
        shutil.unpack_archive(archive, work)  # leaves out names that would climb out
        whole = Path(work, "images")
        whole.mkdir()
        for file in [*Path(work).glob("*/images/*"), *Path(work).glob("*/images.csv")]:
            file.rename(whole / file.name)
        sums = sorted(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"
                      for file in whole.iterdir())
        if hashlib.sha256("".join(sums).encode()).hexdigest() != sha256:
            raise ValueError(f"what {url} sent, {len(sums)} files, is not the data set")
        os.replace(whole, images)


# ---- what is in it ---------------------------------------------------------------------------
def list_photos(images: AnyPath) -> tuple[list[str], list[str]]:
    """List (img_names, new_photos): those to recommend, and those without a label, the 'new' ones.

    Both are sorted lists of 'images/<path in the folder>'. None is new where no table says which
    have a label. What is left out is said, once.
    """
    found, passed_over = _files(images)
    if passed_over:
        counts = ", ".join(f"{n} {ending}" for ending, n in sorted(passed_over.items()))
        _say_once(f"Passed over: {counts}")
    if not found:
        raise FileNotFoundError(f"no photo in {str(images)!r}, none of {sorted(PHOTO_ENDINGS)}")
    labels, table = _labels(images, found, "label")
    new = [name for name in found if table and name not in labels]
    if new:
        _say_once(f"Kept aside as new ones: {len(new):,} photos that are not in {table}")
    return [name for name in found if not table or name in labels], new


def read_labels(images: AnyPath, column: str = "label") -> dict[str, str]:
    """Read {'images/<path in the folder>': label}, '' where a photo has none.

    From images.csv (image, label) or styles.csv (id, articleType), in the folder or beside it;
    where there is no table, a folder a class gives the labels, as in torchvision's ImageFolder.
    `column` is which of a table's columns: "sender_id" says who took each photo. Raises
    ValueError for a table without it, or one that cannot be read.
    """
    return _labels(images, _files(images)[0], column)[0]


def _labels(images, found, column):
    """({name: label}, the table that they are from, '' where there is none)."""
    for table in (Path(place, name) for name in TABLES for place in (images, Path(images).parent)):
        if not table.is_file():
            continue
        rows = _read_table(table, column)
        labels = {name: rows[key] for name in found for key in _keys(name) if key in rows}
        if labels or not found:
            return labels, table.name
        _say_once(f"{table.name} names none of the photos: its first is {next(iter(rows), None)!r},"
                  f" the first photo is {found[0].removeprefix('images/')!r}")
    classes = {name: _class(name) for name in found}
    kinds = sorted({*classes.values()} - {""})
    if column != "label" or len(kinds) < 2:
        return {}, ""
    _say_once(f"Labels by the folders' names, {len(kinds)} kinds: {', '.join(kinds[:5])}"
              + ", ..." * (len(kinds) > 5))
    return classes, ""


def _class(name):
    """The outermost folder that a photo lies in, train/ and test/ left aside; '' for none."""
    folders = name.removeprefix("images/").split("/")[:-1]
    kind = next((folder for folder in folders if folder.lower() not in SPLITS), "")
    return lookalike.readable(kind)


def _read_table(table, column):
    """{what a row says of which photo, as `_keys` has it: what stands in the column}."""
    data = table.read_bytes()
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{table.name} is not UTF-8 text: open it in a spreadsheet program, and "
                         "save it as 'CSV UTF-8'") from None
    key, label = TABLES[table.name]
    wanted = label if column == "label" else column
    first = text.partition("\n")[0]
    try:
        delimiter = max(",;\t", key=first.count)
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
        head = [word.strip() for word in rows[0]] if rows else []
        at_key, at = head.index(key), head.index(wanted)
    except ValueError:
        missing = key if key not in head else wanted
        raise ValueError(f"{table.name} has no column {missing!r}: add it") from None
    except csv.Error as error:
        raise ValueError(f"{table.name} is no table ({error}): save it as 'CSV UTF-8'") from None
    # a row that ends before the column is a photo without a label
    return {_plain(row[at_key]): row[at].strip() if len(row) > at else ""
            for row in rows[1:] if len(row) > at_key and row[at_key].strip()}


def _plain(text):
    """As a table and a file system both may have written it."""
    text = unicodedata.normalize("NFC", text.strip()).casefold().replace("\\", "/")
    return text.removeprefix("images/")


def _keys(name):
    """What a table may call a photo; what says most about it last."""
    path = _plain(name)
    file = path.rpartition("/")[2]
    return os.path.splitext(file)[0], file, os.path.splitext(path)[0], path


def _files(images):
    """(Sorted names of all photos, {ending: how many other files}); hidden ones do not count."""
    found, passed_over = [], collections.Counter()
    for folder, folders, files in os.walk(images):
        folders[:] = [name for name in folders if not name.startswith(HIDDEN)]
        # links are not followed: one to a folder above would never end
        passed_over.update("linked folder" for name in folders
                           if os.path.islink(os.path.join(folder, name)))
        inside = Path("images", Path(folder).relative_to(images)).as_posix()
        found += [f"{inside}/{file}" for file in files if _is_photo(file)]
        others = [file for file in files
                  if not (_is_photo(file) or file.startswith(HIDDEN) or file in TABLES)]
        passed_over.update(os.path.splitext(file)[1].lower() or "without an ending"
                           for file in others)
    return sorted(found), passed_over


def _is_photo(file):
    return os.path.splitext(file)[1].lower() in PHOTO_ENDINGS and not file.startswith(HIDDEN)


@functools.cache
def _say_once(line):
    print(lookalike.readable(line))


def photo_path(name: str, images: AnyPath) -> Path:
    """Say where the photo that the embeddings call 'images/x.jpg' lies: x.jpg in the folder."""
    return Path(images) / name.removeprefix("images/")


def names_of(path: Path, images: AnyPath, img_names: list[str]) -> Iterator[str]:
    """Give the names that embeddings may have for the file at `path`."""
    images = Path(images).resolve()
    place = path.parent.resolve() / path.name  # not path.resolve(): a link is a photo itself
    if place.is_relative_to(images):
        yield f"images/{place.relative_to(images).as_posix()}"
    for name in img_names:  # macOS and Windows also find a file by other spellings
        if _plain(name).endswith(_plain(path.name)) and path.exists():
            file = photo_path(name, images)
            if file.exists() and file.samefile(path):
                yield name


def photo_stat(file: Path) -> list[int] | None:
    """Take a file's [size in bytes, modification time in ns], by which a changed one is told."""
    try:
        stat = file.stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]
