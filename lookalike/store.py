"""Embeddings, by what a photo is and which network made them: one SQLite file.

A photo is its bytes, identified by their SHA-256. So resuming after an interruption, two notebooks
at once, photos that were renamed, moved, copied or changed, and another network and back again need
no code of their own: we embed only photos that no network with that fingerprint has seen.
"""
import contextlib
import functools
import hashlib
import os
import sqlite3
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import PIL
import pillow_heif
from tqdm import tqdm

from lookalike import common
from lookalike.common import say_once
from lookalike.photos import BadPhoto, photo_hash

TABLES = """
CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, stat TEXT, photo BLOB);
CREATE TABLE IF NOT EXISTS vectors (network TEXT, photo BLOB, vector, PRIMARY KEY (network, photo));
CREATE TABLE IF NOT EXISTS folders (path BLOB PRIMARY KEY, backbone, weights, fingerprint);
"""
EVERY = 3  # seconds between commits: a kill or a power cut costs that much work at most
WAIT = 20  # seconds to wait for another notebook's commit before we give up
# what read a photo: a newer one may read what this one cannot, so its reasons are not taken
READER = f"Pillow {PIL.__version__}, pillow-heif {pillow_heif.__version__}: "
# a damaged row may call its bytes a text; no text is a reason to stop reading
TEXT = functools.partial(str, encoding="utf-8", errors="replace")
SETTLED = 3 * 10**9  # ns: on some disks a file changed twice in two seconds keeps its time


@contextlib.contextmanager
def open_store() -> Iterator[sqlite3.Connection]:
    """Open embeddings/vectors.db, or a copy of it in memory where it cannot be written to.

    A file that is locked, damaged or not ours, and a full disk, end in an OSError that says so.
    """
    path = common.HERE / "embeddings" / "vectors.db"
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)
    to_write = path if path.exists() else path.parent
    store = None
    try:
        if os.access(to_write, os.W_OK) and os.access(path.parent, os.W_OK):
            store = sqlite3.connect(path, timeout=WAIT)
            store.text_factory = TEXT
            _refuse_foreign(store, path)
            store.executescript(TABLES)
            yield store
        else:
            yield _in_memory(path)
    except sqlite3.DatabaseError as error:
        raise OSError(f"{path} ({error}): {_cure(error)}") from error
    finally:
        if store:
            store.close()


def _cure(error):
    if "lock" in str(error):
        return ("another program has locked it, for example a database viewer or a backup: close "
                "that program and run this again")
    if type(error) is sqlite3.DatabaseError:
        return "it is damaged: delete it. All photos are then embedded again"
    return ("free some disk space, or allow writing there, and run this again. What was embedded "
            "before is kept")


def _refuse_foreign(store, path):
    """Raise OSError for a database that holds anything but our tables, such as a trigger."""
    with contextlib.closing(sqlite3.connect(":memory:")) as ours:
        ours.executescript(TABLES)
        schema = "SELECT type, name, sql FROM sqlite_master"
        foreign = {*store.execute(schema)} - {*ours.execute(schema)}
    if foreign:
        raise OSError(f"{path} holds the {' '.join(sorted(foreign)[0][:2])}, which this tutorial "
                      "did not make: delete or rename the file. All photos are then embedded again")


@functools.cache
def _in_memory(path):
    """Make a store that ends with the process; it begins with what a read-only file holds."""
    say_once(f"{path.parent} cannot be written to: new embeddings stay in memory, until this "
             "notebook ends")
    store = sqlite3.connect(":memory:", check_same_thread=False)
    store.text_factory = TEXT
    if path.is_file():
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)) as disk:
            _refuse_foreign(disk, path)
            disk.backup(store)
    store.executescript(TABLES)
    return store


# ---- which photo a file is -------------------------------------------------------------------
def _file_stat(file):
    """Size, and the times when the content and the metadata last changed, in ns.

    Programs that keep the first two as they were cannot set back the third.
    """
    stat = file.stat()
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"


