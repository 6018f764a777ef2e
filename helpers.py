"""What the notebooks share: figures, the walk by clicking, and checks of exercises.

The recommender itself is the library in lookalike/, whose public names this module passes on.
Each step is explained in the notebook that introduces it.
"""
import base64
import contextlib
import dis
import functools
import html
import io
import itertools
import sys
import warnings
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from pathlib import Path
from types import TracebackType
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.font_manager import fontManager
from PIL import Image

from lookalike import common, recommender
from lookalike.common import AnyPath, say, shown
from lookalike.export import save_recommendations
from lookalike.extraction import extract_embeddings
from lookalike.networks import load_backbone
from lookalike.photos import BadPhoto, photo_hash, pil_loader
from lookalike.query import Query, find, whole
from lookalike.recommender import Catalogue, Neighbour, build_compressed_index, nearest
from lookalike.recommender import open_catalogue
from lookalike.shipped import load_embeddings
from lookalike.vectors import as_weight

__all__ = [
    "open_catalogue", "nearest", "build_compressed_index", "load_backbone", "extract_embeddings",
    "load_embeddings", "pil_loader", "save_recommendations",
    "search", "compare", "main_image", "similar_images", "gallery", "walk", "expects_number"]

# for names and labels that matplotlib's own font cannot write; those that are installed are used
FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic",
         "PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "WenQuanYi Zen Hei",
         "Droid Sans Fallback", "Arial Unicode MS", "Noto Emoji", "Segoe UI Emoji")
# the stops of the walk's sliders
FACTORS = {1, 2, 5, 10, 20, 50, 100, 200, 300, 500, 1000}
WEIGHTS = {0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1}  # of colour


# ---- the recommender in figures --------------------------------------------------------------
def search(query: Query, factors: int, catalogue: Catalogue | None = None, *, colour: float = 0
           ) -> list[Neighbour]:
    """Show the query and the four photos that look most like it; return those four.

    Parameters
    ----------
    query, factors, colour
        As for `nearest`.
    catalogue
        Where to search; without it, the tutorial's photos.

    Without a screen, as in a script on a server, the four are printed.
    """
    return compare(query, [factors], catalogue, colour=colour)[0]


def compare(query: Query, factors: int | Sequence[int], catalogue: Catalogue | None = None, *,
            colour: float | Sequence[float] = 0) -> list[list[Neighbour]]:
    """Show the query once, and next to it a 2x2 grid for each number of factors or colour weight.

    Parameters are those of `search`; `factors` or `colour`, or both, may be a list.
    """
    catalogue = _given(catalogue)
    photos = find(query, catalogue)
    settings = [(n, weight) for n in _several(factors) for weight in _several(colour)]
    found = [catalogue.nearest(photos, n, 4, weight) for n, weight in settings]
    first, *others = _figure(len(found) + 1)
    _draw_grid(first, [_captioned(one, catalogue) for one in photos], "Query")
    for place, (n, weight), four in zip(others, settings, found):
        title = f"faiss compressed {min(n, catalogue.most_factors)}" + (
            f", colour {weight:g}" if weight else f", {catalogue.images.name}/")
        _draw_grid(place, [_captioned(one.index, catalogue) for one in four], title, 4)
        if _no_screen():
            say(f"{title}: {', '.join(map(repr, four))}")
    _show()
    return found


def main_image(img_path: AnyPath | Image.Image, desc: str) -> None:
    """Show one photo (a path, or a PIL image) under the title `desc`."""
    photo = img_path if isinstance(img_path, Image.Image) else pil_loader(img_path)
    _draw_grid(*_figure(1), [(photo, _short_name(photo))], desc)
    _show()


def similar_images(indices: Sequence[int | Neighbour], suptitle: str,
                   catalogue: Catalogue | None = None) -> None:
    """Show up to four photos in a 2x2 grid, given by their numbers or as `nearest` found them."""
    catalogue = _given(catalogue)
    numbers = [whole(i.index if isinstance(i, Neighbour) else i, "a photo's number", 0,
                     len(catalogue.img_names) - 1, "photos are counted from 0")
               for i in indices[:4]]
    _draw_grid(*_figure(1), [_captioned(i, catalogue) for i in numbers], suptitle, 4)
    _show()


def gallery(rows: Sequence[Sequence], photo_of: Callable = lambda one: one,
            titles: Sequence[Sequence[str]] = (), names: Sequence[str] = (), size: float = 0.95
            ) -> None:
    """Show rows of small photos, whole and in their own proportions.

    Parameters
    ----------
    rows
        What each place shows; None leaves it empty.
    photo_of
        Turns an entry of `rows` into an image: `catalogue.photo` for numbers.
    titles, names
        A text above each photo, and one at the left of each row.
    size
        Inches per photo.
    """
    _, axes = plt.subplots(len(rows), max(map(len, rows)), squeeze=False, layout="constrained",
                           figsize=(size * max(map(len, rows)), 1.15 * size * len(rows)))
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for line, row, above in itertools.zip_longest(axes, rows, titles, fillvalue=()):
        for ax, one, title in zip(line, row, [*above, *[""] * len(row)]):
            if one is not None:
                ax.imshow(photo_of(one))
            ax.set_title(title, fontsize=7, pad=2, parse_math=False)
    for line, name in zip(axes, names):
        line[0].set_ylabel(name, fontsize=8, parse_math=False)


