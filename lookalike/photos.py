"""Photos: a file to an upright RGB image; a folder, its download, its labels."""
import csv
import functools
import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

import lookalike
from lookalike import AnyPath

# The clothing data set, CC0, https://github.com/alexeygrigorev/clothing-dataset. GitHub does not
# promise that the bytes of an archive stay the same, so what is checked is the content: the
# SHA-256 of the list of all files' SHA-256 sums.
PHOTOS_COMMIT = "7ed86a9cc56763b6acb35e41cb35184e43a5d218"
PHOTOS_URL = f"https://github.com/alexeygrigorev/clothing-dataset/archive/{PHOTOS_COMMIT}.zip"
PHOTOS_SHA256 = "57ce6e8cb41d5fa7fffbb5ad67abf6fef766fb67fb1115d49c6b257f7e18ddf6"
PHOTO_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]
MAX_MEGAPIXELS, MAX_ASPECT, MAX_SCANS, SMALL = 64, 20, 100, 544
# the marker of a JPEG's next segment; 00 and D0 to D7 behind FF belong to the picture's own data
JPEG_SEGMENT = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")


class BadPhoto(ValueError):
    """A file that is not a usable photo: BadPhoto(path, why)."""

    def __str__(self):
        return ": ".join(map(str, self.args))


class Neighbour(NamedTuple):
    """A photo that was found; `distance` is squared Euclidean, in the compressed space."""
    name: str
    label: str
    distance: float
    index: int

    def __repr__(self):
        return f"{self.name}  {self.label}  {self.distance:.1f}"


