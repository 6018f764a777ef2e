"""PCA, the index, search and the grids."""
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA

import helpers
from helpers import Catalogue, build_compressed_index, nearest, open_catalogue, pil_loader, search
from lookalike import HERE
from lookalike.photos import BadPhoto


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were shown: for each of their parts its title and the captions."""
    figures = []

    def show():
        figure = plt.gcf()
        figure.canvas.draw()
        figures.append([(part.get_suptitle(), [ax.get_xlabel() for ax in part.axes if ax.images])
                        for part in figure.subfigs])
        plt.close(figure)

    monkeypatch.setattr(plt, "show", show)
    return figures


def distances_to(catalogue, vector, n_features):
    compressed = catalogue.pca.transform(catalogue.img_emb_tensors.numpy())[:, :n_features]
    return ((compressed - vector[:n_features]) ** 2).sum(1)


def few(photos, embedded, n):
    return Catalogue(photos, embedded[0][:n], embedded[1][:n], ["Hat", "", "Hat"][:n], {})


# ---- factors ---------------------------------------------------------------------------------
def test_the_factors_are_those_of_a_fit_with_so_many(catalogue):
    vectors = catalogue.img_emb_tensors.numpy()
    for n in (1, 10, 56):
        pca, index = build_compressed_index(n)
        own = PCA(n_components=n, svd_solver="covariance_eigh").fit(vectors)
        assert pca.n_components_ == index.d == n and index.ntotal == 56
        assert np.allclose(abs(pca.transform(vectors)), abs(own.transform(vectors)), atol=1e-2)
        assert np.isclose(pca.explained_variance_ratio_.sum(), own.explained_variance_ratio_.sum(),
                          atol=1e-4)
        assert np.isclose(pca.noise_variance_, own.noise_variance_, rtol=1e-3, atol=1e-6)
    assert np.isclose(build_compressed_index(10)[0].score(vectors), PCA(
        n_components=10, svd_solver="covariance_eigh").fit(vectors).score(vectors), rtol=1e-3)


def test_pca_is_fitted_once(catalogue, monkeypatch):
    fits, fit = [], PCA.fit
    monkeypatch.setattr(PCA, "fit", lambda self, X: fits.append(1) or fit(self, X))
    for n in (5, 50, 5, 30):
        nearest(3, n)
    assert len(fits) == 1


def test_two_runs_agree(monkeypatch):
    """1,000 photos: there scikit-learn's default solver is randomised, and two runs disagree."""
    vectors = torch.from_numpy(np.random.default_rng(0).random((1000, 200), np.float32))
    runs = []
    for seed in (0, 1):
        np.random.seed(seed)
        many = Catalogue(None, [*map(str, range(1000))], vectors, [""] * 1000, {})
        runs.append([n.index for i in range(100) for n in nearest(i, 50, catalogue=many)])
    assert runs[0] == runs[1]


@pytest.mark.parametrize("factors", [0, -3, 57, 10**9])
def test_factors_out_of_range(catalogue, factors):
    with pytest.raises(ValueError, match=f"factors is {factors}, and must be a whole number from 1 "
                                         "to 56: 56 photos of"):
        build_compressed_index(factors)


@pytest.mark.parametrize("factors", [2.5, "300", None, True, np.arange(3), [3]])
def test_factors_of_the_wrong_type(catalogue, factors):
    with pytest.raises(TypeError, match="factors is .*whole number from 1 to 56"):
        search(3, factors)


# ---- neighbours ------------------------------------------------------------------------------
def test_neighbours_are_the_nearest_in_order(catalogue):
    for query, factors in [(0, 5), (30, 56), (np.int64(55), 20)]:
        distances = distances_to(catalogue, catalogue.compressed[query], factors)
        distances[query] = np.inf
        expected = np.argsort(distances)[:4]
        found = nearest(query, factors)
        assert [n.index for n in found] == expected.tolist()
        assert [n.name for n in found] == [catalogue.img_names[i] for i in expected]
        assert [n.label for n in found] == [catalogue.labels[i] for i in expected]
        assert np.allclose([n.distance for n in found], distances[expected], rtol=1e-3)