def _given(catalogue):
    """The catalogue, or the default one, which is the tutorial's if none is open."""
    if catalogue is None and not recommender.opened:
        open_catalogue()
    return recommender.given(catalogue)


def _several(value):
    return list(value) if isinstance(value, Sequence | np.ndarray) else [value]


def _figure(parts):
    """Make a figure that fits a laptop's screen; return its parts, which lie in a row."""
    figure = plt.figure(figsize=(3.4 * parts, 4.8), facecolor="white", layout="constrained")
    return figure.subfigures(1, parts, squeeze=False)[0]


def _draw_grid(place, pictures, suptitle, places=1):
    """(Photo, caption) of each, in at least so many places: square, or one row short."""
    places = max(places, len(pictures))
    across = int(np.ceil(np.sqrt(places)))
    axes = place.subplots(-(-places // across), across, squeeze=False)
    for ax, (photo, caption) in zip(axes.flat, [*pictures, *[(None, "")] * places]):
        if photo is None:
            ax.axis("off")
            continue
        ax.imshow(photo)
        ax.set_xlabel(caption, fontsize=9, parse_math=False)
        ax.set(xticks=[], yticks=[])
    place.suptitle(suptitle, parse_math=False)


def _captioned(one, catalogue):
    """(Image, caption) of a photo: its number, for the next query, and its label or name."""
    if isinstance(one, Image.Image):
        return one, _short_name(one)
    try:
        photo = catalogue.photo(one)
        changed = photo_hash(photo.filename) != catalogue.photos[one]
    except (OSError, BadPhoto):  # deleted since the catalogue was opened
        return Image.new("RGB", (3, 4), "silver"), f"{one}: cannot be read"
    caption = "has changed: reopen" if changed else catalogue.labels[one][:40]
    return photo, f"{one}: {caption or _short_name(photo)}"


def _short_name(photo):
    """As much of its file's name as fits below a photo."""
    name = common.readable(Path(getattr(photo, "filename", "")).name)
    return name if len(name) <= 24 else f"{name[:8]}...{name[-8:]}"


# ---- the walk by clicking --------------------------------------------------------------------
def walk(catalogue: Catalogue, query: Query = 0, factors: int = 300, colour: float = 0
         ) -> Any:
    """Search by clicking, from one photo to the next.

    The button with a photo's number makes that photo the next query, and *like* adds the photo to
    the query; *back* returns to the query before. You can type a number and press Enter, or upload
    a photo (Jupyter does not transmit files of more than 10 MB). The sliders set the number of
    factors and the weight of colour.

    Parameters are those of `search`; the query is where the walk begins.
    """
    import ipywidgets
    catalogue, colour = recommender.given(catalogue), as_weight(colour)
    steps, slow = [[query]], {"continuous_update": False}
    back = ipywidgets.Button(description="back", layout={"width": "80px"})
    number = ipywidgets.IntText(0, description="photo", layout={"width": "160px"})
    upload = ipywidgets.FileUpload(accept="image/*,.heic,.heif", description="your photo")
    start, most = catalogue.at_most(factors), catalogue.most_factors
    stops = {n for n in FACTORS if n < most} | {start, most}
    slider = ipywidgets.SelectionSlider(options=sorted(stops), value=start, description="factors",
                                        **slow)
    dial = ipywidgets.SelectionSlider(options=sorted(WEIGHTS | {colour}), value=colour,
                                      description="colour", **slow)
    note, asked, found = ipywidgets.Label(), ipywidgets.HBox(), ipywidgets.HBox()

    def _update(_=None):
        note.value = "searching..."
        try:
            photos = find(steps[-1], catalogue)
            four = catalogue.nearest(photos, slider.value, 4, dial.value)
            note.value = ""
        except Exception as error:  # a click has no cell that could show it
            note.value = str(error)
            return False
        asked.children = [_small(one, catalogue, 90) for one in photos[-8:]]
        found.children = [ipywidgets.VBox([
            *_small(one.index, catalogue, 170).children,
            _button(str(one), functools.partial(_go, [one.index])),
            _button("like", functools.partial(_go, [*steps[-1], one.index]))]) for one in four]
        if len(photos) == 1 and isinstance(photos[0], int):
            steps[-1], number.value = photos, photos[0]
        return True

    def _go(step, _=None):
        steps.append(step)
        _update() or steps.pop()  # what cannot be searched with is no step

    def _typed(change):
        note.value = ""
        return steps[-1] != [change.new] and _go([change.new])

    def _back(_):
        steps[1:] = steps[1:-1]
        _update()

    back.on_click(_back)
    number.observe(_typed, "value")
    upload.observe(lambda change: _go(list(change.new)) if change.new else None, "value")
    slider.observe(_update, "value")
    dial.observe(_update, "value")
    _update()
    return ipywidgets.VBox([ipywidgets.HBox([back, number, upload, slider, dial]), note, asked,
                            found])


def _button(text, click):
    import ipywidgets
    button = ipywidgets.Button(description=text, layout={"width": "180px"})
    button.on_click(click)
    return button


def _small(one, catalogue, height):
    """A small picture of a photo for a box of widgets, and its caption."""
    import ipywidgets
    photo, caption = _captioned(one, catalogue)
    small, file = photo.copy(), io.BytesIO()
    small.thumbnail((150, height))
    small.save(file, "JPEG")
    # at the bottom of a box of one height, so that captions and buttons line up
    picture = ipywidgets.HTML(
        f'<div style="height: {height}px; display: flex; align-items: end"><img '
        f'alt="{html.escape(caption)}" src="data:image/jpeg;base64,'
        f'{base64.b64encode(file.getvalue()).decode()}"></div>')
    return ipywidgets.VBox([picture, ipywidgets.Label(caption)], layout={"padding": "0 12px 0 0"})


# ---- how figures and errors look -------------------------------------------------------------
def _set_up_figures():
    """Fonts for all that people write and, in a notebook, small figures as JPEG."""
    plt.rcParams["font.family"] += sorted({font.name for font in fontManager.ttflist} & {*FONTS},
                                          key=FONTS.index)
    warnings.filterwarnings("ignore", "Glyph .* missing")  # signs that no font here has: a box
    shell = _shell()
    if shell and getattr(shell, "kernel", None):
        shell.run_line_magic("matplotlib", "inline")
        shell.run_line_magic("config", "InlineBackend.figure_formats = ['jpeg']")
        plt.rcParams.update({"figure.autolayout": True, "font.size": 9})


def _no_screen():
    """Whether figures can only be saved, as in a script on a server."""
    return plt.get_backend().lower() == "agg"


def _show():
    """Show the current figure; without a screen close it, or figures would fill the memory."""
    with warnings.catch_warnings():  # of a missing screen
        warnings.simplefilter("ignore", UserWarning)
        plt.show()
    if _no_screen():
        plt.close()


def _shell():
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None


def _show_error(shell, kind, error, trace, tb_offset=None):
    """Show only the cell's line and the message of an error that our code raises.

    Other errors, such as a mistake in our code, are shown whole. Source: IPython's documentation,
    InteractiveShell.set_custom_exc.
    """
    deepest = trace
    while deepest.tb_next:
        deepest = deepest.tb_next
    code = deepest.tb_frame.f_code
    ours = code.co_filename.startswith((f"{common.HERE / 'helpers.py'}",
                                        f"{common.HERE / 'lookalike'}"))
    if not ours or code.co_code[deepest.tb_lasti] != dis.opmap["RAISE_VARARGS"]:
        return shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
    cell = trace.tb_next or trace  # the first frame is IPython's
    only = TracebackType(None, cell.tb_frame, cell.tb_lasti, cell.tb_lineno)
    error.__cause__, error.__suppress_context__ = None, True
    lines = shell.InteractiveTB.structured_traceback(kind, error, only, tb_offset=0)
    shell._showtraceback(kind, error, lines)


# ---- exercises -------------------------------------------------------------------------------
def expects_number(least: float, most: float, whole: bool = True) -> Callable:
    """Let an exercise's check see only a number from `least` to `most`.

    For anything else, and for no answer yet, the check says what it expects. What NumPy and torch
    hold as one number is a number; 1352.0 is whole.
    """
    def _decorate(check):
        @functools.wraps(check)
        def _checked(answer):
            if answer is None:
                return "your turn: replace None with your answer"
            answer = _plain_number(answer)
            number = isinstance(answer, Integral if whole else Real)
            if number and not isinstance(answer, bool) and least <= answer <= most:
                return check(answer)
            return (f"not yet: the answer is a {'whole ' * whole}number from {least:,} to "
                    f"{most:,}, not {shown(answer)}")
        return _checked
    return _decorate


def _plain_number(answer):
    with contextlib.suppress(AttributeError, TypeError, ValueError, RuntimeError):
        answer = answer.item()  # of NumPy and torch
    return int(answer) if isinstance(answer, float) and answer.is_integer() else answer


_set_up_figures()
if _shell():
    _shell().set_custom_exc((ValueError, TypeError, OSError), _show_error)
