"""Vectors on disk: the shipped pickle, our own safetensors, and the rows of an unfinished run."""
from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import BinaryIO

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors.torch import load, save

from lookalike import HERE, AnyPath
from lookalike.networks import Backbone

Embeddings = tuple[list[str], torch.Tensor, dict]  # names, vectors, what made them
EMB_FILENAME = HERE / "fashion_images_embs.pickle"
EMB_SHA256 = "9b89c9a162f4ff73ab88ab4f0fd40b87704230799252ea43ff270a39e0e187bd"
MADE_BY = {"backbone": "name", "weights": "weights", "fingerprint": "fingerprint"}
STAY = {"", ".."}  # what no part of a name inside the folder is
LARGEST = 1e16  # of a number in a vector: squared and added up it still fits a float32


class Refused(ValueError):
    """Embeddings that are not taken; the message says why."""


# ---- finished: one file ----------------------------------------------------------------------
def save_embeddings(emb_filename: AnyPath, img_names: list[str], img_emb_tensors: torch.Tensor,
                    backbone: Backbone, labels: dict[str, str] | None = None,
                    stats: dict[str, list] | None = None, skipped: dict[str, str] | None = None,
                    images: AnyPath = "", overwrite: bool = False) -> None:
    """Write names, vectors and what made them in the safetensors format, which cannot hold code.

    The file is replaced whole or not at all.

    Parameters
    ----------
    img_names, img_emb_tensors
        N names 'images/...' and their vectors, (N, n_features).
    labels, stats
        For a name, its label, and its file's [size in bytes, modification time in ns].
    skipped
        For the name of a photo that could not be read, why.
    images
        The folder of the photos, if the file is kept of that folder.
    overwrite
        Whether to replace a file that is there.

    Raises
    ------
    ValueError
        The vectors make no sense.
    FileExistsError
        There is such a file.

    Source: huggingface.co/docs/safetensors.
    """
    path = Path(emb_filename)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path.name} is there already: give another name, or overwrite=True")
    about = {key: getattr(backbone, attribute) for key, attribute in MADE_BY.items()}
    about |= {"labels": labels or {}, "stats": stats or {}, "skipped": skipped or {}}
    write_embeddings(path, img_names, img_emb_tensors, about | {"folder": str(images)})


def write_embeddings(path: Path, img_names: list[str], img_emb_tensors: torch.Tensor,
                     about: dict) -> None:
    """Write what `read_embeddings` returns, and clear away the rows of its unfinished run."""
    vectors = _check(img_names, img_emb_tensors, about).contiguous()
    text = json.dumps({"img_names": list(img_names), **about})
    content = save({"img_emb_tensors": vectors}, {"embeddings": text})
    replace_whole(path, lambda f: f.write(content))
    for leftover in path.parent.glob(f"{path.name}.*.partial*"):
        with contextlib.suppress(OSError):  # Windows: another process has it open
            leftover.unlink()


