"""Recommend things that look alike: the recommender of the notebooks, in their order.

    photos --pil_loader--> RGB --preprocess--> 3xHxW --network--> vector           (notebook 01)
    vectors --PCA--> n_features --faiss--> nearest --similar_images--> a 2x2 grid  (02 to 04)

What a step does was shown in the open in the notebook that first needs it; here it also checks
what it is given. What the notebooks use and do not show lies in lookalike/, a room each.
"""
import copy
import functools
import operator
import sys
from dataclasses import dataclass, field
from pathlib import Path

import faiss
import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from sklearn.decomposition import PCA

from lookalike import AnyPath, home, readable
from lookalike.embeddings import EMB_FILENAME, load_embeddings, read_embeddings, save_embeddings
from lookalike.errors import short_tracebacks
from lookalike.exercises import not_yet
from lookalike.extraction import embeddings_file, extract_embeddings, up_to_date
from lookalike.figures import no_screen, show
from lookalike.folders import from_here, get_images, list_photos, names_of, photo_path
from lookalike.folders import read_labels
from lookalike.networks import Backbone, load_backbone, same_network
from lookalike.photos import Neighbour, check_size, pil_loader, upright_rgb
from lookalike.quality import has_kind, label_precision, nearest_of_each

short_tracebacks()
if sys.platform == "darwin":  # see lookalike/__init__.py
    faiss.omp_set_num_threads(1)

Query = int | AnyPath | Image.Image  # a photo's number, its path, or a picture


