"""What the notebooks share: figures, the walk by clicking, short errors, checks of exercises."""
import base64
import importlib
import io
import os
import shutil
import subprocess
import sys
from datetime import datetime

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image

import helpers
from helpers import compare, expects_number, gallery, main_image, nearest, open_catalogue, search
from helpers import similar_images, walk
from lookalike import recommender
from lookalike.common import HERE, shown

KIND = lambda value: type(value).__name__  # noqa: E731  pytest cannot write the largest numbers


@pytest.fixture
def figures(monkeypatch):
    """The figures that were shown: for each of their parts its title and the captions."""
    figures = []

    def show():
        figure = plt.gcf()
        figure.canvas.draw()
        assert figure.get_size_inches()[1] <= 6.4, "higher than a laptop's screen"
        figures.append([(part.get_suptitle(), [ax.get_xlabel() for ax in part.axes if ax.images])
                        for part in figure.subfigs])
        plt.close(figure)

    monkeypatch.setattr(plt, "show", show)
    return figures


@pytest.fixture
def mine(known, home, photos):
    """A folder of one's own."""
    return open_catalogue(shutil.copytree(photos, home / "mine"))


# ---- search and compare ----------------------------------------------------------------------
def test_search_shows_the_query_and_two_by_two(catalogue, photos, figures):
    """The captions are the numbers to go on with, and the labels."""
    found = search(3, 20)
    assert found == nearest(3, 20)
    assert figures[0] == [("Query", [f"3: {catalogue.labels[3]}"]), (
        "faiss compressed 20, images/", [f"{one.index}: {one.label}" for one in found])]
    search([3, 17, photos / "new-00.jpg"], 20)
    assert figures[1][0] == ("Query", [f"3: {catalogue.labels[3]}", f"17: {catalogue.labels[17]}",
                                       "new-00.jpg"])


def test_compare_shows_a_grid_for_each_setting(catalogue, figures):
    assert compare(3, [20, 2]) == [nearest(3, 20), nearest(3, 2)]
    assert compare(3, 300) == compare(3, np.array([300])) == [nearest(3, 56)]
    both = compare(3, (20, 2), colour=[0, 0.5])
    assert both == [nearest(3, n, colour=weight) for n in (20, 2) for weight in (0, 0.5)]
    assert [[title for title, _ in figure] for figure in figures] == [
        ["Query", "faiss compressed 20, images/", "faiss compressed 2, images/"],
        ["Query", "faiss compressed 56, images/"], ["Query", "faiss compressed 56, images/"],
        ["Query", "faiss compressed 20, images/", "faiss compressed 20, colour 0.5",
         "faiss compressed 2, images/", "faiss compressed 2, colour 0.5"]]
    for factors, colour in ((["20"], 0), (20, "much"), (20, [-1])):
        with pytest.raises((TypeError, ValueError), match="must be a (whole )?number"):
            compare(3, factors, colour=colour)


def test_search_opens_the_tutorials_catalogue_by_itself(catalogue, figures):
    recommender.opened.clear()
    assert len(search(3, 20)) == 4 and len(recommender.opened) == 1
    with pytest.raises(TypeError, match=r"is not a catalogue: pass open_catalogue\("):
        search(3, 10, "mine")


def test_another_catalogue_is_named_and_may_be_small(known, home, photos, figures):
    (home / "few").mkdir()
    for name in ("bag-00.jpg", "bag-01.jpg", "hat-00.jpg"):
        shutil.copy(photos / name, home / "few")
    assert len(search(0, 300, open_catalogue(home / "few"))) == 2
    assert figures[0][1][0] == "faiss compressed 3, few/" and len(figures[0][1][1]) == 2
    assert figures[0][0][1] == ["0: bag-00.jpg"], "no label: the name"


def test_photos_that_are_gone_or_have_changed(mine, figures):
    found = search(3, 20, mine)
    (mine.images / found[1].name).unlink()
    (mine.images / found[2].name).write_text("no photo")
    shutil.copy(mine.images / "new-00.jpg", mine.images / mine.img_names[3])
    assert search(3, 20, mine) == found
    (_, query), (_, captions) = figures[1]
    assert query == ["3: has changed: reopen"]
    assert captions[1:3] == [f"{one.index}: cannot be read" for one in found[1:3]]


# ---- figures ---------------------------------------------------------------------------------
def test_similar_images_are_four_at_most(catalogue, figures):
    similar_images(range(9), "by number")
    similar_images(nearest(3, 20), "what was found")
    assert [len(captions) for ((_, captions),) in figures] == [4, 4]


@pytest.mark.parametrize("indices", [[-1], [True], [56], [0, 1.0]])
def test_similar_images_of_photos_that_are_none(catalogue, indices):
    with pytest.raises((ValueError, TypeError), match="a photo's number is .* must be "):
        similar_images(indices, "any")


