"""Recommendations as two files to take home: a table, and a page to click through."""
import base64
import collections
import contextlib
import csv
import errno
import io
import json
import os
import sys
from pathlib import Path
from urllib.parse import quote

from PIL import Image
from tqdm import tqdm

from lookalike.common import AnyPath, readable
from lookalike.folders import expanded
from lookalike.photos import BadPhoto, pil_loader
from lookalike.recommender import Catalogue, given, nearest

PAGE_WEIGHTS = 0, 0.5, 1  # of colour: what the page offers
NOT_IN_BROWSERS = "HEIF", "TIFF"
PREVIEW_SIDE = 240  # pixels
FORMULA = "=", "+", "-", "@", "\t", "\r"  # a spreadsheet program would run such a cell


def save_recommendations(catalogue: Catalogue, factors: int = 300, colour: float = 0, k: int = 4,
                         folder: AnyPath | None = None) -> tuple[Path, Path]:
    """Save the k nearest of every photo as recommendations.csv and recommendations.html.

    The table has the columns photo, rank, neighbour and squared distance, and one block per file,
    copies of a photo included. A name that begins with =, +, - or @ gets an apostrophe in front,
    so that no spreadsheet program takes the name for a formula. The page needs neither Python nor
    a server: click on a photo for its neighbours. The page finds the photos by relative paths, so
    move page and photos together.

    Parameters
    ----------
    catalogue
        The photos, with their groups: a neighbour is never of the photo's own group.
    factors, colour, k
        As for `nearest`. The page offers the colour weights 0, 0.5 and 1 as well.
    folder
        Where to save; without `folder`, beside the photos. A missing folder is made.

    Returns
    -------
    tuple of Path
        The table and the page. A file of an earlier call is replaced whole or not at all.

    Raises
    ------
    OSError
        The files cannot be written there.
    ValueError
        `nearest` cannot use these numbers, or the catalogue has only one photo.
    """
    catalogue = given(catalogue)
    place = expanded(catalogue.images if folder is None else folder).absolute()
    paths = place / "recommendations.csv", place / "recommendations.html"
    unfinished = [path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in paths]
    try:
        with _another_place(place):  # before the work begins
            place.mkdir(parents=True, exist_ok=True)
            for path, whole in zip(unfinished, paths):
                path.touch()
                if whole.is_dir():
                    raise IsADirectoryError(errno.EISDIR, f"{whole.name} is a folder")
        weights = [colour, *(weight for weight in PAGE_WEIGHTS if weight != colour)]
        found = {weight: _found(catalogue, factors, weight, k) for weight in weights}
        files = _table(catalogue, found[colour]), _page(catalogue, found, colour, place)
        with _another_place(place):
            for path, data in zip(unfinished, files):
                path.write_bytes(data)
            for path, whole in zip(paths, unfinished):
                os.replace(whole, path)
    finally:
        for path in unfinished:
            with contextlib.suppress(OSError):
                path.unlink()
    return paths


@contextlib.contextmanager
def _another_place(place):
    """Turn an error of the file system into a sentence that asks for another place."""
    try:
        yield
    except OSError as error:
        raise OSError(readable(
            f"recommendations.csv and recommendations.html cannot be written to {place.name}/ "
            f"({error.strerror}). Close the files in other programs, or choose another place: "
            "save_recommendations(..., folder=...)")) from None


def _found(catalogue, factors, colour, k):
    """Give the neighbours of each photo."""
    nearest(0, factors, k, catalogue, colour=colour)  # makes the index before the bar starts
    numbers = tqdm(range(len(catalogue.img_names)), f"Neighbours, colour {colour}", delay=2,
                   leave=False, file=sys.stdout)
    return [nearest(number, factors, k, catalogue, colour=colour) for number in numbers]


def _table(catalogue, found):
    """Give the CSV file's bytes; a byte order mark tells Excel that they are UTF-8."""
    file = io.StringIO()
    rows = csv.writer(file)
    rows.writerow(("photo", "rank", "neighbour", "squared distance"))
    number = {name: i for i, name in enumerate(catalogue.img_names)}
    files = {name: name for name in catalogue.img_names} | catalogue.copies
    for path, name in sorted(files.items()):
        rows.writerows((_cell(path), rank, _cell(one.name), f"{one.distance:.6g}")
                       for rank, one in enumerate(found[number[name]], 1))
    return file.getvalue().encode("utf-8-sig")


def _cell(name):
    return f"'{name}" if name.startswith(FORMULA) else name


def _page(catalogue, found, start, place):
    """Give the page's bytes: the template with the photos' names and all neighbours as JSON."""
    also = collections.defaultdict(list)
    for path, name in catalogue.copies.items():
        also[name].append(path)
    data = {"title": catalogue.images.name, "base": _base(catalogue.images, place),
            "start": f"{start:g}",
            "photos": [[name, label, _preview(catalogue.images / name), *also[name]]
                       for name, label in zip(catalogue.img_names, catalogue.labels)],
            "near": {f"{weight:g}": [[one.index for one in row] for row in rows]
                     for weight, rows in found.items()}}
    # a name may hold </script>
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    template = Path(__file__).with_name("recommendations.html").read_text(encoding="utf-8")
    return template.replace("{{data}}", text).encode()


def _base(images, place):
    """Give the photos' folder as a link from the page."""
    images = images.resolve()
    try:
        path = quote(Path(os.path.relpath(images, place.resolve())).as_posix())
    except ValueError:  # another drive on Windows
        path = images.as_uri()
    return "" if path == "." else f"{path}/"


def _preview(path):
    """Give a small JPEG in base64 of a photo that browsers cannot show, else ''."""
    try:
        with Image.open(path) as photo:
            if photo.format not in NOT_IN_BROWSERS:
                return ""
        small, file = pil_loader(path), io.BytesIO()
    except (OSError, BadPhoto):  # gone or changed: the page shows the photo's name
        return ""
    small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    small.save(file, "JPEG")
    return base64.b64encode(file.getvalue()).decode()
