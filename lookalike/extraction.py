"""Many photos to vectors, on all cores, so that nothing done is done twice."""
import contextlib
import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from joblib import cpu_count
from tqdm import tqdm

from lookalike import AnyPath, home, readable
from lookalike.embeddings import EMB_FILENAME, Embeddings, kept_rows, read_embeddings
from lookalike.embeddings import Refused, save_embeddings, write_embeddings
from lookalike.folders import list_photos, photo_path, photo_stat, read_labels
from lookalike.networks import BATCH, Backbone, load_backbone, same_network
from lookalike.photos import BadPhoto


Extracted = tuple[list[str], torch.Tensor, dict[str, str]]  # names, vectors, {name: why skipped}


def extract_embeddings(paths: list[AnyPath], backbone: Backbone,
                       emb_filename: AnyPath | None = None, images: AnyPath | None = None
                       ) -> Extracted:
    """Turn photos into vectors; a photo that cannot be read is named and left out.

    Each core takes whole batches, from the file to the vector, so decoding runs beside the
    network.

    Parameters
    ----------
    paths
        Files, or names 'images/...' in the folder `images` if that is given.
    backbone
        Of `load_backbone`.
    emb_filename
        With it the work is kept beside that file; after an interruption the same call goes on
        from there and gives the same result to the last bit. `save_embeddings` clears it away.

    Returns
    -------
    img_names, img_emb_tensors, skipped
        The good ones of `paths`, their vectors, (N, n_features) float32, and for each of the
        others why it was skipped.

    Raises
    ------
    ValueError
        No paths.
    OSError
        The disk is full, or another process is at it.
    """
    names, files = names_and_files(paths, images)
    compute, engine = backbone.made_ready(len(names))
    asked = [names, [photo_stat(file) for file in files], backbone.fingerprint, engine, BATCH]
    why = [""] * len(names)
    with kept_rows(emb_filename, asked, (len(names), backbone.n_features)) as vectors:
        def embed(batch):
            vectors[batch], why[batch] = backbone.embed_files(files[batch], compute)
            return len(files[batch])

        batches = [slice(i, i + BATCH) for i in range(0, len(names), BATCH)]
        todo = [batch for batch in batches if np.isnan(vectors[batch]).any()]
        bar = tqdm(total=len(names), desc=f"Photos to vectors, {backbone.name}", unit=" photos",
                   initial=len(names) - sum(len(files[batch]) for batch in todo), mininterval=0.5,
                   file=sys.stdout)
        try:
            _on_all_cores(embed, todo, bar)
        except KeyboardInterrupt:
            if emb_filename:
                kept = int(np.isfinite(vectors).all(axis=1).sum())
                print(f"{kept:,} of {len(names):,} photos are kept: run this again to go on")
            raise
        return without_skipped(names, vectors, why)


def _on_all_cores(embed, batches, bar):
    """embed(batch) of each; an interruption waits for those in hand and begins no other."""
    pool = ThreadPoolExecutor(cpu_count())
    try:
        for photos in pool.map(embed, batches):
            bar.update(photos)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        bar.close()


def names_and_files(paths: list[AnyPath], images: AnyPath | None) -> tuple[list, list[Path]]:
    """Pair what photos are called with where they lie: in the folder `images`, if that is given."""
    names = [str(path) for path in paths]
    if not names:
        raise ValueError("no photos to embed: the list of paths is empty")
    return names, [photo_path(name, images) if images else Path(name) for name in names]


def without_skipped(names: list[str], vectors: np.ndarray, why: list[str]) -> Extracted:
    """Keep the good photos, (names, tensor, {name: why} of the others); say what was skipped."""
    good = [i for i, reason in enumerate(why) if not reason]
    skipped = {name: reason for name, reason in zip(names, why, strict=True) if reason}
    if skipped:
        print(f"Embedded {len(good)} of {len(names)} photos; skipped {len(skipped)}:")
        lines = [readable(f"  {name}: {reason}") for name, reason in skipped.items()]
        print(*lines[:20], *([f"  and {len(lines) - 20} more"] * (len(lines) > 20)), sep="\n")
    return [names[i] for i in good], torch.from_numpy(vectors[good]), skipped