def test_the_query_is_left_out_wherever_it_ranks(photos, embedded):
    """Three copies of photo 10: the article would drop one of the copies and show the query."""
    names, vectors = embedded
    copies = Catalogue(photos, ["copy1.jpg", "copy2.jpg", *names],
                       torch.cat([vectors[10:11], vectors[10:11], vectors]), [""] * 58, {})
    for query in (0, 1, 12):
        found = [one.index for one in nearest(query, 20, catalogue=copies)]
        assert len(found) == 4 and query not in found
        assert {*found[:2]} == {0, 1, 12} - {query}


def test_a_photo_of_the_catalogue_by_whatever_way(catalogue, photos, home, monkeypatch):
    """A path, a link, another spelling, a copy, an upload: it is that photo."""
    by_number, name = nearest(7, 20), catalogue.img_names[7]
    (home / "t-shirt.jpg").write_bytes((photos / name).read_bytes())
    (home / "a link.jpg").symlink_to(photos / name)
    upload = {"name": "IMG_1.jpg", "content": memoryview((photos / name).read_bytes())}
    monkeypatch.chdir(photos.parent)
    for query in (str(photos / name), photos / name, name, f"images/../images/{name}",
                  "t-shirt.jpg", home / "a link.jpg", upload, (upload,),
                  SimpleNamespace(value=(upload,))):
        assert nearest(query, 20) == by_number, query


def test_of_two_copies_the_one_that_is_asked_for(known, home, photos):
    mine = home / "mine"
    shutil.copytree(photos, mine)
    (mine / "images.csv").unlink()
    shutil.copy(mine / "hat-00.jpg", mine / "a.jpg")
    catalogue = open_catalogue(images=mine)
    hat = catalogue.img_names.index("hat-00.jpg")
    assert catalogue.find(mine / "hat-00.jpg") == [(hat, None)] != catalogue.find(mine / "a.jpg")
    assert nearest(mine / "hat-00.jpg", 20, 1, catalogue)[0].name == "a.jpg"


def test_a_photo_from_outside_loses_no_neighbour(catalogue, photos):
    new = photos / "new-00.jpg"
    vector = catalogue.pca.transform(catalogue.backbone.embed([pil_loader(new)]).numpy())[0]
    expected = np.argsort(distances_to(catalogue, vector, 30))[:4].tolist()
    assert [n.index for n in nearest(str(new), 30)] == expected
    upload = {"name": "new.jpg", "content": new.read_bytes()}
    assert nearest(Image.open(new), 30) == nearest(upload, 30) == nearest(str(new), 30)


def test_a_photo_that_was_changed_since_the_opening_is_another(known, home, photos, backbone):
    mine = home / "mine"
    shutil.copytree(photos, mine)
    catalogue = open_catalogue(images=mine)
    shutil.copy(mine / "new-00.jpg", mine / catalogue.img_names[7])
    assert catalogue.find(mine / catalogue.img_names[7])[0][0] is None


# ---- more than one like ----------------------------------------------------------------------
def test_several_likes_are_asked_by_their_mean(catalogue, photos):
    new = photos / "new-00.jpg"
    outside = catalogue.pca.transform(catalogue.backbone.embed([pil_loader(new)]).numpy())[0]
    for liked, vectors in (([3, 17], catalogue.compressed[[3, 17]]),
                           ([3, str(new)], np.stack([catalogue.compressed[3], outside])),
                           ((3, Image.open(new)), np.stack([catalogue.compressed[3], outside]))):
        distances = distances_to(catalogue, vectors.mean(axis=0), 30)
        distances[[i for i in liked if isinstance(i, int)]] = np.inf
        assert [n.index for n in nearest(liked, 30)] == np.argsort(distances)[:4].tolist()
    assert nearest([7], 20) == nearest(7, 20)


