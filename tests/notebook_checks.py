"""How the notebooks are checked: nbval runs every cell and compares those tagged for it.

With the tutorial's photos and the shipped embeddings, the reference is what is saved in the
notebooks. With the drawn garments it is tests/placeholder_outputs.json, which
tests/record_placeholder.py writes. Where there is no reference, the cells are only run. Where there
is one, the exercises are solved as well: a check must reject wrong answers and accept the folded
solution. Notebook 07 is skipped where requirements-scale.txt is not installed, and makes 64,000
vectors where a reader makes a million. Words, names, order and whole numbers must be the same;
numbers with a decimal point may differ by 0.005 or 0.5%, since processors round differently.
"""
import functools
import importlib.util
import json
import re
from pathlib import Path

import nbformat
import pytest

from lookalike import common
from lookalike.folders import get_images, photo_files, read_table
from lookalike.photos import photo_hash
from lookalike.shipped import SHIPPED_BY, of_the_tutorial
from lookalike.store import network_of, open_store

HERE = Path(__file__).parent
DECIMAL = re.compile(r"[-+]?\d[\d,]*\.\d+")


@functools.cache
def reference():
    """'saved', 'placeholder' or 'none': which outputs the tagged cells must give here."""
    images = get_images()
    if images.name == "drawn_images":
        return "placeholder"
    with open_store() as store:
        about = network_of(store, images) or SHIPPED_BY
    names = photo_files(images)
    some = [photo_hash(images / name) for name in names[::50]]
    return "saved" if len(names) == 5756 and of_the_tutorial(some) and about == SHIPPED_BY \
        else "none"


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
        assert solved or path.name[:3] in ("00_", "01b"), f"{path.name} has no exercise"
        for cell in cells:
            if cell.parent.path == path and cell.cell_num in solved:
                cell.cell.source = solved[cell.cell_num]


def printed(outputs):
    """What a cell printed and returned, without progress bars and the name of the folder."""
    text = "".join(out["text"] if out["output_type"] == "stream" else
                   out.get("data", {}).get("text/plain", "")
                   for out in outputs if out.get("name") != "stderr")
    return re.sub(r"^(Photos: the |.*\d%\|).*\n", "", text, flags=re.MULTILINE)


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
    print(f"\nNotebooks: every cell is run; those tagged are compared with: {reference()}")
    if reference() != "none":
        give_answers(cells)
    for cell in cells:
        cell.add_marker(pytest.mark.slow)
        cell.cell.source = smaller(cell.cell.source)
        if cell.parent.path.name.startswith("07") and not importlib.util.find_spec("pymilvus"):
            cell.add_marker(pytest.mark.skip(reason="needs requirements-scale.txt"))
        compare_with(cell, reference())


def searches_with_another_t_shirt(source):
    """A reader's own t-shirt.jpg stays, and nobody knows what it finds."""
    t_shirt, images = common.HERE / "t-shirt.jpg", get_images()
    if "t-shirt.jpg" not in source or not t_shirt.exists():
        return False
    names = photo_files(images)
    table = read_table(images, {name: name.encode() for name in names})
    new = [name for name in names if name not in table.columns[table.label]]
    return photo_hash(t_shirt) != photo_hash(images / new[8])


def compare_with(cell, recorded):
    """Set what nbval compares a cell with, and how."""
    if recorded == "none" or searches_with_another_t_shirt(cell.cell.source):
        cell.options["check"] = False
    if recorded == "placeholder" and cell.options["check"]:
        expected = json.loads((HERE / "placeholder_outputs.json").read_text(encoding="utf-8"))
        outputs = expected[cell.parent.path.name][str(cell.cell_num)]
        cell.cell.outputs = [nbformat.from_dict(output) for output in outputs]
    exact = cell.compare_outputs  # nbval's own, which also writes the report of a difference
    cell.compare_outputs = lambda test, ref, *args: (
        alike(printed(test), printed(ref)) or exact(test, ref, *args))