# ---- 02: a catalogue and its factors ---------------------------------------------------------
@dataclass(eq=False)
class Catalogue:
    """The photos to recommend, their vectors, and what made them."""
    images: Path                    # the folder with the photos
    img_names: list[str]            # N names 'images/...'
    img_emb_tensors: torch.Tensor   # (N, n_features) float32
    labels: list[str]               # N labels, '' where there is none
    about: dict                     # what made the vectors, see `read_embeddings`
    _last: tuple = field(default=(0, []), init=False)
    _held: list = field(default_factory=list, init=False)

    def __repr__(self):
        return (f"Catalogue: {len(self.img_names):,} photos, {self.img_emb_tensors.shape[1]:,} "
                f"features each, made by {self.about.get('backbone', 'an unnamed network')} "
                f"({self.about.get('weights', 'its weights are not named')})")

    @property
    def most_factors(self) -> int:
        """The smaller of photos and features."""
        return min(self.img_emb_tensors.shape)

    def photo(self, index: int) -> Image.Image:
        """Decode photo number `index`, at the size that a figure needs."""
        return pil_loader(photo_path(self.img_names[index], self.images), small=True)

    def at_hand(self, query: int, factors: int) -> tuple[int, int]:
        """Give an example's numbers back, or what a smaller catalogue has instead, and say so."""
        here = min(query, len(self.img_names) - 1), min(factors, self.most_factors)
        instead = [f"{what} = {mine} in place of {asked}" for what, mine, asked in
                   zip(("query", "factors"), here, (query, factors), strict=True) if mine != asked]
        if instead:
            print(f"{len(self.img_names):,} photos here, so", ", ".join(instead))
        return here

    def new_photos(self) -> list[Path]:
        """List photos to ask with that are not in the catalogue: those that the table leaves out.

        Where no table says which, some 16 of the catalogue, or a quarter of a small one, are taken
        out of it until it is opened again, and that is said.
        """
        names, step = self.img_names, max(4, len(self.img_names) // 16)
        new = list_photos(self.images)[1] or self._held
        if not new and len(names) >= step:
            new = self._held = names[step - 1::step]
            stay = [i for i in range(len(names)) if i % step != step - 1]
            self.img_names, self.labels = [names[i] for i in stay], [self.labels[i] for i in stay]
            self.img_emb_tensors, self._last = self.img_emb_tensors[stay], (0, [])
            for fitted in ("pca", "compressed"):
                vars(self).pop(fitted, None)
            print(f"No photo is known to be new: {len(new)} are held back as such, one in {step}, "
                  f"and {len(stay)} stay in the catalogue")
        return [photo_path(name, self.images) for name in new or self.img_names[-1:]]

    @functools.cached_property
    def pca(self) -> PCA:
        """PCA with every factor there is, fitted once; its first n are those of a fit with n.

        covariance_eigh is exact, the same at every run, and the fastest of scikit-learn's solvers
        at these sizes; the default takes a randomised one at some, and then two runs recommend
        different photos. Source: sklearn.decomposition.PCA.
        """
        if len(self.img_names) < 2:
            raise ValueError("a catalogue of one photo has nothing to recommend: it takes two")
        pca = PCA(n_components=self.most_factors, svd_solver="covariance_eigh")
        return pca.fit(self.img_emb_tensors.numpy())

    @functools.cached_property
    def compressed(self) -> np.ndarray:
        """All factors of all photos, (N, most_factors) float32: the first n columns serve for n."""
        return self.pca.transform(self.img_emb_tensors.numpy()).astype(np.float32)

    def index(self, n_features: int) -> list:
        """[pca, index_compressed], see `build_compressed_index`; the last one is kept."""
        n = _whole(n_features, "the number of factors", 1, self.most_factors,
                   f"{len(self.img_names):,} photos of {self.img_emb_tensors.shape[1]:,} features "
                   "have no more")
        if self._last[0] != n:
            index_compressed = faiss.IndexFlatL2(n)
            index_compressed.add(np.ascontiguousarray(self.compressed[:, :n]))
            self._last = n, [_first_factors(self.pca, n), index_compressed]
        return self._last[1]

    @functools.cached_property
    def backbone(self) -> Backbone:
        """The network that made the vectors, loaded when a photo from outside is asked with."""
        if not self.about.get("backbone"):
            raise ValueError("these embeddings do not say which network made them, so only photos "
                             "of the catalogue can be asked for; make them anew in notebook 01")
        return same_network(load_backbone(self.about["backbone"]), self.about)

    def find(self, query: Query) -> tuple[int | None, Image.Image | None]:
        """Say which photo is asked for: (its number, None), or (None, the photo) from outside."""
        if isinstance(query, Image.Image):
            check_size("your picture", *query.size)
            return None, upright_rgb(query)
        if isinstance(query, (str, Path)):
            return self._find_path(query)
        if not _is_whole(query):
            raise TypeError(f"the query is a {type(query).__name__}: give a photo's number, its "
                            "path, or a PIL image")
        last = len(self.img_names) - 1
        return _whole(query, "the number of the query", 0, last, "photos are counted from 0"), None

    def _find_path(self, query):
        if not str(query):
            raise ValueError("the query is an empty string: give a photo's number or path")
        if "://" in str(query):
            raise ValueError(f"{query!r} is an address: download the photo, and give its path")
        path = from_here(query)
        for name in (str(query), *names_of(path, self.images, self.img_names)):
            if name in self.img_names:
                return self.img_names.index(name), None
        if str(query).isdecimal() and not path.exists():
            raise FileNotFoundError(f"no photo is called {str(query)!r}: if you mean photo number "
                                    f"{query} of the catalogue, leave the quotes out")
        return None, pil_loader(path, small=True)

    def query_vector(self, own: int | None, photo: Image.Image | None, factors: int) -> np.ndarray:
        """Compress what `find` found, to (1, factors) float32."""
        pca = self.index(factors)[0]
        if own is not None:
            return np.ascontiguousarray(self.compressed[own:own + 1, :pca.n_components])
        vector = self.backbone.embed([photo]).numpy()
        if not np.isfinite(vector).all():
            raise ValueError("the network gave no finite vector: its weights are damaged")
        return pca.transform(vector).astype(np.float32)


def _is_whole(value):
    """Not True, and not an array: both can be asked for an index."""
    return hasattr(value, "__index__") and not isinstance(value, bool) and \
        not getattr(value, "ndim", 0)


def _whole(value, what, least, most, why):
    """The value as an int, or an error that says what is allowed."""
    allowed = f"a whole number from {least} to {most:,}" if most is not None else \
        f"a whole number, {least} or more"
    if not _is_whole(value):
        raise TypeError(f"{what} is {value!r}, and must be {allowed}: {why}")
    number = operator.index(value)
    if number < least or (most is not None and number > most):
        raise ValueError(f"{what} is {number:,}, and must be {allowed}: {why}")
    return number


def _first_factors(pca, n):
    """Cut the PCA that a fit with n components gives out of one with all of them."""
    cut, rest = copy.copy(pca), pca.explained_variance_[n:]
    cut.n_components = cut.n_components_ = n
    for name in ("components_", "explained_variance_", "explained_variance_ratio_",
                 "singular_values_"):
        setattr(cut, name, getattr(pca, name)[:n])
    cut.noise_variance_ = rest.sum() / (pca.n_features_in_ - n) if len(rest) else 0.0
    return cut


_default: Catalogue | None = None  # what search() and the others take unless they are given one


def open_catalogue(emb_filename: AnyPath | None = None, backbone: Backbone | None = None,
                   images: AnyPath | None = None) -> Catalogue:
    """Find the photos and their embeddings, and make them what `search` searches.

    Photos that are new, or changed, are embedded first and kept for the next time.

    Parameters
    ----------
    emb_filename
        Embeddings to take as they are.
    backbone
        The network to embed with; without it, the one that made the embeddings on disk, else
        EfficientNet-Lite1. One of `load_tuned` with a head alone is laid over those.
    images
        A folder of photos, in place of `get_images`.

    Raises
    ------
    ValueError
        The embeddings are of other photos, or of another network.

    Without any argument it is also what `search` and the others take from then on.
    """
    global _default
    plain = emb_filename is None and backbone is None and images is None
    folder = Path(images).resolve() if images else get_images()
    head_only = backbone is not None and backbone.base and not backbone.last_block
    names, vectors, about = read_embeddings(emb_filename) if emb_filename else \
        up_to_date(folder, None if head_only else backbone)
    if head_only:
        vectors, about = _under_head(vectors, about, backbone)
    here = [i for i, name in enumerate(names)
            if not emb_filename or photo_path(name, folder).exists()]
    if not here:
        raise ValueError(f"{Path(emb_filename).name} knows none of the photos in {folder.name}/ "
                         f"(its first is {names[0]!r}): give the folder that it was made of")
    labels = about.get("labels", {}) | read_labels(folder)
    catalogue = Catalogue(folder, [names[i] for i in here], vectors[here],
                          [labels.get(names[i], "") for i in here], about)
    if backbone is not None:
        catalogue.backbone = same_network(backbone, about)
    if plain:
        _default = catalogue
    print(catalogue)
    return catalogue


def _under_head(vectors, about, backbone):
    """The vectors under the head of a tuned backbone, and what made them."""
    if about.get("fingerprint") != backbone.base:
        made_by = f"{about.get('backbone')} ({about.get('weights')})"
        raise ValueError(f"the embeddings were made by {made_by}, and {backbone.weights} does not "
                         "belong to it: train one on these in notebook 06")
    with torch.inference_mode():
        vectors = backbone.network[-1](vectors)
    return vectors, about | {"weights": backbone.weights, "fingerprint": backbone.fingerprint}


def build_compressed_index(n_features: int, catalogue: Catalogue | None = None) -> list:
    """Make [pca, index_compressed]: the first n_features factors, and all photos in them.

    PCA is fitted at the first call and cut to size at every other; the index is faiss's
    IndexFlatL2. Raises ValueError for a number of factors that is not from 1 to the smaller of
    photos and features. Source: github.com/facebookresearch/faiss/wiki.
    """
    return _given(catalogue).index(n_features)


def _given(catalogue):
    return catalogue or _default or open_catalogue()


# ---- 03 and 04: the nearest, and showing them ------------------------------------------------
def nearest(query: Query, factors: int, k: int = 4,
            catalogue: Catalogue | None = None) -> list[Neighbour]:
    """Find the k photos nearest to the query.

    Parameters
    ----------
    query
        A photo's number in the catalogue, a path, or a PIL image.
    factors
        To how many numbers PCA compresses the vectors.
    k
        How many; a catalogue of fewer photos gives as many as it has.

    Returns
    -------
    list of Neighbour
        Nearest first: name, label, squared distance, number.
    """
    catalogue = _given(catalogue)
    return _neighbours(catalogue, *catalogue.find(query), factors, k)


def _neighbours(catalogue, own, photo, factors, k):
    k = _whole(k, "the number of neighbours", 1, None, "ask for one at least")
    vector = catalogue.query_vector(own, photo, factors)
    # one more than asked: the query itself, if it is in the catalogue, is left out because it is
    # that photo. Where there are fewer photos than asked for, faiss fills up with -1.
    most = min(k, len(catalogue.img_names)) + 1
    D, I = catalogue.index(factors)[1].search(vector, most)
    return [Neighbour(catalogue.img_names[i], catalogue.labels[i], float(d), int(i))
            for d, i in zip(D[0], I[0], strict=True) if i != own and i >= 0][:k]


def search(query: Query, factors: int, catalogue: Catalogue | None = None) -> list[Neighbour]:
    """Draw the query and the four photos that look most like it; return those four.

    Parameters
    ----------
    query, factors
        As for `nearest`.
    catalogue
        Where to search; without it, what `open_catalogue()` opens.

    Without a screen, as in a script on a server, the four are printed.
    """
    return compare(query, [factors], catalogue)[0]


def compare(query: Query, factors: list[int],
            catalogue: Catalogue | None = None) -> list[list[Neighbour]]:
    """Draw the query once, and beside it its four nearest at each number of factors."""
    catalogue = _given(catalogue)
    own, photo = catalogue.find(query)
    found = [_neighbours(catalogue, own, photo, n, 4) for n in factors]
    first, *others = _figure(len(factors) + 1)
    if own is None:
        _draw(first.subplots(), photo, _short(photo))
    else:
        _draw(first.subplots(), *_numbered(own, catalogue))
    first.suptitle("Query")
    for place, n, neighbours in zip(others, factors, found):
        _draw_grid(place, [one.index for one in neighbours], f"faiss compressed {n}", catalogue)
        if no_screen():
            print(f"faiss compressed {n}:", *neighbours, sep="\n  ")
    show()
    return found


def main_image(img_path: AnyPath | Image.Image, desc: str) -> None:
    """Draw one photo (a path, or a PIL image) under the title `desc`."""
    photo = img_path if isinstance(img_path, Image.Image) else pil_loader(img_path)
    (place,) = _figure(1)
    _draw(place.subplots(), photo, _short(photo))
    place.suptitle(desc, parse_math=False)
    show()


def similar_images(indices: list[int], suptitle: str, catalogue: Catalogue | None = None) -> None:
    """Draw up to four photos of the catalogue, given by their numbers, two by two."""
    (place,) = _figure(1)
    _draw_grid(place, indices, suptitle, _given(catalogue))
    show()


def _figure(parts):
    """The parts of a figure, side by side, that fits a laptop's screen."""
    figure = plt.figure(figsize=(3.4 * parts, 4.8), facecolor="white", layout="constrained")
    return figure.subfigures(1, parts, squeeze=False)[0]


def _draw_grid(place, indices, suptitle, catalogue):
    for ax, index in zip(place.subplots(2, 2).flat, [*indices, None, None, None, None]):
        if index is None:
            ax.axis("off")
        else:
            _draw(ax, *_numbered(index, catalogue))
    place.suptitle(suptitle, parse_math=False)


def _numbered(index, catalogue):
    """(Photo, caption): its number, to go on with, and its label, or its name if it has none."""
    photo = catalogue.photo(index)
    return photo, f"{index}: {catalogue.labels[index] or _short(photo)}"


def _short(photo):
    """As much of the file's name as fits below a photo."""
    name = Path(getattr(photo, "filename", "")).name
    return name if len(name) <= 24 else f"{name[:8]}...{name[-8:]}"


def _draw(ax, photo, caption):
    ax.imshow(photo)
    ax.set_xlabel(readable(caption), fontsize=9, parse_math=False)
    ax.set_xticks([])
    ax.set_yticks([])
