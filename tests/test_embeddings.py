"""Vectors on disk: what is written, what is read, and what is refused."""

import io
import json
import os
import pickle
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import save

import lookalike.embeddings as embeddings
from lookalike.embeddings import Refused, load_embeddings, read_embeddings, save_embeddings

NAMES = ["images/a.jpg", "images/b.jpg"]
VECTORS = torch.arange(6.0).reshape(2, 3)


def stored(path, names=NAMES, vectors=VECTORS, **about):
    """A safetensors file as ours, but with whatever is given."""
    text = json.dumps({"img_names": names, **about})
    path.write_bytes(save({"img_emb_tensors": vectors}, {"embeddings": text}))
    return path


# ---- good ones -------------------------------------------------------------------------------
def test_save_then_load(tmp_path, backbone):
    save_embeddings(
        tmp_path / "e.safetensors",
        NAMES,
        VECTORS,
        backbone,
        {"images/a.jpg": "Hat"},
        {"images/a.jpg": [12, 34]},
        {"images/broken.jpg": "the file is empty"},
    )
    img_names, img_emb_tensors = load_embeddings(tmp_path / "e.safetensors")
    assert img_names == NAMES and torch.equal(img_emb_tensors, VECTORS)
    assert img_emb_tensors.dtype == torch.float32
    assert read_embeddings(tmp_path / "e.safetensors")[2] == {
        "backbone": backbone.name,
        "weights": backbone.weights,
        "fingerprint": backbone.fingerprint,
        "labels": {"images/a.jpg": "Hat"},
        "stats": {"images/a.jpg": [12, 34]},
        "skipped": {"images/broken.jpg": "the file is empty"},
        "folder": "",
    }


def test_the_articles_two_lines_read_what_we_ship():
    with open(embeddings.EMB_FILENAME, "rb") as fIn:
        img_names, img_emb_tensors = pickle.load(fIn)
    assert isinstance(img_names, list) and len(img_names) == 5398
    assert img_names[0].startswith("images/")
    assert img_emb_tensors.dtype == torch.float32 and img_emb_tensors.shape == (5398, 1280)
    ours = load_embeddings(embeddings.EMB_FILENAME)
    assert ours[0] == img_names and torch.equal(ours[1], img_emb_tensors)


@pytest.mark.parametrize(
    "vectors",
    [
        VECTORS,
        VECTORS.double(),
        VECTORS.half(),
        VECTORS.numpy(),
        VECTORS.numpy().astype("f8"),
        VECTORS.tolist(),
    ],
    ids=repr,
)
def test_a_pickle_of_ones_own(tmp_path, vectors):
    """As the article writes it: refused, and read when the reader says whose it is."""
    (tmp_path / "mine.pickle").write_bytes(pickle.dumps([NAMES, vectors]))
    with pytest.raises(Refused, match=r"mine.pickle.*program.*notebook 01.*trusted=True"):
        load_embeddings(tmp_path / "mine.pickle")
    img_names, img_emb_tensors = load_embeddings(tmp_path / "mine.pickle", trusted=True)
    assert img_names == NAMES and torch.equal(img_emb_tensors, VECTORS)


@pytest.mark.parametrize(
    "name",
    [
        "images/a:b.jpg",
        "images/$5 $6.jpg",
        "images/ends here .jpg ",
        "images/hidden/..x.jpg",
        "images/рубашка.jpg",
        "x.jpg",
    ],
)
def test_odd_names_that_stay_in_the_folder(tmp_path, name):
    assert load_embeddings(stored(tmp_path / "e", ["images/a.jpg", name]))[0][1] == name


@pytest.mark.skipif(os.name == "nt", reason="there a backslash separates folders")
def test_a_backslash_in_a_name(tmp_path):
    assert (
        load_embeddings(stored(tmp_path / "e", ["images/a\\b.jpg", "b"]))[0][0] == "images/a\\b.jpg"
    )


