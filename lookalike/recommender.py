"""The recommender: a catalogue of photos, its factors, and the photos nearest to a query.

    photos --pil_loader--> RGB --preprocess--> 3xHxW --network--> embedding   (notebook 01)
    embeddings --PCA--> n factors --faiss index--> the nearest photos         (02 to 04)
"""
import collections
import copy
import functools
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
import torch
from PIL import Image

from lookalike.colour import colour_histogram
from lookalike.common import AnyPath, listed, readable, say, say_once, shown
from lookalike.extraction import colours_of, embed_photos, in_words
from lookalike.folders import NO_TABLE, Table, get_images, labels_by_folder, own_folder
from lookalike.folders import photo_files, read_table, values_of
from lookalike.networks import Backbone, load_backbone, refuse_another_network
from lookalike.photos import BadPhoto, pil_loader
from lookalike.query import Found, Query, find, whole
from lookalike.shipped import SHIPPED_BY, of_the_tutorial
from lookalike.store import keep, network_of, open_store, photos_of, remember_network
from lookalike.store import vectors_of
from lookalike.vectors import as_weight, concatenate, group_numbers, is_missing

Values = str | dict | Callable  # a column of the table, {name: value}, or a function of a name


class Neighbour(NamedTuple):
    """A photo that was found; `distance` is the squared Euclidean distance of what was compared."""
    name: str
    label: str
    distance: float
    index: int

    def __repr__(self):
        distance = f"{self.distance:#.3g}".rstrip(".") if 5e-4 < self.distance < 1e3 else \
            f"{abs(self.distance):.0f}"
        return readable(" ".join([str(self.index), *self.label.split(), distance]))