def replace_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write(file)` make a file anew: whoever looks finds the old or the new, never a half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.tmp")
    try:
        with open(unfinished, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        raise OSError(f"could not write {path.name} ({error.strerror or error}): make room in "
                      f"{path.parent.name}/ and run this again") from error
    finally:
        unfinished.unlink(missing_ok=True)


def load_embeddings(emb_filename: AnyPath, trusted: bool = False) -> tuple[list, torch.Tensor]:
    """Read (img_names, img_emb_tensors): N names, (N, n_features); see `read_embeddings`."""
    return read_embeddings(emb_filename, trusted)[:2]


def read_embeddings(emb_filename: AnyPath, trusted: bool = False) -> Embeddings:
    """Read embeddings and what made them: (img_names, img_emb_tensors, about).

    A safetensors file of `save_embeddings` holds nothing that runs. Of pickles only the one that
    came with this tutorial is read, known by its SHA-256, since `pickle.load` of a stranger's does
    whatever it says. `trusted=True` reads one that you made yourself. `about` holds "backbone",
    "weights", "fingerprint", "labels", "stats", "skipped" and "folder", each where the file has it.

    Raises FileNotFoundError, or Refused (a ValueError) for a file that is not taken.
    """
    path = Path(emb_filename)
    if not path.is_file():
        raise FileNotFoundError(f"there are no embeddings at {str(path)!r}: notebook 01 makes them")
    content = path.read_bytes()
    read = _read_safetensors if content[8:9] == b"{" else _read_pickle
    try:
        names, vectors, about = read(content, trusted)
        return list(names), _check(names, vectors, about), about
    except Refused as error:
        raise Refused(f"{path.name} was not loaded: {error}") from None
    except Exception as error:  # a damaged file raises nearly anything
        raise Refused(f"{path.name} is damaged, or holds no names and vectors ({error!r}): make it "
                      "anew in notebook 01") from None


def _read_safetensors(content, _):
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8:8 + length])
    rows = header["img_emb_tensors"]["shape"][0]
    if length > 10_000 + 2_000 * rows:
        raise Refused(f"{length:,} bytes of names for {rows:,} photos cannot be right")
    about = json.loads(header["__metadata__"]["embeddings"])
    return about.pop("img_names"), load(content)["img_emb_tensors"], about


def _read_pickle(content, trusted):
    if not trusted and hashlib.sha256(content).hexdigest() != EMB_SHA256:
        raise Refused("it is a pickle, and not the one that came with this tutorial: pickle.load "
                      "does whatever such a program says. Make embeddings in notebook 01, or, if "
                      "you made this file yourself, give trusted=True")
    file = io.BytesIO(content)
    names, vectors = pickle.load(file)
    behind = file.read()  # in the one that we ship, a line of JSON
    about = json.loads(behind) if behind.strip() else {}
    return names, vectors, about


# ---- what makes sense ------------------------------------------------------------------------
def _check(names, vectors, about):
    """The vectors as a float32 tensor, or Refused."""
    if not isinstance(names, (list, tuple)) or not names:
        raise Refused("there must be a list of at least one name")
    with np.errstate(over="ignore"):  # a number too large for float32 is refused below
        vectors = torch.as_tensor(np.asarray(vectors, np.float32))
    if vectors.ndim != 2 or not vectors.shape[1] or len(vectors) != len(names):
        raise Refused(f"{len(names)} names take vectors of the shape ({len(names)}, features), and "
                      f"here it is {tuple(vectors.shape)}")
    for name in names:
        if not isinstance(name, str) or _leads_out(name):
            raise Refused(f"{name!r} leads out of the folder; a name looks like 'images/x.jpg'")
    small = (vectors.abs() < LARGEST).all(dim=1)  # false for NaN and infinity too
    if not small.all():
        raise Refused(f"{int((~small).sum())} vectors hold NaN, infinity or numbers over "
                      f"{LARGEST:.0e}, the first that of {names[int(small.int().argmin())]!r}")
    labels, skipped, stats = (about.get(key, {}) for key in ("labels", "skipped", "stats"))
    texts = [about.get(key, "") for key in (*MADE_BY, "folder")]
    texts += [*labels.values(), *skipped.values()]
    if not all(isinstance(text, str) for text in texts) or not isinstance(stats, dict):
        raise Refused("what stands beside the vectors is not what save_embeddings writes")
    return vectors


def _leads_out(name):
    """Whether images/<name> could be a file elsewhere; odd names that cannot are kept."""
    inside = name.removeprefix("images/")
    parts = PurePath(inside).parts if os.name == "nt" else inside.split("/")
    away = os.path.isabs(inside) or os.path.splitdrive(inside)[0]
    return bool(away) or "\0" in inside or not parts or not STAY.isdisjoint(parts)


# ---- unfinished: rows on disk ----------------------------------------------------------------
@contextlib.contextmanager
def kept_rows(emb_filename: AnyPath | None, asked: list, shape: tuple) -> Iterator[np.ndarray]:
    """Hold the vectors of a running extraction, float32, NaN where a row is not done yet.

    Parameters
    ----------
    emb_filename
        Where the result will be saved: until then the rows are on disk beside it, so that the
        same call goes on after an interruption. None: in memory only.
    asked
        What the vectors are of; the file's name carries its hash, so that no other call uses it.
    shape
        (photos, features).

    Raises
    ------
    OSError
        The disk is full, or another process is at the same extraction.
    """
    if emb_filename is None:
        yield np.full(shape, np.nan, np.float32)
        return
    key = hashlib.sha256(json.dumps([asked, shape]).encode()).hexdigest()[:16]
    path = Path(f"{emb_filename}.{key}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(f"{path}.lock", timeout=0).acquire()
    except Timeout:
        raise OSError("another notebook or program is embedding these photos: wait until it is "
                      "done, or stop it, and run this again") from None
    with lock:
        if not path.exists():  # all rows at once, so that a full disk is met here
            nothing = np.broadcast_to(np.float32("nan"), shape)
            replace_whole(path, lambda f: np.save(f, nothing))
        yield np.load(path, mmap_mode="r+")
