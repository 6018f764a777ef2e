"""What the notebooks use and do not show, a room each; nothing in here imports helpers.

    photos.py      one photo: a file to an upright RGB image
    folders.py     a folder of photos: its download, what is in it, its labels
    networks.py    backbones: a network without its classifier, and all that belongs to it
    extraction.py  many photos to vectors, and a folder kept up to date
    embeddings.py  vectors on disk
    quality.py     how good neighbours are, by their labels
    errors.py      errors in a notebook, short
    figures.py     what figures need of the machine: fonts, a screen
    exercises.py   what the exercises' checks share
    tuning.py      a head trained on the photos (notebook 06)
    scale.py       the same search in Milvus, the same extraction over Ray (notebook 07)
    stand_in.py    the drawn catalogue, for machines that cannot download photos
"""
import functools
import os
import sys
import tempfile
from pathlib import Path

AnyPath = str | Path
HERE = Path(__file__).resolve().parent.parent  # the checkout
if sys.platform == "darwin":
    # torch, faiss and scikit-learn each bring an OpenMP there, and the second to start aborts;
    # helpers.py adds the other half. Source: github.com/faiss-wheels/faiss-wheels/issues/73
    os.environ.setdefault("KMP_DUPLICATE_LIB_OK", "TRUE")


def home() -> Path:
    """Where what we make is kept: the checkout, or a cache folder if it may not be written to."""
    return _writable(HERE)


@functools.cache
def _writable(folder):
    try:
        tempfile.TemporaryFile(dir=folder).close()
        return folder
    except OSError:
        import platformdirs
        cache = platformdirs.user_cache_path("lookalike", ensure_exists=True)
        print(f"{folder.name}/ may not be written to: what we make is kept in {cache}")
        return cache


def readable(text: str) -> str:
    """Put ? for what no terminal shows: the bytes of a file's name that are not UTF-8."""
    return text.encode("utf-8", "replace").decode()