@dataclass(eq=False)
class Catalogue:
    """The photos to recommend, their embeddings, and what made them."""
    images: Path                    # the folder with the photos
    img_names: list[str]            # N paths in it, one for each photo
    img_emb_tensors: torch.Tensor   # (N, n_features) float32
    labels: list[str]               # N labels, '' where there is none
    groups: list                    # N groups, '' for a group of its own
    about: dict                     # what made the embeddings: backbone, weights, fingerprint
    photos: list[bytes]             # N SHA-256s, which identify the photos
    copies: dict = field(default_factory=dict)   # {another path of the same photo: its name}
    new: list[str] = field(default_factory=list)  # paths of those that the table leaves out
    skipped: dict = field(default_factory=dict)  # {path: why it cannot be used}
    table: Table = field(default=NO_TABLE, repr=False)
    _last: tuple = field(default=((0, 0), None), init=False)

    def __repr__(self):
        return (f"Catalogue: {len(self.img_names):,} photos, {self.img_emb_tensors.shape[1]:,} "
                f"features each, made by {self.about['backbone']} ({self.about['weights']})")

    @property
    def most_factors(self) -> int:
        """The largest possible number of factors: the smaller of photos and features."""
        return min(self.img_emb_tensors.shape)

    @property
    def new_photos(self) -> list[Path]:
        """The photos that the tutorial's table leaves out: queries from outside the catalogue."""
        return [self.images / name for name in self.new]

    def photo(self, index: int) -> Image.Image:
        """Decode photo number `index`."""
        return pil_loader(self.images / self.img_names[index])

    def column(self, name: str) -> list[str]:
        """Give each photo's value in a column of the table, '' where there is none."""
        values = values_of(name, "column", {}, self.table)
        return _one_each(values, self._paths(), "values")

    def _paths(self):
        """All paths of each photo."""
        paths = {name: [name] for name in self.img_names}
        for path, name in self.copies.items():
            paths[name].append(path)
        return paths

    # ---- notebook 02: factors
    @functools.cached_property
    def pca(self) -> Any:
        """PCA with all possible factors, fitted once; its first n components equal a fit with n.

        covariance_eigh is exact, the same at every run, and the fastest of scikit-learn's solvers
        at these sizes. The default is randomised for some sizes: then two runs recommend different
        photos. Source: sklearn.decomposition.PCA.
        """
        from sklearn.decomposition import PCA
        if len(self.img_names) < 2:
            raise ValueError("this catalogue has one photo, so there is nothing to recommend: it "
                             "needs at least two")
        pca = PCA(n_components=self.most_factors, svd_solver="covariance_eigh")
        return pca.fit(self.img_emb_tensors.numpy())

    @functools.cached_property
    def _axes(self):
        """The PCA's mean and components: the folder's last ones if its embeddings are the same."""
        X = np.ascontiguousarray(self.img_emb_tensors.numpy())
        folder, same = (hashlib.sha256(it).digest() for it in (os.fsencode(self.images), X))
        with open_store() as store:
            kept = vectors_of(store, "pca", [folder]).get(folder, b"")
            if kept[:32] != same:
                axes = np.vstack([self.pca.mean_, self.pca.components_]).astype("<f4")
                kept = same + axes.tobytes()
                keep(store, "pca", {folder: kept})
        mean, *components = np.frombuffer(kept[32:], "<f4").reshape(-1, X.shape[1])
        return mean, np.stack(components)

    def _compress(self, embeddings):
        """What `pca.transform` gives; a reader who has opened this folder before needs no PCA."""
        mean, components = self._axes
        return (embeddings - mean) @ components.T

    @functools.cached_property
    def compressed(self) -> np.ndarray:
        """All factors of all photos, (N, most_factors) float32: the first n columns serve for n."""
        return self._compress(self.img_emb_tensors.numpy())

    @functools.cached_property
    def colours(self) -> np.ndarray:
        """The 27 numbers of each photo's colours, (N, 27) float32, see `colour_histogram`."""
        with open_store() as store:
            return colours_of(store, {photo: self.images / name for photo, name in
                                      zip(self.photos, self.img_names)})

    def vectors(self, n_features: int, colour: float = 0) -> np.ndarray:
        """What the index searches: (N, n_features) factors, with colour (N, n_features + 27).

        With a weight of colour above 0, the factors are scaled to length 1 and concatenated with
        the colours' 27 numbers, times the weight. So any weight above 0 also means length 1, and
        distances at different weights cannot be compared.
        """
        factors = self.compressed[:, :n_features]
        return concatenate((factors, 1), (self.colours, colour)) if as_weight(colour) else factors

    def index(self, n_features: int, colour: float = 0) -> faiss.IndexFlatL2:
        """The index of all photos' `vectors`; the most recent one is cached."""
        n = whole(n_features, "the number of factors", 1, self.most_factors,
                  f"{len(self.img_names):,} photos with {self.img_emb_tensors.shape[1]:,} features "
                  "have no more")
        if self._last[0] != (n, colour):
            vectors = self.vectors(n, colour)
            index_compressed = faiss.IndexFlatL2(vectors.shape[1])
            index_compressed.add(vectors)
            self._last = (n, colour), index_compressed
        return self._last[1]

    # ---- notebooks 03 and 04: the nearest
    @functools.cached_property
    def backbone(self) -> Backbone:
        """The network that made the embeddings, loaded at the first query from outside."""
        backbone = load_backbone(self.about["backbone"])
        refuse_another_network(backbone, self.about)
        return backbone

    def query_vector(self, query: Found, factors: int, colour: float = 0) -> np.ndarray:
        """Make the vector that the index is searched with, (1, d): the mean over the photos."""
        outside = [one for one in query if isinstance(one, Image.Image)]
        numbers = [one for one in query if not isinstance(one, Image.Image)]
        parts = [self.index(factors, colour).reconstruct_batch(numbers)] if numbers else []
        if outside:
            made = self._compress(self.backbone.embed(outside).numpy())[:, :factors]
            hues = [colour_histogram(photo) for photo in outside] if colour else []
            parts.append(concatenate((made, 1), (np.stack(hues), colour)) if colour else made)
        return np.concatenate(parts).mean(axis=0, keepdims=True, dtype=np.float32)

    def at_most(self, factors: int) -> int:
        """Lower a number of factors to what is possible here, and say so once."""
        n = whole(factors, "the number of factors", 1, float("inf"), "for example 300")
        if n > self.most_factors:
            say_once(f"{len(self.img_names):,} photos with {self.img_emb_tensors.shape[1]:,} "
                     f"features have at most {self.most_factors:,} factors, so we use these",
                     str(id(self)))
        return min(n, self.most_factors)

    @functools.cached_property
    def _group_of(self):
        return group_numbers(self.groups)

    def nearest(self, query: Query, factors: int, k: int = 4, colour: float = 0
                ) -> list[Neighbour]:
        """Find the k photos nearest to the query, see `nearest` below."""
        k = whole(k, "k, the number of neighbours,", 1, float("inf"), "for example 4")
        query, factors = find(query, self), self.at_most(factors)
        vector, index = self.query_vector(query, factors, colour), self.index(factors, colour)
        taken = {self._group_of[one] for one in query if not isinstance(one, Image.Image)}
        found, most, everything = [], k + len(query), len(self.img_names)
        while True:
            D, I = index.search(vector, min(most, everything))
            # the query's photos are left out because they are these photos, not by their rank
            found = _first_of_each_group(zip(D[0], I[0]), self._group_of, taken)
            if len(found) >= k or most >= everything:
                return [Neighbour(self.img_names[i], self.labels[i], float(d), int(i))
                        for d, i in found[:k]]
            most *= 4


