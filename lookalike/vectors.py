"""Vectors: concatenated, their nearest neighbours, and how good these neighbours are."""
import sys
from collections.abc import Hashable, Sequence
from numbers import Real
from typing import Any

import faiss
import numpy as np

from lookalike.common import shown

if sys.platform == "darwin":
    faiss.omp_set_num_threads(1)  # the other half of the guard in lookalike/__init__.py


# ---- concatenation ---------------------------------------------------------------------------
def as_weight(weight: float) -> float:
    """Return the weight as a float; raise ValueError unless it is a number from 0 to 100."""
    if not isinstance(weight, Real) or isinstance(weight, bool) or not 0 <= weight <= 100:
        raise ValueError(f"a weight is {shown(weight)}. It must be a number from 0 (no influence) "
                         "to 100; for colour, try 0.5")
    return float(weight)


def concatenate(*parts: tuple[Any, float]) -> np.ndarray:
    """Concatenate vectors, each part scaled to a length that is its weight.

    (N, a) and (N, b), arrays or tensors, become (N, a + b) float32. So the squared distance of two
    photos is the sum of the parts' squared distances, each multiplied by its squared weight. A
    vector of zeros stays zeros. Source: sklearn.preprocessing.normalize.
    """
    from sklearn.preprocessing import normalize
    return np.hstack([np.float32(as_weight(weight)) * normalize(np.asarray(
        vectors.float() if hasattr(vectors, "float") else vectors, np.float32))
        for vectors, weight in parts])


# ---- nearest neighbours ----------------------------------------------------------------------
def is_missing(value: Any) -> bool:
    """Whether a label or group is none: None, NaN, pandas' NA or an empty text."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or f"{value}" in ("nan", "NaT", "<NA>")  # NA compares with nothing


def group_numbers(groups: Sequence[Hashable]) -> np.ndarray:
    """Number the groups, (N,) integers; a photo without a group is a group of its own."""
    numbers = {}
    return np.array([numbers.setdefault((i,) if is_missing(group) else group, len(numbers))
                     for i, group in enumerate(groups)])


def nearest_of_each(vectors: np.ndarray, k: int = 5, groups: Sequence[Hashable] | None = None
                    ) -> np.ndarray:
    """Find the k rows nearest to each row, without the row itself or others of its group.

    Parameters
    ----------
    vectors
        (N, d).
    k
        How many neighbours; fewer if the largest group leaves fewer.
    groups
        One value per row. Without groups only the row itself is left out.

    Returns
    -------
    ndarray
        (N, k) row numbers, nearest first by squared Euclidean distance.

    Source: github.com/facebookresearch/faiss/wiki, knn and pairwise_distances.
    """
    if k < 1:
        raise ValueError(f"k={k}: k must be at least 1")
    vectors = np.ascontiguousarray(vectors, np.float32)
    if not np.isfinite(vectors).all():
        raise ValueError("some vectors are not finite: embed those photos again, or leave them out")
    own = group_numbers([None] * len(vectors) if groups is None else groups)
    k = int(min(k, len(vectors) - np.bincount(own).max()))
    if k < 1:
        raise ValueError("all photos are in one group, so none has a neighbour outside its group")
    if groups is None:
        I = faiss.knn(vectors, vectors, k + 1)[1]  # the fastest, but it knows of no groups
        itself = I == own[:, None]
        itself[~itself.any(axis=1), -1] = True  # of many duplicates a row may not be among them
        return I[~itself].reshape(len(I), k)
    found = []
    for start in range(0, len(vectors), 1000):  # 1,000 rows at a time, to save memory
        D = faiss.pairwise_distances(vectors[start:start + 1000], vectors)
        D[own[start:start + 1000, None] == own] = np.inf
        near = np.argpartition(D, k - 1, axis=1)[:, :k]
        order = np.take_along_axis(D, near, axis=1).argsort(axis=1, kind="stable")
        found.append(np.take_along_axis(near, order, axis=1))
    return np.concatenate(found)


# ---- quality ---------------------------------------------------------------------------------
def has_category(labels: Sequence[str]) -> np.ndarray:
    """Say which labels name a category: not 'Not sure', 'Other', 'Skip' or a missing one."""
    return np.array([isinstance(label, str) and label.strip().casefold() not in
                     ("not sure", "other", "skip", "") for label in labels], bool)


def label_precision(vectors: np.ndarray, labels: Sequence[str], k: int = 5,
                    groups: Sequence[Hashable] | None = None) -> float:
    """Measure precision at k: the share of the k nearest photos that have the query's label.

    Each photo is the query once, and the result is the mean. Photos whose label names no category
    are left out. A label is only a proxy for 'looks alike'.

    Parameters
    ----------
    vectors, labels
        (N, d), and N labels.
    k
        How many neighbours count.
    groups
        N groups: then neighbours of the query's own group do not count.

    Raises
    ------
    ValueError
        Fewer than two photos have a label.

    Source: Manning, Raghavan and Schuetze, Introduction to Information Retrieval, chapter 8.
    """
    if len(labels) != len(vectors):
        raise ValueError(f"{len(vectors)} vectors and {len(labels)} labels: pass one label for "
                         "each vector")
    usable = has_category(labels)
    if usable.sum() < 2:
        raise ValueError(f"{usable.sum()} of {len(usable)} photos have a label that names a "
                         "category: precision needs at least two")
    own = None if groups is None else group_numbers(groups)[usable]
    vectors, labels = np.asarray(vectors)[usable], np.asarray(labels)[usable]
    return float((labels[nearest_of_each(vectors, k, own)] == labels[:, None]).mean())


def chance_precision(labels: Sequence[str]) -> float:
    """Compute the precision of neighbours picked at random from the photos with a category."""
    counts = np.unique(np.asarray(labels)[has_category(labels)], return_counts=True)[1]
    return float((counts * (counts - 1)).sum() / (counts.sum() * (counts.sum() - 1)))


def interval(values: Sequence[float], people: Sequence[Hashable]) -> tuple[float, float]:
    """Compute a 95% interval of the mean, by resampling the people a thousand times.

    We resample people, not photos, since photos by one person rise and fall together. `values` and
    `people` have one entry per photo. If all photos are by one person, the interval is NaN.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13.
    """
    if len(values) != len(people):
        raise ValueError(f"{len(values)} values and {len(people)} people: pass one person for "
                         "each value")
    number = group_numbers(people)
    if len(set(number)) < 2:
        return np.nan, np.nan
    sums, sizes = np.bincount(number, values), np.bincount(number)
    picked = np.random.default_rng(0).integers(len(sizes), size=(1000, len(sizes)))
    low, high = np.percentile(sums[picked].sum(axis=1) / sizes[picked].sum(axis=1), [2.5, 97.5])
    return float(low), float(high)
