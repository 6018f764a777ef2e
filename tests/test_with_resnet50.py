"""The third way to run: real photos, ResNet50, and `use_precomputed_embeddings = False`, on 600 photos in a copy of the checkout."""
import os
import shutil

import nbformat
import pytest
from nbclient import NotebookClient

import helpers


@pytest.mark.skipif("RESNET50_WEIGHTS" not in os.environ or "FASHION_IMAGES" not in os.environ,
                    reason="needs real photos and trained weights: set FASHION_IMAGES and RESNET50_WEIGHTS")
def test_notebooks_with_resnet50(tmp_path, monkeypatch):
    photos = helpers.get_images()
    some = tmp_path / "some" / "images"
    some.mkdir(parents=True)
    labelled, new = helpers.list_photos(photos)
    for name in labelled[:600] + new[:20]:
        shutil.copy(helpers.photo_path(name, photos), some)
    shutil.copy(photos.parent / "images.csv", some.parent)
    monkeypatch.setenv("FASHION_IMAGES", str(some))

    checkout = tmp_path / "checkout"
    shutil.copytree(helpers.HERE / "notebooks", checkout / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copy(helpers.HERE / "helpers.py", checkout)  # without the shipped pickle: notebook 01 makes one
    printed = {}
    for path in sorted((checkout / "notebooks").glob("0[1-4]*.ipynb")):
        notebook = nbformat.read(path, 4)
        for cell in notebook.cells:
            cell.source = cell.source.replace("use_precomputed_embeddings = True", "use_precomputed_embeddings = False")
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": path.parent}}).execute()
        printed[path.name[:2]] = "".join(out.get("text", "") + str(out.get("data", {}).get("text/plain", ""))
                                         for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs)
    assert "Vectors: (600, 2048)" in printed["01"]
    for number in ("02", "03", "04"):
        assert "600 photos, 2,048 features each, made by resnet50" in printed[number]
    assert "P@5 at 300 factors: 0." in printed["04"]