# ---- one photo -------------------------------------------------------------------------------
def pil_loader(path: AnyPath, small: bool = False) -> Image.Image:
    """Turn any image file into an upright RGB image on white, 8 bits a channel.

    Grayscale, palette, transparent, CMYK, 16-bit and floating-point files are converted so that
    they look as they should; of an animation the first frame counts; a photo is turned the way
    its EXIF orientation says. Raises FileNotFoundError, or BadPhoto for a file that is not a
    photo, is damaged, has more than 64 million pixels, or is over 20 times longer than wide (the
    network's resizing would blow it up). With `small` a large JPEG is decoded at a half, a quarter
    or an eighth of its size, never under 544 pixels a side: all that the networks look at.
    """
    path = Path(path)
    if not os.path.lexists(path):
        raise FileNotFoundError(f"no photo {str(path)!r} in {Path.cwd().name}/: check its name")
    if not path.is_file():  # opening a pipe would wait for ever
        raise BadPhoto(path, "not a file (a folder, a pipe, or a link that leads nowhere)")
    try:
        img = upright_rgb(_decode(path, small))
        img.filename = str(path)  # for captions; converting had dropped it
        return img
    except BadPhoto:
        raise
    except UnidentifiedImageError:
        raise BadPhoto(path, "the file is empty" if not path.stat().st_size else
                       f"not a photo, whatever its name says ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise BadPhoto(path, f"over {MAX_MEGAPIXELS} million pixels: scale it down first") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        raise BadPhoto(path, f"damaged ({error or type(error).__name__})") from error


def _decode(path, small):
    Image.init()  # Image.open knows the rarer of its formats only after this
    with open(path, "rb") as f:
        img = Image.open(f, formats=FORMATS)
        check_size(path, *img.size)
        if img.format == "JPEG" and _scans(path.read_bytes()) > MAX_SCANS:
            raise BadPhoto(path, f"a JPEG of over {MAX_SCANS} scans, made to keep a reader busy")
        if small:  # only JPEG's decoder can do it, the others ignore it
            img.draft(None, (SMALL, SMALL))
        if img.format == "PNG":  # load() ignores a PNG's check sums; verify() leaves it unusable
            img.verify()
            f.seek(0)
            img = Image.open(f, formats=FORMATS)
        img.load()
    return img


def _scans(data):
    """How many scans a JPEG decodes: those up to the end of its picture, not of a film behind it.

    Source: ITU-T T.81, section B.1.
    """
    scans, at = 0, 2
    while (segment := JPEG_SEGMENT.search(data, at)) and segment[0] != b"\xff\xd9":
        scans += segment[0] == b"\xff\xda"
        length = data[segment.end():segment.end() + 2]  # counts itself
        at = segment.end() + max(2, int.from_bytes(length, "big"))
    return scans


def check_size(path: AnyPath, width: int, height: int) -> None:
    """Raise BadPhoto for a picture too large, or too long, to be worked on."""
    size = f"{width}x{height} is over"
    if width * height > MAX_MEGAPIXELS * 1e6:
        raise BadPhoto(path, f"{size} {MAX_MEGAPIXELS} million pixels: scale it down first")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadPhoto(path, f"{size} {MAX_ASPECT} times longer than wide: crop it first")


def upright_rgb(img: Image.Image) -> Image.Image:
    """Turn a decoded picture the way its EXIF says, and into RGB on white."""
    try:
        img = ImageOps.exif_transpose(img)
    except Exception:  # an unreadable EXIF block is no reason to lose the photo
        pass
    if img.mode.startswith("I;16"):
        img = Image.fromarray((np.asarray(img) >> 8).astype(np.uint8))
    elif img.mode in ("I", "F"):
        img = _to_8_bits(img)
    if img.has_transparency_data:
        img = img.convert("RGBA")
        img = Image.alpha_composite(Image.new("RGBA", img.size, "white"), img)
    return img.convert("RGB")


def _to_8_bits(img):
    """32-bit integers or floats have no fixed range, so black to white is lowest to highest."""
    values = np.nan_to_num(np.asarray(img, np.float32), posinf=0, neginf=0)
    low, high = float(values.min()), float(values.max())
    if img.mode == "I" and 0 <= low and high <= 65535:
        low, high = 0, 65535
    return Image.fromarray(((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8))


# ---- a folder of photos ----------------------------------------------------------------------
def get_images() -> Path:
    """Find the photos: FASHION_IMAGES if set, else images/, else a download, else drawn ones.

    Says in one line which it is. The download (154 MB) happens once; where it fails, a catalogue
    of 660 garments is drawn instead (about 10 s, once), and the next call tries it again.
    """
    if os.environ.get("FASHION_IMAGES"):
        images = from_here(os.environ["FASHION_IMAGES"]).resolve()
        if not images.is_dir():
            raise FileNotFoundError(f"FASHION_IMAGES is {str(images)!r}, which is not a folder")
        print(f"Photos: your own folder {images.name}/ (FASHION_IMAGES)")
        return images
    images = lookalike.HERE / "images"
    if not images.is_dir():
        try:
            download_photos(images)
        except (OSError, ValueError) as error:  # requests' and shutil's errors are OSErrors
            return _drawn(type(error).__name__ if isinstance(error, OSError) else error)
    print("Photos: the clothing data set in images/")
    return images


def _drawn(reason):
    """The folder of the stand-in, drawn if it is not there."""
    images = lookalike.HERE / "drawn_images"
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
    return path if path.exists() else lookalike.HERE / path


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


def read_labels(images: AnyPath, column: str = "label") -> dict[str, str]:
    """Read {'images/<id>.jpg': label} from the images.csv in the folder or beside it.

    Empty where there is no table. `column` is which of its columns: "sender_id" says who took
    each photo. Raises ValueError for a table without it.
    """
    for table in (Path(images, "images.csv"), Path(images).parent / "images.csv"):
        if table.is_file():
            with open(table, newline="", encoding="utf-8") as f:
                rows = csv.DictReader(f)
                missing = {"image", column} - set(rows.fieldnames or [])
                if missing:
                    raise ValueError(f"{table.name} has no column {min(missing)!r}: add it")
                return {f"images/{row['image']}.jpg": row[column] for row in rows}
    return {}


def list_photos(images: AnyPath) -> tuple[list[str], list[str]]:
    """List (img_names, new_photos): those to recommend, and those without a label, the 'new' ones.

    Both are sorted lists of 'images/<path in the folder>'. Without a table none is new.
    """
    found = []
    for folder, _, files in os.walk(images):
        inside = Path("images", Path(folder).relative_to(images)).as_posix()
        found += [f"{inside}/{file}" for file in files
                  if os.path.splitext(file)[1].lower() in PHOTO_ENDINGS]
    if not found:
        raise FileNotFoundError(f"no photo in {str(images)!r}, none of {sorted(PHOTO_ENDINGS)}")
    found, labels = sorted(found), read_labels(images)
    if labels.keys().isdisjoint(found):
        return found, []
    return [n for n in found if n in labels], [n for n in found if n not in labels]


def photo_path(name: str, images: AnyPath) -> Path:
    """Say where the photo that the embeddings call 'images/x.jpg' lies: x.jpg in the folder."""
    return Path(images) / name.removeprefix("images/")


def photo_stat(file: Path) -> list[int] | None:
    """Take a file's [size in bytes, modification time in ns], by which a changed one is told."""
    try:
        stat = file.stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]
