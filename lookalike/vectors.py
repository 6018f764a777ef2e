"""How good neighbours are, by their labels."""
from collections.abc import Sequence

import faiss
import numpy as np


def nearest_of_each(vectors: np.ndarray, k: int = 5) -> np.ndarray:
    """Find the rows nearest to each row, itself left out: (N, k), or (N, N - 1) if k is larger.

    By squared Euclidean distance. Source: github.com/facebookresearch/faiss/wiki, faiss.knn.
    """
    if k < 1:
        raise ValueError(f"k is {k}: ask for one at least")
    if not np.isfinite(vectors).all():  # faiss would find -1, the last row for Python
        raise ValueError("vectors are not finite: embed those photos anew, or leave them out")
    k = min(k, len(vectors) - 1)
    I = faiss.knn(vectors, vectors, k + 1)[1]
    itself = I == np.arange(len(I))[:, None]
    itself[~itself.any(axis=1), -1] = True  # of many duplicates a row may not be among the first
    return I[~itself].reshape(len(I), k)


def has_kind(labels: Sequence[str]) -> np.ndarray:
    """Say which labels name a kind: not 'Not sure', 'Other', 'Skip' or a missing one."""
    return np.array([isinstance(label, str) and label.strip().casefold() not in
                     ("not sure", "other", "skip", "") for label in labels], bool)


def label_precision(vectors: np.ndarray, labels: Sequence[str], k: int = 5) -> float:
    """Measure precision at k: the share of the k nearest photos that have the query's label.

    Averaged over all photos, leave-one-out: a photo is not among its own nearest. Photos whose
    label names no kind are set aside. A label stands in for 'looks alike', it is not the same.

    Parameters
    ----------
    vectors, labels
        (N, d), and N labels.
    k
        How many nearest count.

    Raises
    ------
    ValueError
        Fewer than two photos have a label.

    Source: Manning, Raghavan and Schuetze, Introduction to Information Retrieval, chapter 8.
    """
    if len(labels) != len(vectors):
        raise ValueError(f"{len(vectors)} vectors and {len(labels)} labels: give one for each")
    usable = has_kind(labels)
    if usable.sum() < 2:
        raise ValueError(f"{usable.sum()} of {len(usable)} photos have a label that names a kind: "
                         "precision takes two")
    vectors, labels = np.asarray(vectors)[usable], np.asarray(labels)[usable]
    return float((labels[nearest_of_each(vectors, k)] == labels[:, None]).mean())


def interval(values: Sequence[float], people: Sequence[str]) -> tuple[float, float]:
    """Say between which means 95 % lie if the people are drawn again a thousand times.

    People and not photos, since the photos of one person rise and fall together. `values` and
    `people` are one for each photo; where all are by one person, nothing can be said: NaN.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13.
    """
    if len(values) != len(people):
        raise ValueError(f"{len(values)} values and {len(people)} names of people: give one "
                         "for each")
    if len(set(people)) < 2:
        return np.nan, np.nan
    number = np.unique(people, return_inverse=True)[1]
    sums, sizes = np.bincount(number, values), np.bincount(number)
    drawn = np.random.default_rng(0).integers(len(sizes), size=(1000, len(sizes)))
    low, high = np.percentile(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1), [2.5, 97.5])
    return float(low), float(high)
