"""Recommend things that look alike: the recommender of the notebooks, in their order.

    photos --pil_loader--> RGB --preprocess--> 3xHxW --network--> vector           (notebook 01)
    vectors --PCA--> n_features --faiss--> nearest --similar_images--> a 2x2 grid  (02 to 04)

What a step does was shown in the open in the notebook that first needs it; here it also checks
what it is given. What the notebooks use and do not show lies in lookalike/, a room each.
"""
import copy
import functools
import sys
from dataclasses import dataclass, field
from pathlib import Path

import faiss
import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from sklearn.decomposition import PCA

from lookalike import AnyPath, home, shown
from lookalike.colour import as_weight, beside_colour, colour_backbone, side_by_side
from lookalike.embeddings import EMB_FILENAME, load_embeddings
from lookalike.extraction import embed_folder, extract_embeddings
from lookalike.folders import get_images, own_folder, scan
from lookalike.networks import Backbone, load_backbone, refuse_another_network
from lookalike.notebook import asks_for, gallery, no_screen, set_up_figures
from lookalike.notebook import short_tracebacks, show, small_pictures
from lookalike.photos import BadPhoto, Neighbour, photo_hash, pil_loader, short_name
from lookalike.query import Liked, Query, find, is_whole, whole
from lookalike.quality import has_kind, interval, label_precision, nearest_of_each

short_tracebacks()
set_up_figures()
if sys.platform == "darwin":  # see lookalike/__init__.py
    faiss.omp_set_num_threads(1)


# ---- 02: a catalogue and its factors ---------------------------------------------------------
@dataclass(eq=False)
class Catalogue:
    """The photos to recommend, their vectors, and what made them."""
    images: Path                    # the folder with the photos
    img_names: list[str]            # N paths in it
    img_emb_tensors: torch.Tensor   # (N, n_features) float32
    labels: list[str]               # N labels, '' where there is none
    about: dict                     # what made the vectors: backbone, weights, fingerprint
    photos: list[bytes] = field(default_factory=list)  # N SHA-256s: what each photo is
    new: list[str] = field(default_factory=list)       # paths of those that the table leaves out
    skipped: dict = field(default_factory=dict)        # {path: why it cannot be used}
    colour: float = 0               # the weight of colour beside the network's vector
    _last: tuple = field(default=(0, []), init=False)

    def __repr__(self):
        made_by = "{backbone} ({weights})".format(**self.about) if self.about else "who knows"
        colour = f", and colour with a weight of {self.colour:g}" if self.colour else ""
        return (f"Catalogue: {len(self.img_names):,} photos, {self.img_emb_tensors.shape[1]:,} "
                f"features each, made by {made_by}{colour}")

    @property
    def most_factors(self) -> int:
        """The smaller of photos and features."""
        return min(self.img_emb_tensors.shape)

    def photo(self, index: int) -> Image.Image:
        """Decode photo number `index`, at the size that a figure needs."""
        return pil_loader(self.images / self.img_names[index], small=True)

    def new_photos(self) -> list[Path]:
        """List photos to ask with: those that the table leaves out, else the catalogue's last."""
        return [self.images / name for name in self.new or self.img_names[-16:]]

    def at_hand(self, query: Query, factors: int) -> tuple[Query, int]:
        """Give an example's numbers back, or what a smaller catalogue has instead, and say so."""
        if isinstance(query, (list, tuple)):
            return [self.at_hand(one, 1)[0] for one in query], self.at_hand(0, factors)[1]
        asked, here = [query, factors], [len(self.img_names) - 1, self.most_factors]
        mine = [min(one, most) if is_whole(one) else one for one, most in zip(asked, here)]
        instead = [f"{what} {one:,} in place of {shown(more)}" for what, one, more in
                   zip(("photo", "factors"), mine, asked) if is_whole(more) and one < more]
        if instead:
            print(f"{len(self.img_names):,} photos here, so", ", ".join(instead))
        return tuple(mine)

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
        n = whole(n_features, "the number of factors", 1, self.most_factors,
                   f"{len(self.img_names):,} photos of {self.img_emb_tensors.shape[1]:,} features "
                   "have no more")
        if self._last[0] != n:
            index_compressed = faiss.IndexFlatL2(n)
            index_compressed.add(self.compressed[:, :n])
            self._last = n, [_first_factors(self.pca, n), index_compressed]
        return self._last[1]

    @functools.cached_property
    def backbone(self) -> Backbone:
        """The network that made the vectors, loaded when a photo from outside is asked with."""
        if not self.about:
            raise ValueError("these embeddings do not say which network made them, so only photos "
                             "of the catalogue can be asked for: open their folder with "
                             "open_catalogue(images=...)")
        backbone = load_backbone(self.about["backbone"])
        refuse_another_network(backbone, self.about)
        return backbone

    def find(self, query: Query) -> Liked:
        """Say which photos are asked for: (its number, None), or (None, the photo) from outside."""
        return find(query, self)

    def query_vector(self, liked: Liked, factors: int) -> np.ndarray:
        """Compress what `find` found, to (1, factors) float32: the mean of the liked photos."""
        pca = self.index(factors)[0]
        own = [self.compressed[i:i + 1, :factors] for i, _ in liked if i is not None]
        outside = [photo for _, photo in liked if photo is not None]
        if outside:
            vectors = self.backbone.embed(outside)
            if not torch.isfinite(vectors).all():
                raise ValueError("the network gave no finite vector: its weights are damaged")
            if self.colour:
                hues = colour_backbone().embed(outside)
                vectors = side_by_side((vectors, 1), (hues, self.colour))
            own.append(pca.transform(vectors.numpy()))
        return np.concatenate(own).mean(axis=0, keepdims=True)


