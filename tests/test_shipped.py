"""The shipped pickle: what it holds, how it is read, and what is refused."""
import os
import pickle

import numpy as np
import pytest
import torch

from lookalike.embeddings import EMB_FILENAME, SHIPPED_BY, Refused, load_embeddings
from lookalike.embeddings import shipped_vectors

NAMES, VECTORS = ["images/a.jpg", "images/b.jpg"], torch.arange(6.0).reshape(2, 3)


def test_the_articles_two_lines_read_what_we_ship(backbone):
    with open(EMB_FILENAME, "rb") as fIn:
        img_names, img_emb_tensors = pickle.load(fIn)
    assert isinstance(img_names, list) and len(img_names) == 5398
    assert all(name.startswith("images/") and name.endswith(".jpg") for name in img_names)
    assert img_emb_tensors.dtype == torch.float32 and img_emb_tensors.shape == (5398, 1280)
    ours = load_embeddings(EMB_FILENAME)
    assert ours[0] == img_names and torch.equal(ours[1], img_emb_tensors)
    by_photo = shipped_vectors()
    assert len(by_photo) == 5398 and {*map(len, by_photo)} == {32}
    assert list(by_photo.values())[7] == img_emb_tensors[7].numpy().tobytes()
    assert SHIPPED_BY == backbone.about, "the network that is installed made them"


@pytest.mark.parametrize("vectors", [VECTORS, VECTORS.double(), VECTORS.half(), VECTORS.numpy(),
                                     VECTORS.tolist()], ids=lambda one: type(one).__name__)
def test_a_pickle_of_ones_own(tmp_path, vectors):
    """As the article writes it: refused, and read when the reader says whose it is."""
    (tmp_path / "mine.pickle").write_bytes(pickle.dumps([NAMES, vectors]))
    with pytest.raises(Refused, match=r"mine.pickle was not loaded.*trusted=True"):
        load_embeddings(tmp_path / "mine.pickle")
    img_names, img_emb_tensors = load_embeddings(tmp_path / "mine.pickle", trusted=True)
    assert img_names == NAMES and torch.equal(img_emb_tensors, VECTORS)


class Prank:
    """Pickles to a call that leaves a folder."""

    def __reduce__(self):
        return os.mkdir, ("pwned",)


def test_nothing_in_a_strangers_pickle_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.pickle").write_bytes(pickle.dumps([NAMES, Prank()]) + b"{}")
    with pytest.raises(Refused, match="e.pickle was not loaded"):
        load_embeddings(tmp_path / "e.pickle")
    assert os.listdir(tmp_path) == ["e.pickle"]


def test_the_shipped_pickle_with_one_byte_changed(tmp_path):
    content = bytearray(EMB_FILENAME.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "e.pickle").write_bytes(content)
    with pytest.raises(Refused, match="not the file that came with this tutorial"):
        load_embeddings(tmp_path / "e.pickle")


NAN = float("nan")


@pytest.mark.parametrize("content, words", [
    ([NAMES], "damaged"), (42, "damaged"), ([NAMES, "ab"], "damaged"), ([[1, 2], VECTORS], "texts"),
    (["ab", VECTORS], "texts"), ([NAMES, VECTORS[0]], "shape"), ([[], VECTORS[:0]], "shape"),
    ([[*NAMES, "c"], VECTORS], "shape"), ([NAMES, VECTORS * NAN], "NaN, infinity"),
    ([NAMES, VECTORS.double() * 1e300], "numbers over"), ([NAMES, VECTORS * 1e17], "numbers over"),
    ([NAMES, np.array([[1, "a"], [2, "b"]], object)], "damaged")], ids=str)
def test_a_trusted_pickle_is_checked_all_the_same(tmp_path, content, words):
    (tmp_path / "mine.pickle").write_bytes(pickle.dumps(content))
    with pytest.raises(Refused, match=f"mine.pickle was not loaded.*{words}") as said:
        load_embeddings(tmp_path / "mine.pickle", trusted=True)
    assert len(str(said.value)) < 300


@pytest.mark.parametrize("content", [b"", b"images/a.jpg,1,2,3\n", b"\x80\x05X" + b"a" * 10**6])
def test_damaged_files(tmp_path, content):
    (tmp_path / "e").write_bytes(content)
    for trusted in (False, True):
        with pytest.raises(Refused) as said:
            load_embeddings(tmp_path / "e", trusted)
        assert len(str(said.value)) < 300


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="e.pickle"):
        load_embeddings(tmp_path / "e.pickle")
