"""The notebooks beside nbval's run of every cell: their checks, exercises, bodies, and ResNet50."""

import os
import shutil
import subprocess
import sys

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from notebook_checks import alike, answered
from sklearn.decomposition import PCA
from tqdm import tqdm

import helpers
from helpers import photo_path
from lookalike import HERE


def test_alike():
    text = "[images/a.jpg  T-Shirt  76.9,\n images/b.jpg  Polo  91.6]"
    assert alike(text, text)
    assert alike(text.replace("76.9", "77.0"), text), "the last digit may differ"
    assert not alike(text.replace("76.9", "79.9"), text)
    assert not alike(text.replace("b.jpg", "c.jpg"), text)
    assert not alike(text.replace("Polo", "Hat"), text)
    assert not alike("found 3", "found 4"), "whole numbers must not"
    assert not alike("P@5 0.683", "P@5 0.659")
    assert not alike("P@5 0.683", "P@5 0.683, 0.683")


def test_exercises_are_answered():
    solution = nbformat.v4.new_markdown_cell("<details>\n\n```python\nx = 7\n```\n</details>")
    source = answered("x = None  # your answer\n\ncheck(x)", solution)
    right = {"check": lambda x: "right" if x == 7 else "not yet"}
    exec(source, right)
    with pytest.raises(AssertionError):
        exec(source, {"check": lambda x: "not yet"})
    with pytest.raises(AssertionError):
        exec(source, {"check": lambda x: "right"})


def shown(name, words):
    """The source of the first cell of a notebook that has the words in it."""
    cells = nbformat.read(HERE / "notebooks" / name, 4).cells
    found = [cell.source for cell in cells if cell.cell_type == "code" and words in cell.source]
    assert found, f"{name} no longer shows {words!r}"
    return found[0]


# ---- the body that a notebook shows and the helper's give the same ---------------------------
def test_the_search_that_notebook_04_shows(catalogue, photos):
    space = {
        "catalogue": catalogue,
        "img_names": catalogue.img_names,
        "np": np,
        "photo_path": photo_path,
        "pil_loader": helpers.pil_loader,
        "build_compressed_index": helpers.build_compressed_index,
    }
    exec(shown("04_recommender.ipynb", "def search(").partition("\nsearch(")[0], space)
    drawn = []
    space["similar_images"] = lambda indices, suptitle: drawn.append((indices[:4], suptitle))
    for query, factors in ((3, 20), (40, 56), (str(photos / "new-00.jpg"), 30)):
        space["search"](query, factors)
        indices = [one.index for one in helpers.nearest(query, factors)]
        assert drawn.pop() == (indices, f"faiss compressed {factors}")


def test_a_t_shirt_of_ones_own_stays(home, catalogue, photos, capsys):
    code = "\n".join(shown("04_recommender.ipynb", words)
                     for words in ("shutil.copyfile", 'search("t-shirt.jpg"'))
    asked = []
    space = {"catalogue": catalogue, "query": 0, "new_photos": sorted(photos.glob("new*.jpg")),
             "search": lambda query, factors: asked.append((home / query).read_bytes())}
    capsys.readouterr()
    exec(code, space)
    exec(code, space)
    assert asked == [space["new_photos"][-1].read_bytes()] * 2
    (home / "t-shirt.jpg").write_bytes(b"mine")
    assert "there already" not in capsys.readouterr().out
    exec(code, space)
    assert asked.pop() == b"mine" and "there already" in capsys.readouterr().out


def test_the_loop_that_notebook_01_shows(photos, backbone, embedded):
    space = {
        "backbone": backbone,
        "img_names": embedded[0],
        "images": photos,
        "tqdm": tqdm,
        "photo_path": photo_path,
        "pil_loader": helpers.pil_loader,
        "torch": torch,
        "sys": sys,
    }
    exec(shown("01_feature_extraction.ipynb", "for name in tqdm(some"), space)
    assert torch.allclose(space["img_emb"], embedded[1][:16], atol=1e-3)


def test_the_pca_that_notebook_02_shows(catalogue):
    space = {"X": catalogue.img_emb_tensors.numpy(), "PCA": PCA, "np": np}
    exec(shown("02_pca_compression.ipynb", "pca = PCA(n_components=min(X.shape)"), space)
    assert np.allclose(space["pca"].transform(space["X"]), catalogue.compressed, atol=1e-3)


# ---- folders of a reader's own ---------------------------------------------------------------
def checkout_in(folder):
    """A copy of what the notebooks need, where what they write harms nobody."""
    away = shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__", "*.html", "t-shirt.jpg")
    for name in ("notebooks", "lookalike", "tests"):
        shutil.copytree(HERE / name, folder / name, ignore=away)
    for name in ("helpers.py", "pyproject.toml", "requirements.txt", helpers.EMB_FILENAME.name):
        shutil.copy(HERE / name, folder)
    return folder


def twelve_without_labels(folder, drawn):
    for path in drawn[::5][:12]:
        shutil.copy(path, folder)
    (folder / "notes.txt").touch()


