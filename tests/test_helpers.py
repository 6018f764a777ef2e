"""PCA, the index, search and the grids."""

import os
import shutil
import subprocess
import sys
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import helpers
from helpers import (
    Catalogue,
    build_compressed_index,
    nearest,
    open_catalogue,
    photo_path,
    save_embeddings,
    search,
)
from lookalike import HERE
from lookalike.photos import BadPhoto


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were shown: for each of their parts its title and the captions."""
    import matplotlib.pyplot as plt

    figures = []

    def show():
        figure = plt.gcf()
        figure.canvas.draw()
        figures.append(
            [
                (part.get_suptitle(), [ax.get_xlabel() for ax in part.axes if ax.images])
                for part in figure.subfigs
            ]
        )
        plt.close(figure)

    monkeypatch.setattr(plt, "show", show)
    return figures


def brute_force(catalogue, vector, n_features):
    compressed = catalogue.pca.transform(catalogue.img_emb_tensors.numpy())[:, :n_features]
    return ((compressed - vector[:n_features]) ** 2).sum(1)


# ---- factors ---------------------------------------------------------------------------------
def test_the_factors_are_those_of_a_fit_with_so_many(catalogue):
    from sklearn.decomposition import PCA

    vectors = catalogue.img_emb_tensors.numpy()
    for n in (1, 10, 56):
        pca, index = build_compressed_index(n)
        own = PCA(n_components=n, svd_solver="covariance_eigh").fit(vectors)
        assert pca.n_components_ == index.d == n and index.ntotal == 56
        assert np.allclose(abs(pca.transform(vectors)), abs(own.transform(vectors)), atol=1e-2)
        assert np.isclose(
            pca.explained_variance_ratio_.sum(), own.explained_variance_ratio_.sum(), atol=1e-4
        )
        assert np.isclose(pca.noise_variance_, own.noise_variance_, rtol=1e-3, atol=1e-6)
    pca, own = build_compressed_index(10)[0], PCA(n_components=10, svd_solver="covariance_eigh")
    assert np.isclose(pca.score(vectors), own.fit(vectors).score(vectors), rtol=1e-3)


def test_pca_is_fitted_once(catalogue, monkeypatch):
    from sklearn.decomposition import PCA

    fits, fit = [], PCA.fit
    monkeypatch.setattr(PCA, "fit", lambda self, X: fits.append(1) or fit(self, X))
    for n in (5, 50, 5, 30):
        nearest(3, n)
    assert len(fits) == 1


@pytest.mark.slow
def test_two_runs_agree(tmp_path):
    """1,000 photos: there scikit-learn's default solver is randomised, and two runs disagree."""
    program = (
        "import numpy as np, torch, helpers\n"
        "v = torch.from_numpy(np.random.default_rng(0).random((1000, 200), np.float32))\n"
        "c = helpers.Catalogue(None, list(map(str, range(1000))), v, [''] * 1000, {})\n"
        "print([n.index for i in range(100) for n in helpers.nearest(i, 50, catalogue=c)])"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", program], cwd=HERE, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(runs) == 1 and len(runs.pop()) > 1000


@pytest.mark.parametrize("factors", [0, -3, 57, 10**9])
def test_factors_out_of_range(catalogue, factors):
    with pytest.raises(
        ValueError,
        match=f"factors is {factors:,}, and must be a whole number from 1 to 56: 56 photos of",
    ):
        build_compressed_index(factors)


@pytest.mark.parametrize("factors", [2.5, "300", None, True, np.arange(3)])
def test_factors_of_the_wrong_type(catalogue, factors):
    with pytest.raises(TypeError, match="factors is .*whole number from 1 to 56"):
        search(3, factors)


# ---- neighbours ------------------------------------------------------------------------------
def test_neighbours_are_the_nearest_in_order(catalogue):
    for query, factors in [(0, 5), (30, 56), (np.int64(55), 20)]:
        distances = brute_force(catalogue, catalogue.compressed[query], factors)
        distances[query] = np.inf
        expected = np.argsort(distances)[:4]
        found = nearest(query, factors)
        assert [n.index for n in found] == expected.tolist()
        assert [n.name for n in found] == [catalogue.img_names[i] for i in expected]
        assert [n.label for n in found] == [catalogue.labels[i] for i in expected]
        assert np.allclose([n.distance for n in found], distances[expected], rtol=1e-3)


def test_the_query_is_left_out_wherever_it_ranks(home, photos, embedded):
    """Three copies of photo 10: the article would drop one of the copies and show the query."""
    names, vectors = embedded
    copies = Catalogue(
        photos,
        ["images/copy1.jpg", "images/copy2.jpg", *names],
        torch.cat([vectors[10:11], vectors[10:11], vectors]),
        [""] * 58,
        {},
    )
    for query in (0, 1, 12):
        found = nearest(query, 20, catalogue=copies)
        assert len(found) == 4 and query not in [n.index for n in found]
        assert {n.index for n in found[:2]} == {0, 1, 12} - {query}


def test_a_path_into_the_catalogue_is_the_photo_itself(catalogue, photos, monkeypatch):
    by_number = nearest(7, 20)
    path = photo_path(catalogue.img_names[7], photos)
    assert (
        nearest(str(path), 20)
        == nearest(path, 20)
        == nearest(catalogue.img_names[7], 20)
        == by_number
    )
    monkeypatch.chdir(photos.parent)
    assert nearest(f"images/../images/{path.name}", 20) == by_number


def test_a_photo_by_another_spelling_of_its_name(home, backbone):
    """As macOS and Windows find it; a second link to the file stands in for that here."""
    for name in ("Платье Й.jpg", "b.jpg", "c.jpg"):
        Image.new("RGB", (30, 40), (len(name), 90, 20)).save(home / name)
    catalogue = helpers.open_catalogue(images=home)
    other = home / unicodedata.normalize("NFD", "ПЛАТЬЕ Й.JPG")
    other.hardlink_to(home / "Платье Й.jpg")
    assert catalogue.find(other) == (2, None)
    other.unlink()
    shutil.copy(home / "b.jpg", other)
    assert catalogue.find(other)[0] is None, "another photo, where spelling counts"


def test_a_photo_from_outside_loses_no_neighbour(catalogue, photos):
    new = photos / "new-00.jpg"
    vector = catalogue.pca.transform(catalogue.backbone.embed([helpers.pil_loader(new)]).numpy())[0]
    distances = brute_force(catalogue, vector, 30)
    assert [n.index for n in nearest(str(new), 30)] == np.argsort(distances)[:4].tolist()
    assert nearest(Image.open(new), 30) == nearest(str(new), 30)


def test_a_copy_under_another_name_is_found(catalogue, photos, tmp_path):
    copy = tmp_path / "t-shirt.jpg"
    copy.write_bytes(photo_path(catalogue.img_names[7], photos).read_bytes())
    assert nearest(str(copy), 20)[0].index == 7


@pytest.mark.parametrize("query", [-1, 56, 10**9])
def test_query_out_of_range(catalogue, query):
    with pytest.raises(
        ValueError,
        match=f"number of the query is {query:,}, and must be a whole number from 0 to 55",
    ):
        search(query, 20)


@pytest.mark.parametrize(
    "query, kind",
    [
        (1.0, "float"),
        (None, "NoneType"),
        ([1], "list"),
        (b"a.jpg", "bytes"),
        (True, "bool"),
        (np.zeros((1, 1280)), "ndarray"),
        (torch.zeros(1280), "Tensor"),
    ],
)
def test_query_of_the_wrong_type(catalogue, query, kind):
    with pytest.raises(
        TypeError, match=f"query is a {kind}: give a photo's number, its path, or a PIL image"
    ):
        search(query, 20)


def test_queries_that_are_meant_otherwise(catalogue, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="'7': if you mean photo number 7.*quotes"):
        search("7", 20)
    with pytest.raises(ValueError, match="'https://example.org/a.jpg' is an address: download"):
        search("https://example.org/a.jpg", 20)
    assert search(np.int64(7), 20) == search(np.array(7), 20) == search(7, 20)


def test_a_photo_in_the_checkout_is_found_from_anywhere(
    catalogue, photos, home, monkeypatch, tmp_path_factory
):
    (home / "t-shirt.jpg").write_bytes((photos / "new-00.jpg").read_bytes())
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert nearest("t-shirt.jpg", 20) == nearest(photos / "new-00.jpg", 20)


def test_picture_that_would_fill_the_memory(catalogue):
    with pytest.raises(BadPhoto, match="your picture: 1x8000.*crop it first"):
        search(Image.new("RGB", (1, 8000)), 20)


def test_query_that_is_no_photo(catalogue, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="'t-shirt.jpg'"):
        search("t-shirt.jpg", 20)
    with pytest.raises(ValueError, match="empty string"):
        search("", 20)
    (tmp_path / "t-shirt.jpg").touch()
    with pytest.raises(BadPhoto, match="t-shirt.jpg: the file is empty"):
        search("t-shirt.jpg", 20)


def test_more_neighbours_than_photos(home, photos, embedded):
    """faiss would fill up with -1, which Python takes for the last photo."""
    names, vectors = embedded
    few = Catalogue(photos, names[:3], vectors[:3], ["Hat"] * 3, {})
    assert len(nearest(0, 2, catalogue=few)) == 2 and len(nearest(0, 2, k=3, catalogue=few)) == 2
    assert len(search(0, 2, few)) == 2
    one = Catalogue(photos, names[:1], vectors[:1], ["Hat"], {})
    with pytest.raises(ValueError, match="takes two"):
        search(0, 1, one)


@pytest.mark.parametrize("k", [0, -1])
def test_no_neighbours(catalogue, k):
    with pytest.raises(ValueError, match=f"number of neighbours is {k}"):
        nearest(0, 20, k=k)


def test_a_network_that_gives_nan(catalogue, photos, monkeypatch):
    monkeypatch.setattr(
        helpers.Backbone, "embed", lambda self, photos: torch.full((1, 1280), float("nan"))
    )
    with pytest.raises(ValueError, match="no finite vector"):
        nearest(str(photos / "new-00.jpg"), 20)


# ---- which network ---------------------------------------------------------------------------
def test_vectors_of_two_networks_never_meet(catalogue, photos, backbone, embedded):
    catalogue.about["fingerprint"] = "0123456789abcdef"
    assert nearest(3, 20), "photos of the catalogue need no network"
    with pytest.raises(ValueError, match="distances between the two mean nothing"):
        nearest(str(photos / "new-00.jpg"), 20)


@pytest.mark.slow
def test_the_network_that_made_the_vectors_embeds_the_query(
    home, photos, embedded, monkeypatch, tmp_path
):
    from test_networks import random_resnet50

    monkeypatch.setenv("FASHION_IMAGES", str(photos))
    monkeypatch.setenv("RESNET50_WEIGHTS", str(random_resnet50(tmp_path / "mine.pth")))
    mine = helpers.load_backbone("resnet50")
    names, vectors, _ = helpers.extract_embeddings(embedded[0], mine, images=photos)
    save_embeddings(helpers.embeddings_file(photos), names, vectors, mine)
    assert open_catalogue().backbone.name == "resnet50"
    assert len(nearest(str(photos / "new-00.jpg"), 20)) == 4
    monkeypatch.setenv("RESNET50_WEIGHTS", str(random_resnet50(tmp_path / "other.pth", seed=1)))
    open_catalogue()
    with pytest.raises(ValueError, match="mine.pth.*other.pth"):
        nearest(str(photos / "new-00.jpg"), 20)


def test_embeddings_that_do_not_say_what_made_them(home, photos, embedded, monkeypatch):
    """The article's own pickle, made by the reader."""
    import pickle

    monkeypatch.setenv("FASHION_IMAGES", str(photos))
    with open(home / "mine.pickle", "wb") as handle:
        pickle.dump(list(embedded), handle, protocol=pickle.HIGHEST_PROTOCOL)
    names, vectors = helpers.load_embeddings(home / "mine.pickle", trusted=True)
    catalogue = Catalogue(photos, names, vectors, [""] * len(names), {})
    assert len(nearest(3, 20, catalogue=catalogue)) == 4
    with pytest.raises(ValueError, match="do not say which network"):
        nearest(str(photos / "new-00.jpg"), 20, catalogue=catalogue)


# ---- opening ---------------------------------------------------------------------------------
def test_photos_that_were_deleted_are_left_out(home, photos, catalogue, monkeypatch, tmp_path):
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    for name in catalogue.img_names[:20]:
        photo_path(name, fewer).write_bytes(photo_path(name, photos).read_bytes())
    monkeypatch.setenv("FASHION_IMAGES", str(fewer))
    assert open_catalogue().img_names == catalogue.img_names[:20] and len(nearest(3, 10)) == 4


def test_a_pickle_of_other_photos(home, photos, backbone, embedded, monkeypatch, tmp_path):
    monkeypatch.setenv("FASHION_IMAGES", str(photos))
    save_embeddings(tmp_path / "e", ["images/x.jpg"], embedded[1][:1], backbone)
    with pytest.raises(ValueError, match="e knows none of the photos in images/ .*images/x.jpg"):
        open_catalogue(tmp_path / "e")


def test_examples_fit_what_is_there(catalogue, capsys):
    capsys.readouterr()
    assert catalogue.at_hand(3, 20) == (3, 20) and capsys.readouterr().out == ""
    assert catalogue.at_hand(100, 300) == (55, 56)
    said = "56 photos here, so query = 55 in place of 100, factors = 56 in place of 300\n"
    assert capsys.readouterr().out.endswith(said)
    assert catalogue.at_hand(5, 300) == (5, 56)
    assert capsys.readouterr().out == "56 photos here, so factors = 56 in place of 300\n"


def test_new_photos(catalogue, photos, home, tmp_path, capsys, monkeypatch):
    """Those that the table leaves out; where there is none, some are held back until reopened."""
    assert [path.name for path in catalogue.new_photos()] == ["new-00.jpg", "new-01.jpg"]
    assert len(catalogue.img_names) == 56
    own = tmp_path / "own"
    own.mkdir()
    for name in catalogue.img_names[:12]:
        photo_path(name, own).write_bytes(photo_path(name, photos).read_bytes())
    catalogue = open_catalogue(images=own)
    whole = nearest(0, 12, catalogue=catalogue)
    new = catalogue.new_photos()
    assert len(new) == 3 and catalogue.new_photos() == new and len(catalogue.img_names) == 9
    assert "3 are held back as such, one in 4, and 9 stay" in capsys.readouterr().out
    assert [path.name for path in new] == ["bag-03.jpg", "dress-03.jpg", "hat-03.jpg"]
    assert catalogue.pca.n_samples_ == 9
    assert len(nearest(new[0], 9, k=20, catalogue=catalogue)) == 9, "a query from outside"
    assert nearest(0, 12, catalogue=open_catalogue(images=own)) == whole


def test_search_opens_the_catalogue_by_itself(catalogue, drawn, monkeypatch):
    monkeypatch.setattr(helpers, "_default", None)
    assert len(search(3, 20)) == 4


# ---- drawing ---------------------------------------------------------------------------------
def test_search_draws_the_query_and_two_by_two(catalogue, drawn):
    """One figure; the captions are the numbers to go on with, and the labels."""
    found = search(3, 20)
    captions = [f"{one.index}: {one.label}" for one in found]
    assert drawn == [
        [("Query", [f"3: {catalogue.labels[3]}"]), ("faiss compressed 20", captions)]
    ]


def test_two_numbers_of_factors_side_by_side(catalogue, drawn):
    found = helpers.compare(3, [20, 2])
    assert found == [nearest(3, 20), nearest(3, 2)]
    ((query, *grids),) = drawn
    assert query[0] == "Query" and [title for title, _ in grids] == [
        "faiss compressed 20",
        "faiss compressed 2",
    ]


def test_the_figure_fits_a_laptops_screen(catalogue, monkeypatch):
    import matplotlib.pyplot as plt

    sizes = []
    monkeypatch.setattr(plt, "show", lambda: sizes.append(plt.gcf().get_size_inches() * 100))
    search(3, 20)
    helpers.compare(3, [20, 2])
    assert all(height <= 640 for _, height in sizes) and sizes[0][0] <= 1000


def test_fewer_than_four_are_drawn(catalogue, photos, embedded, drawn):
    names, vectors = embedded
    few = Catalogue(photos, names[:3], vectors[:3], ["Hat", "", "Hat"], {})
    search(0, 1, few)
    assert len(drawn[0][1][1]) == 2
    assert any(caption == "1: bag-01.jpg" for caption in drawn[0][1][1]), "no label: the name"


def test_any_text_can_be_drawn(catalogue, photos, drawn, tmp_path, recwarn):
    """Dollars are no formula, and a sign that no font has is no warning."""
    for name in ("$5 & $x_$.jpg", "платье.jpg", "裙子 👗.jpg"):
        (tmp_path / name).write_bytes((photos / "hat-00.jpg").read_bytes())
        helpers.main_image(tmp_path / name, "$Que^^ry$ $")
        search(tmp_path / name, 20)
        assert drawn[-1][0][1] == [name]
    helpers.similar_images([0, 1], "$a^^$ $")
    assert drawn[-1][0][0] == "$a^^$ $"
    assert [str(one.message) for one in recwarn if "Glyph" in str(one.message)] == []


@pytest.mark.slow
def test_a_script_without_a_screen(home, photos, embedded, backbone, tmp_path):
    """It prints what was found, warns of nothing and leaves no figures behind."""
    save_embeddings(tmp_path / "e.safetensors", *embedded, backbone)
    program = (
        "import sys, helpers, matplotlib.pyplot as plt\n"
        "c = helpers.open_catalogue(sys.argv[1], images=sys.argv[2])\n"
        "for i in range(3): found = helpers.search(i, 20, c)\n"
        "print(plt.get_fignums(), found[0])"
    )
    environment = {key: value for key, value in os.environ.items() if "DISPLAY" not in key}
    environment.pop("MPLBACKEND", None)
    ran = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "e.safetensors"), str(photos)],
        cwd=HERE, capture_output=True, text=True, env=environment,
    )
    assert ran.returncode == 0 and ran.stderr == "", ran.stderr
    lines = ran.stdout.splitlines()
    assert lines.count("faiss compressed 20:") == 3
    assert lines[-1] == "[] " + lines[-5].strip()


