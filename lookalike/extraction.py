"""Photos to embeddings on all cores; of a folder, only the photos that are new."""
import hashlib
import io
import sqlite3
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from joblib import cpu_count
from tqdm import tqdm

from lookalike.colour import BINS, FINGERPRINT, colour_histogram
from lookalike.common import AnyPath, listed, say, shown
from lookalike.networks import Backbone, load_backbone, refuse_another_network
from lookalike.photos import BadPhoto, photo_bytes, pil_loader, read_photo
from lookalike.shipped import SHIPPED_BY, shipped_vectors
from lookalike.store import EVERY, keep, vectors_of


class Extracted(NamedTuple):
    """The photos that could be embedded, their embeddings, and why the others were skipped."""
    img_names: list[str]
    img_emb_tensors: torch.Tensor  # (N, n_features) float32
    skipped: dict[str, str]


# ---- some photos -----------------------------------------------------------------------------
def extract_embeddings(paths: list[AnyPath], backbone: Backbone, images: AnyPath = "") -> Extracted:
    """Turn photos into embeddings; a photo that cannot be read is reported and left out.

    Each core takes one photo at a time (four with ResNet50), from the file to the embedding, so
    decoding runs alongside the network. Nothing is stored: `open_catalogue` does that. (A process
    that forks after this, as torch's DataLoader with workers does on Linux, hangs: let it spawn.)

    Parameters
    ----------
    paths
        Files, or names in the folder `images` if that is given.
    backbone
        Of `load_backbone`.

    Raises
    ------
    ValueError
        No paths, or paths that are not in a list.
    """
    names = [] if isinstance(paths, str | Path) else [str(path) for path in paths]
    if not names:
        raise ValueError(f"no photos to embed: pass a list of paths, not {shown(paths)}")
    files = [Path(images, name) for name in names]
    vectors, why = np.empty((len(names), backbone.n_features), np.float32), [None] * len(names)
    for batch, made, faults in _on_all_cores(files, backbone, pil_loader):
        vectors[batch], why[batch] = made, faults
    good = [i for i, error in enumerate(why) if error is None]
    skipped = {name: in_words(error) for name, error in zip(names, why) if error}
    say_skipped(skipped, len(names))
    return Extracted([names[i] for i in good], torch.from_numpy(vectors[good]), skipped)


def in_words(error: Exception) -> str:
    """Say why a photo was skipped, without its path."""
    return getattr(error, "strerror", None) or str(
        error.args[-1] if error.args else type(error).__name__)


def say_skipped(skipped: dict[str, str], tried: int) -> None:
    """Print which photos were skipped, at most twenty of them."""
    if skipped:
        lines = [f"  {name}: {why}" for name, why in skipped.items()]
        more = [f"  and {len(lines) - 20} more"] * (len(lines) > 20)
        say(f"Embedded {tried - len(skipped)} of {tried} photos; skipped {len(skipped)}:",
            *lines[:20], *more)


def _on_all_cores(files, backbone, load):
    """Which of the files, their embeddings, and what was wrong with each, batch by batch.

    An interruption waits for the batches in hand and begins no other.
    """
    engine = backbone.engine(len(files))
    batches = [slice(i, i + engine.batch) for i in range(0, len(files), engine.batch)]
    pool = ThreadPoolExecutor(cpu_count())
    with tqdm(total=len(files), desc=f"Photos to vectors, {backbone.name}", unit=" photos",
              mininterval=0.5, file=sys.stdout) as bar:
        try:
            for batch, (vectors, why) in zip(batches, pool.map(
                    lambda batch: backbone.embed_files(files[batch], engine.compute, load),
                    batches)):
                bar.update(len(why))
                yield batch, vectors, why
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


