"""What a reader searches with: a photo's number or path, an image, an upload, or several.

A file or an upload whose bytes are in the catalogue is that photo.
"""
import hashlib
import io
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lookalike.common import AnyPath, shown
from lookalike.folders import from_here
from lookalike.photos import BadPhoto, check_picture, photo_hash, pil_loader, read_photo
from lookalike.photos import upright_rgb

Query = int | AnyPath | Image.Image | dict | Sequence
Found = list[int | Image.Image]  # numbers of photos in the catalogue, and images from outside


def whole(value: Any, what: str, least: int, most: float, why: str) -> int:
    """Return the value as an int, or raise an error that says what is allowed."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # NumPy's, torch's too
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{what} is {shown(value)}. It must be a whole number: {why}")
    if not least <= number <= most:
        raise ValueError(f"{what} is {shown(number)}. It must be " + (
            f"from {least} to {most:,}" if most < float("inf") else f"at least {least}")
            + f": {why}")
    return number


def find(query: Query, catalogue: Any) -> Found:
    """List the query's photos: numbers for photos of the catalogue, images for others."""
    query = getattr(query, "value", query)  # of an upload button
    if isinstance(query, list | tuple):
        if not query:
            raise ValueError("the query is empty: pass at least one photo, by number or by path")
        found = [one for part in query for one in find(part, catalogue)]
        return [one for i, one in enumerate(found) if one not in found[:i]]
    if isinstance(query, Image.Image):
        return [_upright(query)]
    if isinstance(query, dict) and "content" in query:
        content = bytes(query["content"])
        return _known(hashlib.sha256(content).digest(), catalogue) or [
            read_photo(io.BytesIO(content), query.get("name", "your photo"))]
    if isinstance(query, str | Path):
        return _find_path(str(query), catalogue)
    return [whole(query, "the query", 0, len(catalogue.img_names) - 1,
                  "pass a photo's number, its path, an image, an upload or a list of these")]


def _upright(img):
    check_picture("your image", img)
    try:
        upright = upright_rgb(img)
    except Exception as error:  # as of a file, see read_photo
        raise BadPhoto("your image", f"damaged ({shown(error)})") from error
    upright.filename = getattr(img, "filename", "")
    return upright


def _find_path(query, catalogue):
    if not query or "://" in query:
        raise ValueError(f"the query is {shown(query)}: pass a photo's number or path. Download a "
                         "photo from the web first")
    names = [*catalogue.img_names, *catalogue.copies]
    path = catalogue.images / query if query in names else from_here(query)
    if not os.path.exists(path):
        called = [name for name in names if name.rpartition("/")[2] == query]
        if len(called) > 1:
            raise ValueError(f"{len(called)} photos are called {shown(query)}: pass the path of "
                             f"one, for example {called[0]!r}")
        path = catalogue.images / called[0] if called else path
    if query.isdecimal() and not os.path.exists(path):
        raise FileNotFoundError(f"no photo is called {shown(query)}. To search with the photo of "
                                "that number, leave out the quotation marks")
    return _known(photo_hash(path), catalogue) or [pil_loader(path)]


def _known(photo, catalogue):
    return [catalogue.photos.index(photo)] if photo in catalogue.photos else []