def eighty_in_classes(folder, drawn):
    """A folder a class; two dollars in its name are no formula, in no figure."""
    for path in drawn[:80]:
        place = folder / f"{path.name.rpartition('-')[0]} $5^^ $6"
        place.mkdir(exist_ok=True)
        shutil.copy(path, place)


def a_thousand(folder, drawn):
    for number in range(1000):
        path = drawn[number % len(drawn)]
        shutil.copy(path, folder / f"{number}: $5 & $6 {path.name}")


@pytest.mark.slow
@pytest.mark.parametrize("fill", [twelve_without_labels, eighty_in_classes, a_thousand],
                         ids=lambda fill: fill.__name__)
def test_any_folder_runs(fill, tmp_path, monkeypatch):
    """Every cell of notebooks 01 to 04, and of 05 where that is quick, whatever MPLBACKEND says."""
    from lookalike.stand_in import draw_catalogue

    drawn = sorted(draw_catalogue(tmp_path / "drawn", a_kind=7, new=1).glob("*.jpg"))
    (tmp_path / "mine").mkdir()
    fill(tmp_path / "mine", drawn)
    checkout = checkout_in(tmp_path / "checkout")
    monkeypatch.setenv("FASHION_IMAGES", str(tmp_path / "mine"))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    last = 4 if fill is a_thousand else 5
    notebooks = sorted((checkout / "notebooks").glob(f"0[1-{last}]_*.ipynb"))
    ran = subprocess.run([sys.executable, "-m", "pytest", "-q", *notebooks], cwd=checkout,
                         capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-5000:]
    assert (checkout / "t-shirt.jpg").exists() and (checkout / "embeddings").is_dir()


@pytest.mark.slow
def test_a_notebook_from_another_working_folder_draws(tmp_path, monkeypatch, photos):
    """Pictures too with a backend that has no screen, as containers set it."""
    checkout = checkout_in(tmp_path / "checkout")
    monkeypatch.setenv("FASHION_IMAGES", str(photos))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    notebook = nbformat.read(checkout / "notebooks" / "04_recommender.ipynb", 4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert sum("image/jpeg" in out.get("data", {}) for out in outputs) >= 8
    assert (checkout / "t-shirt.jpg").exists()


@pytest.mark.slow
def test_two_photos_are_enough_to_search(tmp_path, photos, home):
    (tmp_path / "two").mkdir()
    for path in sorted(photos.glob("*.jpg"))[:2]:
        shutil.copy(path, tmp_path / "two")
    catalogue = helpers.open_catalogue(images=tmp_path / "two")
    query, factors = catalogue.at_hand(100, 300)
    assert (query, factors) == (1, 2)
    assert [one.index for one in helpers.search(query, factors, catalogue)] == [0]
    assert len(helpers.search(str(photos / "new-00.jpg"), factors, catalogue)) == 2
    assert [one.name for one in catalogue.new_photos()] == ["bag-01.jpg"]
    with pytest.raises(ValueError, match="0 of 2 photos have a label"):
        helpers.label_precision(catalogue.compressed, catalogue.labels)


# ---- the third way to run: real photos, ResNet50, embeddings made anew -----------------------
@pytest.mark.slow
@pytest.mark.skipif(
    "RESNET50_WEIGHTS" not in os.environ or "FASHION_IMAGES" not in os.environ,
    reason="needs real photos and trained weights: set FASHION_IMAGES and RESNET50_WEIGHTS",
)
def test_notebooks_with_resnet50(tmp_path, monkeypatch):
    photos = helpers.get_images()
    some = tmp_path / "some" / "images"
    some.mkdir(parents=True)
    labelled, new = helpers.list_photos(photos)
    for name in labelled[:400] + new[:20]:
        shutil.copy(photo_path(name, photos), some)
    shutil.copy(photos.parent / "images.csv", some.parent)
    monkeypatch.setenv("FASHION_IMAGES", str(some))

    checkout = checkout_in(tmp_path / "checkout")
    printed = {}
    for path in sorted((checkout / "notebooks").glob("0[1-4]_*.ipynb")):
        notebook = nbformat.read(path, 4)
        for cell in notebook.cells:
            cell.source = cell.source.replace(
                "use_precomputed_embeddings = True", "use_precomputed_embeddings = False"
            ).replace('load_backbone("efficientnet_lite1")', "load_backbone()")
        NotebookClient(
            notebook, timeout=600, resources={"metadata": {"path": path.parent}}
        ).execute()
        printed[path.name[:2]] = "".join(
            out.get("text", "") + str(out.get("data", {}).get("text/plain", ""))
            for cell in notebook.cells
            if cell.cell_type == "code"
            for out in cell.outputs
        )
    assert "Vectors: (400, 2048)" in printed["01"]
    for number in ("02", "03", "04"):
        assert "400 photos, 2,048 features each, made by resnet50" in printed[number]
    assert "P@5 at 300 factors: 0." in printed["04"]
