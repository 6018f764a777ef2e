"""Errors in a notebook: ours are short, others whole."""

import nbformat
import pytest
from nbclient import NotebookClient

from lookalike import HERE


@pytest.mark.slow
def test_what_a_reader_sees_of_an_error():
    cells = [
        "import helpers",
        "helpers.pil_loader('/no/such/photo.jpg')",
        "helpers.load_backbone('resnet51')",
        "helpers.label_precision([[1.0], [2.0]], [[], {}, 3])",
        "import json\njson.loads('{')",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(one) for one in cells])
    NotebookClient(notebook, timeout=120, allow_errors=True,
                   resources={"metadata": {"path": HERE}}).execute()
    photo, backbone, mistake, other = (cell.outputs[-1] for cell in notebook.cells[1:])
    for output, name, words in [(photo, "FileNotFoundError", "photo.jpg"),
                                (backbone, "ValueError", "resnet51")]:
        shown = "\n".join(output.traceback)
        assert output.ename == name and words in output.evalue
        assert "helpers." in shown and shown.count("\n") < 8, shown
    assert "quality.py" in "\n".join(mistake.traceback), "a mistake inside is shown whole"
    assert "decoder.py" in "\n".join(other.traceback)