# ---- refused ones ----------------------------------------------------------------------------
class Prank:
    """Pickles to a call that leaves a file."""

    def __reduce__(self):
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("trailer", [b"", b"{}"])
def test_nothing_in_a_strangers_pickle_is_run(tmp_path, monkeypatch, trailer):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.pickle").write_bytes(pickle.dumps([NAMES, Prank()]) + trailer)
    with pytest.raises(Refused, match="e.pickle was not loaded: it is a pickle"):
        load_embeddings(tmp_path / "e.pickle")
    assert os.listdir(tmp_path) == ["e.pickle"]


def test_the_shipped_pickle_with_one_byte_changed(tmp_path):
    content = bytearray(embeddings.EMB_FILENAME.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "e.pickle").write_bytes(content)
    with pytest.raises(Refused, match="not the one that came with this tutorial"):
        load_embeddings(tmp_path / "e.pickle")


NAN, INF = float("nan"), float("inf")
BAD = {
    "one dimension": (dict(vectors=VECTORS[0]), r"is \(3,\)"),
    "no features": (dict(vectors=torch.zeros(2, 0)), r"is \(2, 0\)"),
    "no photos": (dict(names=[], vectors=torch.zeros(0, 3)), "at least one name"),
    "names that are numbers": (dict(names=[1, 2]), "1 leads out"),
    "names that are one text": (dict(names="ab"), "at least one name"),
    "a name too many": (dict(names=[*NAMES, "images/c.jpg"]), r"shape \(3, features\)"),
    "NaN": (dict(vectors=torch.tensor([[1, 2], [NAN, 1]])), "1 vectors.*images/b.jpg"),
    "infinity": (dict(vectors=torch.tensor([[INF, 2], [1, 1]])), "1 vectors.*images/a.jpg"),
    "too large to square": (dict(vectors=torch.tensor([[1e38, 2], [1, 1]])), "over 1e.16"),
    "infinite as float32": (
        dict(vectors=torch.tensor([[1e300, 2], [1, 1]]).double()),
        "vectors hold",
    ),
    "a name that climbs out": (dict(names=["images/../../etc/passwd", "b"]), "leads out"),
    "an absolute name": (dict(names=["/etc/passwd", "images/b.jpg"]), "leads out"),
    "absolute behind images/": (dict(names=["images//etc/passwd", "b"]), "leads out"),
    "a name with a null": (dict(names=["images/a\0.jpg", "b"]), "leads out"),
    "no name": (dict(names=["images/", "b"]), "leads out"),
    "labels that are no texts": (dict(labels={"images/a.jpg": 5}), "beside the vectors"),
    "labels that are no table": (dict(labels=["Hat", "Hat"]), "damaged"),
    "stats that are no table": (dict(stats=[1]), "beside the vectors"),
    "a network's name that is none": (dict(backbone=["os"]), "beside the vectors"),
    "endless names": (dict(weights="x" * 100_000), "100,... bytes of names for 2 photos"),
}


@pytest.mark.parametrize("case", BAD)
def test_files_that_make_no_sense(tmp_path, case):
    content, words = BAD[case]
    with pytest.raises(Refused, match=words) as error:
        load_embeddings(stored(tmp_path / "e.safetensors", **content))
    assert "e.safetensors" in str(error.value), "the message names the file"


def shape_that_claims(*shape):
    header = {
        "img_emb_tensors": {"dtype": "F32", "shape": shape, "data_offsets": [0, 24]},
        "__metadata__": {"embeddings": json.dumps({"img_names": NAMES})},
    }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(24)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "pickle"),
        (b"images/a.jpg,1,2,3\n", "pickle"),
        (save({"other": VECTORS}), "damaged"),
        (save({"img_emb_tensors": VECTORS}), "damaged"),
        (save({"img_emb_tensors": VECTORS}, {"embeddings": "{"}), "damaged"),
        (save({"img_emb_tensors": VECTORS}, {"embeddings": "[]"}), "damaged"),
        ((2**62).to_bytes(8, "little") + b"{}", "damaged"),
        (shape_that_claims(10**11, 0), "damaged|names"),
        (shape_that_claims(2, 10**9), "damaged"),
        (shape_that_claims(2, 3)[:-4], "damaged"),
    ],
)
def test_damaged_files(tmp_path, content, words):
    (tmp_path / "e").write_bytes(content)
    with pytest.raises(Refused, match=words):
        load_embeddings(tmp_path / "e")


