"""Write placeholder_outputs.json: what the tagged cells print on the drawn garments.

Run it where no photos can be downloaded and requirements-scale.txt is installed, after a change to
the notebooks, and read the difference before you commit it:
    python tests/record_placeholder.py
"""
import json
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from notebook_checks import printed, smaller  # noqa: E402

from lookalike.folders import get_images  # noqa: E402

if get_images().name != "drawn_images":
    sys.exit("This records the drawn garments, but there are real photos here: unset "
             "FASHION_IMAGES, move images/ away and go offline.")
recorded = {}
for path in sorted((HERE.parent / "notebooks").glob("0*.ipynb")):
    notebook = nbformat.read(path, 4)
    for cell in notebook.cells:
        cell.source = smaller(cell.source)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": path.parent}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    recorded[path.name] = {
        i: [nbformat.v4.new_output("stream", name="stdout", text=printed(cell.outputs))]
        for i, cell in enumerate(cells) if "nbval-check-output" in cell.metadata.get("tags", [])}
(HERE / "placeholder_outputs.json").write_text(
    json.dumps(recorded, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
print("recorded", sum(map(len, recorded.values())), "cells of", len(recorded), "notebooks")
