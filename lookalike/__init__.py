"""What the notebooks use and do not show, a room each; nothing in here imports helpers.

    photos.py      a file to an upright RGB image; a folder, its download, its labels
    networks.py    backbones: a network without its classifier, and all that belongs to it
    embeddings.py  vectors on disk
    tuning.py      a head trained on the photos (notebook 06)
    scale.py       the same search in Milvus, the same extraction over Ray (notebook 07)
    stand_in.py    the drawn catalogue, for machines that cannot download photos
"""
from pathlib import Path

AnyPath = str | Path
HERE = Path(__file__).resolve().parent.parent  # the checkout: where photos and embeddings are kept