def test_what_is_liked_twice_counts_once(catalogue, photos):
    path = photos / catalogue.img_names[3]
    assert nearest([3, 3, path, 17], 30) == nearest([3, 17], 30)


def test_what_is_liked_is_not_among_the_answers(catalogue, photos):
    liked = [one.index for one in nearest(3, 20, k=6)]
    path = photos / catalogue.img_names[liked[0]]
    found = nearest([3, path, *liked[1:]], 20, k=49)
    assert len(found) == 49 and not {3, *liked} & {one.index for one in found}


def test_likes_are_drawn_small_at_the_left(catalogue, photos, drawn):
    search([3, 17, photos / "new-00.jpg"], 20)
    (title, captions), _ = drawn[0]
    assert title == "Query" and len(captions) == 3 and captions[2] == "new-00.jpg"
    assert captions[0] == f"3: {catalogue.labels[3]}"


@pytest.mark.parametrize("query", [[], (), SimpleNamespace(value=())])
def test_nothing_is_liked(catalogue, query):
    with pytest.raises(ValueError, match="the query is empty: give at least one photo"):
        search(query, 20)


# ---- queries that are not right --------------------------------------------------------------
@pytest.mark.parametrize("query, factors, said", [
    (100, 300, "photo 55 in place of 100, factors 56 in place of 300"),
    (5, 300, "factors 56 in place of 300"), (10**9, 20, "photo 55 in place of 1000000000"),
    (10**5000, 20, "photo 55 in place of a number of thousands of digits"), (3, 20, "")],
    ids="abcde")
def test_examples_fit_what_is_there(catalogue, capsys, query, factors, said):
    capsys.readouterr()
    found = search(query, factors)
    assert found == nearest(min(query, 55), min(factors, 56))
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"56 photos here, so {said}" if said else "photos here" not in first


def test_examples_of_several_fit_too(catalogue, capsys):
    assert search([3, 100], 300) == nearest([3, 55], 56)
    said = capsys.readouterr().out.splitlines()
    assert said[-3:-1] == ["56 photos here, so photo 55 in place of 100",
                           "56 photos here, so factors 56 in place of 300"]
    helpers.compare(100, [20, 2])
    assert capsys.readouterr().out.count("photo 55 in place of 100") == 1


def test_a_number_below_0(catalogue):
    with pytest.raises(ValueError, match="number of the query is -1, and must be a whole number "
                                         "from 0 to 55"):
        search(-1, 20)


@pytest.mark.parametrize("query, kind", [
    (1.0, "float"), (None, "NoneType"), (b"a.jpg", "bytes"), (True, "bool"), ([1, 2.5], "float"),
    (np.zeros((1, 1280)), "ndarray"), (torch.zeros(1280), "Tensor"), ({"a": 1}, "dict")])
def test_query_of_the_wrong_type(catalogue, query, kind):
    with pytest.raises(TypeError, match=f"query is a {kind}: give a photo's number, its path"):
        search(query, 20)


@pytest.mark.parametrize("query, error, words", [
    ("7", FileNotFoundError, "'7': if you mean the photo.*quotes"),
    ("7" * 300, FileNotFoundError, "quotes"), ("t-shirt.jpg", FileNotFoundError, "'t-shirt.jpg'"),
    ("https://example.org/a.jpg", ValueError, "must be downloaded"), ("", ValueError, "is ''"),
    ("~1.jpg", FileNotFoundError, "'~1.jpg'"), ("a" * 300, FileNotFoundError, "check its name"),
    ("a\0.jpg", FileNotFoundError, "check its name"), ("~", BadPhoto, "a folder")])
def test_queries_that_are_meant_otherwise(catalogue, tmp_path, monkeypatch, query, error, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words) as said:
        search(query, 20)
    assert len(str(said.value)) < 300


def test_numbers_of_any_library(catalogue):
    assert nearest(np.int64(7), 20) == nearest(np.array(7), 20) == nearest(torch.tensor(7), 20) == \
        nearest(7, np.int32(20)) == nearest(7, 20)


