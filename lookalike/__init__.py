"""Recommend items that look alike, from photos alone.

    from lookalike import open_catalogue, nearest
    mine = open_catalogue("my photos")
    nearest(0, 300, catalogue=mine)

The public names are loaded when they are first used. Importing lookalike has two effects. On macOS
it sets KMP_DUPLICATE_LIB_OK and keeps faiss to one thread: torch, faiss and scikit-learn each bring
an OpenMP there, and the second one to start would end the process
(github.com/faiss-wheels/faiss-wheels/issues/73). And photos.py registers HEIF with Pillow.

    common.py       paths, and values as messages show them
    recommender.py  Catalogue, open_catalogue, build_compressed_index, nearest
    photos.py       one photo: a file to an upright RGB image, or one sentence
    folders.py      the data set's download; a folder's photos and its table
    networks.py     backbones: EfficientNet-Lite1, and any of torchvision's classifiers
    store.py        embeddings, by photo and network: one SQLite file
    extraction.py   photos to embeddings on all cores
    shipped.py      the shipped pickle
    query.py        what a reader searches with: a number, a path, an image, or several of these
    vectors.py      nearest neighbours, and how good they are; concatenation
    colour.py       a photo's colours as 27 numbers
    tuning.py       a head trained on labels (notebook 06)
    export.py       a table and a page of recommendations to take home
    placeholder.py  drawn garments, for machines that cannot download photos
"""
import importlib
import os
import sys

_MODULES = {
    "open_catalogue": "recommender", "nearest": "recommender",
    "build_compressed_index": "recommender", "load_backbone": "networks",
    "extract_embeddings": "extraction", "load_embeddings": "shipped", "pil_loader": "photos",
    "save_recommendations": "export"}
__all__ = list(_MODULES)

if sys.platform == "darwin":
    os.environ.setdefault("KMP_DUPLICATE_LIB_OK", "TRUE")  # vectors.py has the other half


def __getattr__(name):
    if name not in _MODULES:
        raise AttributeError(f"module 'lookalike' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lookalike.{_MODULES[name]}"), name)
