"""What notebooks share: how figures are drawn, short errors, an exercise's first question."""
import contextlib
import dis
import functools
import io
import itertools
import sys
import warnings
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from types import TracebackType
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.font_manager import fontManager

import lookalike

# for names and labels that matplotlib's own font cannot write; those that are installed
FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic",
         "PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "WenQuanYi Zen Hei",
         "Droid Sans Fallback", "Arial Unicode MS", "Noto Emoji", "Segoe UI Emoji")


# ---- figures ---------------------------------------------------------------------------------
def set_up_figures() -> None:
    """Fonts for all that people write and, in a notebook, small figures as JPEG."""
    plt.rcParams["font.family"] += sorted({font.name for font in fontManager.ttflist} & {*FONTS},
                                          key=FONTS.index)
    warnings.filterwarnings("ignore", "Glyph .* missing")  # signs that no font here has: a box
    shell = _shell()
    if shell and getattr(shell, "kernel", None):
        shell.run_line_magic("matplotlib", "inline")
        shell.run_line_magic("config", "InlineBackend.figure_formats = ['jpeg']")
        plt.rcParams.update({"figure.autolayout": True, "font.size": 9})


def no_screen() -> bool:
    """Whether figures can only be saved, as in a script on a server."""
    return plt.get_backend().lower() == "agg"


def show() -> None:
    """Show the current figure; without a screen close it, or they would fill the memory."""
    with warnings.catch_warnings():  # of a missing screen
        warnings.simplefilter("ignore", UserWarning)
        plt.show()
    if no_screen():
        plt.close()


def gallery(rows: Sequence[Sequence], photo_of: Callable = lambda one: one,
            titles: Sequence[Sequence[str]] = (), names: Sequence[str] = (), size: float = 0.95
            ) -> None:
    """Draw rows of photos, small, whole, and in their own proportions.

    Parameters
    ----------
    rows
        What stands in each place; None leaves it empty.
    photo_of
        Gives the picture of it: `catalogue.photo` for numbers.
    titles, names
        A text above each photo, and one at the left of each row, drawn as they are.
    size
        Inches a photo.
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


def small_pictures(query: int, found: Sequence[Any], catalogue: Any) -> list:
    """Make small pictures for a box of ipywidgets: photo number `query`, and what it found."""
    import ipywidgets
    boxes = []
    for number, caption in [(query, "query"), *((one.index, str(one)) for one in found)]:
        small, file = catalogue.photo(number), io.BytesIO()
        small.thumbnail((150, 170))
        small.save(file, "JPEG")
        boxes.append(ipywidgets.VBox([ipywidgets.Image(value=file.getvalue(), layout={
            "width": f"{small.width}px"}), ipywidgets.Label(caption)]))
    return boxes


# ---- errors ----------------------------------------------------------------------------------
def short_tracebacks() -> None:
    """Show of an error that our code raises only the line of the cell, and what it says.

    All others, a mistake in our code too, are shown whole. Source: IPython's documentation,
    InteractiveShell.set_custom_exc.
    """
    if _shell():
        _shell().set_custom_exc((ValueError, TypeError, OSError), _show_error)


def _shell():
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None


def _show_error(shell, kind, error, trace, tb_offset=None):
    deepest = trace
    while deepest.tb_next:
        deepest = deepest.tb_next
    code = deepest.tb_frame.f_code
    ours = code.co_filename.startswith((f"{lookalike.HERE / 'helpers.py'}",
                                        f"{lookalike.HERE / 'lookalike'}"))
    if not ours or code.co_code[deepest.tb_lasti] != dis.opmap["RAISE_VARARGS"]:
        return shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
    cell = trace.tb_next or trace  # the first frame is IPython's
    only = TracebackType(None, cell.tb_frame, cell.tb_lasti, cell.tb_lineno)
    error.__cause__, error.__suppress_context__ = None, True
    lines = shell.InteractiveTB.structured_traceback(kind, error, only, tb_offset=0)
    shell._showtraceback(kind, error, lines)


# ---- exercises -------------------------------------------------------------------------------
def asks_for(least: float, most: float, whole: bool = True) -> Callable:
    """Let an exercise's check see nothing but a number from `least` to `most`.

    To anything else, and to no answer yet, it says what is asked for. What NumPy and torch hold
    as one number is a number; 1352.0 is whole.
    """
    def _of(check):
        @functools.wraps(check)
        def _checked(answer):
            if answer is None:
                return "your turn: put your answer in the place of None"
            answer = _plain_number(answer)
            number = isinstance(answer, Integral if whole else Real)
            if number and not isinstance(answer, bool) and least <= answer <= most:
                return check(answer)
            return (f"not yet: the answer is a {'whole ' * whole}number from {least:,} to "
                    f"{most:,}, not {lookalike.shown(answer)}")
        return _checked
    return _of


def _plain_number(answer):
    with contextlib.suppress(AttributeError, TypeError, ValueError, RuntimeError):
        answer = answer.item()  # of NumPy and torch
    return int(answer) if isinstance(answer, float) and answer.is_integer() else answer