def test_a_trusted_pickle_is_checked_all_the_same(tmp_path):
    for content in (
        [NAMES],
        42,
        [NAMES, "ab"],
        [NAMES, VECTORS * NAN],
        [["../a", "b"], VECTORS],
        [NAMES, np.array([[1, "a"], [2, "b"]], object)],
    ):
        (tmp_path / "mine.pickle").write_bytes(pickle.dumps(content))
        with pytest.raises(Refused, match="mine.pickle"):
            load_embeddings(tmp_path / "mine.pickle", trusted=True)


def test_missing_file_says_how_to_make_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="notebook 01"):
        load_embeddings(tmp_path / "e.safetensors")


# ---- writing ---------------------------------------------------------------------------------
def test_a_file_that_is_there_is_replaced_only_when_told_to(tmp_path, backbone):
    path = tmp_path / "e.safetensors"
    save_embeddings(path, NAMES, VECTORS, backbone)
    with pytest.raises(FileExistsError, match="e.safetensors is there already.*overwrite=True"):
        save_embeddings(path, NAMES[:1], VECTORS[:1], backbone)
    for names, vectors in [(NAMES[:1], VECTORS), (NAMES, VECTORS * NAN), (["../a", "b"], VECTORS)]:
        with pytest.raises(Refused):
            save_embeddings(path, names, vectors, backbone, overwrite=True)
    assert load_embeddings(path)[0] == NAMES
    save_embeddings(path, NAMES[:1], VECTORS[:1], backbone, overwrite=True)
    assert load_embeddings(path)[0] == NAMES[:1]


@pytest.mark.parametrize(
    "function, error",
    [("fsync", OSError(28, "No space left on device")), ("replace", KeyboardInterrupt())],
)
def test_an_interrupted_save_leaves_the_old_file(tmp_path, backbone, monkeypatch, function, error):
    save_embeddings(tmp_path / "e", NAMES, VECTORS, backbone)

    def stop(*_):
        raise error

    with monkeypatch.context() as patch, pytest.raises(type(error)) as said:
        patch.setattr(os, function, stop)
        save_embeddings(tmp_path / "e", NAMES, VECTORS * 2, backbone, overwrite=True)
    assert function == "replace" or "could not write e (No space left" in str(said.value)
    assert torch.equal(load_embeddings(tmp_path / "e")[1], VECTORS)
    assert os.listdir(tmp_path) == ["e"]


def test_whoever_reads_meanwhile_finds_a_whole_file(tmp_path, backbone):
    """Saved again and again beside a reader: the old vectors or the new, never a half."""
    path = tmp_path / "e"
    save_embeddings(path, NAMES, VECTORS, backbone)

    def save_often():
        for turn in range(30):
            save_embeddings(path, NAMES, VECTORS + turn, backbone, overwrite=True)

    writer = threading.Thread(target=save_often)
    writer.start()
    while writer.is_alive():
        difference = load_embeddings(path)[1] - VECTORS
        assert (difference == difference[0, 0]).all()
    writer.join()


def test_safetensors_hold_no_pickle(tmp_path, backbone):
    """The file can be read with nothing but the format's own three parts."""
    save_embeddings(tmp_path / "e", NAMES, VECTORS, backbone)
    file = io.BytesIO((tmp_path / "e").read_bytes())
    header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert header["img_emb_tensors"]["shape"] == [2, 3]
    assert np.array_equal(np.frombuffer(file.read(), "<f4"), VECTORS.flatten())