def test_any_text_can_be_shown(catalogue, photos, figures, tmp_path, recwarn):
    """Dollars are no formula, a sign that no font has is no warning, and long names fit."""
    long = "4285fab0-751a-4b74-8e9b-43af05deee22.jpg"
    for name in ("$5 & $x_$.jpg", "платье.jpg", "裙子 👗.jpg", "a\x1b[2J.jpg", long):
        shutil.copy(photos / "new-00.jpg", tmp_path / name)
        main_image(tmp_path / name, "$Que^^ry$ $")
        search(tmp_path / name, 20)
        shown_as = "4285fab0...ee22.jpg" if name is long else name.replace("\x1b", "?")
        assert figures[-2] == [("$Que^^ry$ $", [shown_as])] and figures[-1][0][1] == [shown_as]
    main_image(Image.new("RGB", (30, 40)), "an image")
    assert figures[-1] == [("an image", [""])]
    assert [str(one.message) for one in recwarn if "Glyph" in str(one.message)] == []


def test_a_gallery_with_gaps_and_more_titles_than_photos():
    gallery([[7, None], [8]], lambda i: Image.new("RGB", (i, 4)), [["one", "two", "three"]], ["a$"])
    axes = plt.gcf().axes
    assert [ax.get_title() for ax in axes] == ["one", "two", "", ""]
    assert [len(ax.images) for ax in axes] == [1, 0, 1, 0] and axes[0].get_ylabel() == "a$"
    plt.close()


@pytest.mark.slow
def test_a_script_without_a_screen(photos):
    """It prints what was found, in cp1252 too, warns of nothing and leaves no figures behind."""
    program = ("import helpers, matplotlib.pyplot as plt\n"
               "for i in range(3): found = helpers.search(i, 20)\n"
               "print(plt.get_fignums(), found[0])")
    environment = {key: value for key, value in os.environ.items()
                   if "DISPLAY" not in key and key != "MPLBACKEND"}
    clothes = shutil.copytree(photos, photos.parent / "одежда")
    ran = subprocess.run([sys.executable, "-c", program], cwd=HERE, capture_output=True, text=True,
                         env=environment | {"FASHION_IMAGES": str(clothes), "PYTHONUTF8": "0",
                                            "PYTHONIOENCODING": "cp1252"})
    assert ran.returncode == 0 and ran.stderr == "", ran.stderr
    lines = ran.stdout.splitlines()
    assert sum(line.startswith("faiss compressed 20, ??????/: ") for line in lines) == 3
    assert lines[-1].startswith("[] ") and lines[-1][3:] in lines[-2]


# ---- the walk --------------------------------------------------------------------------------
class Walk:
    """The walk's widgets, by what they do."""

    def __init__(self, *args):
        controls, self.note, self.query, self.found = walk(*args).children
        self.back, self.number, self.upload, self.factors, self.colour = controls.children

    @property
    def shows(self):
        """The captions of the query's photos, and the numbers of those found."""
        for box in (*self.query.children, *self.found.children):
            picture = base64.b64decode(
                box.children[0].value.partition("base64,")[2].partition('"')[0])
            assert Image.open(io.BytesIO(picture)).height <= 170
        return ([box.children[1].value for box in self.query.children],
                [int(box.children[2].description.split()[0]) for box in self.found.children])

    def click(self, place, button):
        """Click on a photo's number, or on its like."""
        self.found.children[place].children[{"number": 2, "like": 3}[button]].click()


def expected(catalogue, query, factors=20, colour=0):
    captions = [f"{i}: {catalogue.labels[i]}" for i in query]
    return captions, [one.index for one in nearest(query, factors, 4, catalogue, colour=colour)]


def test_walking_from_photo_to_photo(catalogue):
    steps = Walk(catalogue, 3, 20)
    assert steps.shows == expected(catalogue, [3])
    first, second = steps.shows[1][:2]
    steps.click(1, "number")
    assert steps.shows == expected(catalogue, [second])
    steps.back.click()
    steps.click(0, "like")
    assert steps.shows == expected(catalogue, [3, first])
    for query in ([3], [3]):  # the first query stays
        steps.back.click()
        assert steps.shows == expected(catalogue, query)
    for number in (0, 55, 0):
        steps.number.value = number  # which follows the clicks: 3 by now
        assert steps.shows == expected(catalogue, [number])
    steps.number.value = 99
    assert "99" in steps.note.value and "55" in steps.note.value
    assert steps.shows == expected(catalogue, [0]), "what was shown stays"
    steps.number.value = 0
    assert steps.note.value == "" and Walk(catalogue).shows[0] == [f"0: {catalogue.labels[0]}"]
    with pytest.raises(ValueError, match="a number from 0"):
        Walk(catalogue, 3, 20, float("nan"))


