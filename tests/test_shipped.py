"""The shipped pickle: what it holds, how it is read, and what is refused."""
import os
import pickle

import pytest
import torch

from lookalike.shipped import EMB_FILENAME, SHIPPED_BY, load_embeddings, shipped_vectors


def test_the_articles_two_lines_read_what_we_ship(backbone):
    with open(EMB_FILENAME, "rb") as fIn:
        img_names, img_emb_tensors = pickle.load(fIn)
    assert isinstance(img_names, list) and len(img_names) == 5398
    assert all(name.startswith("images/") and name.endswith(".jpg") for name in img_names)
    assert img_emb_tensors.dtype == torch.float32 and img_emb_tensors.shape == (5398, 1280)
    ours = load_embeddings()
    assert ours[0] == img_names and torch.equal(ours[1], img_emb_tensors)
    by_photo = shipped_vectors()
    assert len(by_photo) == 5398 and {*map(len, by_photo)} == {32}
    assert list(by_photo.values())[7] == img_emb_tensors[7].numpy().tobytes()
    assert SHIPPED_BY == backbone.about, "the network that is installed made them"


class Prank:
    """Pickles to a call that leaves a folder."""

    def __reduce__(self):
        return os.mkdir, ("pwned",)


def one_bit_changed():
    content = bytearray(EMB_FILENAME.read_bytes())
    content[len(content) // 2] ^= 1
    return content


@pytest.mark.parametrize("content", [
    lambda: pickle.dumps([["a.jpg"], torch.ones(1, 3)]), lambda: pickle.dumps([["a.jpg"], Prank()]),
    one_bit_changed, lambda: b""], ids=["one's own", "a stranger's", "one bit changed", "empty"])
def test_any_other_file_is_refused_and_nothing_in_it_is_run(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.pickle").write_bytes(content())
    with pytest.raises(ValueError, match="e.pickle was not loaded.*can run any code. Get the file"):
        load_embeddings(tmp_path / "e.pickle")
    assert os.listdir(tmp_path) == ["e.pickle"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="e.pickle.*get the file from the repository"):
        load_embeddings(tmp_path / "e.pickle")
