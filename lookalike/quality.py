"""How good neighbours are, by their labels."""
from collections.abc import Sequence

import numpy as np
from sklearn.neighbors import NearestNeighbors


def nearest_of_each(vectors: np.ndarray, k: int = 5) -> np.ndarray:
    """Find the rows nearest to each row, itself left out: (N, k), or (N, N - 1) if k is larger.

    By squared Euclidean distance. Source: sklearn.neighbors.NearestNeighbors.kneighbors.
    """
    k = min(k, len(vectors) - 1)
    return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(vectors).kneighbors()[1]


def has_kind(labels: Sequence[str]) -> np.ndarray:
    """Say which labels name a kind: not 'Not sure', 'Other', 'Skip' or a missing one."""
    return ~np.isin(labels, ["Not sure", "Other", "Skip", ""])


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
    usable = has_kind(labels)
    if usable.sum() < 2:
        raise ValueError(f"{usable.sum()} of {len(usable)} photos have a label that names a kind: "
                         "precision takes two")
    vectors, labels = np.asarray(vectors)[usable], np.asarray(labels)[usable]
    return float((labels[nearest_of_each(vectors, k)] == labels[:, None]).mean())
