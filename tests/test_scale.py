"""Search in Milvus and extraction over Ray: equal to the exact index and to the plain
extraction.
"""

import os
import socket
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import helpers
from lookalike import scale

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


def names(neighbours):
    return [n.name for n in neighbours]


@pytest.mark.parametrize("factors", [3, 20, 56])
def test_the_four_nearest_are_those_of_the_exact_index(client, catalogue, factors):
    scale.insert_into_milvus(client, factors, catalogue)
    for query in range(0, 56, 7):
        exact, found = (
            helpers.nearest(query, factors),
            scale.nearest_in_milvus(client, query, factors, catalogue),
        )
        assert names(found) == names(exact)
        assert [(n.label, n.index) for n in found] == [(n.label, n.index) for n in exact]
        assert [n.distance for n in found] == pytest.approx(
            [n.distance for n in exact], rel=1e-3, abs=1e-2
        )


def test_a_photo_from_outside_finds_the_same(client, catalogue, photos):
    scale.insert_into_milvus(client, 20, catalogue)
    new = helpers.photo_path(helpers.list_photos(photos)[1][0], photos)
    assert names(scale.nearest_in_milvus(client, new, 20, catalogue)) == names(
        helpers.nearest(new, 20)
    )


def test_inserting_twice_or_in_other_batches_changes_nothing(client, catalogue):
    collection = scale.insert_into_milvus(client, 20, catalogue)
    first = scale.nearest_in_milvus(client, 5, 20, catalogue)
    assert scale.insert_into_milvus(client, 20, catalogue, batch=13) == collection
    assert count(client, collection) == 56
    assert scale.nearest_in_milvus(client, 5, 20, catalogue) == first


def test_another_day(client, catalogue):
    """Milvus keeps the photos on disk, and does not load them by itself."""
    collection = scale.insert_into_milvus(client, 20, catalogue)
    first = scale.nearest_in_milvus(client, 5, 20, catalogue)
    client.release_collection(collection)
    assert scale.nearest_in_milvus(client, 5, 20, catalogue) == first
    client.release_collection(collection)
    assert scale.insert_into_milvus(client, 20, catalogue) == collection
    assert count(client, collection) == 56


def test_an_interrupted_insert_is_completed_by_the_next(client, catalogue, monkeypatch):
    upsert, calls = client.upsert, []

    def stops(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return upsert(*args, **kwargs)

    monkeypatch.setattr(client, "upsert", stops)
    with pytest.raises(KeyboardInterrupt):
        scale.insert_into_milvus(client, 20, catalogue, batch=10)
    monkeypatch.setattr(client, "upsert", upsert)
    assert count(client, scale.insert_into_milvus(client, 20, catalogue, batch=10)) == 56


def test_only_photos_of_one_label(client, catalogue):
    scale.insert_into_milvus(client, 20, catalogue)
    kind = catalogue.labels[30]
    found = scale.nearest_in_milvus(client, 0, 20, catalogue, kind=kind)
    distance = ((catalogue.compressed[:, :20] - catalogue.compressed[0, :20]) ** 2).sum(axis=1)
    mine = [i for i in np.argsort(distance) if catalogue.labels[i] == kind and i != 0][:4]
    assert [n.index for n in found] == mine
    assert scale.nearest_in_milvus(client, 0, 20, catalogue, kind='no " such') == []


def test_a_label_in_cyrillic(client, catalogue):
    catalogue.labels = ["Платье" if i % 2 else "Шляпа" for i in range(56)]
    scale.insert_into_milvus(client, 20, catalogue)
    found = scale.nearest_in_milvus(client, 0, 20, catalogue, kind="Платье")
    assert len(found) == 4 and {one.label for one in found} == {"Платье"}


def test_a_photo_goes_and_another_comes(client, catalogue):
    collection = scale.insert_into_milvus(client, 20, catalogue)
    sold = scale.nearest_in_milvus(client, 0, 20, catalogue)[0]
    client.delete(collection, ids=[sold.name])
    assert (
        sold.name not in names(scale.nearest_in_milvus(client, 0, 20, catalogue))
        and count(client, collection) == 55
    )
    client.upsert(
        collection, [{"name": "new.jpg", "label": "Hat", "vector": catalogue.compressed[0, :20]}]
    )
    assert scale.nearest_in_milvus(client, 0, 20, catalogue)[0] == (
        "new.jpg",
        "Hat",
        pytest.approx(0, abs=1e-3),
        -1,
    )


def test_other_photos_or_factors_have_a_collection_of_their_own(catalogue):
    fewer = replace(catalogue, img_names=catalogue.img_names[:-1])
    retrained = replace(catalogue, about={"fingerprint": "other"})
    assert (
        len(
            {
                scale.milvus_collection(*args)
                for args in ((catalogue, 20), (catalogue, 21), (fewer, 20), (retrained, 20))
            }
        )
        == 4
    )


def test_factors_are_checked_before_anything_is_made(client, catalogue):
    with pytest.raises(ValueError, match="57, and must be a whole number from 1 to 56"):
        scale.insert_into_milvus(client, 57, catalogue)
    assert client.list_collections() == []


def test_a_server_by_its_address_alone(client, catalogue, tmp_path, monkeypatch):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "milvus_lite",
            "server",
            "--data-dir",
            str(tmp_path / "served"),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},  # else its line stays in its buffer
    )
    try:
        assert "listening" in server.stdout.readline()
        monkeypatch.setenv("MILVUS_URI", f"http://127.0.0.1:{port}")
        remote = scale.open_milvus()
        scale.insert_into_milvus(remote, 20, catalogue)
        assert names(scale.nearest_in_milvus(remote, 3, 20, catalogue)) == names(
            helpers.nearest(3, 20)
        )
        assert client.list_collections() == []  # nothing went into the local one
        remote.close()
    finally:
        server.terminate()
        server.wait()