def _first_of_each_group(hits, group_of, taken):
    taken, found = set(taken), []
    for distance, i in hits:
        if group_of[i] not in taken:
            taken.add(group_of[i])
            found.append((distance, i))
    return found


def _first_factors(pca, n):
    """Cut a PCA with all components down to n; the result equals a fit with n."""
    cut, rest = copy.copy(pca), pca.explained_variance_[n:]
    cut.n_components = cut.n_components_ = n
    for name in ("components_", "explained_variance_", "explained_variance_ratio_",
                 "singular_values_"):
        setattr(cut, name, getattr(pca, name)[:n])
    cut.noise_variance_ = rest.sum() / (pca.n_features_in_ - n) if len(rest) else 0.0
    return cut


# ---- opening ---------------------------------------------------------------------------------
opened: list[Catalogue] = []  # the default catalogue of nearest, search and the others


def open_catalogue(images: AnyPath | None = None, backbone: Backbone | str | None = None, *,
                   labels: Values | None = None, groups: Values | None = None) -> Catalogue:
    """Find photos and their embeddings; embed photos never seen before, and store the result.

    Parameters
    ----------
    images
        A folder of photos; without it, the tutorial's photos.
    backbone
        The network to embed with, or its name. Without it, the one that the folder was last opened
        with, or else EfficientNet-Lite1.
    labels
        Each photo's label: the name of a column of the folder's table, a {name: value}, or a
        function of a photo's name, which is its path in the folder. Without it, labels come from
        images.csv (image, label) or styles.csv (id, articleType), and photos that the table leaves
        out are set aside as new; without a table, from the folders' names.
    groups
        Which photos belong together, for example views of one product, in the same three forms. A
        neighbour is never of the query's own group, and there is at most one per group.

    Returns
    -------
    Catalogue
        Each photo once, however many copies of its file there are. Without `images` and
        `backbone`, it becomes the default catalogue of `nearest` and `search`.

    Raises
    ------
    OSError
        There is no such folder, no photo in it, or embeddings cannot be stored.
    ValueError
        None of the photos can be used, the table of labels cannot be read, or `labels` or `groups`
        fit none of the photos.
    """
    backbone = load_backbone(backbone) if isinstance(backbone, str) else backbone
    if not isinstance(backbone, Backbone | None):
        raise TypeError(f"backbone is {shown(backbone)}: pass a network's name, or what "
                        "load_backbone returns")
    folder = get_images() if images is None else own_folder(images)
    with open_store() as store:
        photos, faults = photos_of(store, folder, photo_files(folder))
        _refuse_none(folder, photos, faults)
        table = read_table(folder, photos, of_the_tutorial(photos.values()))
        paths, new, by_label = _arrange(folder, photos, table, labels)
        by_group = values_of(groups, "groups", photos, table) if groups is not None else {}
        about = backbone.about if backbone else network_of(store, folder) or SHIPPED_BY
        found = embed_photos(store, {photos[name]: folder / name for name in paths}, about,
                             backbone)
        remember_network(store, folder, about)
    skipped = {name: in_words(error) for name, error in faults.items()}
    skipped |= {name: found[photos[name]] for name in paths if isinstance(found[photos[name]], str)}
    if skipped:
        reasons = [f"{name}: {why}" for name, why in skipped.items()]
        say(f"Left out, {len(skipped):,} photos: {listed(reasons, 3)}; catalogue.skipped has all")
    names = [name for name in paths if name not in skipped]
    _refuse_none(folder, names, skipped)
    vectors = np.frombuffer(b"".join(found[photos[name]] for name in names), "<f4")
    paths = {name: paths[name] for name in names}
    catalogue = Catalogue(
        folder, names, torch.tensor(vectors.reshape(len(names), -1)),
        [str(label) for label in _one_each(by_label, paths, "labels")],
        _one_each(by_group, paths, "groups"), about, [photos[name] for name in names],
        {path: name for name in names for path in paths[name][1:]}, new, skipped, table)
    if backbone:
        catalogue.backbone = backbone
    if len(names) > 1 and len({*catalogue._group_of}) == 1:
        say(f"All {len(names):,} photos are in one group, {shown(catalogue.groups[0])}, so no "
            "photo recommends another one: give each product a group of its own")
    if images is None and folder.name != "drawn_images" and not of_the_tutorial(photos.values()):
        say_once(f"The lessons are about the tutorial's photos; {folder.name}/ holds others. For "
                 "your own photos, open your_own_photos.ipynb", folder)
    if images is None and backbone is None:
        opened[:] = [catalogue]
    say(repr(catalogue))
    return catalogue


