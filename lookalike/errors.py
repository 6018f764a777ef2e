"""Errors in a notebook: what was raised on purpose is said at once, not below forty lines."""
import linecache
import sys
from types import TracebackType

import lookalike


def short_tracebacks() -> None:
    """Show of an error that our code raises only the line of the cell, and what it says.

    All others, a mistake in our code too, are shown whole. Source: IPython's documentation,
    InteractiveShell.set_custom_exc.
    """
    shell = sys.modules.get("IPython") and sys.modules["IPython"].get_ipython()
    if shell:
        shell.set_custom_exc((ValueError, TypeError, OSError), _show)


def _show(shell, kind, error, trace, tb_offset=None):
    deepest = trace
    while deepest.tb_next:
        deepest = deepest.tb_next
    file = deepest.tb_frame.f_code.co_filename
    ours = file.startswith((f"{lookalike.HERE / 'helpers.py'}", f"{lookalike.HERE / 'lookalike'}"))
    if not ours or not linecache.getline(file, deepest.tb_lineno).strip().startswith("raise"):
        return shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
    cell = trace.tb_next or trace  # the first frame is IPython's
    only = TracebackType(None, cell.tb_frame, cell.tb_lasti, cell.tb_lineno)
    error.__cause__, error.__suppress_context__ = None, True
    lines = shell.InteractiveTB.structured_traceback(kind, error, only, tb_offset=0)
    shell._showtraceback(kind, error, lines)