def test_a_picture_that_is_no_photo(catalogue, tmp_path):
    with pytest.raises(BadPhoto, match="your picture: 1x8000.*crop it first"):
        search(Image.new("RGB", (1, 8000)), 20)
    (tmp_path / "t-shirt.jpg").touch()
    with pytest.raises(BadPhoto, match="t-shirt.jpg: the file is empty"):
        search(tmp_path / "t-shirt.jpg", 20)
    Image.linear_gradient("L").save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:600])
    with pytest.raises(BadPhoto, match="your picture: damaged"):
        search(Image.open(tmp_path / "cut.jpg"), 20)
    with pytest.raises(BadPhoto, match="list.jpg: not a photo"):
        search({"name": "list.jpg", "content": b"milk, bread"}, 20)


def test_more_neighbours_than_photos(photos, embedded):
    """faiss would fill up with -1, which Python takes for the last photo."""
    three, one = few(photos, embedded, 3), few(photos, embedded, 1)
    assert len(nearest(0, 2, catalogue=three)) == len(nearest(0, 2, 3, three)) == 2
    assert len(search(0, 2, three)) == 2
    with pytest.raises(ValueError, match="takes two"):
        search(0, 1, one)


@pytest.mark.parametrize("k", [0, -1])
def test_no_neighbours(catalogue, k):
    with pytest.raises(ValueError, match=f"number of neighbours is {k}"):
        nearest(0, 20, k=k)


def test_a_network_that_gives_nan(catalogue, photos, monkeypatch):
    monkeypatch.setattr(helpers.Backbone, "embed",
                        lambda self, photos: torch.full((1, 1280), float("nan")))
    with pytest.raises(ValueError, match="no finite vector"):
        nearest(str(photos / "new-00.jpg"), 20)


# ---- which network ---------------------------------------------------------------------------
def test_vectors_of_two_networks_never_meet(catalogue, photos):
    catalogue.about = {**catalogue.about, "fingerprint": "another"}
    assert nearest(3, 20), "photos of the catalogue need no network"
    with pytest.raises(ValueError, match="distances between the two mean nothing"):
        nearest(str(photos / "new-00.jpg"), 20)


def test_embeddings_that_do_not_say_what_made_them(known, home, photos, embedded):
    """The article's own pickle, made by the reader."""
    with open(home / "mine.pickle", "wb") as handle:
        pickle.dump(list(embedded), handle, protocol=pickle.HIGHEST_PROTOCOL)
    names, vectors = helpers.load_embeddings(home / "mine.pickle", trusted=True)
    catalogue = Catalogue(photos, names, vectors, [""] * len(names), {})
    assert len(nearest(3, 20, catalogue=catalogue)) == 4
    with pytest.raises(ValueError, match="do not say which network"):
        nearest(str(photos / "new-00.jpg"), 20, catalogue=catalogue)


# ---- opening ---------------------------------------------------------------------------------
def test_photos_to_ask_with(catalogue, photos, home):
    """Those that the table leaves out; without one the last ones, never their own answer."""
    assert catalogue.new_photos() == [photos / "new-00.jpg", photos / "new-01.jpg"]
    (home / "own").mkdir()
    for name in catalogue.img_names[:20]:
        shutil.copy(photos / name, home / "own")
    own = open_catalogue(images=home / "own")
    new = own.new_photos()
    assert [path.name for path in new] == own.img_names[4:] and len(own.img_names) == 20
    assert all(len(found := nearest(path, 9, 20, own)) == 19 and
               path.name not in [one.name for one in found] for path in new)


def test_a_network_by_its_name(known, home, photos, backbone):
    assert open_catalogue(photos, "efficientnet_lite1").about == backbone.about
    with pytest.raises(ValueError, match="no backbone is called 'resnet51'"):
        open_catalogue(photos, "resnet51")


def test_search_opens_the_catalogue_by_itself(catalogue, drawn):
    helpers.opened.clear()
    assert len(search(3, 20)) == 4


