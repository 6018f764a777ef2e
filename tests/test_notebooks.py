"""The notebooks besides nbval's run of every cell: checks, what is saved, the article's blocks."""
import re
import sys

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from notebook_checks import alike, answered
from tqdm import tqdm

import helpers
from lookalike import folders
from lookalike.common import HERE

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
    assert not re.search(r'"(/home|/root|/tmp|/mnt|/work|C:\\)', text)
    assert "widget-view+json" not in text, "save without widgets, which need a kernel"


# ---- the article's blocks --------------------------------------------------------------------
ARTICLE = ["def pil_loader(", "model.eval()", "preprocess = ", "use_precomputed_embeddings = ",
           "if use_precomputed_embeddings:", "pickle.load(fIn)", "else:", "in tqdm(",
           "preprocess(pil_loader(", "pickle.dump(", "def build_compressed_index(n_features)",
           "pca = PCA(n_components=n_features", "pca.fit(img_emb_tensors)",
           "compressed_features = pca.transform(img_emb_tensors)", "faiss.IndexFlatL2(d)",
           "index_compressed.add(", "return [pca, index_compressed]",
           "def main_image(img_path, desc)", "def similar_images(indices, suptitle)",
           "for index in indices[0:4]:", "def search(query, factors)",
           'main_image(img_path, "Query")',
           "compressor, index_compressed = build_compressed_index(factors)",
           "index_compressed.search(", "similar_images(", "search(100, 300)",
           "search(t_shirt, 500)"]


def open_cells(number):
    """The sources of a notebook's code cells that are not folded."""
    (path,) = [path for path in NOTEBOOKS if path.name.startswith(number)]
    return [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"
            and not cell.metadata.get("jupyter", {}).get("source_hidden")]


def test_the_articles_blocks_in_its_order():
    source, at = "\n".join(open_cells("00_")), 0
    for block in ARTICLE:
        at = source.find(block, at)
        assert at >= 0, f"00 has no {block!r} where the article has it"


@pytest.mark.parametrize("number, function", [
    ("01_", "pil_loader"), ("02_", "build_compressed_index"), ("04_", "main_image"),
    ("04_", "similar_images"), ("04_", "search")])
def test_a_lesson_shows_each_function_of_the_article(number, function):
    assert any(f"def {function}(" in source for source in open_cells(number))


# ---- the body that a notebook shows and the library's give the same --------------------------
def shown(number, words):
    """The source of the first cell of a notebook that has the words in it."""
    found = [source for source in open_cells(number) if words in source]
    assert found, f"{number} no longer shows {words!r}"
    return found[0]


def test_the_index_that_notebook_02_shows(catalogue):
    space = {"img_emb_tensors": catalogue.img_emb_tensors}
    exec("import faiss, numpy as np\nfrom sklearn.decomposition import PCA\n"
         + shown("02_", "def build_compressed_index(").partition("\n%%")[0], space)
    pca, index = space["build_compressed_index"](20)
    for number in range(len(catalogue.img_names)):
        vector = np.float32(pca.transform(catalogue.img_emb_tensors[number:number + 1]))
        found = [i for i in index.search(vector, 5)[1][0] if i != number][:4]
        assert found == [one.index for one in helpers.nearest(number, 20)]


def test_the_search_that_notebook_04_shows(catalogue, photos):
    drawn = []
    space = {"catalogue": catalogue, "img_names": catalogue.img_names, "np": np, "helpers": helpers,
             "pil_loader": helpers.pil_loader, "images": catalogue.images,
             "img_emb_tensors": catalogue.img_emb_tensors, "Path": type(photos), "torch": torch,
             "build_compressed_index": helpers.build_compressed_index}
    exec(shown("04_", "def search(").partition("\nsearch(")[0], space)
    space["main_image"] = lambda img_path, desc: drawn.append(desc)
    space["similar_images"] = lambda indices, suptitle: drawn.append((list(indices[:4]), suptitle))
    for query, factors in ((3, 20), (40, 56), (str(photos / "new-00.jpg"), 30)):
        space["search"](query, factors)
        indices = [one.index for one in helpers.nearest(query, factors)]
        assert drawn[-2:] == ["Query", (indices, f"faiss compressed {factors}")]


def test_the_loop_that_notebook_01_shows(photos, backbone, embedded):
    space = {"backbone": backbone, "img_names": embedded[0], "images": photos, "tqdm": tqdm,
             "pil_loader": helpers.pil_loader, "torch": torch, "sys": sys, "np": np}
    exec(shown("01_", "in tqdm(some"), space)
    assert torch.allclose(space["img_emb"], embedded[1][:16], atol=1e-3)


# ---- the article's network -------------------------------------------------------------------
@pytest.fixture
def run(home, monkeypatch):
    """Run a notebook in this process (a kernel takes seconds to start); returns what it prints."""
    shell = InteractiveShell.instance()
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(home)

    def run(number, *changes):
        (path,) = [path for path in NOTEBOOKS if path.name.startswith(number)]
        printed = ""
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


@pytest.mark.slow
def test_00_with_the_articles_network(run, home, photos, monkeypatch, resnet50_weights):
    """The loop writes a file of its own, which the next run reads, and another network does not."""
    monkeypatch.setenv("RESNET50_WEIGHTS", str(resnet50_weights))
    monkeypatch.setattr(folders, "get_images", lambda: photos)
    resnet = [('name = "efficientnet_lite1"', 'name = "resnet50"'), (", 500)", ", 30)"),
              ("search(100, 300)", "search(40, 20)"), ("new_photos[8]", "new_photos[0]")]
    assert "100%" in run("00_", *resnet)
    (made,) = (home / "embeddings").glob("*resnet50*.pickle")
    before = made.read_bytes()
    assert "Images: 58" in run("00_", *resnet)
    assert made.read_bytes() == before
    assert "100%" in run("00_", *resnet[1:])
