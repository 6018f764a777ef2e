"""What notebooks share: short errors, an exercise's first question, figures."""
import io
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image

import lookalike
from lookalike.notebook import asks_for, gallery, short_tracebacks, show, small_pictures
from lookalike.photos import Neighbour

KIND = lambda value: type(value).__name__  # noqa: E731  pytest cannot write the largest numbers


# ---- errors ----------------------------------------------------------------------------------
@pytest.fixture
def shell():
    shell = InteractiveShell.instance()
    shell.run_line_magic("colors", "nocolor")
    short_tracebacks()
    shell.run_cell("import helpers, json")
    yield shell
    InteractiveShell.clear_instance()


@pytest.mark.parametrize("cell, words", [
    ("helpers.pil_loader('/no/such.jpg')", "FileNotFoundError: no photo '/no/such.jpg'"),
    ("helpers.load_backbone('resnet51')", "ValueError: no backbone is called 'resnet51'")])
def test_our_errors_are_short(shell, capsys, cell, words):
    shell.run_cell(cell)
    said = capsys.readouterr().out
    assert words in said and cell in said and said.count("\n") < 8, said


@pytest.mark.parametrize("cell, where", [("json.loads('{')", "decoder.py"),
                                         ("helpers.nearest_of_each(3)", "quality.py")])
def test_other_errors_and_mistakes_of_ours_are_whole(shell, capsys, cell, where):
    shell.run_cell(cell)
    assert where in capsys.readouterr().out


@pytest.mark.parametrize("value", ["x" * 10**6, 10**400, 10**5000, [10**5000], np.zeros((3, 3)),
                                   "a\nb", "\udcff", list(range(10**5))], ids=KIND)
def test_an_error_shows_a_line_of_a_value_at_most(value):
    said = lookalike.shown(value)
    assert len(said) <= 100 and len(said.splitlines()) == 1 and said.encode()


# ---- exercises -------------------------------------------------------------------------------
@pytest.mark.parametrize("answer", [3, 3.0, np.int64(3), np.array([3]), torch.tensor(3)],
                         ids=repr)
def test_answers_that_may_be_right(answer):
    assert asks_for(3, 3)(repr)(answer) == "3"  # a plain number, that one can cut with


def test_an_answer_may_be_a_fraction_where_it_is_said():
    check = asks_for(0, 1, whole=False)(repr)
    assert (check(0.5), check(torch.tensor(0.5)), check(1)) == ("0.5", "0.5", "1")
    assert check("a") == "not yet: the answer is a number from 0 to 1, not 'a'"


@pytest.mark.parametrize("answer", [0, 11, -5, 2.5, "3", True, (1, 2), [], {}, float("nan"),
                                    10**400, 10**5000], ids=KIND)
def test_answers_that_cannot_be(answer):
    said = asks_for(1, 10)(repr)(answer)
    assert said.startswith("not yet: the answer is a whole number from 1 to 10, not ")
    assert len(said) < 200 and "\n" not in said


def test_no_answer():
    assert asks_for(1, 10)(repr)(None).startswith("your turn")


# ---- figures ---------------------------------------------------------------------------------
def test_a_row_with_more_titles_than_photos():
    gallery([[Image.new("RGB", (3, 4))]], titles=[["one", "two", "three"]])
    assert [ax.get_title() for ax in plt.gcf().axes] == ["one"]
    plt.close()


def test_small_pictures_for_a_box():
    catalogue = SimpleNamespace(photo=lambda number: Image.new("RGB", (900, 300)))
    boxes = small_pictures(3, [Neighbour("a.jpg", "Hat", 1.2, 7)], catalogue)
    assert [box.children[1].value for box in boxes] == ["query", "7 Hat 1.20"]
    for small, _ in (box.children for box in boxes):
        assert Image.open(io.BytesIO(small.value)).size == (150, 50)


def test_without_a_screen_no_figure_stays_in_memory(recwarn):
    plt.figure()
    show()
    assert plt.get_fignums() == [] and not recwarn.list