def _refuse_none(folder, usable, reasons):
    if not usable:
        reason = next(iter(reasons.values()))
        reason = in_words(reason) if isinstance(reason, Exception) else reason
        raise BadPhoto(folder, f"none of its {len(reasons):,} photos can be used. The reason for "
                       f"the first: {reason}")


def _arrange(folder, photos, table, labels):
    """({name: all paths of that photo} for the catalogue, new ones' names, {path: label})."""
    if labels is not None:
        known, by_label = photos, values_of(labels, "labels", photos, table)
    elif table.name:
        known = by_label = table.columns[table.label]
    else:
        known, by_label = photos, labels_by_folder(photos, folder)
    paths = collections.defaultdict(list)
    for name in sorted(photos, key=lambda name: name not in known):  # a copy in the table first
        paths[photos[name]].append(name)
    new = sorted(places[0] for places in paths.values() if places[0] not in known)
    if new:
        say_once(f"Set aside as new: {len(new):,} photos that are not in {table.name}", folder)
    return {places[0]: places for places in sorted(paths.values()) if places[0] in known}, new, \
        by_label


def _one_each(values, paths, what):
    """One value for each photo, '' for none; where its paths disagree, it has none."""
    found, unclear = [], []
    for name, places in paths.items():
        has = {values[place] for place in places if not is_missing(values.get(place))}
        unclear += [name] * (len(has) > 1)
        found.append(has.pop() if len(has) == 1 else "")
    if unclear:
        say_once(f"{len(unclear):,} photos have several {what}, since copies of them disagree, so "
                 f"we use none of these. The first is {unclear[0]!r}")
    return found


def given(catalogue: Catalogue | None) -> Catalogue:
    """Return the catalogue, or the default one; raise an error if there is none."""
    if catalogue is None and not opened:
        raise ValueError("no catalogue is open: pass one, for example "
                         "catalogue=open_catalogue('my photos')")
    if not isinstance(catalogue, Catalogue | None):
        raise TypeError(f"{shown(catalogue)} is not a catalogue: pass open_catalogue(...)")
    return catalogue or opened[0]


# ---- searching -------------------------------------------------------------------------------
def build_compressed_index(n_features: int, catalogue: Catalogue | None = None) -> list:
    """Make [pca, index_compressed]: the first n_features factors, and an index of all photos.

    PCA is fitted at the first call; later calls reuse that fit. The index is faiss's IndexFlatL2.
    Raises ValueError unless the number of factors is from 1 to the catalogue's `most_factors`.
    Source: github.com/facebookresearch/faiss/wiki.
    """
    catalogue = given(catalogue)
    index_compressed = catalogue.index(n_features)
    return [_first_factors(catalogue.pca, index_compressed.d), index_compressed]


def nearest(query: Query, factors: int, k: int = 4, catalogue: Catalogue | None = None, *,
            colour: float = 0) -> list[Neighbour]:
    """Find the k photos nearest to the query.

    Parameters
    ----------
    query
        A photo's number in the catalogue, a path, a PIL image, or an upload button; or a list of
        these, and then the query is the mean of their vectors.
    factors
        The number of factors. Values above the maximum are lowered to it (a note is printed).
    k
        How many neighbours; fewer if the catalogue has fewer photos or groups.
    catalogue
        Where to search; without it, the one that `open_catalogue` opened last without a folder.
    colour
        The weight of colour next to the factors. Above 0, the factors are scaled to length 1
        (see `Catalogue.vectors`), so distances at different weights cannot be compared.

    Returns
    -------
    list of Neighbour
        Nearest first: number, label, squared distance, name. The query's own photos and groups are
        left out, and of each group only the nearest photo is returned.
    """
    if isinstance(k, Catalogue):
        raise TypeError("the third argument is k: pass the catalogue by name, catalogue=...")
    return given(catalogue).nearest(query, factors, k, colour)