def _first_factors(pca, n):
    """Cut the PCA that a fit with n components gives out of one with all of them."""
    cut, rest = copy.copy(pca), pca.explained_variance_[n:]
    cut.n_components = cut.n_components_ = n
    for name in ("components_", "explained_variance_", "explained_variance_ratio_",
                 "singular_values_"):
        setattr(cut, name, getattr(pca, name)[:n])
    cut.noise_variance_ = rest.sum() / (pca.n_features_in_ - n) if len(rest) else 0.0
    return cut


opened: list[Catalogue] = []  # what search() and the others take unless they are given one


def open_catalogue(images: AnyPath | None = None, backbone: Backbone | str | None = None,
                   colour: float | None = None) -> Catalogue:
    """Find photos and their vectors; those never seen before are embedded, and kept.

    Parameters
    ----------
    images
        A folder of photos, in place of `get_images`.
    backbone
        The network to embed with, or its name; without it, the one that the folder was last opened
        with, else EfficientNet-Lite1. One of `load_tuned` with a head alone is laid over what its
        network made.
    colour
        How much colour counts beside what the network says, 0 to 1 or so: see notebook 06.
        Without it as much as a tuned backbone was chosen with, else 0.

    Raises
    ------
    OSError
        There is no such folder, no photo in it, or vectors cannot be kept.
    ValueError
        None of the photos can be used, the table of labels cannot be read, or colour is no weight.

    Opened without any argument, it is also what `search` and the others take from then on. Others
    are given to them: `search(3, 10, catalogue)`.
    """
    plain = images is None and backbone is None and colour is None
    backbone = load_backbone(backbone) if isinstance(backbone, str) else backbone
    colour = as_weight(colour if colour is not None else backbone.colour if backbone else 0)
    folder = get_images() if images is None else own_folder(images)
    found = scan(folder)
    head_only = backbone is not None and backbone.base is not None and not backbone.last_block
    known, photos, about = embed_folder(folder, found.names,
                                        backbone.base if head_only else backbone)
    if head_only:
        with torch.inference_mode():
            known, about = known._replace(img_emb_tensors=backbone.network[-1](
                known.img_emb_tensors)), backbone.about
    if colour:
        known, photos = beside_colour(folder, known, photos, colour)
    names, vectors, skipped = known
    if not torch.isfinite(vectors).all():
        raise ValueError("some vectors are not finite: the tuned head is damaged, or vectors.db in "
                         "embeddings/; train the one anew, or delete the other")
    catalogue = Catalogue(folder, names, vectors, [found.labels[name] for name in names], about,
                          photos, found.new, skipped, colour)
    if backbone is not None:
        catalogue.backbone = backbone
    if plain:
        opened[:] = [catalogue]
    if catalogue.skipped:
        print(f"Left out: {len(catalogue.skipped):,} photos; catalogue.skipped says why")
    print(catalogue)
    return catalogue


def build_compressed_index(n_features: int, catalogue: Catalogue | None = None) -> list:
    """Make [pca, index_compressed]: the first n_features factors, and all photos in them.

    PCA is fitted at the first call and cut to size at every other; the index is faiss's
    IndexFlatL2. Raises ValueError for a number of factors that is not from 1 to the smaller of
    photos and features. Source: github.com/facebookresearch/faiss/wiki.
    """
    return _given(catalogue).index(n_features)


def _given(catalogue):
    if isinstance(catalogue, str | Path):
        raise TypeError(f"{shown(catalogue)} is no catalogue: give open_catalogue({catalogue!r})")
    return catalogue or (opened[0] if opened else open_catalogue())


# ---- 03 and 04: the nearest, and showing them ------------------------------------------------
def nearest(query: Query, factors: int, k: int = 4,
            catalogue: Catalogue | None = None) -> list[Neighbour]:
    """Find the k photos nearest to the query.

    Parameters
    ----------
    query
        A photo's number in the catalogue, a path, a PIL image, or what an upload button holds; or
        a list of these: then the mean of their vectors asks. A number past the end is the last
        photo, which is said.
    factors
        To how many numbers PCA compresses the vectors; more than there are, which is said, are as
        many as there are.
    k
        How many; a catalogue of fewer photos gives as many as it has.

    Returns
    -------
    list of Neighbour
        Nearest first, none of those asked with: number, label, squared distance, name.
    """
    catalogue = _given(catalogue)
    query, factors = catalogue.at_hand(query, factors)
    return _neighbours(catalogue, catalogue.find(query), factors, k)


