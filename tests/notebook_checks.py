"""How the notebooks are checked: nbval runs every cell and compares the marked ones with a reference.

With the real photos and the pickle that we ship, the reference is what is saved in the notebooks. With the drawn
stand-in it is tests/stand_in_outputs.json, which tests/record_stand_in.py writes. With photos or embeddings of
your own there is none, and the cells are only run. Notebook 07 is skipped where requirements-scale.txt is not
installed, and makes 64,000 vectors where a reader makes two million. Words, names, order and whole numbers must be the same; numbers
with a decimal point may differ by 0.005 or 0.5 %, since processors round differently.
"""
import importlib.util
import json
import re
from pathlib import Path

import nbformat
import pytest

import helpers

HERE = Path(__file__).parent
DECIMAL = re.compile(r"[-+]?\d[\d,]*\.\d+")


def reference():
    """'saved', 'stand-in' or 'none': which outputs the marked cells must give here."""
    images = helpers.get_images()
    if images.name == "drawn_images":
        return "stand-in"
    names, shipped = helpers.list_photos(images)[0], helpers.load_embeddings(helpers.EMB_FILENAME)[0]
    own = helpers.embeddings_file(images).exists()
    return "saved" if names == shipped and not own else "none"


def smaller(source):
    """A cell of notebook 07 for a test: what takes minutes with two million vectors takes seconds with 64,000."""
    if source.startswith("largest"):
        assert "2_000_000" in source, "notebook 07 no longer sets what the test makes smaller"
        source = source.replace("2_000_000", "64_000")
    return source


def printed(outputs):
    """What a cell printed and returned, as one text."""
    return "".join(out["text"] if out["output_type"] == "stream" else out.get("data", {}).get("text/plain", "")
                   for out in outputs if out.get("name") != "stderr")


def alike(text, expected):
    """The same but for small differences between numbers with a decimal point."""
    pairs = zip(DECIMAL.findall(text), DECIMAL.findall(expected))
    return DECIMAL.sub("#", text) == DECIMAL.sub("#", expected) and all(
        float(a.replace(",", "")) == pytest.approx(float(b.replace(",", "")), rel=0.005, abs=0.005) for a, b in pairs)


def pytest_collection_modifyitems(items):
    cells = [item for item in items if type(item).__name__ == "IPyNbCell"]
    for cell in (cell for cell in cells if cell.parent.path.name.startswith("07")):
        cell.cell.source = smaller(cell.cell.source)
        if not (importlib.util.find_spec("pymilvus") and importlib.util.find_spec("ray")):
            cell.add_marker(pytest.mark.skip(reason="needs pip install -r requirements-scale.txt"))
    if not cells:
        return
    for cell in cells:
        cell.add_marker(pytest.mark.slow)
    kind = reference()
    print(f"\nNotebooks: every cell is run; the marked ones are compared with: {kind}")
    expected = json.loads((HERE / "stand_in_outputs.json").read_text(encoding="utf-8")) if kind == "stand-in" else {}
    for cell in cells:
        if kind == "none":
            cell.options["check"] = False
        elif kind == "stand-in" and cell.options["check"]:
            outputs = expected[cell.parent.path.name][str(cell.cell_num)]
            cell.cell.outputs = [nbformat.from_dict(output) for output in outputs]
        exact = cell.compare_outputs  # nbval's own, which also writes the report of a difference
        cell.compare_outputs = lambda test, ref, *args, exact=exact: alike(printed(test), printed(ref)) or exact(test, ref, *args)
