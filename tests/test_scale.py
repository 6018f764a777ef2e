"""Search in Milvus equals the exact index, extraction over Ray the plain one."""
import shutil
import socket
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import helpers
from lookalike import HERE, scale
from lookalike.folders import scan

REASON = "needs pip install -r requirements-scale.txt"
pymilvus = pytest.importorskip("pymilvus", reason=REASON)
ray = pytest.importorskip("ray", reason=REASON)
pytestmark = pytest.mark.slow


@pytest.fixture
def client(home, monkeypatch):
    monkeypatch.delenv("MILVUS_URI", raising=False)
    client = scale.open_milvus()
    yield client
    client.close()


def count(client, collection):
    return client.query(collection, output_fields=["count(*)"])[0]["count(*)"]


def same(found, exact):
    """The same photos, in the same order."""
    distances = [one.distance for one in exact]
    return ([one[:2] + one[3:] for one in found] == [one[:2] + one[3:] for one in exact]
            and [one.distance for one in found] == pytest.approx(distances, rel=1e-3, abs=1e-2))


# ---- Milvus ----------------------------------------------------------------------------------
@pytest.mark.parametrize("factors", [3, 56])
def test_the_four_nearest_are_those_of_the_exact_index(client, catalogue, photos, factors):
    scale.insert_into_milvus(client, factors, catalogue)
    new = photos / scan(photos).new[0]
    for query in (0, 21, 55, 900, [3, 8], str(new), [5, str(new)]):
        found = scale.nearest_in_milvus(client, query, factors, catalogue)
        assert len(found) == 4 and same(found, helpers.nearest(query, factors)), query


def test_inserting_again_changes_nothing(client, catalogue, monkeypatch):
    """After an interruption, in other batches, and on another day: Milvus loads nothing itself."""
    upsert, calls = client.upsert, []

    def stops(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return upsert(*args)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(client, "upsert", stops)
        scale.insert_into_milvus(client, 20, catalogue, batch=10)
    collection = scale.insert_into_milvus(client, 20, catalogue, batch=13)
    first = scale.nearest_in_milvus(client, 5, 20, catalogue)
    assert count(client, collection) == 56 and same(first, helpers.nearest(5, 20))
    client.release_collection(collection)
    assert scale.nearest_in_milvus(client, 5, 20, catalogue) == first
    client.release_collection(collection)
    assert scale.insert_into_milvus(client, 20, catalogue) == collection
    assert count(client, collection) == 56


def test_only_photos_of_one_label(client, catalogue):
    catalogue.labels = ["Платье" if i % 2 else 'a "Hat"' for i in range(56)]
    scale.insert_into_milvus(client, 20, catalogue)
    distance = ((catalogue.compressed[:, :20] - catalogue.compressed[0, :20])**2).sum(axis=1)
    for kind in ("Платье", 'a "Hat"'):
        found = scale.nearest_in_milvus(client, 0, 20, catalogue, kind=kind)
        assert [one.index for one in found] == [i for i in np.argsort(distance)
                                                if catalogue.labels[i] == kind and i != 0][:4]
    assert scale.nearest_in_milvus(client, 0, 20, catalogue, kind='no " such') == []


def test_a_photo_goes_and_another_comes(client, catalogue):
    collection = scale.insert_into_milvus(client, 20, catalogue)
    sold = scale.nearest_in_milvus(client, 0, 20, catalogue)[0]
    client.delete(collection, ids=[sold.name])
    assert sold not in scale.nearest_in_milvus(client, 0, 20, catalogue)
    assert count(client, collection) == 55
    client.upsert(collection, [{"name": "new.jpg", "label": "Hat",
                                "vector": catalogue.compressed[0, :20]}])
    assert scale.nearest_in_milvus(client, 0, 20, catalogue)[0] == (
        "new.jpg", "Hat", pytest.approx(0, abs=1e-3), -1)


def test_other_photos_or_factors_have_a_collection_of_their_own(client, catalogue):
    fewer = replace(catalogue, img_names=catalogue.img_names[:-1])
    retrained = replace(catalogue, about={"fingerprint": "other"})
    names = {scale.milvus_collection(*args) for args in (
        (catalogue, 20), (catalogue, 21), (fewer, 20), (retrained, 20))}
    assert len(names) == 4
    with pytest.raises(ValueError, match="57, and must be a whole number from 1 to 56"):
        scale.insert_into_milvus(client, 57, catalogue)
    assert client.list_collections() == []


def test_a_server_by_its_address_alone(client, catalogue, tmp_path, monkeypatch):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-u", "-m", "milvus_lite", "server", "--data-dir", tmp_path / "served",
         "--host", "127.0.0.1", "--port", str(port)], stdout=subprocess.PIPE, text=True)
    try:
        assert "listening" in server.stdout.readline()
        monkeypatch.setenv("MILVUS_URI", f"http://127.0.0.1:{port}")
        remote = scale.open_milvus()
        scale.insert_into_milvus(remote, 20, catalogue)
        assert same(scale.nearest_in_milvus(remote, 3, 20, catalogue), helpers.nearest(3, 20))
        assert client.list_collections() == []  # nothing went into the local one
        remote.close()
    finally:
        server.terminate()
        server.wait()


def test_no_server_says_how_to_start_one(monkeypatch):
    monkeypatch.setenv("MILVUS_URI", "http://127.0.0.1:1")
    with pytest.raises(ConnectionError, match="(?s)no Milvus answers at 'http://127.0.0.1:1'"
                                              ".*standalone_embed.sh start.*unset"):
        scale.open_milvus()


def test_a_folder_that_another_process_has_open(client, home):
    code = "import sys; from lookalike import scale; scale.open_milvus(sys.argv[1])"
    other = subprocess.run([sys.executable, "-c", code, home / "embeddings" / "fashion_milvus.db"],
                           cwd=HERE, capture_output=True, text=True)
    assert "only one process may have it open" in " ".join(other.stderr.split())


# ---- Ray -------------------------------------------------------------------------------------
@pytest.fixture
def no_ray(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield
    ray.shutdown()


def test_ray_gives_the_same_vectors_and_names_the_broken(photos, backbone, no_ray, tmp_path,
                                                         capsys):
    """With a network that says how red, green and blue a photo is, which compiles in no time."""
    mean = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    small = replace(backbone, network=mean, n_features=3)
    names = scan(photos).names[:9]
    for name in names:
        shutil.copy(photos / name, tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    asked = [*names[:5], "broken.jpg", "nowhere.jpg", *names[5:]]
    found, vectors, skipped = scale.extract_with_ray(asked, small, tmp_path)
    said = capsys.readouterr().out
    for words in ("Embedded 9 of 11 photos; skipped 2", "broken.jpg: not a photo", "nowhere.jpg: "):
        assert words in said
    plain = helpers.extract_embeddings(asked, small, tmp_path)
    assert (found, skipped) == (plain.img_names, plain.skipped) and found == names
    assert torch.allclose(vectors, plain.img_emb_tensors, atol=1e-3)


def test_no_photos_and_a_cluster_that_does_not_answer(backbone, monkeypatch):
    with pytest.raises(ValueError, match="no photos to embed"):
        scale.extract_with_ray([], backbone)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConnectionError, match="(?s)no Ray cluster answers at RAY_ADDRESS="
                                              "'127.0.0.1:1'.*ray start --head.*unset it"):
        scale.extract_with_ray(["a.jpg"], backbone)
