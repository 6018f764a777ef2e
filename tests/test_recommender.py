"""The recommender: each photo once, labels, groups, factors, and the nearest photos."""
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA

from lookalike import recommender
from lookalike.photos import BadPhoto
from lookalike.recommender import Catalogue, Neighbour, build_compressed_index, nearest
from lookalike.recommender import open_catalogue


def put(folder, *names, table=None):
    """A photo of its own under each name, and a table."""
    folder.mkdir(exist_ok=True)
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(255, size=(8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    if table:
        (folder / "images.csv").write_text(table, encoding="utf-8")
    return folder


def copy(folder, name, *others):
    for other in others:
        shutil.copy(folder / name, folder / other)


def on_a_line(*places, groups=None):
    """A catalogue of photos that lie at these places."""
    names = [str(i) for i in range(len(places))]
    vectors = torch.zeros(len(places), 2)
    vectors[:, 0] = torch.tensor(places)
    return Catalogue(Path(), names, vectors, [""] * len(names), groups or [""] * len(names), {},
                     [name.encode() for name in names])


def numbers(found):
    return [one.index for one in found]


# ---- each photo once -------------------------------------------------------------------------
def test_a_photo_is_in_the_catalogue_once(home, tiny):
    mine = put(home / "mine", "a.png", "b.png", "c.png")
    copy(mine, "b.png", "0.png", "z.png")
    catalogue = open_catalogue(mine, tiny)
    assert catalogue.img_names == ["0.png", "a.png", "c.png"]
    assert catalogue.copies == {"b.png": "0.png", "z.png": "0.png"} and catalogue.new_photos == []
    found = nearest(0, 3, catalogue=catalogue)
    assert numbers(found) in ([1, 2], [2, 1]), "a photo is not recommended to itself"
    with pytest.raises(TypeError, match="pass the catalogue by name"):
        nearest(0, 3, catalogue)
    for query in ("b.png", mine / "z.png", str(mine / "0.png")):
        assert nearest(query, 3, catalogue=catalogue) == found


@pytest.mark.parametrize("listed", ["a.png", "b.png"])
def test_a_copy_in_the_table_is_enough(home, tiny, capsys, listed):
    mine = put(home / "mine", "a.png", "c.png", "new.png", table=f"image,label\n{listed},Hat\nc,\n")
    copy(mine, "a.png", "b.png")
    catalogue = open_catalogue(mine, tiny)
    assert (catalogue.img_names, catalogue.labels) == ([listed, "c.png"], ["Hat", ""])
    assert catalogue.new_photos == [mine / "new.png"]
    assert {*catalogue.copies, *catalogue.img_names} == {"a.png", "b.png", "c.png"}
    assert "Set aside as new: 1 photos that are not in images.csv" in capsys.readouterr().out


def test_copies_that_disagree_have_no_label_and_no_group(home, tiny, capsys):
    mine = put(home / "mine", "a.png", "c.png", table=(
        "image,label,sender_id\na,Hat,1\nb.png,Bag,2\nc.png,Hat,1\nd.png,,1\n"))
    copy(mine, "a.png", "b.png")
    copy(mine, "c.png", "d.png")
    catalogue = open_catalogue(mine, tiny, groups="sender_id")
    assert catalogue.labels == ["", "Hat"] and catalogue.groups == ["", "1"]
    assert catalogue.column("sender_id") == ["", "1"]
    said = capsys.readouterr().out
    for what in ("labels", "groups"):
        assert (f"1 photos have several {what}, since copies of them disagree, so we use none of "
                "these. The first is 'a.png'\n") in said


# ---- labels and groups -----------------------------------------------------------------------
@pytest.mark.parametrize("labels, expected", [
    (None, ["Hat", ""]), ("colour", ["", "red", "blue"]),
    ({"a.png": 7, "b": float("nan"), "sub/c": 12.5}, ["7", "", "12.5"]),
    ({"a.png": "exact", "A.PNG": "another", "B": "b"}, ["exact", "b", ""]),
    (lambda name: name[0], ["a", "b", "s"]), (lambda name: {"b.png": "n/a"}.get(name),
                                              ["", "n/a", ""])])
def test_labels_in_three_forms(home, tiny, labels, expected):
    """Only the table that is found by itself sets photos aside as new."""
    rows = "image,label,colour\na,Hat,None\nb,,red\n" + "c,,blue\n" * (labels is not None)
    mine = put(home / "mine", "a.png", "b.png", "sub/c.png", table=rows)
    catalogue = open_catalogue(mine, tiny, labels=labels)
    assert catalogue.labels == expected
    assert catalogue.new_photos == ([mine / "sub/c.png"] if labels is None else [])


@pytest.mark.parametrize("groups, expected", [
    ({"a.png": 1, "b.png": 1, "c": None}, [1, 1, ""]), (lambda name: name[0], ["a", "b", "s"]),
    (lambda name: ("shoe", name > "b"), [("shoe", False), ("shoe", True), ("shoe", True)])])
def test_groups_are_taken_as_they_are(home, tiny, groups, expected):
    mine = put(home / "mine", "a.png", "b.png", "sub/c.png")
    assert open_catalogue(mine, tiny, groups=groups).groups == expected


def test_a_neighbour_is_of_another_group_and_of_a_group_of_its_own():
    catalogue = on_a_line(0., 1, 2, 4, 8, 16, 32, groups=["a", "a", "b", "b", "", None, "c"])
    assert numbers(nearest(0, 2, 4, catalogue)) == [2, 4, 5, 6]
    assert numbers(nearest(0, 2, 9, catalogue)) == [2, 4, 5, 6], "no more groups than these"
    assert numbers(nearest([0, 3], 2, 4, catalogue)) == [4, 5, 6], "both groups are left out"
    assert numbers(nearest(4, 2, 2, catalogue)) == [3, 1], "a photo without a group is one"
    assert numbers(nearest(0, 2, 6, replace(catalogue, groups=[""] * 7))) == [1, 2, 3, 4, 5, 6]


def test_it_searches_until_it_has_found_enough():
    places = [float(i) for i in range(400)]
    catalogue = on_a_line(*places, groups=["near"] * 300 + [i // 10 for i in range(100)])
    assert numbers(nearest(0, 2, 4, catalogue)) == [300, 310, 320, 330]
    assert numbers(nearest(399, 2, 4, catalogue)) == [389, 379, 369, 359]


def test_a_photo_from_outside_has_no_group(home, tiny, capsys):
    mine = put(home / "mine", "a.png", "b.png", "c.png")
    catalogue = open_catalogue(mine, tiny, groups=lambda name: "all")
    assert "All 3 photos are in one group, 'all', so no photo recommends" in capsys.readouterr().out
    image = Image.open(mine / "a.png")
    assert numbers(nearest(image, 3, catalogue=catalogue)) == [0]
    copy(mine, "a.png", "of the same bytes.png")
    assert nearest(mine / "of the same bytes.png", 3, catalogue=catalogue) == []


# ---- opening ---------------------------------------------------------------------------------
@pytest.mark.parametrize("path", ["", "/no/such/folder", "a" * 300, "~nobody/photos", "a\0b"])
def test_a_folder_that_is_not_there(home, path):
    with pytest.raises(FileNotFoundError, match="images is '.*which is not a folder"):
        open_catalogue(path)


def test_what_is_no_folder_no_network_and_no_catalogue(home, tiny):
    with pytest.raises(TypeError, match="images is 5: pass the path of a folder"):
        open_catalogue(5)
    with pytest.raises(ValueError, match="no network is called 'resnet51'"):
        open_catalogue(put(home / "mine", "a.png"), "resnet51")
    with pytest.raises(TypeError, match="backbone is .*: pass a network's name"):
        open_catalogue(home / "mine", {"a.png": "Hat"})
    with pytest.raises(TypeError, match=r"is not a catalogue: pass open_catalogue\("):
        nearest(3, 10, 4, "mine")


def test_photos_that_cannot_be_used_are_counted(home, tiny, capsys):
    mine = put(home / "mine", "a.png")
    for i in range(60):
        (mine / f"\x1b[2J{i:02}.jpg").write_text(f"no photo {i}")
    catalogue = open_catalogue(mine, tiny)
    assert catalogue.img_names == ["a.png"] and len(catalogue.skipped) == 60
    lines = [line for line in capsys.readouterr().out.splitlines() if "Left out" in line]
    assert len(lines) == 1 and len(lines[0]) < 500 and "\x1b" not in lines[0]
    assert lines[0].startswith("Left out, 60 photos: ?[2J00.jpg: not a readable photo")
    assert lines[0].endswith(" and 57 more; catalogue.skipped has all")
    (mine / "a.png").unlink()
    with pytest.raises(BadPhoto, match="none of its 60 photos can be used. The .*: not a readable"):
        open_catalogue(mine, tiny)
    links = put(home / "links", table="image,label\na,Hat\n")
    (links / "a.jpg").symlink_to("/no/such")
    with pytest.raises(BadPhoto, match="none of its 1 photos can be used. The .*: No such file"):
        open_catalogue(links, tiny)


def test_only_the_tutorials_catalogue_is_the_default(catalogue, photos, home, backbone):
    before = nearest(3, 20)
    (home / "few").mkdir()
    for name in catalogue.img_names[:9]:
        shutil.copy(photos / name, home / "few")
    other = open_catalogue(home / "few", "efficientnet_lite1")
    assert len(other.img_names) == 9 and other.about == backbone.about
    open_catalogue(backbone=backbone)
    assert recommender.opened == [catalogue] and nearest(3, 20) == before
    grouped = open_catalogue(groups="sender_id")
    assert recommender.opened == [grouped] and nearest(3, 20) == nearest(3, 20, catalogue=grouped)
    assert grouped.groups == grouped.column("sender_id") != [""] * 56
    assert grouped.new_photos == [photos / "new-00.jpg", photos / "new-01.jpg"]


def test_without_an_open_catalogue_nothing_is_downloaded(home, capsys):
    for search in (lambda: nearest(0, 5), lambda: build_compressed_index(5)):
        with pytest.raises(ValueError, match=r"no catalogue is open: pass .*open_catalogue\('my"):
            search()
    assert capsys.readouterr().out == "" and [*home.iterdir()] == []


# ---- factors ---------------------------------------------------------------------------------
def test_the_factors_are_those_of_a_fit_with_so_many(catalogue):
    vectors = catalogue.img_emb_tensors.numpy()
    for n in (1, 10, 56):
        pca, index = build_compressed_index(n)
        own = PCA(n_components=n, svd_solver="covariance_eigh").fit(vectors)
        assert pca.n_components_ == index.d == n and index.ntotal == 56
        assert np.shares_memory(pca.components_, catalogue.pca.components_), "fitted once"
        assert np.allclose(abs(pca.transform(vectors)), abs(own.transform(vectors)), atol=1e-2)
        assert np.isclose(pca.explained_variance_ratio_.sum(), own.explained_variance_ratio_.sum(),
                          atol=1e-4)
        assert np.isclose(pca.noise_variance_, own.noise_variance_, rtol=1e-3, atol=1e-6)


def test_two_runs_agree():
    """1,000 photos: there scikit-learn's default solver is randomised, and two runs disagree."""
    many, runs = on_a_line(*[0.] * 1000), []
    many.img_emb_tensors = torch.rand(1000, 200)
    for seed in (0, 1):
        np.random.seed(seed)
        runs.append([numbers(nearest(i, 50, catalogue=replace(many))) for i in (0, 1)])
    assert runs[0] == runs[1]


@pytest.mark.parametrize("factors", [0, -3, 57, 10**9, 2.5, "300", None, True, [3]])
def test_factors_that_no_index_can_have(catalogue, factors):
    with pytest.raises((ValueError, TypeError), match="number of factors is .* must be (a whole"
                       "|from 1 to 56: 56 photos with 1,280 features have no more)"):
        build_compressed_index(factors)


def test_too_many_factors_are_lowered_and_that_is_said_once(catalogue, capsys):
    capsys.readouterr()
    assert nearest(3, 57) == nearest(3, 10**9) == nearest(3, 56)
    note = "56 photos with 1,280 features have at most 56 factors, so we use these\n"
    assert capsys.readouterr().out == note
    nearest(3, 300, catalogue=open_catalogue(catalogue.images))
    assert note in capsys.readouterr().out, "once for each catalogue"
    with pytest.raises(ValueError, match="the number of factors is 0. It must be at least 1"):
        nearest(3, 0)


# ---- neighbours ------------------------------------------------------------------------------
def test_neighbours_are_the_nearest_in_order(catalogue):
    for query, factors in [(0, 5), (30, 56), (np.int64(55), np.int32(20))]:
        compressed = catalogue.pca.transform(catalogue.img_emb_tensors.numpy())[:, :factors]
        distances = ((compressed - compressed[query]) ** 2).sum(axis=1)
        distances[query] = np.inf
        expected = np.argsort(distances)[:4]
        found = nearest(query, factors)
        assert numbers(found) == expected.tolist()
        assert [one.name for one in found] == [catalogue.img_names[i] for i in expected]
        assert [one.label for one in found] == [catalogue.labels[i] for i in expected]
        assert np.allclose([one.distance for one in found], distances[expected], rtol=1e-3)


def test_the_query_is_left_out_wherever_it_ranks():
    """Of equal vectors the article drops the first, and shows the query."""
    catalogue = on_a_line(5., 5, 5, 7, 9, 0)
    for query in (0, 1, 2):
        found = numbers(nearest(query, 2, catalogue=catalogue))
        assert {*found[:2]} == {0, 1, 2} - {query} and found[2:] == [3, 4]


def test_more_neighbours_than_photos():
    """faiss would fill up with -1, which Python takes for the last photo."""
    assert numbers(nearest(0, 2, 9, on_a_line(0., 1, 3))) == [1, 2]
    with pytest.raises(ValueError, match="needs at least two"):
        nearest(0, 1, catalogue=on_a_line(0.))


@pytest.mark.parametrize("k", [0, -1, 2.5])
def test_no_neighbours(catalogue, k):
    with pytest.raises((ValueError, TypeError), match=f"the number of neighbours, is {k}"):
        nearest(0, 20, k=k)


# ---- which network ---------------------------------------------------------------------------
def test_vectors_of_two_networks_never_meet(catalogue, photos):
    catalogue.about = {**catalogue.about, "fingerprint": "another"}
    assert nearest(3, 20), "photos of the catalogue need no network"
    with pytest.raises(ValueError, match="distances between the two mean nothing"):
        nearest(photos / "new-00.jpg", 20)


def test_a_network_that_gives_nan(home, tiny):
    mine = put(home / "mine", "a.png", "b.png")
    catalogue = open_catalogue(mine, tiny)
    damaged = torch.nn.Sequential(tiny.network, torch.nn.Threshold(1e9, float("nan")))
    catalogue.backbone = replace(tiny, network=damaged)
    with pytest.raises(ValueError, match="not finite: its weights are damaged"):
        nearest(Image.open(mine / "a.png"), 2, catalogue=catalogue)


# ---- what people meet when they look at it ---------------------------------------------------
@pytest.mark.parametrize("distance, shown", [(47.56, "47.6"), (0.51234, "0.512"), (1352.4, "1352"),
                                             (0.0, "0"), (-1e-6, "0"), (123.4, "123")])
def test_a_neighbour_reads_as_what_one_can_go_on_with(distance, shown):
    assert repr(Neighbour("a.jpg", "T-Shirt", distance, 1352)) == f"1352 T-Shirt {shown}"
    assert repr(Neighbour("a.jpg", "\x1b[2J \n", distance, 7)) == f"7 ?[2J {shown}"


def test_a_catalogue_reads_as_a_line_and_can_be_pickled(catalogue):
    assert repr(catalogue).startswith("Catalogue: 56 photos, 1,280 features each, made by")
    assert "\n" not in repr(catalogue) and len(repr(catalogue)) < 150
    before = nearest(3, 20)
    catalogue.backbone.embed([Image.new("RGB", (300, 300))])
    assert nearest(3, 20, catalogue=pickle.loads(pickle.dumps(catalogue))) == before
    assert pickle.loads(pickle.dumps(catalogue.backbone)).about == catalogue.backbone.about
    assert catalogue == catalogue and catalogue != replace(catalogue)
