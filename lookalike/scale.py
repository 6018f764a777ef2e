"""The same search in Milvus, the same extraction over Ray (notebook 07)."""
import functools
import hashlib
import json
import logging
import os
import pickle
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import lookalike
from lookalike import AnyPath
from lookalike.extraction import Extracted, without_skipped
from lookalike.networks import BATCH, Backbone
from lookalike.photos import Neighbour

# ---- Milvus ----------------------------------------------------------------------------------
NO_SERVER = """no Milvus answers at {uri!r} ({error}). To start one with Docker, on port 19530:
  curl -sfL https://raw.githubusercontent.com/milvus-io/milvus/master/scripts/\
standalone_embed.sh -o standalone_embed.sh
  bash standalone_embed.sh start
Or unset MILVUS_URI: then Milvus Lite is used, which needs no server"""
NO_LITE = ("Milvus Lite could not open {name!r} ({error}): its name must end in .db, and only one "
           "process may have it open, so shut down the other notebook's kernel")


def open_milvus(uri: AnyPath | None = None) -> Any:
    """Connect to the server at `uri` or MILVUS_URI, else open Milvus Lite in embeddings/.

    A server that asks who you are finds 'user:password' in MILVUS_TOKEN. Raises ConnectionError
    if nothing answers. Source: milvus.io/docs/milvus_lite.md.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from pymilvus import MilvusClient, MilvusException
    uri = str(uri or os.environ.get("MILVUS_URI")
              or lookalike.home() / "embeddings" / "fashion_milvus.db")
    if "://" not in uri:
        Path(uri).parent.mkdir(parents=True, exist_ok=True)
    try:
        return MilvusClient(uri, token=os.environ.get("MILVUS_TOKEN", ""), timeout=10)
    except MilvusException as error:
        raise ConnectionError((NO_SERVER if "://" in uri else NO_LITE).format(
            uri=uri, name=Path(uri).name, error=error.message)) from error


def milvus_collection(catalogue: Any, factors: int) -> str:
    """Name the collection of a catalogue: of other photos or another network it is another."""
    content = json.dumps([catalogue.img_names, catalogue.about.get("fingerprint"), factors])
    return f"fashion_{factors}_{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def insert_into_milvus(client: Any, factors: int, catalogue: Any, batch: int = 500) -> str:
    """Put name, label and compressed vector of every photo into a collection of Milvus.

    The name is the key, so a second run, or one after an interruption, overwrites and does not
    double. FLAT is Milvus's exact index; 'Strong' means that a search sees what was written
    before it.

    Parameters
    ----------
    client
        Of `open_milvus`.
    factors, catalogue
        To how many numbers which Catalogue is compressed.
    batch
        Photos an insertion.

    Returns
    -------
    str
        The collection's name.

    Source: milvus.io/docs/upsert-entities.md, milvus.io/docs/consistency.md.
    """
    from pymilvus import DataType
    catalogue.index(factors)  # for its check of `factors`
    collection = milvus_collection(catalogue, factors)
    if not client.has_collection(collection):
        schema = client.create_schema()
        schema.add_field("name", DataType.VARCHAR, is_primary=True, max_length=4096)
        schema.add_field("label", DataType.VARCHAR, max_length=1000)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=factors)
        index = client.prepare_index_params("vector", index_type="FLAT", metric_type="L2")
        client.create_collection(collection, schema=schema, index_params=index,
                                 consistency_level="Strong")
    client.load_collection(collection)  # one that was made before waits on disk
    rows = [{"name": name, "label": label, "vector": vector} for name, label, vector in zip(
        catalogue.img_names, catalogue.labels, catalogue.compressed[:, :factors], strict=True)]
    for start in tqdm(range(0, len(rows), batch), "Batches of photos to Milvus", delay=2):
        client.upsert(collection, rows[start:start + batch])
    return collection


def nearest_in_milvus(client: Any, query: Any, factors: int, catalogue: Any,
                      k: int = 4, kind: str | None = None) -> list[Neighbour]:
    """Find what `nearest` finds, in Milvus.

    Parameters
    ----------
    client, factors, catalogue
        As for `insert_into_milvus`.
    query
        As for `nearest`.
    k, kind
        How many; with `kind`, among the photos of that label only.

    Returns
    -------
    list of Neighbour
        Nearest first. A photo that is in Milvus and not in the catalogue has the index -1.

    Source: milvus.io/docs/filtered-search.md.
    """
    query, factors = catalogue.at_hand(query, factors)
    liked = catalogue.find(query)
    vector, own = catalogue.query_vector(liked, factors), {number for number, _ in liked}
    number = {name: i for i, name in enumerate(catalogue.img_names)}
    only = "" if kind is None else f"label == {json.dumps(kind, ensure_ascii=False)}"
    collection = milvus_collection(catalogue, factors)
    client.load_collection(collection)
    hits = client.search(collection, vector, limit=k + len(own), filter=only,
                         output_fields=["label"])[0]
    found = [Neighbour(hit["name"], hit["entity"]["label"], hit["distance"],
                       number.get(hit["name"], -1)) for hit in hits]
    return [one for one in found if one.index not in own][:k]


# ---- Ray -------------------------------------------------------------------------------------
def extract_with_ray(paths: list[AnyPath], backbone: Backbone, images: AnyPath = "") -> Extracted:
    """Extract as `extract_embeddings` does, over Ray Data: here, or on RAY_ADDRESS's cluster.

    One actor a core, each with a backbone of its own; they take batches, so a broken photo is
    named and passed over here too. Nothing is kept of an interrupted run.

    Parameters
    ----------
    paths, backbone, images
        As for `extract_embeddings`. On a cluster `images` must be a folder that every machine
        sees under that name, and every machine needs requirements.txt; our code is sent along.

    Raises
    ------
    ConnectionError
        No cluster answers.
    ValueError
        No paths.

    Source: docs.ray.io/en/latest/data/batch_inference.html.
    """
    import ray
    names = [str(path) for path in paths]
    if not names:
        raise ValueError("no photos to embed: the list of paths is empty")
    if not ray.is_initialized():
        _start_ray(ray)
    photos = ray.data.from_items([{"row": i, "file": str(Path(images, name).absolute())}
                                  for i, name in enumerate(names)])
    actors = ray.data.ActorPoolStrategy(size=int(ray.cluster_resources()["CPU"]))
    embedded = photos.map_batches(_Embedder, fn_constructor_args=(backbone,), batch_size=BATCH,
                                  num_cpus=1, compute=actors)
    vectors, why = np.empty((len(names), backbone.n_features), np.float32), [None] * len(names)
    for row in tqdm(embedded.iter_rows(), f"Photos to vectors, {backbone.name}, Ray", len(names),
                    file=sys.stdout):
        vectors[row["row"]], why[row["row"]] = row["vector"], pickle.loads(row["why"])
    return without_skipped(names, vectors, why)


class _Embedder:
    """What each actor of Ray holds, and does with a batch."""

    def __init__(self, backbone):
        self.backbone = backbone

    def __call__(self, batch):
        vectors, why = self.backbone.embed_files(batch["file"], self.backbone.compiled.compute)
        return {"row": batch["row"], "vector": vectors, "why": list(map(pickle.dumps, why))}


def _start_ray(ray):
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it warns of what is as it should be
    address, code = os.environ.get("RAY_ADDRESS", ""), str(Path(lookalike.__file__).parent)
    init = functools.partial(ray.init, runtime_env={"py_modules": [code]},
                             logging_level=logging.ERROR, log_to_driver=False)
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if host:  # ray.init itself would try for minutes
            socket.create_connection((host, int(port)), timeout=5).close()
        try:
            init()
        except Exception as error:
            if type(error) is not Exception:
                raise
            ray.shutdown()  # it gives its parts 30 s, and on a slow disk the first time is over
            init()
    except (OSError, ValueError, RuntimeError) as error:
        raise ConnectionError(
            f"no Ray cluster answers at RAY_ADDRESS={address!r} ({error}). Start one with 'ray "
            "start --head', set RAY_ADDRESS to what it prints (and its RAY_AUTH_MODE and token), "
            "or unset it: Ray then starts on this machine") from error
    ray.data.DataContext.get_current().enable_progress_bars = False  # our own is enough
    logging.getLogger("ray.data").setLevel(logging.ERROR)
