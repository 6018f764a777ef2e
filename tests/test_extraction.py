"""Photos to vectors: what comes out, and what is passed over."""
import os
import shutil
import weakref

import numpy as np
import pytest
import torch

from helpers import extract_embeddings, pil_loader, scan
from lookalike import extraction, networks
from lookalike.networks import BATCH


def test_the_vectors_are_the_networks(photos, backbone, embedded):
    img_names, img_emb_tensors = embedded
    assert img_names == scan(photos).names
    assert img_emb_tensors.dtype == torch.float32 and img_emb_tensors.shape == (56, 1280)
    with torch.inference_mode():
        for i in (0, 30, 55):
            ready = backbone.preprocess(pil_loader(photos / img_names[i]))
            plain = backbone.network(ready.unsqueeze(0))[0]
            assert torch.allclose(plain, img_emb_tensors[i], atol=1e-3)


def test_broken_photos_are_named_counted_and_passed_over(tmp_path, photos, backbone, embedded,
                                                         capsys):
    for path in sorted(photos.glob("*.jpg"))[:16]:
        shutil.copy(path, tmp_path)
    broken = {"coat-00.jpg": "not a photo", "dress-02.jpg": "truncated", "a loop.jpg": "link",
              "труба.jpg": "pipe", "lost.jpg": "no photo"}
    (tmp_path / "coat-00.jpg").write_text("no photo")
    (tmp_path / "dress-02.jpg").write_bytes((tmp_path / "dress-02.jpg").read_bytes()[:900])
    (tmp_path / "a loop.jpg").symlink_to(tmp_path / "a loop.jpg")
    os.mkfifo(tmp_path / "труба.jpg")
    found = scan(tmp_path).names + ["lost.jpg"]
    img_names, img_emb_tensors, skipped = extract_embeddings(found, backbone, tmp_path)
    said = capsys.readouterr().out
    assert f"Embedded {len(found) - 5} of {len(found)} photos; skipped 5:" in said
    assert skipped.keys() == broken.keys() and len(img_names) == len(found) - 5
    for name, why in broken.items():
        assert why in skipped[name] and f"  {name}: {skipped[name]}" in said
    good = dict(zip(*embedded))
    assert all(torch.allclose(vector, good[name], atol=1e-3)
               for name, vector in zip(img_names, img_emb_tensors)), "another photo's vector"


def test_a_batch_of_bad_ones_only(tmp_path, photos, backbone):
    for i in range(BATCH):
        (tmp_path / f"a{i}.jpg").write_text("no photo")
    shutil.copy(photos / "hat-00.jpg", tmp_path / "b.jpg")
    files = sorted(tmp_path.iterdir())
    names, vectors, skipped = extract_embeddings(files, backbone)
    assert names == [str(tmp_path / "b.jpg")] and vectors.shape == (1, 1280)
    assert len(skipped) == BATCH


def test_hundreds_of_bad_ones_do_not_fill_the_screen(capsys):
    extraction.say_skipped({f"{i}.jpg": "the file is empty" for i in range(300)}, 400)
    said = capsys.readouterr().out
    assert said.startswith("Embedded 100 of 400 photos; skipped 300:\n  0.jpg: the file is empty\n")
    assert said.endswith("  and 280 more\n") and said.count("\n") == 22


def test_a_worker_holds_one_whole_photo_at_a_time(photos, backbone, monkeypatch):
    """A photo of 48 megapixels takes 144 MB; eight of them on each core filled the memory."""
    seen, alive = [], []

    def listen(path, small):
        photo = pil_loader(path, small)
        seen.append(weakref.ref(photo))
        alive.append(sum(one() is not None for one in seen))
        return photo

    monkeypatch.setattr(networks, "pil_loader", listen)
    files = [photos / name for name in scan(photos).names[:BATCH]]
    backbone.embed_files(files, lambda batch: np.zeros((len(batch), 1280), np.float32))
    assert len(alive) == BATCH and max(alive) <= 2


def test_as_many_workers_as_cores_that_this_process_may_use(photos, backbone, monkeypatch):
    """In a container os.cpu_count() is the host's."""
    workers, pool = [], extraction.ThreadPoolExecutor
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(extraction, "ThreadPoolExecutor", lambda n: workers.append(n) or pool(n))
    extract_embeddings([photos / "hat-00.jpg"], backbone)
    assert 1 <= workers[0] <= (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
                               else 64)


@pytest.mark.parametrize("paths", [[], "a.jpg"])
def test_paths_that_are_no_list_of_some(backbone, paths):
    with pytest.raises(ValueError, match="give a list of paths, not"):
        extract_embeddings(paths, backbone)
