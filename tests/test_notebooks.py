"""The notebooks beside nbval's run of every cell: their checks, exercises, bodies, and ResNet50."""

import os
import re
import shutil
import sys

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from notebook_checks import alike, reference
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


# ---- exercises -------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("name", ["05_how_many_factors.ipynb", "06_fine_tuning.ipynb"])
def test_the_solutions_are_right(name):
    if reference() != "saved":
        pytest.skip("the exercises are made for the real photos: set FASHION_IMAGES, or download")
    notebook = nbformat.read(HERE / "notebooks" / name, 4)
    answered = 0
    for cell, after in zip(notebook.cells, notebook.cells[1:]):
        if "  # your answer" in cell.source:
            solution = re.search("```python\n(.*?)```", after.source, re.S).group(1)
            check = cell.source.splitlines()[-1]
            cell.source = cell.source.replace(
                check, f"{solution}\nassert {check}.startswith('right'), {check}"
            )
            answered += 1
    assert answered >= 2
    NotebookClient(
        notebook, timeout=120, resources={"metadata": {"path": HERE / "notebooks"}}
    ).execute()


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
    for name in labelled[:600] + new[:20]:
        shutil.copy(photo_path(name, photos), some)
    shutil.copy(photos.parent / "images.csv", some.parent)
    monkeypatch.setenv("FASHION_IMAGES", str(some))

    checkout = tmp_path / "checkout"
    shutil.copytree(
        HERE / "notebooks",
        checkout / "notebooks",
        ignore=shutil.ignore_patterns(".ipynb_checkpoints"),
    )
    shutil.copytree(HERE / "lookalike", checkout / "lookalike")
    for file in ("helpers.py", helpers.EMB_FILENAME.name):
        shutil.copy(HERE / file, checkout)
    printed = {}
    for path in sorted((checkout / "notebooks").glob("0[1-4]*.ipynb")):
        notebook = nbformat.read(path, 4)
        for cell in notebook.cells:
            cell.source = cell.source.replace(
                "use_precomputed_embeddings = True", "use_precomputed_embeddings = False"
            )
        NotebookClient(
            notebook, timeout=120, resources={"metadata": {"path": path.parent}}
        ).execute()
        printed[path.name[:2]] = "".join(
            out.get("text", "") + str(out.get("data", {}).get("text/plain", ""))
            for cell in notebook.cells
            if cell.cell_type == "code"
            for out in cell.outputs
        )
    assert "Vectors: (600, 2048)" in printed["01"]
    for number in ("02", "03", "04"):
        assert "600 photos, 2,048 features each, made by resnet50" in printed[number]
    assert "P@5 at 300 factors: 0." in printed["04"]