def test_long_names_are_shortened(catalogue, photos, drawn, tmp_path):
    path = tmp_path / "4285fab0-751a-4b74-8e9b-43af05deee22.jpg"
    path.write_bytes((photos / "hat-00.jpg").read_bytes())
    helpers.main_image(str(path), "Query")
    assert drawn == [[("Query", ["4285fab0...ee22.jpg"])]]


def test_gray_photos_are_drawn_gray(catalogue, photos, monkeypatch):
    import matplotlib.pyplot as plt

    gray = next(
        i
        for i, name in enumerate(catalogue.img_names)
        if Image.open(photo_path(name, photos)).mode == "L"
    )
    shown = []
    monkeypatch.setattr(
        plt,
        "show",
        lambda: shown.append(np.asarray(plt.gcf().axes[0].images[0].get_array())) or plt.close(),
    )
    helpers.main_image(photo_path(catalogue.img_names[gray], photos), "Query")
    assert shown[0].ndim == 3 and (shown[0][..., 0] == shown[0][..., 2]).all()


def test_a_neighbour_reads_as_a_line(catalogue):
    first = nearest(3, 20)[0]
    assert repr(first) == f"{first.name}  {first.label}  {first.distance:.1f}"


def test_a_query_from_outside_is_decoded_once(catalogue, photos, drawn, monkeypatch):
    import lookalike.photos as room

    opened, decode = [], room._decode
    monkeypatch.setattr(room, "_decode", lambda path, small: opened.append(path.name) or decode(
        path, small))
    search(str(photos / "new-00.jpg"), 20)
    assert opened.count("new-00.jpg") == 1 and len(opened) == 5
    assert drawn[0][0] == ("Query", ["new-00.jpg"])