def _neighbours(catalogue, liked, factors, k):
    k = whole(k, "the number of neighbours", 1, None, "ask for one at least")
    vector, own = catalogue.query_vector(liked, factors), {number for number, _ in liked}
    # more than asked: photos of the query that are in the catalogue are left out because they are
    # those photos. Where there are fewer photos than asked for, faiss fills up with -1.
    most = min(k, len(catalogue.img_names)) + len(own)
    D, I = catalogue.index(factors)[1].search(vector, most)
    return [Neighbour(catalogue.img_names[i], catalogue.labels[i], float(d), int(i))
            for d, i in zip(D[0], I[0], strict=True) if i not in own and i >= 0][:k]


def search(query: Query, factors: int, catalogue: Catalogue | None = None) -> list[Neighbour]:
    """Draw the query and the four photos that look most like it; return those four.

    Parameters
    ----------
    query, factors
        As for `nearest`.
    catalogue
        Where to search; without it, what `open_catalogue()` opened.

    Without a screen, as in a script on a server, the four are printed.
    """
    return compare(query, [factors], catalogue)[0]


def compare(query: Query, factors: list[int],
            catalogue: Catalogue | None = None) -> list[list[Neighbour]]:
    """Draw the query once, and beside it its four nearest at each number of factors."""
    catalogue = _given(catalogue)
    counts = []
    for n in [factors] if is_whole(factors) else factors:
        query, n = catalogue.at_hand(query, n)
        counts.append(n)
    liked = catalogue.find(query)
    found = [_neighbours(catalogue, liked, n, 4) for n in counts]
    first, *others = _figure(len(found) + 1)
    _draw_grid(first, [_numbered(i, catalogue) if photo is None else (photo, short_name(photo))
                       for i, photo in liked], "Query")
    for place, n, four in zip(others, counts, found):
        title = f"faiss compressed {n}, {catalogue.images.name}/"
        _draw_grid(place, [_numbered(one.index, catalogue) for one in four], title, 4)
        if no_screen():
            print(f"{title}: {', '.join(map(repr, four))}")
    show()
    return found


def main_image(img_path: AnyPath | Image.Image, desc: str) -> None:
    """Draw one photo (a path, or a PIL image) under the title `desc`."""
    photo = img_path if isinstance(img_path, Image.Image) else pil_loader(img_path)
    _draw_grid(*_figure(1), [(photo, short_name(photo))], desc)
    show()


def similar_images(indices: list[int | Neighbour], suptitle: str,
                   catalogue: Catalogue | None = None) -> None:
    """Draw up to four photos of the catalogue, two by two: their numbers, or what was found."""
    catalogue = _given(catalogue)
    shown_here = [whole(i.index if isinstance(i, Neighbour) else i, "a photo's number", 0,
                        len(catalogue.img_names) - 1, "photos are counted from 0")
                  for i in indices[:4]]
    _draw_grid(*_figure(1), [_numbered(i, catalogue) for i in shown_here], suptitle, 4)
    show()


def _figure(parts):
    """The parts of a figure, side by side, that fits a laptop's screen."""
    figure = plt.figure(figsize=(3.4 * parts, 4.8), facecolor="white", layout="constrained")
    return figure.subfigures(1, parts, squeeze=False)[0]


def _draw_grid(place, pictures, suptitle, places=1):
    """(Photo, caption) of each, in at least so many places: as wide as high, or a row less."""
    places = max(places, len(pictures))
    across = int(np.ceil(np.sqrt(places)))
    axes = place.subplots(-(-places // across), across, squeeze=False)
    for ax, (photo, caption) in zip(axes.flat, [*pictures, *[(None, "")] * places]):
        if photo is None:
            ax.axis("off")
            continue
        ax.imshow(photo)
        ax.set_xlabel(caption, fontsize=9, parse_math=False)
        ax.set(xticks=[], yticks=[])
    place.suptitle(suptitle, parse_math=False)


def _numbered(index, catalogue):
    """(Photo, caption): its number, to go on with, and its label, or its name if it has none."""
    try:
        photo = catalogue.photo(index)
    except (OSError, BadPhoto):  # deleted since the catalogue was opened
        return Image.new("RGB", (3, 4), "silver"), f"{index}: cannot be read now"
    if catalogue.photos and photo_hash(photo.filename) != catalogue.photos[index]:
        return photo, f"{index}: changed, open it anew"
    return photo, f"{index}: {catalogue.labels[index][:40] or short_name(photo)}"
