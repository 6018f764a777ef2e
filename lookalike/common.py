"""What all modules share: paths, and values as messages show them."""
import functools
import sys
import unicodedata
from pathlib import Path
from typing import Any

AnyPath = str | Path
HERE = Path(__file__).resolve().parent.parent  # the checkout


def readable(text: str) -> str:
    """Replace what a terminal cannot show by ?: control characters, bytes that are not UTF-8."""
    return "".join("?" if unicodedata.category(one) in ("Cc", "Cf", "Cs", "Zl", "Zp") else one
                   for one in text)


def say(*lines: str) -> None:
    """Print each text on a line of its own, with ? for what the output's encoding lacks.

    A script's redirected output is cp1252 on Windows, which has no Cyrillic letters.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    for line in lines:
        print(readable(line).encode(encoding, "replace").decode(encoding))


@functools.cache
def say_once(line: str, folder: AnyPath = "") -> None:
    """Print a line that a reader needs once, or once for each folder."""
    say(line)


def shown(value: Any) -> str:
    """Shorten a value to one line of an error message."""
    try:
        text = " ".join(readable(repr(value)).split())
    except ValueError:  # Python writes no number of over 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 100 else f"{text[:60]}... ({len(text):,} characters)"


def listed(texts: list[str], most: int = 5) -> str:
    """Join the first texts by commas, and count those left out."""
    more = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
