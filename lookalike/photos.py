"""One photo: a file to an upright RGB image, or one sentence that says why not.

Importing this module registers HEIF, which iPhones save, with Pillow.
"""
import functools
import hashlib
import io
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from pillow_heif import register_heif_opener

from lookalike.common import AnyPath, readable, shown

register_heif_opener()
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "HEIF", "AVIF"]
MAX_MEGAPIXELS, MAX_ASPECT, MAX_BYTES, SMALL = 64, 20, 10**9, 544


class BadPhoto(ValueError):
    """A file that is not a usable photo on any machine: BadPhoto(path, why)."""

    def __str__(self):
        return readable(": ".join(map(str, self.args)))


# ---- one photo -------------------------------------------------------------------------------
def photo_hash(path: AnyPath) -> bytes:
    """Compute the SHA-256 of a file's bytes, which identifies the photo whatever its name."""
    with _opened(path) as f:
        return hashlib.file_digest(f, "sha256").digest()


def photo_bytes(path: AnyPath) -> bytes:
    """Read a file whole; raise BadPhoto for one that is too large to be a photo."""
    with _opened(path) as f:
        return f.read()


def pil_loader(path: AnyPath) -> Image.Image:
    """Turn any image file into an upright RGB image on white, 8 bits per channel.

    Greyscale, palette, transparent, CMYK and 16-bit files are converted so that they look as they
    should, and the file's colour profile is applied. The first frame of an animation counts. A
    photo is turned the way its EXIF says. A large JPEG is decoded at a half, a quarter or an
    eighth of its size, but never below 544 pixels: more than any of the networks looks at.

    Raises BadPhoto for a file that is not a photo, is damaged, has 32 bits per channel, more than
    64 million pixels or a billion bytes, or is over 20 times longer than wide (resizing would
    enlarge it too much). Raises FileNotFoundError, another OSError or MemoryError for what is not
    the photo's fault.
    """
    with _opened(path) as f:
        return read_photo(f, path)


def read_photo(f: BinaryIO, name: AnyPath) -> Image.Image:
    """As `pil_loader`, from an open file, whose name is for captions and errors."""
    try:
        img = upright_rgb(_decode(f, name))
    except BadPhoto:
        raise
    except UnidentifiedImageError:
        raise BadPhoto(name, "the file is empty" if not f.seek(0, os.SEEK_END) else
                       f"not a readable photo (readable: {', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise BadPhoto(name, f"over {MAX_MEGAPIXELS} million pixels: scale it down first") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        if getattr(error, "errno", None) or "memory" in f"{type(error)} {error}".lower():
            raise
        raise BadPhoto(name, f"damaged ({error or type(error).__name__})") from error
    img.filename = str(name)  # for captions; the conversion had dropped it
    return img


def _opened(path):
    path = Path(path)
    if not os.path.lexists(path):
        place = "" if path.is_absolute() else f" in {Path.cwd().name}/"
        raise FileNotFoundError(f"no photo {shown(str(path))}{place}: check its name")
    if not path.is_file():  # opening a pipe would wait for ever
        raise BadPhoto(path, "not a file (a folder, a pipe, or a broken link)")
    if path.stat().st_size > MAX_BYTES:
        raise BadPhoto(path, f"over {MAX_BYTES:,} bytes: scale it down first")
    return open(path, "rb")


def _decode(f: BinaryIO, path):
    Image.init()  # Image.open knows the rarer of its formats only after this
    img = Image.open(f, formats=FORMATS)
    check_picture(path, img)
    img.draft(None, (SMALL, SMALL))  # only JPEG's decoder can do it, the others ignore it
    if img.format == "PNG":  # load() ignores a PNG's check sums; verify() leaves it unusable
        img.verify()
        f.seek(0)
        img = Image.open(f, formats=FORMATS)
    img.load()
    return img


def check_picture(path: AnyPath, img: Image.Image) -> None:
    """Raise BadPhoto for an image that is empty, too large, too long, or has 32-bit channels."""
    if not min(img.size):
        raise BadPhoto(path, "it has no pixels")
    tags = getattr(img, "tag_v2", {})  # a TIFF's: libtiff takes memory for a whole tile
    for width, height in ((tags.get(322, 1), tags.get(323, 1)), img.size):
        size = f"{width}x{height} is over"
        if width * height > MAX_MEGAPIXELS * 1e6:
            raise BadPhoto(path, f"{size} {MAX_MEGAPIXELS} million pixels: scale it down first")
    if max(img.size) > MAX_ASPECT * min(img.size):
        raise BadPhoto(path, f"{size} {MAX_ASPECT} times longer than wide: crop it first")
    if img.mode in ("I", "F"):
        raise BadPhoto(path, "32 bits per channel, which do not say what is black and what is "
                       "white: save it with 8 or 16 bits per channel first")


def upright_rgb(img: Image.Image) -> Image.Image:
    """Turn a decoded image the way its EXIF says, and into RGB on white."""
    file_format, profile = img.format, img.info.get("icc_profile")
    try:
        img = ImageOps.exif_transpose(img)
    except Exception:  # an unreadable EXIF block is no reason to lose the photo
        pass
    img = _in_srgb(_in_bytes(img, file_format), profile)
    if img.mode == "RGBA":
        img = Image.alpha_composite(Image.new("RGBA", img.size, "white"), img)
    return img.convert("RGB")


def _in_bytes(img, file_format):
    """8 bits per channel, no palette, and RGBA if any of it is transparent."""
    if img.mode.startswith("I;16"):
        values, transparent = np.asarray(img), img.info.get("transparency")  # a PNG's: one grey
        grey, opaque = values >> 8, 255 * (values != transparent)
        return Image.merge("RGBA", [Image.fromarray(band.astype(np.uint8))
                                    for band in (grey, grey, grey, opaque)])
    if file_format == "BMP" and img.mode == "RGBA" and not img.getextrema()[3][1]:
        return img.convert("RGB")  # many programs write 0 where there is no transparency
    if img.has_transparency_data:
        return img.convert("RGBA")
    return img.convert("RGB") if img.mode == "P" else img


def _in_srgb(img, profile):
    """Colours as screens show them: phones save Display P3, cameras Adobe RGB, printers CMYK."""
    if profile and img.mode in ("RGB", "RGBA", "CMYK", "L"):
        try:
            transform = _to_srgb(profile, img.mode)
            return ImageCms.applyTransform(img, transform) if transform else img
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass  # a damaged profile is no reason to lose the photo
    return img


@functools.lru_cache(maxsize=16)
def _to_srgb(profile, mode):
    """The transform, or None for a profile that leaves colours as they are, by what it does."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    to_mode = "RGBA" if mode == "RGBA" else "RGB"
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, to_mode)
    if mode in ("RGB", "RGBA"):
        cube = np.stack(np.meshgrid(*[np.arange(0, 256, 51, np.uint8)] * 3), axis=-1)
        colours = Image.fromarray(cube.reshape(6, 36, 3)).convert(mode)
        there = np.asarray(ImageCms.applyTransform(colours, transform), int)
        if abs(there - np.asarray(colours, int)).max() <= 2:
            return None
    return transform