def test_the_sliders_search_again(catalogue):
    steps = Walk(catalogue, [3, 17], 300, 0.25)
    assert steps.factors.options == (1, 2, 5, 10, 20, 50, 56) and 0.25 in steps.colour.options
    assert steps.shows == expected(catalogue, [3, 17], 56, 0.25)
    assert steps.factors.value == 56
    steps.factors.value, steps.colour.value = 5, 1
    assert steps.shows == expected(catalogue, [3, 17], 5, 1)


def test_a_photo_is_uploaded(catalogue, photos):
    steps = Walk(catalogue, 3, 20)
    new = {"name": "new.jpg", "content": memoryview((photos / "new-00.jpg").read_bytes()),
           "type": "image/jpeg", "size": 1, "last_modified": datetime.now()}
    steps.upload.value = (new,)
    found = [one.index for one in nearest(new, 20)]
    assert steps.shows == (["new.jpg"], found)
    steps.click(0, "like")
    assert steps.shows[0] == ["new.jpg", f"{found[0]}: {catalogue.labels[found[0]]}"]
    steps.upload.value = ({**new, "name": "list.jpg", "content": memoryview(b"milk")},)
    assert steps.note.value.startswith("list.jpg: not a readable photo")
    assert steps.shows[0][0] == "new.jpg", "what was shown stays"
    steps.factors.value = 10
    assert steps.note.value == "", "and the walk goes on from there"


def test_a_photo_on_the_walk_is_gone(mine):
    steps = Walk(mine, 3, 20)
    gone = steps.shows[1][0]
    (mine.images / mine.img_names[gone]).unlink()
    steps.click(0, "number")
    assert steps.note.value == "" and steps.shows == (
        [f"{gone}: cannot be read"], [one.index for one in nearest(gone, 20, 4, mine)])
    assert Walk(mine, "nosuch.jpg").note.value.startswith("no photo 'nosuch.jpg'")


# ---- errors ----------------------------------------------------------------------------------
@pytest.fixture
def shell():
    shell = InteractiveShell.instance()
    shell.run_line_magic("colors", "nocolor")
    importlib.reload(helpers)  # as at the start of a notebook
    shell.run_cell("import helpers, json, lookalike.vectors")
    yield shell
    InteractiveShell.clear_instance()


@pytest.mark.parametrize("cell, words", [
    ("helpers.pil_loader('/no/such.jpg')", "FileNotFoundError: no photo '/no/such.jpg'"),
    ("helpers.load_backbone('resnet51')", "ValueError: no network is called 'resnet51'")])
def test_our_errors_are_short(shell, capsys, cell, words):
    shell.run_cell(cell)
    said = capsys.readouterr().out
    assert words in said and cell in said and said.count("\n") < 8, said


@pytest.mark.parametrize("cell, where", [
    ("json.loads('{')", "decoder.py"), ("lookalike.vectors.label_precision(3, 3)", "vectors.py")])
def test_other_errors_and_mistakes_of_ours_are_whole(shell, capsys, cell, where):
    shell.run_cell(cell)
    assert where in capsys.readouterr().out


@pytest.mark.parametrize("value", ["x" * 10**6, 10**400, 10**5000, [10**5000], np.zeros((3, 3)),
                                   "a\nb\x1b[2J", "\udcff", list(range(10**5))], ids=KIND)
def test_an_error_shows_a_line_of_a_value_at_most(value):
    said = shown(value)
    assert len(said) <= 100 and len(said.splitlines()) == 1 and said.isprintable() and said.encode()


# ---- exercises -------------------------------------------------------------------------------
@pytest.mark.parametrize("answer", [3, 3.0, np.int64(3), np.array([3]), torch.tensor(3)],
                         ids=repr)
def test_answers_that_may_be_right(answer):
    assert expects_number(3, 3)(repr)(answer) == "3"  # a plain number, that one can slice with


def test_an_answer_may_be_a_fraction_where_it_is_said():
    check = expects_number(0, 1, whole=False)(repr)
    assert (check(0.5), check(torch.tensor(0.5)), check(1)) == ("0.5", "0.5", "1")
    assert check("a") == "not yet: the answer is a number from 0 to 1, not 'a'"


@pytest.mark.parametrize("answer", [0, 11, -5, 2.5, "3", True, (1, 2), [], {}, float("nan"),
                                    10**400, 10**5000], ids=KIND)
def test_answers_that_cannot_be(answer):
    said = expects_number(1, 10)(repr)(answer)
    assert said.startswith("not yet: the answer is a whole number from 1 to 10, not ")
    assert len(said) < 200 and "\n" not in said


def test_no_answer():
    assert expects_number(1, 10)(repr)(None).startswith("your turn")
