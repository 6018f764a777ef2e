"""Slides, all notebooks as HTML, and copies for a class: python workshop/slides.py [--crisp]

Each slide shows the figure of a notebook cell with the tag `slide`, or the cell's source where it
has no figure; slides.md has the words. All comes from the notebooks as they are saved. --crisp runs
those that have slides, for figures of 200 dots per inch (some minutes). Nothing needs internet:
workshop/slides.html is one file, the notebooks are in workshop/html/, and the copies without
outputs are in class/.
"""
import base64
import html
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
CRISP = ('%matplotlib inline\n%config InlineBackend.print_figure_kwargs = '
         '{"bbox_inches": "tight", "dpi": 200, "pil_kwargs": {"quality": 90}}')
NO_ALT = "No description has been provided for this image"  # nbconvert's own
# such a sentence says what is in a figure
DESCRIBES = re.compile(r"\b(shows? (?!how)|plot|figure|here (is|are)|on the left|each row)\b", re.I)
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Recommend things that look
alike</title><style>{style}</style><body>{slides}<script>
const go = step => {{ const now = +(location.hash.slice(1) || 1);
  location.hash = Math.min({number}, Math.max(1, now + step)) }};
addEventListener("keydown", e => {{ if (["ArrowRight", " ", "PageDown"].includes(e.key)) go(1);
  if (["ArrowLeft", "PageUp"].includes(e.key)) go(-1) }});
</script></body></html>
"""


def deck():
    """Read slides.md: for each slide (what it shows or "", title, text as HTML)."""
    for part in (HERE / "slides.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        title, show, text = re.fullmatch(
            r"([^\n]*)\n(?:show: ([^\n]*)\n)?\n(.*)", part, re.S).groups("")
        yield show, title, markdown2html(text)


def tagged(crisp=False):
    """What each notebook's tagged cells show, in their order: {"01": iterator of HTML}."""
    shown = {}
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = described(nbformat.read(path, 4))
        cells = [cell for cell in notebook.cells if "slide" in cell.metadata.get("tags", [])]
        if crisp and cells:
            print(f"Running {path.name} down to its last slide")
            notebook.cells = [nbformat.v4.new_code_cell(CRISP),
                              *notebook.cells[:notebook.cells.index(cells[-1]) + 1]]
            ExecutePreprocessor(timeout=600).preprocess(
                notebook, {"metadata": {"path": str(path.parent)}})
        shown[path.name.partition("_")[0]] = [html_of(cell) for cell in cells]
    expected = [source for source, *_ in deck()]
    for name, cells in shown.items():
        if len(cells) != expected.count(name):
            raise ValueError(f"notebook {name} has {len(cells)} cells with the tag slide, and "
                             f"slides.md shows {expected.count(name)}: correct one of the two")
    return {name: iter(cells) for name, cells in shown.items()}


def described(notebook):
    """Give each code cell an alternative text: the heading above it, and a sentence beside it."""
    texts = [cell.source if cell.cell_type == "markdown" else "" for cell in notebook.cells]
    for i, cell in enumerate(notebook.cells):
        above = next(filter(None, texts[i::-1]), "")
        below = "".join(texts[i + 1:i + 2]).partition("\n\n")[0]
        heading = (re.findall("^#+ (.*)", "\n".join(texts[:i]), re.M) or [""])[-1]
        near = [re.split(r"(?<=[.!?])\s+", one) for one in (*above.split("\n\n")[-2:], below)
                if one and one[0] != "#"] or [[""]]
        about = next(filter(DESCRIBES.search, sum(near, [])), near[-1][0])
        cell.metadata["alt"] = re.sub(r"[*`]|\[(.*?)\]\(.*?\)", r"\1", f"{heading}: {about}")
    return notebook


def picture_of(cell):
    """A cell's last picture, in base64, or ''."""
    pictures = [output.get("data", {}).get("image/jpeg", "") for output in cell.get("outputs", [])]
    return next(filter(None, reversed(pictures)), "").strip()


def html_of(cell):
    """A cell's last picture; if it has none, its source and what it printed."""
    if picture_of(cell):
        return image("jpeg", picture_of(cell), cell.metadata["alt"])
    printed = "".join(output.get("text", "") for output in cell.outputs)
    return f"<pre>{html.escape(cell.source)}\n\n<b>{html.escape(printed)}</b></pre>"


def image(kind, content, alt):
    if isinstance(content, bytes):
        content = base64.b64encode(content).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/{kind};base64,{content}">'