# ---- what people meet when they look at it ---------------------------------------------------
def test_a_catalogue_reads_as_a_line(catalogue):
    assert repr(catalogue).startswith("Catalogue: 56 photos, 1,280 features each, made by")
    assert "\n" not in repr(catalogue) and len(repr(catalogue)) < 150
    assert "\n" not in repr(catalogue.backbone) and len(repr(catalogue.backbone)) < 200


def test_a_catalogue_can_be_compared_and_pickled(catalogue):
    import pickle

    nearest(3, 20)
    catalogue.backbone.embed([Image.new("RGB", (300, 300))])
    assert catalogue == catalogue and catalogue != replace(catalogue)
    again = pickle.loads(pickle.dumps(catalogue))
    assert nearest(3, 20, catalogue=again) == nearest(3, 20)
    assert (
        pickle.loads(pickle.dumps(catalogue.backbone)).fingerprint == catalogue.backbone.fingerprint
    )


def test_another_catalogue_does_not_change_what_search_finds(catalogue, photos, tmp_path):
    before = nearest(3, 20)
    few = tmp_path / "few"
    few.mkdir()
    for name in catalogue.img_names[:9]:
        photo_path(name, few).write_bytes(photo_path(name, photos).read_bytes())
    other = open_catalogue(images=few)
    assert len(other.img_names) == 9 and nearest(3, 20) == before
    open_catalogue(helpers.embeddings_file(few), images=few)
    assert nearest(3, 20) == before