def photos_of(store: sqlite3.Connection, images: Path, names: list[str]
              ) -> tuple[dict[str, bytes], dict[str, Exception]]:
    """Identify each file's photo: {name: SHA-256}, and {name: why it could not be read}.

    Only files that are new or changed are read.
    """
    inside = os.path.join(os.fsencode(images), b"")  # and what follows on it in order of bytes
    known = dict(store.execute("SELECT path, photo FROM files WHERE path BETWEEN ? AND ?",
                               (inside, inside + b"\xff")))
    photos, faults, rows = {}, {}, []
    due = time.monotonic() + EVERY
    for name in tqdm(names, "Looking at new photos", delay=2, unit=" photos", file=sys.stdout):
        path = os.fsencode(images / name)
        try:
            stat = _file_stat(images / name)
            photo = _unsealed(known.get(path), path, stat)
            if not photo:
                photo = photo_hash(images / name)
                if time.time_ns() - max(map(int, stat.split()[1:])) > SETTLED:
                    rows.append((path, stat, _sealed(photo, path, stat)))
            photos[name] = photo
        except (OSError, BadPhoto) as error:
            faults[name] = error
        if time.monotonic() > due or name is names[-1]:
            _note(store, "files", rows)
            rows, due = [], time.monotonic() + EVERY
    return photos, faults


# ---- vectors ---------------------------------------------------------------------------------
def vectors_of(store: sqlite3.Connection, network: str, photos: Iterable[bytes]
               ) -> dict[bytes, bytes | str]:
    """Look up {photo: its vector's bytes, or in words why it has none}, for those known."""
    one = "SELECT photo, vector FROM vectors WHERE network = ? AND photo = ?"
    rows = [row for photo in photos for row in store.execute(one, (network, photo))]
    found = {photo: _unsealed(row, network, photo) for photo, row in rows}
    found = {photo: content[1:] if content[:1] == b"v" else content[1:].decode().removeprefix(
        READER) for photo, content in found.items() if content and (
            content[:1] == b"v" or content[1:].startswith(READER.encode()))}
    if len(found) < len(rows):
        say_once(f"embeddings/vectors.db: {len(rows) - len(found):,} rows are damaged or from an "
                 "earlier version, so these photos are embedded again")
    return found


def keep(store: sqlite3.Connection, network: str, vectors: dict[bytes, bytes | str]) -> int:
    """Store vectors, or reasons why there is none."""
    _write(store, "vectors", [(network, photo, _sealed(
        b"v" + vector if isinstance(vector, bytes) else f"w{READER}{vector}".encode(),
        network, photo)) for photo, vector in vectors.items()])
    return len(vectors)


def _sealed(content, *about):
    """The bytes as we store them, with a check sum at their end, of them and of what they are."""
    check = hashlib.blake2b(digest_size=8)
    for part in (*about, content):
        part = part.encode() if isinstance(part, str) else part
        check.update(len(part).to_bytes(8, "big") + part)
    return content + check.digest()


def _unsealed(row, *about):
    """What `_sealed` was given; None for any other row, damaged or of an earlier version."""
    return row[:-8] if isinstance(row, bytes) and row == _sealed(row[:-8], *about) else None


# ---- the network of a folder -----------------------------------------------------------------
def network_of(store: sqlite3.Connection, images: Path) -> dict[str, str] | None:
    """Look up which network a folder was last opened with: its backbone, weights, fingerprint."""
    path = os.fsencode(images)
    row = store.execute("SELECT backbone, weights, fingerprint FROM folders WHERE path = ?",
                        (path,)).fetchone()
    fingerprint = row and _unsealed(row[2], path, *map(str, row[:2]))
    return {"backbone": row[0], "weights": row[1], "fingerprint": fingerprint.decode()} \
        if fingerprint else None


def remember_network(store: sqlite3.Connection, images: Path, about: dict[str, str]) -> None:
    """Store which network a folder was opened with."""
    if network_of(store, images) != about:
        path, (backbone, weights, fingerprint) = os.fsencode(images), about.values()
        _note(store, "folders", [(path, backbone, weights, _sealed(
            fingerprint.encode(), path, backbone, weights))])


def _note(store, table, rows):
    """Store what only saves time; if that is impossible, go on at once."""
    store.execute("PRAGMA busy_timeout = 100")
    with contextlib.suppress(sqlite3.OperationalError):
        _write(store, table, rows)
    store.execute(f"PRAGMA busy_timeout = {1000 * WAIT}")


def _write(store, table, rows):
    """All rows in one transaction, which is short, so that others need not wait long."""
    if rows:
        places = ", ".join("?" * len(rows[0]))
        with store:
            store.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({places})", rows)