def test_another_catalogue_does_not_change_what_search_finds(catalogue, photos, home, drawn):
    before = nearest(3, 20)
    (home / "few").mkdir()
    for name in catalogue.img_names[:9]:
        shutil.copy(photos / name, home / "few")
    other = open_catalogue(images=home / "few")
    assert len(other.img_names) == 9 and nearest(3, 20) == before
    search(3, 5)
    search(3, 5, other)
    assert [figure[1][0] for figure in drawn] == ["faiss compressed 5, images/",
                                                  "faiss compressed 5, few/"]


# ---- drawing ---------------------------------------------------------------------------------
def test_search_draws_the_query_and_two_by_two(catalogue, drawn):
    """One figure; the captions are the numbers to go on with, and the labels."""
    captions = [f"{one.index}: {one.label}" for one in search(3, 20)]
    assert drawn == [[("Query", [f"3: {catalogue.labels[3]}"]),
                      ("faiss compressed 20, images/", captions)]]


def test_two_numbers_of_factors_side_by_side(catalogue, drawn):
    assert helpers.compare(3, [20, 2]) == [nearest(3, 20), nearest(3, 2)]
    assert helpers.compare(3, 20) == [nearest(3, 20)]
    assert [title for title, _ in drawn[0]] == ["Query", "faiss compressed 20, images/",
                                                "faiss compressed 2, images/"]


def test_the_figure_fits_a_laptops_screen(catalogue, monkeypatch):
    sizes = []
    monkeypatch.setattr(plt, "show", lambda: sizes.append(plt.gcf().get_size_inches() * 100))
    search(3, 20)
    helpers.compare(3, [20, 2])
    assert all(height <= 640 for _, height in sizes) and sizes[0][0] <= 1000


def test_fewer_than_four_are_drawn(photos, embedded, drawn):
    search(0, 1, few(photos, embedded, 3))
    assert len(drawn[0][1][1]) == 2
    assert "1: bag-01.jpg" in drawn[0][1][1], "no label: the name"


def test_a_photo_that_was_deleted_since_the_opening(known, home, photos, drawn):
    mine = home / "mine"
    shutil.copytree(photos, mine)
    catalogue = open_catalogue(images=mine)
    found = nearest(3, 20, catalogue=catalogue)
    (mine / found[1].name).unlink()
    assert search(3, 20, catalogue) == found
    assert drawn[0][1][1][1] == f"{found[1].index}: cannot be read now"


def test_a_photo_that_was_changed_is_not_drawn_as_the_old_one(known, home, photos, drawn):
    mine = home / "mine"
    shutil.copytree(photos, mine)
    catalogue = open_catalogue(images=mine)
    shutil.copy(mine / "new-00.jpg", mine / catalogue.img_names[3])
    search(3, 20, catalogue)
    assert drawn[0][0][1] == ["3: changed, open it anew"]


def test_similar_images_are_four_at_most(catalogue, drawn):
    helpers.similar_images(range(9), "any")
    assert [len(captions) for _, captions in drawn[0]] == [4]
    helpers.similar_images(nearest(3, 20), "what was found")
    assert [len(captions) for _, captions in drawn[1]] == [4]


def test_a_folder_is_no_catalogue(photos):
    with pytest.raises(TypeError, match=r"is no catalogue: give open_catalogue\("):
        search(3, 10, str(photos))


@pytest.mark.parametrize("indices", [[-1], [True], [56], [0, 1.0]])
def test_similar_images_of_photos_that_are_none(catalogue, indices):
    with pytest.raises((ValueError, TypeError), match="a photo's number is .* from 0 to 55"):
        helpers.similar_images(indices, "any")