def three_vectors(numbers=(100, 1352, 27)):
    """Three shipped photos, and next to each a bar chart of forty features."""
    from lookalike.shipped import load_embeddings
    vectors = load_embeddings()[1][list(numbers)]
    most, rows = vectors[0].argsort(descending=True)[:40], ""
    for number, vector in zip(numbers, vectors):
        photo = image("jpeg", (HERE / f"photo_{number}.jpg").read_bytes(), f"photo {number}")
        away = float(((vector - vectors[0]) ** 2).sum())
        said = f"distance {away:.1f}" if away else "the query"
        heights = 180 * vector[most] / vectors[:, most].max()
        bars = "".join(f'<rect x="{20 * i}" y="{180 - height:.1f}" width="14" '
                       f'height="{height:.1f}" fill="#c2185b"/>'
                       for i, height in enumerate(heights.tolist()))
        rows += (f'<tr><td>{photo}<td><svg viewBox="0 0 800 180" role="img" aria-label="forty '
                 f'features of photo {number}">{bars}</svg><td>{said}')
    return f"<table>{rows}</table>"


def road_map(name):
    """A road map, and in its alternative text where you are."""
    svg = (NOTEBOOKS / name).read_bytes()
    title = re.search("<title>(.*?)</title>", svg.decode())
    return image("svg+xml", svg, title.group(1) if title else "Road map")


def write_slides(path, crisp=False):
    cells, sections, slides = tagged(crisp), [], [*deck()]
    for number, (source, title, text) in enumerate(slides, start=1):
        if source in cells:
            shown = next(cells[source])
        elif source == "three vectors":
            shown = three_vectors()
        else:
            shown = source and road_map(source)
        sections.append(
            f'<section id="{number}" class="{"" if source else "now"}"><h1>{title}</h1>{shown}'
            f'<div>{text}</div><nav><a href="#{max(1, number - 1)}" aria-label="back">&larr;</a> '
            f'{number} <a href="#{min(len(slides), number + 1)}" aria-label="on">&rarr;</a></nav>'
            "</section>")
    path.write_text(PAGE.format(slides="".join(sections), number=len(slides), style=(
        HERE / "slides.css").read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{len(slides)} slides: {path.name} (arrow keys)")
    if crisp and not from_here(os.environ.get("FASHION_IMAGES") or "images").is_dir():
        print("There are no photos here, so the figures show drawn garments, and the slides' words "
              "speak of the photos. Without --crisp, figures and words agree")


def write_html(folder):
    """Each notebook as one file that holds all its pictures."""
    folder.mkdir(exist_ok=True)
    shutil.copy(NOTEBOOKS / "GLOSSARY.md", folder)
    exporter = HTMLExporter(embed_images=True)
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = described(nbformat.read(path, 4))
        alts = iter(cell.metadata["alt"] for cell in notebook.cells
                    for output in cell.get("outputs", []) if "image/" in str(output.get("data")))
        page, _ = exporter.from_notebook_node(notebook, {"metadata": {
            "name": path.stem, "path": str(path.parent)}})
        page = re.sub(NO_ALT, lambda _, alts=alts: html.escape(next(alts, "")), page)
        page = re.sub(r'href="([\w-]+)\.ipynb', r'href="\1.html', page)
        page = page.replace('href="../benchmarks/', 'href="../../benchmarks/')
        page = re.sub(r'<script src="https?://[^"]*"[^>]*>\s*</script>', "", page)  # not needed
        (folder / f"{path.stem}.html").write_text(page, encoding="utf-8")
        print(f"html/{path.stem}.html")


def write_class(folder):
    """The notebooks without outputs, for a class that is to see each result for itself."""
    shutil.copytree(NOTEBOOKS / "roadmap", folder / "roadmap", dirs_exist_ok=True)
    for beside in (*NOTEBOOKS.glob("*.jpg"), NOTEBOOKS / "GLOSSARY.md"):
        shutil.copy(beside, folder)
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook, _ = ClearOutputPreprocessor().preprocess(nbformat.read(path, 4), {})
        copy = folder / path.name
        if copy.exists() and nbformat.read(copy, 4) != notebook:  # somebody worked in it
            copy.replace(copy.with_name(f"{path.stem}-before.ipynb"))
            print(f"{folder.name}/{path.stem}-before.ipynb: your copy, which differs from ours")
        nbformat.write(notebook, copy)
    print(f"{folder.name}/: the notebooks without outputs")


if __name__ == "__main__":
    write_slides(HERE / "slides.html", crisp="--crisp" in sys.argv)
    write_html(HERE / "html")
    write_class(HERE.parent / "class")
