"""The notebooks beside nbval's run of every cell: their checks, exercises, bodies, other photos."""
import os
import re
import shutil
import sys

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from notebook_checks import alike, answered
from sklearn.decomposition import PCA
from tqdm import tqdm

import helpers
import lookalike
from lookalike import HERE, folders

NOTEBOOKS = sorted((HERE / "notebooks").glob("*.ipynb"))


def test_alike():
    text = "[12 T-Shirt 76.9,\n 7 Polo 91.6]"
    assert alike(text, text)
    assert alike(text.replace("76.9", "77.0"), text), "the last digit may differ"
    for part, other in (("76.9", "79.9"), ("12 ", "13 "), ("Polo", "Hat")):
        assert not alike(text.replace(part, other), text)
    assert not alike("P@5 0.683", "P@5 0.659")
    assert not alike("P@5 0.683", "P@5 0.683, 0.683")


def test_exercises_are_answered():
    solution = nbformat.v4.new_markdown_cell("<details>\n\n```python\nx = 7\n```\n</details>")
    source = answered("x = None  # your answer\n\ncheck(x)", solution)
    exec(source, {"check": lambda x: "right" if x == 7 else "not yet"})
    for wrong in ("not yet", "right"):
        with pytest.raises(AssertionError):
            exec(source, {"check": lambda x, said=wrong: said})


# ---- what is saved ---------------------------------------------------------------------------
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_saved_notebook_shows_what_it_computes(path):
    """Run from top to bottom, no errors, no place of a machine, no ticks that are formulas."""
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    text = path.read_text(encoding="utf-8")
    assert '"output_type": "error"' not in text and "mathdefault" not in text
    assert not re.search(r'"(/home|/root|/tmp|/mnt|C:\\)', text)
    assert "widget-view+json" not in text, "saved without widgets: a picture stands below each"


# ---- the body that a notebook shows and the helper's give the same ---------------------------
def shown(number, words):
    """The source of the first cell of a notebook that has the words in it."""
    (path,) = [path for path in NOTEBOOKS if path.name.startswith(number)]
    found = [cell.source for cell in nbformat.read(path, 4).cells
             if cell.cell_type == "code" and words in cell.source]
    assert found, f"{path.name} no longer shows {words!r}"
    return found[0]


def test_the_search_that_notebook_04_shows(catalogue, photos):
    drawn = []
    space = {"catalogue": catalogue, "img_names": catalogue.img_names, "np": np,
             "pil_loader": helpers.pil_loader,
             "build_compressed_index": helpers.build_compressed_index}
    exec(shown("04_", "def search(").partition("\nsearch(")[0], space)
    space["similar_images"] = lambda indices, suptitle: drawn.append((indices[:4], suptitle))
    for query, factors in ((3, 20), (40, 56), (str(photos / "new-00.jpg"), 30)):
        space["search"](query, factors)
        indices = [one.index for one in helpers.nearest(query, factors)]
        assert drawn.pop() == (indices, f"faiss compressed {factors}")


def test_a_t_shirt_of_ones_own_stays(home, catalogue, photos, capsys):
    asked = []
    space = {"catalogue": catalogue, "new_photos": sorted(photos.glob("new*.jpg")),
             "search": lambda query, factors: asked.append((home / query).read_bytes())}
    code = "\n".join(shown("04_", words) for words in ("shutil.copyfile", 'search("t-shirt.jpg"'))
    capsys.readouterr()
    exec(code, space)
    exec(code, space)
    assert asked == [space["new_photos"][-1].read_bytes()] * 2
    (home / "t-shirt.jpg").write_bytes(b"mine")
    assert "there already" not in capsys.readouterr().out
    exec(code, space)
    assert asked.pop() == b"mine" and "there already" in capsys.readouterr().out


def test_the_loop_that_notebook_01_shows(photos, backbone, embedded):
    space = {"backbone": backbone, "img_names": embedded[0], "images": photos, "tqdm": tqdm,
             "pil_loader": helpers.pil_loader, "torch": torch, "sys": sys}
    exec(shown("01_", "for name in tqdm(some"), space)
    assert torch.allclose(space["img_emb"], embedded[1][:16], atol=1e-3)


def test_the_pca_that_notebook_02_shows(catalogue):
    space = {"X": catalogue.img_emb_tensors.numpy(), "PCA": PCA, "np": np}
    exec(shown("02_", "pca = PCA(n_components=min(X.shape)"), space)
    assert np.allclose(space["pca"].transform(space["X"]), catalogue.compressed, atol=1e-3)


