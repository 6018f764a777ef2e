"""How the notebooks are checked: nbval runs every cell and compares those tagged for it.

With the real photos and the embeddings that we ship, the reference is what is saved in the
notebooks. With the drawn stand-in it is tests/stand_in_outputs.json, which
tests/record_stand_in.py writes. With photos or embeddings of your own there is none, and the
cells are only run. Where there is a reference the exercises are solved as well: wrong answers
must not be taken, the folded solution must. Notebook 07 is skipped where requirements-scale.txt
is not installed, and makes 64,000 vectors where a reader makes a million. Words, names, order
and whole numbers must be the same; numbers with a decimal point may differ by 0.005 or 0.5 %,
since processors round differently.
"""
import importlib.util
import json
import re
from pathlib import Path

import nbformat
import pytest

import helpers
import lookalike
from lookalike.embeddings import SHIPPED_BY
from lookalike.store import network_of, open_store

HERE = Path(__file__).parent
DECIMAL = re.compile(r"[-+]?\d[\d,]*\.\d+")


def reference():
    """'saved', 'stand-in' or 'none': which outputs the tagged cells must give here."""
    images = helpers.get_images()
    if images.name == "drawn_images":
        return "stand-in"
    names = [f"images/{name.removeprefix('images/')}" for name in helpers.scan(images).names]
    with open_store() as store:
        about = network_of(store, images) or SHIPPED_BY
    shipped = helpers.load_embeddings(helpers.EMB_FILENAME)[0]
    return "saved" if names == shipped and about == SHIPPED_BY else "none"


def smaller(source):
    """A cell of notebook 07 for a test: what takes minutes with a million vectors."""
    if source.startswith("largest = "):
        assert "1_000_000" in source, "notebook 07 no longer sets what the test makes smaller"
        source = source.replace("1_000_000", "64_000")
    return source


WRONG = "-5, 1.55, '3', (10**9, 1), (1, 1), True, float('nan'), float('inf'), [], {}, None"


def answered(source, solution):
    """An exercise's cell that also gives wrong answers, and then the folded solution."""
    check = source.splitlines()[-1]
    code = re.search("```python\n(.*?)```", solution.source, re.S).group(1)
    return (f"{source}\nfor wrong in ({WRONG}):\n"
            f"    assert not {check.partition('(')[0]}(wrong).startswith('right'), wrong\n"
            f"{code}\nassert {check}.startswith('right'), {check}")


def give_answers(cells):
    """Let the exercises of the notebooks be solved as they run."""
    for path in {cell.parent.path for cell in cells}:
        all_cells, solved, number = nbformat.read(path, 4).cells, {}, -1
        for one, after in zip(all_cells, all_cells[1:]):
            number += one.cell_type == "code"
            if one.cell_type == "code" and "  # your answer" in one.source:
                solved[number] = answered(one.source, after)
        assert solved or path.name.startswith("01b"), f"{path.name} has no exercise"
        for cell in cells:
            if cell.parent.path == path and cell.cell_num in solved:
                cell.cell.source = solved[cell.cell_num]


def printed(outputs):
    """What a cell printed and returned, as one text."""
    return "".join(out["text"] if out["output_type"] == "stream" else
                   out.get("data", {}).get("text/plain", "")
                   for out in outputs if out.get("name") != "stderr")


def numbers(text):
    return [float(number.replace(",", "")) for number in DECIMAL.findall(text)]


def alike(text, expected):
    """The same but for small differences between numbers with a decimal point."""
    return DECIMAL.sub("#", text) == DECIMAL.sub("#", expected) and \
        numbers(text) == pytest.approx(numbers(expected), rel=0.005, abs=0.005)


def pytest_collection_modifyitems(items):
    cells = [item for item in items if type(item).__name__ == "IPyNbCell"]
    if not cells:
        return
    kind = reference()
    print(f"\nNotebooks: every cell is run; those tagged are compared with: {kind}")
    if kind != "none":
        give_answers(cells)
    for cell in cells:
        cell.add_marker(pytest.mark.slow)
        cell.cell.source = smaller(cell.cell.source)
        if cell.parent.path.name.startswith("07") and not importlib.util.find_spec("pymilvus"):
            cell.add_marker(pytest.mark.skip(reason="needs requirements-scale.txt"))
        compare_with(cell, kind)


def asks_with_your_own(source):
    """Notebook 04 leaves a t-shirt.jpg that lies there as it is; what it finds is not known."""
    t_shirt = lookalike.home() / "t-shirt.jpg"
    if "t-shirt.jpg" not in source or not t_shirt.exists():
        return False
    images = helpers.get_images()
    new = images / helpers.scan(images).new[8]
    return t_shirt.read_bytes() != new.read_bytes()


def compare_with(cell, kind):
    """Set what nbval compares a cell with, and how."""
    if kind == "none" or asks_with_your_own(cell.cell.source):
        cell.options["check"] = False
    if kind == "stand-in" and cell.options["check"]:
        expected = json.loads((HERE / "stand_in_outputs.json").read_text(encoding="utf-8"))
        outputs = expected[cell.parent.path.name][str(cell.cell_num)]
        cell.cell.outputs = [nbformat.from_dict(output) for output in outputs]
    exact = cell.compare_outputs  # nbval's own, which also writes the report of a difference
    cell.compare_outputs = lambda test, ref, *args: (
        alike(printed(test), printed(ref)) or exact(test, ref, *args))
