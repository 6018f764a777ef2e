"""The article's code, transcribed for the measurements: what it does and nothing else.

Not for use.
"""
import glob

import faiss
import numpy as np
import torch
from PIL import Image
from sklearn.decomposition import PCA


def pil_loader(path):
    with open(path, "rb") as f:
        return Image.open(f).convert("RGB")


def extract(img_names, model, preprocess):
    """One photo at a time, gradients on."""
    return torch.tensor(np.array([
        model(preprocess(pil_loader(image)).unsqueeze(0)).squeeze(0).detach().numpy()
        for image in img_names or glob.glob("images/*.jpg")]))


def build_compressed_index(n_features, img_emb_tensors):
    """PCA fitted and the index filled, at every call."""
    pca = PCA(n_components=n_features)
    pca.fit(img_emb_tensors)
    dataset = np.float32(pca.transform(img_emb_tensors))
    index_compressed = faiss.IndexFlatL2(dataset.shape[1])
    index_compressed.add(dataset)
    return pca, index_compressed


def search(img_path, factors, img_emb_tensors, model, preprocess):
    """The photo embedded again, the index built again; the drawing is left out."""
    one = model(preprocess(pil_loader(img_path)).unsqueeze(0)).squeeze(0).detach().numpy()
    compressor, index_compressed = build_compressed_index(factors, img_emb_tensors)
    D, I = index_compressed.search(np.float32(compressor.transform([one])), 5)
    return I[0][1:]
