"""Slides, all notebooks as HTML, and copies for a class: python workshop/slides.py [--crisp]

The slides show what cells tagged `slide` drew, notebook by notebook in their order, or their
source where they draw nothing; slides.md says what stands around them. All is made of the
notebooks as they are saved; --crisp runs 01 to 05 anew, for figures of 200 dots an inch (some
minutes). No network is needed to show any of it: workshop/slides.html is one file, the notebooks
lie in workshop/html/. The copies, without outputs, lie in class/.
"""
import base64
import html
import io
import os
import re
import shutil
import sys
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from nbconvert.preprocessors import ClearOutputPreprocessor, ExecutePreprocessor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from lookalike.folders import from_here  # noqa: E402

NOTEBOOKS = HERE.parent / "notebooks"
CRISP = ('%config InlineBackend.print_figure_kwargs = '
         '{"bbox_inches": "tight", "dpi": 200, "pil_kwargs": {"quality": 90}}')
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Recommend things that look
alike</title><style>{style}</style><body>{slides}<script>
const go = step => {{ const now = +(location.hash.slice(1) || 1);
  location.hash = Math.min({number}, Math.max(1, now + step)) }};
addEventListener("keydown", e => {{ if (["ArrowRight", " ", "PageDown"].includes(e.key)) go(1);
  if (["ArrowLeft", "PageUp"].includes(e.key)) go(-1) }});
</script></body></html>
"""


def deck():
    """What slides.md says of each slide: (what is shown or "", title, text as HTML)."""
    for part in (HERE / "slides.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        title, show, text = re.fullmatch(
            r"([^\n]*)\n(?:show: ([^\n]*)\n)?\n(.*)", part, re.S).groups("")
        yield show, title, markdown2html(text)


def tagged(crisp=False):
    """What each notebook's tagged cells show, in their order: {"01": iterator of HTML}."""
    shown = {}
    for path in sorted(NOTEBOOKS.glob("0*.ipynb")):
        notebook = nbformat.read(path, 4)
        cells = [cell for cell in notebook.cells if "slide" in cell.metadata.get("tags", [])]
        if crisp and cells:
            print(f"{path.name} is run down to its last slide")
            notebook.cells = notebook.cells[:notebook.cells.index(cells[-1]) + 1]
            first = next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code")
            notebook.cells.insert(first + 1, nbformat.v4.new_code_cell(CRISP))
            ExecutePreprocessor(timeout=600).preprocess(
                notebook, {"metadata": {"path": str(path.parent)}})
        shown[path.name.partition("_")[0]] = [html_of(cell) for cell in cells]
    asked = [source for source, *_ in deck()]
    for name, cells in shown.items():
        if len(cells) != asked.count(name):
            raise ValueError(f"notebook {name} has {len(cells)} cells tagged slide, and "
                             f"slides.md shows {asked.count(name)}: mend one of the two")
    return {name: iter(cells) for name, cells in shown.items()}


def html_of(cell):
    """A cell's last picture; if it has none, its source and what it printed."""
    for output in reversed(cell.outputs):
        if "image/jpeg" in output.get("data", {}):
            return f'<img src="data:image/jpeg;base64,{output["data"]["image/jpeg"].strip()}">'
    printed = "".join(output.get("text", "") for output in cell.outputs)
    return f"<pre>{html.escape(cell.source)}\n\n<b>{html.escape(printed)}</b></pre>"


def image(kind, content):
    return f'<img src="data:image/{kind};base64,{base64.b64encode(content).decode()}">'


def three_vectors(numbers=(100, 1352, 27)):
    """Bars of forty features of three shipped photos; the photos too, where they are at hand."""
    from helpers import EMB_FILENAME, load_embeddings, pil_loader
    names, vectors = load_embeddings(EMB_FILENAME)
    most, rows = vectors[numbers[0]].argsort(descending=True)[:40].tolist(), ""
    for number in numbers:
        path, photo, file = HERE.parent / names[number], f"photo {number}", io.BytesIO()
        if path.is_file():
            small = pil_loader(path)
            small.thumbnail((400, 400))
            small.save(file, "JPEG")
            photo = image("jpeg", file.getvalue())
        bars = "".join(f'<rect x="{20 * i}" y="{60 * (3 - value):.1f}" width="14" '
                       f'height="{60 * value:.1f}" fill="#c2185b"/>'
                       for i, value in enumerate(vectors[number, most].tolist()))
        away = ((vectors[number] - vectors[numbers[0]]) ** 2).sum()
        rows += (f'<tr><td>{photo}<td><svg viewBox="0 0 800 180">{bars}</svg>'
                 f"<td>{f'distance {away:.1f}' if away else 'the query'}")
    return f"<table>{rows}</table>"


def write_slides(path, crisp=False):
    cells, sections, slides = tagged(crisp), [], [*deck()]
    for number, (source, title, text) in enumerate(slides, start=1):
        if source in cells:
            shown = next(cells[source])
        elif source == "three vectors":
            shown = three_vectors()
        else:
            shown = source and image("svg+xml", (NOTEBOOKS / source).read_bytes())
        sections.append(
            f'<section id="{number}" class="{"" if source else "now"}"><h1>{title}</h1>{shown}'
            f'<div>{text}</div><nav><a href="#{max(1, number - 1)}">&larr;</a> {number} '
            f'<a href="#{min(len(slides), number + 1)}">&rarr;</a></nav></section>')
    path.write_text(PAGE.format(slides="".join(sections), number=len(slides), style=(
        HERE / "slides.css").read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{len(slides)} slides: {path.name} (arrow keys)")
    if crisp and not from_here(os.environ.get("FASHION_IMAGES") or "images").is_dir():
        print("There are no photos here: the figures are of drawn garments, and the slides' words "
              "speak of the photos. Without --crisp the two fit")


def write_html(folder):
    """Each notebook as one file, its pictures and the way at its head inside."""
    folder.mkdir(exist_ok=True)
    exporter = HTMLExporter(embed_images=True)
    for path in sorted(NOTEBOOKS.glob("0*.ipynb")):
        page, _ = exporter.from_filename(str(path))
        page = re.sub(r'href="(0[^"]*)\.ipynb', r'href="\1.html', page)
        page = re.sub(r'<script src="https?://[^"]*"[^>]*>\s*</script>', "", page)  # it needs none
        (folder / f"{path.stem}.html").write_text(page, encoding="utf-8")
        print(f"html/{path.stem}.html")


def write_class(folder):
    """The notebooks without outputs, for those who are to look for themselves."""
    shutil.copytree(NOTEBOOKS / "way", folder / "way", dirs_exist_ok=True)
    for path in sorted(NOTEBOOKS.glob("0*.ipynb")):
        notebook, _ = ClearOutputPreprocessor().preprocess(nbformat.read(path, 4), {})
        nbformat.write(notebook, folder / path.name)
    print(f"{folder.name}/: the notebooks without outputs")


if __name__ == "__main__":
    write_slides(HERE / "slides.html", crisp="--crisp" in sys.argv)
    write_html(HERE / "html")
    write_class(HERE.parent / "class")
