"""What the notebooks use and do not show, a room each; nothing in here imports helpers.

    photos.py      one photo: a file to an upright RGB image, or one sentence
    folders.py     a folder: its download, one scan (names, new ones, labels)
    networks.py    backbones and their weights
    embeddings.py  the shipped pickle
    store.py       vectors, by what a photo is and which network made them: one SQLite file
    extraction.py  photos to vectors on all cores; a folder, whatever is new in it embedded first
    query.py       what a reader asks with: a number, a path, a picture, or several
    quality.py     neighbours, and how good they are
    notebook.py    what notebooks share: figures, short errors, an exercise's first question
    colour.py      a photo's colours as numbers, and vectors side by side (notebook 06)
    tuning.py      a head trained on the photos (notebook 06)
    scale.py       the same search in Milvus, the same extraction over Ray (notebook 07)
    stand_in.py    the drawn catalogue, for machines that cannot download photos
"""
import functools
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

AnyPath = str | Path
HERE = Path(__file__).resolve().parent.parent  # the checkout
if sys.platform == "darwin":
    # torch, faiss and scikit-learn each bring an OpenMP there, and the second to start aborts;
    # helpers.py adds the other half. Source: github.com/faiss-wheels/faiss-wheels/issues/73
    os.environ.setdefault("KMP_DUPLICATE_LIB_OK", "TRUE")


def home() -> Path:
    """Where what we make is kept: the checkout, or a cache folder if it may not be written to.

    Raises OSError where neither may be written to.
    """
    try:
        tempfile.TemporaryFile(dir=HERE).close()
        return HERE
    except OSError:
        cache = cache_folder()
        try:
            cache.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=cache).close()
        except OSError as error:
            raise OSError(f"neither {HERE} nor {cache} may be written to ({error.strerror}): make "
                          "room in one, or allow it") from None
        say_once(f"{HERE.name}/ may not be written to: what we make is kept in {cache}")
        return cache


def cache_folder() -> Path:
    """Beside torch's downloads, so TORCH_HOME and XDG_CACHE_HOME move it too."""
    from torch.hub import get_dir
    return Path(get_dir()).absolute().parent / "lookalike"


@functools.cache
def say_once(line: str, of: AnyPath = "") -> None:
    """Print a line that is read once; of each folder, if it is `of` one."""
    print(readable(line))


def readable(text: str) -> str:
    """Put ? for what no terminal shows: the bytes of a folder's name that are not UTF-8."""
    return text.encode("utf-8", "replace").decode()


def shown(value: Any) -> str:
    """A value as an error shows it: at most a line of it."""
    try:
        text = " ".join(readable(repr(value)).split())
    except ValueError:  # Python writes no number of over 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 100 else f"{text[:60]}... ({len(text):,} characters)"
