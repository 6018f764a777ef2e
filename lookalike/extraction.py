"""Photos to vectors on all cores; a folder, whatever is new in it embedded first."""
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from joblib import cpu_count
from tqdm import tqdm

from lookalike import AnyPath, readable, shown
from lookalike.embeddings import SHIPPED_BY, shipped_vectors
from lookalike.networks import BACKBONES, BATCH, Backbone, load_backbone, refuse_another_network
from lookalike.photos import BadPhoto
from lookalike.store import EVERY, file_stat, keep, network_of, open_store, photos_of
from lookalike.store import remember_network, vectors_of


class Extracted(NamedTuple):
    """The good ones of some photos, their vectors, and for the others why they were skipped."""
    img_names: list[str]
    img_emb_tensors: torch.Tensor  # (N, n_features) float32
    skipped: dict[str, str]


# ---- some photos -----------------------------------------------------------------------------
def extract_embeddings(paths: list[AnyPath], backbone: Backbone, images: AnyPath = "") -> Extracted:
    """Turn photos into vectors; a photo that cannot be read is named and left out.

    Each core takes whole batches, from the file to the vector, so decoding runs beside the
    network. Nothing is kept: that is what `open_catalogue` does. (A process that forks after this,
    as torch's DataLoader with workers does on Linux, hangs: let it spawn.)

    Parameters
    ----------
    paths
        Files, or names in the folder `images` if that is given.
    backbone
        Of `load_backbone`.

    Raises
    ------
    ValueError
        No paths, or one that is not in a list.
    """
    names = [] if isinstance(paths, (str, Path)) else [str(path) for path in paths]
    if not names:
        raise ValueError(f"no photos to embed: give a list of paths, not {shown(paths)}")
    vectors, why = np.empty((len(names), backbone.n_features), np.float32), [None] * len(names)
    for batch, made, faults in _on_all_cores([Path(images, name) for name in names], backbone):
        vectors[batch], why[batch] = made, faults
    return without_skipped(names, vectors, why)


def without_skipped(names: list[str], vectors: np.ndarray, why: list[Exception | None]
                    ) -> Extracted:
    """Keep the good photos, and say which were skipped."""
    good = [i for i, error in enumerate(why) if error is None]
    skipped = {name: in_words(error) for name, error in zip(names, why, strict=True) if error}
    say_skipped(skipped, len(names))
    return Extracted([names[i] for i in good], torch.from_numpy(vectors[good]), skipped)


def in_words(error: Exception) -> str:
    """Say why a photo was skipped, without the path that stands before it."""
    return getattr(error, "strerror", None) or str(
        error.args[-1] if error.args else type(error).__name__)


def say_skipped(skipped: dict[str, str], asked: int) -> None:
    """Print which photos were skipped, twenty of them at most."""
    if skipped:
        print(f"Embedded {asked - len(skipped)} of {asked} photos; skipped {len(skipped)}:")
        lines = [readable(f"  {name}: {why}") for name, why in skipped.items()]
        print(*lines[:20], *([f"  and {len(lines) - 20} more"] * (len(lines) > 20)), sep="\n")


def _on_all_cores(files, backbone):
    """Which of the files, their vectors, and what was wrong with each, batch by batch.

    An interruption waits for the batches in hand and begins no other.
    """
    compute = backbone.engine(len(files)).compute
    batches = [slice(i, i + BATCH) for i in range(0, len(files), BATCH)]
    pool = ThreadPoolExecutor(cpu_count())
    with tqdm(total=len(files), desc=f"Photos to vectors, {backbone.name}", unit=" photos",
              mininterval=0.5, file=sys.stdout) as bar:
        try:
            for batch, (vectors, why) in zip(batches, pool.map(
                    lambda batch: backbone.embed_files(files[batch], compute), batches)):
                bar.update(len(why))
                yield batch, vectors, why
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


# ---- a folder of photos ----------------------------------------------------------------------
def embed_folder(images: Path, names: list[str], backbone: Backbone | None = None
                 ) -> tuple[Extracted, list[bytes], dict[str, str]]:
    """Give the vectors of photos in a folder, after embedding those never seen before.

    That takes minutes for thousands of photos; what is done is kept every few seconds. Without a
    backbone it is the one that the folder was last opened with, else EfficientNet-Lite1.

    Returns what `extract_embeddings` does, what each photo is (its SHA-256), and what made the
    vectors. Raises BadPhoto if no photo can be used, ValueError if the network that the others were
    made with is not at hand, OSError if vectors cannot be kept.
    """
    with open_store() as store:
        about = backbone.about if backbone else network_of(store, images) or SHIPPED_BY
        photos, stats, faults = photos_of(store, images, names)
        found = vectors_of(store, about["fingerprint"], photos.values())
        new = {photo: name for name, photo in photos.items() if photo not in found}
        if new and about["fingerprint"] == SHIPPED_BY["fingerprint"]:
            found |= _shipped()
            new = {photo: name for photo, name in new.items() if photo not in found}
        if new:
            backbone = backbone or load_backbone(about["backbone"])
            refuse_another_network(backbone, about)
            faults |= _embed_new(store, images, new, stats, backbone)
            found |= vectors_of(store, about["fingerprint"], new)
        if about["backbone"] in BACKBONES and not (backbone and backbone.base):
            remember_network(store, images, about)
    skipped = {name: in_words(error) for name, error in faults.items()}
    skipped |= {name: found[photo] for name, photo in photos.items()
                if isinstance(found.get(photo), str)}
    skipped |= {name: f"{new[photo]}, which is the same, was not embedded: open it again"
                for name, photo in photos.items() if photo not in found and name not in skipped}
    tried = {*new.values(), *faults}
    say_skipped({name: why for name, why in skipped.items() if name in tried}, len(tried))
    good = [name for name in names if isinstance(found.get(photos.get(name)), bytes)]
    if not good:
        raise BadPhoto(images, f"none of its {len(names)} photos can be used, the first since: "
                       f"{next(iter(skipped.values()), '')}")
    vectors = np.frombuffer(b"".join(found[photos[name]] for name in good), "<f4")
    return (Extracted(good, torch.tensor(vectors.reshape(len(good), -1)), skipped),
            [photos[name] for name in good], about)


def _shipped():
    try:
        return shipped_vectors()
    except (OSError, ValueError) as error:
        print(f"{error}. The photos are embedded anew")
        return {}


def _embed_new(store, images, new, stats, backbone):
    """Embed and keep {photo: name}; of those that were not embedded, {name: why not}."""
    photos, names = list(new), list(new.values())
    files = [images / name for name in names]
    made, faults, kept, due = {}, {}, 0, time.monotonic() + EVERY
    try:
        for batch, vectors, why in _on_all_cores(files, backbone):
            for i, vector, error in zip(range(len(files))[batch], vectors, why):
                if file_stat(files[i]) != stats[names[i]]:
                    faults[names[i]] = OSError("it was changed meanwhile: open it again")
                elif error and not isinstance(error, BadPhoto):  # no fault of the photo's
                    faults[names[i]] = error
                else:
                    made[photos[i]] = in_words(error) if error else vector.astype("<f4").tobytes()
            if time.monotonic() > due:
                kept += keep(store, backbone.fingerprint, made)
                made, due = {}, time.monotonic() + EVERY
    except KeyboardInterrupt:
        print(f"{kept + len(made):,} of {len(files):,} photos are kept: run this again to go on")
        raise
    finally:
        keep(store, backbone.fingerprint, made)
    return faults

