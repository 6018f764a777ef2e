"""Photos to embeddings: what comes out, and which photos are left out."""
import os
import shutil
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lookalike import extract_embeddings, networks, pil_loader
from lookalike.extraction import say_skipped
from lookalike.folders import photo_files


def test_broken_photos_are_named_counted_and_left_out(tmp_path, photos, tiny, capsys):
    for path in sorted(photos.glob("*.jpg"))[:16]:
        shutil.copy(path, tmp_path)
    broken = {"bag-00.jpg": "not a readable photo", "dress-02.jpg": "truncated",
              "a loop.jpg": "link", "lost.jpg": "no photo"}
    (tmp_path / "bag-00.jpg").write_text("no photo")
    (tmp_path / "dress-02.jpg").write_bytes((tmp_path / "dress-02.jpg").read_bytes()[:900])
    (tmp_path / "a loop.jpg").symlink_to(tmp_path / "a loop.jpg")
    names = [*photo_files(tmp_path), "lost.jpg"]
    img_names, img_emb_tensors, skipped = extract_embeddings(names, tiny, tmp_path)
    said = capsys.readouterr().out
    assert f"Embedded {len(names) - 4} of {len(names)} photos; skipped 4:" in said
    assert skipped.keys() == broken.keys() and len(img_names) == len(names) - 4
    for name, why in broken.items():
        assert why in skipped[name] and f"  {name}: {skipped[name]}" in said
    assert img_emb_tensors.dtype == torch.float32
    assert torch.equal(img_emb_tensors, tiny.embed([pil_loader(tmp_path / name)
                                                    for name in img_names]))


def test_hundreds_of_bad_ones_do_not_fill_the_screen(capsys):
    say_skipped({f"{i}.jpg": "the file is empty" for i in range(300)}, 400)
    said = capsys.readouterr().out
    assert said.startswith("Embedded 100 of 400 photos; skipped 300:\n  0.jpg: the file is empty\n")
    assert said.endswith("  and 280 more\n") and said.count("\n") == 22


def test_a_large_jpeg_gets_the_vector_that_notebook_01_gives_it(tmp_path, backbone):
    """Both decode it at half its size."""
    Image.effect_noise((1200, 1600), 90).convert("RGB").save(tmp_path / "a.jpg")
    vectors = extract_embeddings([tmp_path / "a.jpg"], backbone).img_emb_tensors
    assert torch.equal(vectors, backbone.embed([pil_loader(tmp_path / "a.jpg")]))


@pytest.mark.slow
def test_twelve_photos_get_the_vectors_that_many_get(home, photos, backbone, embedded, monkeypatch):
    """To the bit by one engine; OpenVINO's and torch's are within 1e-4 of each other."""
    monkeypatch.setattr(networks, "MANY", 24)
    names = embedded[0][:24]
    many = extract_embeddings(names, replace(backbone), photos).img_emb_tensors
    few = extract_embeddings(names[:12], replace(backbone), photos).img_emb_tensors
    assert torch.equal(few, many[:12])
    assert torch.equal(few[:1], replace(backbone).embed([pil_loader(photos / names[0])]))
    if not torch.accelerator.is_available():
        assert torch.allclose(many, embedded[1][:24], rtol=0, atol=1e-4)


def test_a_worker_holds_one_whole_photo_at_a_time(photos, backbone):
    """A photo of 48 megapixels takes 144 MB; eight of them on each core filled the memory."""
    seen, alive = [], []

    def load(path):
        photo = pil_loader(path)
        seen.append(weakref.ref(photo))
        alive.append(sum(one() is not None for one in seen))
        return photo

    backbone.embed_files([photos / name for name in photo_files(photos)[:8]],
                         lambda batch: np.zeros((len(batch), 1280), np.float32), load)
    assert len(alive) == 8 and max(alive) <= 2


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux tells")
def test_as_many_workers_as_cores_that_this_process_may_use(photos, tiny, monkeypatch):
    """In a container os.cpu_count() is the host's."""
    workers = set()
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    listening = replace(tiny, crop=lambda photo: workers.add(threading.get_ident())
                        or tiny.crop(photo))
    extract_embeddings(photo_files(photos), listening, photos)
    assert 1 <= len(workers) <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize("paths", [[], "a.jpg"])
def test_paths_that_are_not_a_list(tiny, paths):
    with pytest.raises(ValueError, match="no photos to embed: pass a list of paths, not"):
        extract_embeddings(paths, tiny)