# ---- a folder of photos, kept up to date -----------------------------------------------------
def embeddings_file(images: AnyPath, backbone: Backbone | None = None) -> Path:
    """Name the file in embeddings/ that is kept of a folder of photos, for a tuned one its own."""
    folder = Path(images).resolve()
    where = hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
    tuned = f"-{backbone.fingerprint}" if backbone is not None and backbone.base else ""
    return home() / "embeddings" / f"{readable(folder.name)[:40]}-{where}{tuned}.safetensors"


def up_to_date(images: Path, backbone: Backbone | None = None) -> Embeddings:
    """Read the embeddings of all photos in a folder, after embedding those new or changed.

    Returns what `read_embeddings` does. Without a backbone it is the one that made what is on
    disk, else EfficientNet-Lite1.
    """
    stats = {name: photo_stat(photo_path(name, images)) for name in list_photos(images)[0]}
    path = embeddings_file(images, backbone)
    if not path.exists():
        _take_over(path, images, stats)
    names, vectors, about = _on_disk(path, backbone)
    then, skipped = about.get("stats", {}), about.get("skipped", {})
    known = {name for name in (*names, *skipped)
             if name in stats and _same_file(then.get(name), stats[name])}
    missing = [name for name in stats if name not in known]
    if not missing:
        here = [i for i, name in enumerate(names) if name in stats]
        return [names[i] for i in here], vectors[here], about
    backbone = backbone or same_network(load_backbone(about["backbone"]), about)
    made = extract_embeddings(missing, backbone, path, images)
    rows = {name: row for name, row in zip(names, vectors, strict=True) if name in known}
    rows |= dict(zip(made[0], made[1], strict=True))
    if not rows:
        raise BadPhoto(images, f"none of its {len(stats)} photos can be used")
    skipped = {name: why for name, why in skipped.items() if name in known} | made[2]
    # when a file may be read at last, its size and time are what they were: it is tried again
    stats |= {name: [-1, 0] for name in made[2] if not os.access(photo_path(name, images), os.R_OK)}
    save_embeddings(path, sorted(rows), torch.stack([rows[name] for name in sorted(rows)]),
                    backbone, read_labels(images), stats, skipped, images.resolve(), overwrite=True)
    return read_embeddings(path)


def left_over() -> list[Path]:
    """List the files in embeddings/ whose folder of photos is gone; they may be deleted."""
    gone = []
    for file in sorted((home() / "embeddings").glob("*.safetensors")):
        with contextlib.suppress(Refused):
            folder = read_embeddings(file)[2].get("folder")
            gone += [file] if folder and not Path(folder).is_dir() else []
    return gone


def _take_over(path, images, stats):
    """A folder that was renamed, or moved, goes on with the embeddings that are kept of it."""
    for file in left_over():
        names, vectors, about = read_embeddings(file)
        # a tuned backbone's file has a longer ending: see embeddings_file
        same_kind = len(file.stem.rpartition("-")[2]) == len(path.stem.rpartition("-")[2])
        if same_kind and any(stats.get(name) == about["stats"].get(name, "") for name in names):
            write_embeddings(path, names, vectors, about | {"folder": str(images.resolve())})
            file.unlink()
            return


def _same_file(then, now):
    """By size and time; of what came with the tutorial the time is not known."""
    return then is None or now is not None and then[0] == now[0] and then[1] in (None, now[1])


def _on_disk(path, backbone):
    """What is kept of the folder, else what came with the tutorial, if the network made it."""
    for file in (path, EMB_FILENAME):
        if file.is_file():
            names, vectors, about = read_embeddings(file)
            if backbone is None or backbone.fingerprint == about.get("fingerprint"):
                return names, vectors, about
    return [], [], {"backbone": "efficientnet_lite1"}