# ---- the photos of a catalogue ---------------------------------------------------------------
def embed_photos(store: sqlite3.Connection, photos: dict[bytes, Path], about: dict[str, str],
                 backbone: Backbone | None) -> dict[bytes, bytes | str]:
    """Look up the embeddings of photos, and embed those that nobody has embedded before.

    That takes minutes for thousands of photos; the work is stored every few seconds. The colours of
    a photo are computed and stored along with its embedding.

    Parameters
    ----------
    store
        Of `open_store`.
    photos
        Where each photo is, by its SHA-256.
    about, backbone
        Which network, and the network itself if it is loaded.

    Returns
    -------
    dict
        {SHA-256: the embedding's bytes, float32, or in words why there is none}.

    Raises
    ------
    ValueError
        The network that made the stored embeddings cannot be loaded here.
    OSError
        The embeddings cannot be stored.
    """
    shipped = shipped_vectors() if about["fingerprint"] == SHIPPED_BY["fingerprint"] else {}
    found = {photo: shipped[photo] for photo in photos if photo in shipped}
    found |= vectors_of(store, about["fingerprint"], [one for one in photos if one not in found])
    new = {photo: path for photo, path in photos.items() if photo not in found}
    if new:
        backbone = backbone or load_backbone(about["backbone"])
        refuse_another_network(backbone, about)
        found |= _embed_new(store, new, backbone)
    return found


def _embed_new(store, new, backbone):
    """Embed and store {photo: path}; returns {photo: embedding, or why there is none}."""
    photos, files, colours, found, made = list(new), list(new.values()), {}, {}, {}
    expected, kept, due = dict(zip(files, photos)), 0, time.monotonic() + EVERY

    def load(file):
        photo = _load(file, expected[file])
        colours[expected[file]] = colour_histogram(photo).astype("<f4").tobytes()
        return photo

    try:
        for batch, vectors, why in _on_all_cores(files, backbone, load):
            for photo, vector, error in zip(photos[batch], vectors, why):
                found[photo] = in_words(error) if error else vector.astype("<f4").tobytes()
                if not error or isinstance(error, BadPhoto):  # others are no fault of the photo's
                    made[photo] = found[photo]
            if time.monotonic() > due:
                kept, due = kept + _store(store, backbone, made, colours), time.monotonic() + EVERY
    except KeyboardInterrupt:
        kept += _store(store, backbone, made, colours)
        say(f"{kept:,} of {len(files):,} photos are stored: run this again to go on")
        raise
    finally:
        _store(store, backbone, made, colours)
    return found


def _store(store, backbone, made, colours):
    """Store what was made and forget it here; return how many embeddings there were."""
    keep(store, FINGERPRINT, {photo: colours.pop(photo) for photo in list(colours)})
    kept = keep(store, backbone.fingerprint, made)
    made.clear()
    return kept


def _load(file, photo):
    """Read the photo with that SHA-256; raise OSError if the file holds another one by now."""
    content = photo_bytes(file)
    if hashlib.sha256(content).digest() != photo:
        raise OSError("the file has changed meanwhile: open the folder again")
    return read_photo(io.BytesIO(content), file)


def colours_of(store: sqlite3.Connection, photos: dict[bytes, Path]) -> np.ndarray:
    """Look up the 27 numbers of each photo's colours, (N, 27) float32, and make those missing.

    A photo that cannot be read any more gets zeros, and a line says so.
    """
    found = vectors_of(store, FINGERPRINT, photos)
    new = [photo for photo in photos if photo not in found]
    with ThreadPoolExecutor(cpu_count()) as pool, tqdm(
            total=len(new), desc="Colours of photos", unit=" photos", delay=1,
            file=sys.stdout) as bar:
        for start in range(0, len(new), 500):
            part = new[start:start + 500]
            rows = pool.map(_colours, [photos[photo] for photo in part], part)
            made = {photo: row for photo, row in zip(part, rows) if row}
            keep(store, FINGERPRINT, made)
            found |= made
            bar.update(len(part))
    if gone := [photos[photo].name for photo in photos if photo not in found]:
        say(f"The colours of {len(gone):,} photos are unknown, since their files have changed or "
            f"cannot be read: {listed(gone)}")
    none = bytes(4 * BINS**3)
    return np.frombuffer(b"".join(found.get(photo, none) for photo in photos), "<f4").reshape(
        len(photos), -1)


def _colours(file, photo):
    try:
        return colour_histogram(_load(file, photo)).astype("<f4").tobytes()
    except (OSError, BadPhoto, MemoryError):
        return None