# ---- other photos, and the article's network -------------------------------------------------
@pytest.fixture
def run(home, monkeypatch):
    """Run notebooks by their numbers, one after another, as a reader does; gives what they print.

    In this process: a kernel takes seconds before its first line of interest.
    """
    shell = InteractiveShell.instance()
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(folders, "download_photos", lambda images: no_network())
    monkeypatch.chdir(home)

    def run(*numbers, changes=()):
        printed = ""
        for path in (path for path in NOTEBOOKS if path.name.startswith(numbers)):
            shell.reset()
            for cell in nbformat.read(path, 4).cells:
                for one, other in changes:
                    cell.source = cell.source.replace(one, other)
                if cell.cell_type == "code":
                    with capture_output() as captured:
                        result = shell.run_cell(cell.source)
                    printed += captured.stdout
                    plt.close("all")
                    assert result.success, f"{path.name}:\n{cell.source}\n{captured.stdout[-3000:]}"
        return printed

    yield run
    InteractiveShell.clear_instance()


def no_network():
    raise OSError("no network")


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """A folder with 308 drawn photos, those of the tutorial, and their vectors."""
    home = tmp_path_factory.mktemp("tutorial")
    lookalike.stand_in.draw_catalogue(home / "drawn_images", a_kind=22, new=1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lookalike, "HERE", home)
        helpers.open_catalogue(home / "drawn_images")
    return home


@pytest.fixture
def drawn(home, tutorial):
    """98 of these photos, seven a kind; the tutorial lies in the checkout."""
    shutil.copytree(tutorial, home, dirs_exist_ok=True)
    return sorted((home / "drawn_images").glob("*-0[0-6].jpg"))


def twelve_without_labels(folder, drawn):
    for path in drawn[::8][:12]:
        shutil.copy(path, folder)
    (folder / "notes.txt").touch()


def eighty_in_classes(folder, drawn):
    """A folder a class; two dollars in its name are no formula, in no figure."""
    for path in drawn[:80]:
        place = folder / f"{path.name.rpartition('-')[0]} $5^^ $6"
        place.mkdir(exist_ok=True)
        shutil.copy(path, place)


@pytest.mark.slow
@pytest.mark.parametrize("fill, last", [(twelve_without_labels, 4), (eighty_in_classes, 5)],
                         ids=["twelve without labels", "eighty in classes"])
def test_any_folder_runs(fill, last, run, home, drawn, monkeypatch):
    """Every cell of notebooks 01 to 04, and of 05, which then measures on the tutorial's own."""
    (home / "mine").mkdir()
    fill(home / "mine", drawn)
    monkeypatch.setenv("FASHION_IMAGES", str(home / "mine"))
    run("01_", *[f"0{number}" for number in range(2, last + 1)])
    assert (home / "t-shirt.jpg").exists() and (home / "embeddings" / "vectors.db").exists()


@pytest.mark.slow
def test_the_articles_network(run, home, drawn, monkeypatch, resnet50_weights):
    """Embeddings made anew, with ResNet50, which the notebooks after the first then find."""
    (home / "mine").mkdir()
    for path in drawn[::4]:
        shutil.copy(path, home / "mine")
    monkeypatch.setenv("FASHION_IMAGES", str(home / "mine"))
    monkeypatch.setenv("RESNET50_WEIGHTS", os.environ.get("RESNET50_WEIGHTS",
                                                          str(resnet50_weights)))
    printed = run("01_", "02", "03", "04", changes=[
        ("use_precomputed_embeddings = True", "use_precomputed_embeddings = False"),
        ('load_backbone("efficientnet_lite1")', "load_backbone()")])
    assert "Vectors: (25, 2048)" in printed
    assert printed.count("25 photos, 2,048 features each, made by resnet50") >= 4


@pytest.mark.slow
def test_two_photos_are_enough_to_search(home, photos):
    (home / "two").mkdir()
    for path in sorted(photos.glob("*.jpg"))[:2]:
        shutil.copy(path, home / "two")
    catalogue = helpers.open_catalogue(images=home / "two")
    assert [one.index for one in helpers.search(100, 300, catalogue)] == [0]
    assert len(helpers.search(str(photos / "new-00.jpg"), 300, catalogue)) == 2
    with pytest.raises(ValueError, match="0 of 2 photos have a label"):
        helpers.label_precision(catalogue.compressed, catalogue.labels)
