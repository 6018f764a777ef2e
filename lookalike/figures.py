"""What figures need of the machine: fonts for all that people write, and a screen."""
import warnings

import matplotlib.pyplot as plt
from matplotlib.font_manager import fontManager

# for names and labels that matplotlib's own font cannot write; those that are installed
FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic",
         "PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "WenQuanYi Zen Hei",
         "Droid Sans Fallback", "Arial Unicode MS", "Noto Emoji", "Segoe UI Emoji")
plt.rcParams["font.family"] += sorted({font.name for font in fontManager.ttflist} & {*FONTS},
                                      key=FONTS.index)


def no_screen() -> bool:
    """Whether figures can only be saved, as in a script on a server."""
    return plt.get_backend().lower() == "agg"


def show() -> None:
    """Show the current figure; without a screen close it, or they would fill the memory."""
    with warnings.catch_warnings():  # of a missing screen, and of signs that no font has
        warnings.simplefilter("ignore", UserWarning)
        plt.show()
    if no_screen():
        plt.close()
