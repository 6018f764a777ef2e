"""What a reader asks with: a photo's number, its path, a picture, an upload; or several of these.

As a file or an upload, a photo whose bytes are in the catalogue is that photo.
"""
import hashlib
import io
import os
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from PIL import Image

from lookalike import AnyPath, shown
from lookalike.folders import from_here
from lookalike.photos import BadPhoto, check_picture, photo_hash, pil_loader, read_photo
from lookalike.photos import upright_rgb

Query = int | AnyPath | Image.Image | dict | Sequence
Liked = list[tuple[int | None, Image.Image | None]]  # (its number, None), or (None, the picture)


def is_whole(value: Any) -> bool:
    """Whether it is a whole number, NumPy's and torch's too; True and False are none."""
    value = value.item() if getattr(value, "ndim", None) == 0 else value
    return isinstance(value, Integral) and not isinstance(value, bool)


def whole(value: Any, what: str, least: int, most: int | None, why: str) -> int:
    """Give the value as an int, or raise an error that says what is allowed."""
    allowed = "a whole number" + (f", {least} or more" if most is None else
                                  f" from {least} to {most:,}")
    if not is_whole(value):
        raise TypeError(f"{what} is {shown(value)}, and must be {allowed}: {why}")
    if value < least or (most is not None and value > most):
        raise ValueError(f"{what} is {shown(int(value))}, and must be {allowed}: {why}")
    return int(value)


def find(query: Query, catalogue: Any) -> Liked:
    """Say which photos are asked for: (its number, None), or (None, the photo) from outside."""
    query = getattr(query, "value", query)  # of an upload button
    if isinstance(query, (list, tuple)):
        if not query:
            raise ValueError("the query is empty: give at least one photo, by its number or path")
        liked = [one for part in query for one in find(part, catalogue)]
        return [one for i, one in enumerate(liked) if one[0] is None or one not in liked[:i]]
    if isinstance(query, Image.Image):
        return [(None, _picture(query))]
    if isinstance(query, dict) and "content" in query:
        content = bytes(query["content"])
        return _known(hashlib.sha256(content).digest(), catalogue) or [
            (None, read_photo(io.BytesIO(content), query.get("name", "your photo"), small=True))]
    if isinstance(query, (str, Path)):
        return _find_path(str(query), catalogue)
    if not is_whole(query):
        raise TypeError(f"the query is a {type(query).__name__}: give a photo's number, its path, "
                        "a PIL image, or a list of these")
    return [(whole(query, "the number of the query", 0, len(catalogue.img_names) - 1,
                   "photos are counted from 0"), None)]


def _picture(img):
    check_picture("your picture", img)
    try:
        return upright_rgb(img)
    except Exception as error:  # as of a file, see read_photo
        raise BadPhoto("your picture", f"damaged ({shown(error)})") from error


def _find_path(query, catalogue):
    if not query or "://" in query:
        raise ValueError(f"the query is {shown(query)}: give a photo's number or path; one at an "
                         "address must be downloaded first")
    path = catalogue.images / query if query in catalogue.img_names else from_here(query)
    if query.isdecimal() and not os.path.exists(path):
        raise FileNotFoundError(f"no photo is called {shown(query)}: if you mean the photo of the "
                                "catalogue with that number, leave the quotes out")
    return _known(photo_hash(path), catalogue, path) or [(None, pil_loader(path, small=True))]


def _known(photo, catalogue, path=None):
    """The photo of the catalogue with that SHA-256; of several the one at `path`."""
    twins = [i for i, one in enumerate(catalogue.photos) if one == photo]
    if path and len(twins) > 1:
        files = {(catalogue.images / catalogue.img_names[i]).resolve(): i for i in twins}
        twins = [files.get(path.resolve(), twins[0])]
    return [(i, None) for i in twins[:1]]
