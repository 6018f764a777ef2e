"""A photo's colours as 27 numbers."""
import functools
import itertools

import numpy as np
from PIL import Image, ImageCms

BINS = 3  # for each of lightness, green to red, and blue to yellow
FINGERPRINT = "cielab-27-soft"  # the 27 numbers are stored under this name, as a network's are
LIGHTEST, NEUTRAL, MOSTLY = 240, 5, 0.9  # what counts as near-white, and when near-white counts


def colour_histogram(photo: Image.Image) -> np.ndarray:
    """Compute how much of each of 27 colours is in the middle half of a photo, (27,) float32.

    The colours are 3 x 3 x 3 bins of CIELAB, where distances are roughly as the eye sees them: L
    over its whole range, a and b from -64 to 64. A pixel between two bin centres counts for both,
    in proportion, so nearly equal reds have nearly equal numbers. Near-white pixels are left out,
    since products are photographed on white, unless nine tenths of all pixels are near-white. The
    numbers are square roots of shares: their squared Euclidean distance is twice the squared
    Hellinger distance, and their length is 1. Source: en.wikipedia.org/wiki/Hellinger_distance.
    """
    w, h = photo.size
    middle = photo.crop((w // 4, h // 4, w - w // 4, h - h // 4)).resize(
        (48, 64), Image.Resampling.BOX)
    lab = np.asarray(ImageCms.applyTransform(middle, _to_lab())).reshape(-1, 3)
    lab = (lab ^ np.uint8([0, 128, 128])).astype(float)  # a and b are signed bytes: now 0 to 255
    white = (lab[:, 0] > LIGHTEST) & (abs(lab[:, 1:] - 128) <= NEUTRAL).all(axis=1)
    if white.mean() < MOSTLY:
        lab = lab[~white]
    place = (lab - [0, 64, 64]) / [255, 128, 128] * BINS - 0.5  # 0 is the centre of the first bin
    place = place.clip(0, BINS - 1)
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