def test_no_server_says_how_to_start_one(monkeypatch):
    monkeypatch.setenv("MILVUS_URI", "http://127.0.0.1:1")
    with pytest.raises(
        ConnectionError,
        match="(?s)no Milvus answers at 'http://127.0.0.1:1'.*standalone_embed.sh start.*unset",
    ):
        scale.open_milvus()


def test_a_folder_that_another_process_has_open(client, home):
    code = "import sys; from lookalike import scale; scale.open_milvus(sys.argv[1])"
    other = subprocess.run(
        [sys.executable, "-c", code, str(home / "embeddings" / "fashion_milvus.db")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.path.dirname(helpers.__file__)},
    )
    assert "only one process may have it open" in " ".join(other.stderr.split())


@pytest.fixture(scope="module")
def local_ray():
    yield
    ray.shutdown()


def test_ray_gives_the_same_vectors_and_passes_over_the_broken(
    photos, embedded, backbone, local_ray, tmp_path, capsys, monkeypatch
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    paths = [helpers.photo_path(name, photos) for name in embedded[0]]
    paths[20:20] = [tmp_path / "broken.jpg", tmp_path / "nowhere.jpg"]
    found, vectors, skipped = scale.extract_with_ray(paths, backbone)
    assert found == [str(p) for p in paths if p.parent == photos]
    assert torch.allclose(vectors, embedded[1], atol=1e-4)
    said = capsys.readouterr().out
    assert skipped.keys() == {str(tmp_path / "broken.jpg"), str(tmp_path / "nowhere.jpg")}
    assert (
        "Embedded 56 of 58 photos; skipped 2" in said
        and "broken.jpg: not a photo" in said
        and "nowhere.jpg: no photo" in said
    )


def test_ray_takes_names_and_a_folder(photos, embedded, backbone, local_ray):
    found, vectors, skipped = scale.extract_with_ray(embedded[0][:9], backbone, photos)
    assert found == embedded[0][:9] and torch.allclose(vectors, embedded[1][:9], atol=1e-4)


def test_a_cluster_that_does_not_answer(photos, embedded, backbone, monkeypatch):
    ray.shutdown()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(
        ConnectionError,
        match="(?s)no Ray cluster answers at RAY_ADDRESS='127.0.0.1:1'.*ray start --head.*unset it",
    ):
        scale.extract_with_ray(embedded[0][:2], backbone, photos)
