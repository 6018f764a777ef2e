"""One photo: a file to an upright RGB image."""
import functools
import io
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from pillow_heif import register_heif_opener

from lookalike import AnyPath, readable

register_heif_opener()  # what iPhones save
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "HEIF", "AVIF"]
MAX_MEGAPIXELS, MAX_ASPECT, MAX_SCANS, SMALL = 64, 20, 100, 544
# the marker of a JPEG's next segment; 00 and D0 to D7 behind FF belong to the picture's own data
JPEG_SEGMENT = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")


class BadPhoto(ValueError):
    """A file that is not a usable photo: BadPhoto(path, why)."""

    def __str__(self):
        return readable(": ".join(map(str, self.args)))


class Neighbour(NamedTuple):
    """A photo that was found; `distance` is squared Euclidean, in the compressed space."""
    name: str
    label: str
    distance: float
    index: int

    def __repr__(self):
        return readable(f"{self.name}  {self.label}  {self.distance:.1f}")


# ---- one photo -------------------------------------------------------------------------------
def pil_loader(path: AnyPath, small: bool = False) -> Image.Image:
    """Turn any image file into an upright RGB image on white, 8 bits a channel.

    Grayscale, palette, transparent, CMYK, 16-bit and floating-point files are converted so that
    they look as they should, and colours by the profile that the file brings along; of an
    animation the first frame counts; a photo is turned the way its EXIF says. With `small` a large
    JPEG is decoded at a half, a quarter or an eighth of its size, never under 544 pixels a side:
    all that the networks look at.

    Raises FileNotFoundError, or BadPhoto for a file that is not a photo, is damaged, has more than
    64 million pixels, or is over 20 times longer than wide (resizing would blow it up).
    """
    path = Path(path)
    if not os.path.lexists(path):
        raise FileNotFoundError(f"no photo {str(path)!r} in {Path.cwd().name}/: check its name")
    if not path.is_file():  # opening a pipe would wait for ever
        raise BadPhoto(path, "not a file (a folder, a pipe, or a link that leads nowhere)")
    try:
        img = _upright_file(path, small)
    except BadPhoto:
        raise
    except UnidentifiedImageError:
        raise BadPhoto(path, "the file is empty" if not path.stat().st_size else
                       f"not a photo, whatever its name says ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise BadPhoto(path, f"over {MAX_MEGAPIXELS} million pixels: scale it down first") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        raise BadPhoto(path, f"damaged ({error or type(error).__name__})") from error
    img.filename = str(path)  # for captions; converting had dropped it
    return img


def _upright_file(path, small):
    try:
        return upright_rgb(_decode(path, small))
    except UnidentifiedImageError:
        return _float_tiff(path)


def _decode(path, small):
    Image.init()  # Image.open knows the rarer of its formats only after this
    with open(path, "rb") as f:
        img = Image.open(f, formats=FORMATS)
        check_size(path, *img.size)
        if img.format in ("JPEG", "MPO") and _scans(path.read_bytes()) > MAX_SCANS:
            raise BadPhoto(path, f"a JPEG of over {MAX_SCANS} scans, made to keep a reader busy")
        if small:  # only JPEG's decoder can do it, the others ignore it
            img.draft(None, (SMALL, SMALL))
        if img.format == "PNG":  # load() ignores a PNG's check sums; verify() leaves it unusable
            img.verify()
            f.seek(0)
            img = Image.open(f, formats=FORMATS)
        img.load()
    return img


def _float_tiff(path):
    """RGB in floating point, the one kind of TIFF that Pillow does not know."""
    import tifffile
    with open(path, "rb") as f:
        if f.read(2) not in (b"II", b"MM"):
            raise UnidentifiedImageError
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        check_size(path, page.imagewidth, page.imagelength)
        values = np.nan_to_num(page.asarray())
    values = np.moveaxis(values, 0, -1) if len(values) in (3, 4) else values
    top = next((top for top in (1, 255) if values.max() <= top), 65535)
    return Image.fromarray((values[..., :3] * (255 / top)).clip(0, 255).astype(np.uint8))


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
    kind, profile = img.format, img.info.get("icc_profile")
    try:
        img = ImageOps.exif_transpose(img)
    except Exception:  # an unreadable EXIF block is no reason to lose the photo
        pass
    img = _in_srgb(_in_bytes(img, kind), profile)
    if img.mode == "RGBA":
        img = Image.alpha_composite(Image.new("RGBA", img.size, "white"), img)
    return img.convert("RGB")


def _in_bytes(img, kind):
    """8 bits a channel, no palette, and RGBA if any of it is transparent."""
    if img.mode.startswith("I;16"):
        return _16_to_8_bits(np.asarray(img), kind)
    if img.mode in ("I", "F"):
        return _to_8_bits(img)
    if kind == "BMP" and img.mode == "RGBA" and not img.getextrema()[3][1]:
        return img.convert("RGB")  # many programs write 0 where there is no transparency
    if img.has_transparency_data:
        return img.convert("RGBA")
    return img.convert("RGB") if img.mode == "P" else img


def _16_to_8_bits(values, kind):
    """A TIFF may hold the 8 or 12 bits of a scanner or a microscope in its 16."""
    top = int(values.max()) if kind == "TIFF" else 65535
    bits = 8 if top < 256 else 12 if top < 4096 else 16
    return Image.fromarray((values >> (bits - 8)).astype(np.uint8))


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
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if "srgb" in ImageCms.getProfileDescription(source).lower():
        return None
    shown = "RGBA" if mode == "RGBA" else "RGB"
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, shown)


def _to_8_bits(img):
    """32-bit integers or floats have no fixed range, so black to white is lowest to highest."""
    values = np.nan_to_num(np.asarray(img, np.float32), posinf=0, neginf=0)
    low, high = float(values.min()), float(values.max())
    if img.mode == "I" and 0 <= low and high <= 65535:
        low, high = 0, 65535
    return Image.fromarray(((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8))
