"""The notebook for a reader's own photos, run on five folders in one process."""
import copy
import csv
import shutil
import sys

import matplotlib.pyplot as plt
import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from lookalike.common import HERE

CELLS = [cell for cell in nbformat.read(HERE / "notebooks" / "your_own_photos.ipynb", 4).cells
         if cell.cell_type == "code"]
pytestmark = pytest.mark.slow


def labelled(photos):
    return sorted(set(photos.glob("*.jpg")) - set(photos.glob("new-*.jpg")))


@pytest.fixture
def mine(home):
    """An empty folder of a reader's own."""
    (home / "mine").mkdir()
    return home / "mine"


@pytest.fixture
def run(known, home, mine, monkeypatch):
    """Run the cells as papermill does: `folder` is set behind the cell tagged parameters.

    In this process: a kernel takes seconds to start. Returns the shell, what it printed, and the
    error at which it stopped.
    """
    shell = InteractiveShell.instance()
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(home)

    def run_cells(cells=CELLS):
        printed = ""
        for cell in cells:
            with capture_output() as captured:
                result = shell.run_cell(cell.source)
            printed += captured.stdout
            plt.close("all")
            if result.error_in_exec:
                return shell, printed, result.error_in_exec
            if "parameters" in cell.metadata.get("tags", []):
                shell.user_ns["folder"] = str(mine)
        return shell, printed, None

    shell.reset()
    yield run_cells
    InteractiveShell.clear_instance()


def test_twelve_photos_without_labels(run, mine, photos):
    drawn = labelled(photos)
    for path in drawn[:12]:
        shutil.copy(path, mine)
    shell, printed, error = run()
    assert not error and "there is nothing to measure" in printed
    assert "photos: 12, left out: 0, second copies: 0" in printed and "new photos: 0\n" in printed
    assert {"recommendations.csv", "recommendations.html"} < {path.name for path in mine.iterdir()}
    shutil.copy(drawn[12], mine / "next week.jpg")
    for name in ("renamed.jpg", "and back.jpg"):
        (mine / drawn[0].name).replace(mine / name)
        shutil.copy(mine / name, mine / drawn[0].name)
    shell, printed, error = run(CELLS[-1:])
    assert not error and printed.endswith("new photos: 1\nnext week.jpg\n")


def test_two_photos(run, mine, photos):
    for path in labelled(photos)[:2]:
        shutil.copy(path, mine)
    shell, printed, error = run()
    assert not error and "2 photos" in printed
    assert len((mine / "recommendations.csv").read_text(encoding="utf-8-sig").splitlines()) == 3


def test_one_photo_is_told_that_it_takes_two(run, mine, photos):
    shutil.copy(photos / "t-shirt-00.jpg", mine)
    shell, printed, error = run()
    assert isinstance(error, ValueError) and "at least two" in str(error)


def test_categories_with_dollars_in_their_names(run, mine, photos):
    """Two dollars in a name are not a formula, in any figure."""
    for path in labelled(photos):
        place = mine / f"{path.name.rpartition('-')[0]} $5^^ $6"
        place.mkdir(exist_ok=True)
        shutil.copy(path, place)
    shell, printed, error = run()
    assert not error and "('bag $5^^ $6', 4)" in printed and ", the knee" in printed


def test_labels_and_groups_of_a_readers_own(run, mine, photos):
    for path in labelled(photos):
        shutil.copy(path, mine)
    own = {"labels = None": "labels = {'bag-00': 'B', 'bag-01': 'B', 'dress-00': 'D'}",
           "groups = None": "groups = lambda name: name.split('-')[0]"}
    cells = copy.deepcopy(CELLS)
    for cell in cells:
        for one, other in own.items():
            cell.source = cell.source.replace(one, other)
    shell, printed, error = run(cells)
    assert not error and "[('B', 2), ('D', 1)]" in printed and "('bag', 4)" in printed
    with open(mine / "recommendations.csv", encoding="utf-8-sig", newline="") as file:
        pairs = [(row["photo"], row["neighbour"]) for row in csv.DictReader(file)]
    assert pairs and not [pair for pair in pairs if len({name.split('-')[0] for name in pair}) == 1]


def test_broken_files(run, mine, photos):
    for path in labelled(photos)[:5]:
        shutil.copy(path, mine)
    shutil.copy(photos / "t-shirt-00.jpg", mine / "ä copy.jpg")
    shutil.copy(photos / "t-shirt-00.jpg", mine / "zz.jpg")
    (mine / "empty.jpg").touch()
    (mine / "text.png").write_text("not a photo")
    (mine / "cut off.jpg").write_bytes((photos / "new-00.jpg").read_bytes()[:2000])
    (mine / "notes.txt").touch()
    shell, printed, error = run()
    assert not error and "left out: 3, second copies: 1" in printed
    assert "same photo: ä copy.jpg" in printed
    assert all(f"left out: {name}" in printed for name in ("empty.jpg", "text.png", "cut off.jpg"))
