"""What colour a photo is, as numbers of its own beside the network's (notebook 06)."""
import functools
import itertools
from numbers import Real
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms

from lookalike import shown
from lookalike.extraction import Extracted, embed_folder
from lookalike.networks import Backbone, Engine
from lookalike.photos import BadPhoto

BINS = 7  # along each of lightness, green to red, and blue to yellow


def colour_histogram(photo: Image.Image) -> np.ndarray:
    """Say how much of each of 343 colours there is in the middle half of a photo: (343,) float32.

    In CIELAB, where distances are as the eye sees them; a pixel between two colours counts for
    both, so that nearly equal reds are near. The square roots of the shares, so that the squared
    Euclidean distance of two is twice the square of Hellinger's, and their length 1.
    Source: en.wikipedia.org/wiki/Hellinger_distance.
    """
    w, h = photo.size
    middle = photo.crop((w // 4, h // 4, w - w // 4, h - h // 4)).resize(
        (48, 64), Image.Resampling.BOX)
    L_a_b = np.asarray(ImageCms.applyTransform(middle, _to_lab())).reshape(-1, 3)
    from_0 = L_a_b ^ np.uint8([0, 128, 128])  # a and b are bytes with a sign
    place = (from_0 * (BINS / 256) - 0.5).clip(0, BINS - 1)
    below = np.minimum(place.astype(int), BINS - 2)
    share = np.zeros(BINS**3)
    for corner in itertools.product((0, 1), repeat=3):
        weight = np.where(corner, place - below, 1 - (place - below)).prod(axis=1)
        share += np.bincount((below + corner) @ [BINS**2, BINS, 1], weight, BINS**3)
    return np.sqrt(share / len(place)).astype(np.float32)


@functools.cache
def _to_lab():
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.buildTransform(srgb, lab, "RGB", "LAB")


def colour_backbone() -> Backbone:
    """Make what embeds photos, and keeps their vectors, as a network would; it has none."""
    colour = Backbone("colour", torch.nn.Identity(), colour_histogram, [0], [1],
                      torch.nn.Identity(), BINS**3, "histogram of CIELAB", f"cielab-{BINS}-soft")
    colour.with_torch = colour.compiled = Engine(lambda histograms: histograms, "NumPy")
    return colour


def beside_colour(images: Path, known: Extracted, photos: list[bytes], weight: float
                  ) -> tuple[Extracted, list[bytes]]:
    """Put colour beside the vectors of photos in a folder; what changes meanwhile is left out."""
    (names, hues, faults), again, _ = embed_folder(images, known.img_names, colour_backbone())
    row = dict(zip(zip(names, again), hues))
    both = [i for i, one in enumerate(zip(known.img_names, photos)) if one in row]
    left_out = {name: faults.get(name, "it was changed meanwhile: open it again")
                for name, photo in zip(known.img_names, photos) if (name, photo) not in row}
    if not both:
        raise BadPhoto(images, "its photos were changed while they were read: open it again")
    hues = torch.stack([row[known.img_names[i], photos[i]] for i in both])
    return Extracted([known.img_names[i] for i in both], side_by_side(
        (known.img_emb_tensors[both], 1), (hues, weight)), known.skipped | left_out), [
        photos[i] for i in both]


def as_weight(weight: float) -> float:
    """Give the weight back, or raise ValueError for what is none."""
    if not isinstance(weight, Real) or isinstance(weight, bool) or not 0 <= weight <= 100:
        raise ValueError(f"a weight is {shown(weight)}, and must be a number from 0, not at all, "
                         "to 100, nothing else; for colour 0.3 is a good start")
    return float(weight)


def side_by_side(*parts: tuple[torch.Tensor, float]) -> torch.Tensor:
    """Put vectors beside each other, (N, a), (N, b) to (N, a + b), each of length its weight.

    So the squared distance of two photos is the sum of the parts', each by its weight squared.
    """
    return torch.cat([weight * torch.nn.functional.normalize(vectors)
                      for vectors, weight in parts], dim=1)
