"""Vectors, by what a photo is and which network made them: one SQLite file.

A photo is its bytes, known by their SHA-256. So going on after an interruption, two notebooks at
once, photos that were renamed, moved, copied or changed, and another network and back again need
nothing of their own: only what no network of that fingerprint has seen is embedded.
"""
import contextlib
import functools
import os
import sqlite3
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import PIL
import pillow_heif
from tqdm import tqdm

import lookalike
from lookalike import say_once
from lookalike.photos import BadPhoto, photo_hash

TABLES = """
CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, stat TEXT, photo BLOB);
CREATE TABLE IF NOT EXISTS vectors (network TEXT, photo BLOB, vector, PRIMARY KEY (network, photo));
CREATE TABLE IF NOT EXISTS folders (path BLOB PRIMARY KEY, backbone, weights, fingerprint);
"""
EVERY = 3  # seconds between commits: a kill or a power cut costs that much work at most
# what read a photo: a newer one may read what this one cannot, so its reasons are not taken
READER = f"Pillow {PIL.__version__}, pillow-heif {pillow_heif.__version__}: "
SETTLED = 3 * 10**9  # ns: on some disks a file changed twice in two seconds keeps its time


@contextlib.contextmanager
def open_store() -> Iterator[sqlite3.Connection]:
    """Open embeddings/vectors.db; where nothing can be written, hold it in memory, and say so.

    A full disk, a file that may not be written to, or a damaged one end in OSError, in words.
    """
    path = disk = None
    try:
        try:
            path = lookalike.home() / "embeddings" / "vectors.db"
            path.parent.mkdir(exist_ok=True)
            disk = store = sqlite3.connect(path, timeout=20)  # seconds to wait for another notebook
            disk.executescript(TABLES)
        except (OSError, sqlite3.OperationalError) as error:
            say_once(f"Nothing can be kept here ({error}): vectors are held in memory, until this "
                     "notebook ends")
            store = _in_memory()
        yield store
    except sqlite3.DatabaseError as error:
        mend = "it is damaged, or of another version: delete it, and only time is lost" \
            if type(error) is sqlite3.DatabaseError or " column" in str(error) else \
            "make room there, or allow it, and run this again; what was done before is kept"
        raise OSError(f"{path} ({error}): {mend}") from error
    finally:
        if disk:
            disk.close()


@functools.cache
def _in_memory():
    store = sqlite3.connect(":memory:", check_same_thread=False)
    store.executescript(TABLES)
    return store


# ---- which photo a file is -------------------------------------------------------------------
def file_stat(file: Path) -> str:
    """Size, time of change, and the time of change of what the system keeps of a file, in ns.

    The last cannot be set back by programs that keep the other two. '' for a file that is gone.
    """
    with contextlib.suppress(OSError):
        stat = file.stat()
        return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
    return ""


def photos_of(store: sqlite3.Connection, images: Path, names: list[str]
              ) -> tuple[dict[str, bytes], dict[str, str], dict[str, Exception]]:
    """Say which photo each file is: {name: SHA-256}, {name: stat}, {name: why it was not read}.

    Only files that are new or changed are read.
    """
    inside = os.path.join(os.fsencode(images), b"")  # and what follows on it in order of bytes
    known = {path: (stat, photo) for path, stat, photo in store.execute(
        "SELECT * FROM files WHERE path BETWEEN ? AND ?", (inside, inside + b"\xff"))}
    photos, stats, faults, rows = {}, {}, {}, []
    due = time.monotonic() + EVERY
    for name in tqdm(names, "Looking at new photos", delay=2, unit=" photos", file=sys.stdout):
        path, stats[name] = os.fsencode(images / name), file_stat(images / name)
        then, photos[name] = known.get(path, ("gone", b""))
        if then != stats[name]:
            try:
                photos[name] = photo_hash(images / name)
                if time.time_ns() - max(map(int, stats[name].split()[1:])) > SETTLED:
                    rows.append((path, stats[name], photos[name]))
            except (OSError, BadPhoto) as error:
                faults[name] = error
                del photos[name]
        if time.monotonic() > due or name is names[-1]:
            _note(store, "files", rows)
            rows, due = [], time.monotonic() + EVERY
    return photos, stats, faults


# ---- vectors ---------------------------------------------------------------------------------
def vectors_of(store: sqlite3.Connection, network: str, photos: Iterable[bytes]
               ) -> dict[bytes, bytes | str]:
    """Look up {photo: its vector's bytes, or in words why it has none}, for those known."""
    one = "SELECT photo, vector FROM vectors WHERE network = ? AND photo = ?"
    rows = (row for photo in photos for row in store.execute(one, (network, photo)))
    return {photo: vector if isinstance(vector, bytes) else vector.removeprefix(READER)
            for photo, vector in rows if isinstance(vector, bytes) or vector.startswith(READER)}


def keep(store: sqlite3.Connection, network: str, vectors: dict[bytes, bytes | str]) -> int:
    """Keep vectors, or reasons; of two processes at the same photo the first one's vector stays."""
    _write(store, "vectors", [(network, photo, one if isinstance(one, bytes) else READER + one)
                              for photo, one in vectors.items()],
           "ON CONFLICT DO UPDATE SET vector = excluded.vector WHERE "
           "typeof(vectors.vector) = 'text'")
    return len(vectors)


# ---- the network of a folder -----------------------------------------------------------------
def network_of(store: sqlite3.Connection, images: Path) -> dict[str, str] | None:
    """Say which network a folder was last opened with: its backbone, weights, fingerprint."""
    row = store.execute("SELECT backbone, weights, fingerprint FROM folders WHERE path = ?",
                        (os.fsencode(images),)).fetchone()
    return row and dict(zip(("backbone", "weights", "fingerprint"), row))


def remember_network(store: sqlite3.Connection, images: Path, about: dict[str, str]) -> None:
    """Remember which network a folder was opened with."""
    if network_of(store, images) != about:
        _note(store, "folders", [(os.fsencode(images), *about.values())])


def _note(store, table, rows):
    """What saves time and no work, and so stops nothing where it cannot be written."""
    try:
        _write(store, table, rows)
    except sqlite3.OperationalError as error:
        say_once(f"Which photos were seen cannot be kept in embeddings/vectors.db ({error})")


def _write(store, table, rows, conflict=""):
    """All rows in one transaction, which is short, so that others need not wait long."""
    if rows:
        places = ", ".join("?" * len(rows[0]))
        with store:
            store.executemany(f"INSERT {'' if conflict else 'OR REPLACE '}INTO {table} VALUES "
                              f"({places}) {conflict}", rows)
