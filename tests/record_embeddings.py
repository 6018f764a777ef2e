"""Write fashion_images_embs.pickle anew, from the real photos: python tests/record_embeddings.py

First what the article's two lines read, then a line of JSON that says what made it: the network,
labels, and each photo's size, by which a changed one is told. Prints the SHA-256 for
lookalike/embeddings.py.
"""
import hashlib
import json
import pickle
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import helpers  # noqa: E402

images = helpers.get_images()
backbone = helpers.load_backbone("efficientnet_lite1")
names, vectors, skipped = helpers.extract_embeddings(
    helpers.list_photos(images)[0], backbone, images=images)
assert len(names) == 5398 and not skipped, "these are not the photos of the clothing data set"
labels = helpers.read_labels(images)
about = {"backbone": backbone.name, "weights": backbone.weights,
         "fingerprint": backbone.fingerprint, "labels": {name: labels[name] for name in names},
         "stats": {n: [helpers.photo_path(n, images).stat().st_size, None] for n in names}}
with open(helpers.EMB_FILENAME, "wb") as f:
    pickle.dump([names, vectors], f, protocol=pickle.HIGHEST_PROTOCOL)
    f.write(json.dumps(about, separators=(",", ":")).encode() + b"\n")
print("EMB_SHA256 =", hashlib.sha256(helpers.EMB_FILENAME.read_bytes()).hexdigest())