def test_any_text_can_be_drawn(catalogue, photos, drawn, tmp_path, recwarn):
    """Dollars are no formula, and a sign that no font has is no warning."""
    for name in ("$5 & $x_$.jpg", "платье.jpg", "裙子 👗.jpg"):
        shutil.copy(photos / "new-00.jpg", tmp_path / name)
        helpers.main_image(tmp_path / name, "$Que^^ry$ $")
        search(tmp_path / name, 20)
        assert drawn[-1][0][1] == [name]
    helpers.similar_images([0, 1], "$a^^$ $")
    assert drawn[-1][0][0] == "$a^^$ $"
    assert [str(one.message) for one in recwarn if "Glyph" in str(one.message)] == []


@pytest.mark.slow
def test_a_script_without_a_screen(photos):
    """It prints what was found, warns of nothing and leaves no figures behind."""
    program = ("import sys, helpers, matplotlib.pyplot as plt\n"
               "for i in range(3): found = helpers.search(i, 20)\n"
               "print(plt.get_fignums(), found[0])")
    environment = {key: value for key, value in os.environ.items()
                   if "DISPLAY" not in key and key != "MPLBACKEND"}
    ran = subprocess.run([sys.executable, "-c", program], cwd=HERE, capture_output=True, text=True,
                         env=environment | {"FASHION_IMAGES": str(photos)})
    assert ran.returncode == 0 and ran.stderr == "", ran.stderr
    lines = ran.stdout.splitlines()
    assert sum(line.startswith("faiss compressed 20, images/: ") for line in lines) == 3
    assert lines[-1].startswith("[] ") and lines[-1][3:] in lines[-2]


def test_long_names_are_shortened(photos, drawn, tmp_path):
    path = tmp_path / "4285fab0-751a-4b74-8e9b-43af05deee22.jpg"
    path.write_bytes((photos / "hat-00.jpg").read_bytes())
    helpers.main_image(str(path), "Query")
    assert drawn == [[("Query", ["4285fab0...ee22.jpg"])]]


def test_gray_photos_are_drawn_gray(photos, monkeypatch):
    gray = next(path for path in photos.glob("*.jpg") if Image.open(path).mode == "L")
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(np.asarray(
        plt.gcf().axes[0].images[0].get_array())) or plt.close())
    helpers.main_image(gray, "Query")
    assert shown[0].ndim == 3 and (shown[0][..., 0] == shown[0][..., 2]).all()


def test_a_query_from_outside_is_decoded_once(catalogue, photos, drawn, monkeypatch):
    import lookalike.photos as room
    opened, read_photo = [], room.read_photo
    monkeypatch.setattr(room, "read_photo", lambda f, path, small: opened.append(path.name) or
                        read_photo(f, path, small))
    search(str(photos / "new-00.jpg"), 20)
    assert opened.count("new-00.jpg") == 1 and len(opened) == 5


# ---- what people meet when they look at it ---------------------------------------------------
@pytest.mark.parametrize("distance, shown", [(47.56, "47.6"), (0.51234, "0.512"), (1352.4, "1352"),
                                             (0.0, "0"), (-1e-6, "0"), (123.4, "123")])
def test_a_neighbour_reads_as_what_one_can_go_on_with(distance, shown):
    assert repr(helpers.Neighbour("a.jpg", "T-Shirt", distance, 1352)) == f"1352 T-Shirt {shown}"
    assert repr(helpers.Neighbour("a.jpg", "", distance, 7)) == f"7 {shown}"


def test_a_catalogue_reads_as_a_line(catalogue):
    assert repr(catalogue).startswith("Catalogue: 56 photos, 1,280 features each, made by")
    assert "\n" not in repr(catalogue) and len(repr(catalogue)) < 150
    assert "\n" not in repr(catalogue.backbone) and len(repr(catalogue.backbone)) < 200


def test_a_catalogue_can_be_compared_and_pickled(catalogue):
    nearest(3, 20)
    catalogue.backbone.embed([Image.new("RGB", (300, 300))])
    assert catalogue == catalogue and catalogue != replace(catalogue)
    again = pickle.loads(pickle.dumps(catalogue))
    assert nearest(3, 20, catalogue=again) == nearest(3, 20)
    assert pickle.loads(pickle.dumps(catalogue.backbone)).about == catalogue.backbone.about
