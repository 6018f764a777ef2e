"""The pickle: what is written, what is read, and what is refused."""
import io
import json
import os
import pickle
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

import helpers
from helpers import Refused, about_embeddings, load_embeddings, save_embeddings

NAMES = ["images/a.jpg", "images/b.jpg"]
VECTORS = torch.arange(6.0).reshape(2, 3)


def write(path, content, protocol=pickle.HIGHEST_PROTOCOL):
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=protocol))
    return path


# ---- good ones -----------------------------------------------------------------------------------------------------------
def test_save_then_load(tmp_path, backbone):
    save_embeddings(tmp_path / "e.pickle", NAMES, VECTORS, backbone, {"images/a.jpg": "Hat"}, ["images/broken.jpg"])
    img_names, img_emb_tensors = load_embeddings(tmp_path / "e.pickle")
    assert img_names == NAMES and torch.equal(img_emb_tensors, VECTORS) and img_emb_tensors.dtype == torch.float32
    assert about_embeddings(tmp_path / "e.pickle") == {
        "backbone": "efficientnet_lite0", "weights": backbone.weights, "fingerprint": backbone.fingerprint,
        "labels": ["Hat", ""], "skipped": ["images/broken.jpg"]}


def test_the_articles_two_lines_read_what_we_ship():
    with open(helpers.EMB_FILENAME, "rb") as fIn:
        img_names, img_emb_tensors = pickle.load(fIn)
    assert isinstance(img_names, list) and len(img_names) == 5398 and img_names[0].startswith("images/")
    assert img_emb_tensors.dtype == torch.float32 and img_emb_tensors.shape == (5398, 1280)
    ours = load_embeddings(helpers.EMB_FILENAME)
    assert ours[0] == img_names and torch.equal(ours[1], img_emb_tensors)


@pytest.mark.parametrize("vectors", [
    VECTORS, VECTORS.double(), VECTORS.half(), VECTORS.numpy(), VECTORS.numpy().astype("f8"), VECTORS.numpy().astype("f2"),
    np.asfortranarray(VECTORS.numpy()), torch.arange(12.0).reshape(2, 6)[:, :3]], ids=str)
@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("pair", [list, tuple])
def test_pickles_of_others(tmp_path, vectors, protocol, pair):
    img_names, img_emb_tensors = load_embeddings(write(tmp_path / "e.pickle", pair([NAMES, vectors]), protocol))
    assert img_names == NAMES and about_embeddings(tmp_path / "e.pickle") == {}
    assert torch.equal(img_emb_tensors, torch.as_tensor(vectors).float())


def test_numpy_before_2(tmp_path):
    old = pickle.dumps([NAMES, VECTORS.numpy()], protocol=4).replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
    frame = old.index(b"\x95") + 1  # the frame's length, now a byte less
    old = old[:frame] + (int.from_bytes(old[frame:frame + 8], "little") - 1).to_bytes(8, "little") + old[frame + 8:]
    assert torch.equal(load_embeddings(write(tmp_path / "e.pickle", old))[1], VECTORS)


def memory_of(lines):
    """How much a line adds to the highest memory of a fresh process so far, in MB, line by line (Linux knows that)."""
    program = "\n".join(["import pickle, sys, torch, helpers",
                         "def highest(): return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM')) / 1024",
                         "for line in sys.argv[1:]:", "    before = highest()", "    try: exec(line)", "    except ValueError: pass",
                         "    print(highest() - before)"])
    out = subprocess.run([sys.executable, "-c", program, *lines], cwd=helpers.HERE, capture_output=True, text=True, check=True).stdout
    return [float(line) for line in out.split()]


linux = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="only Linux tells a process its highest memory")


@linux
def test_a_good_load_costs_little():
    """At most twice the memory of pickle.load (and 4 times its time: benchmarks/run.py)."""
    theirs, = memory_of(["pickle.load(open(helpers.EMB_FILENAME, 'rb'))"])
    ours, = memory_of(["helpers.load_embeddings(helpers.EMB_FILENAME)"])
    assert 25 < theirs and ours < 2 * theirs, (theirs, ours)


# ---- refused ones ----------------------------------------------------------------------------------------------------------
class Call:
    """Pickles to a call of `function`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def nested_tensor():
    """A storage whose inner bytes call os.system: torch's own _load_from_bytes would run it."""
    inner = io.BytesIO()
    torch.save(Call(os.system, "touch pwned"), inner, _use_new_zipfile_serialization=False)
    return Call(torch._utils._rebuild_tensor_v2, Call(torch.storage._load_from_bytes, inner.getvalue()), 0, (2, 3), (3, 1), False, OrderedDict())


def zipped_tensor():
    packed, inner = io.BytesIO(), io.BytesIO()
    torch.save(torch.zeros(20_000_000), inner)
    with zipfile.ZipFile(inner) as plain, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as z:
        for name in plain.namelist():
            z.writestr(name, plain.read(name))
    return Call(torch.storage._load_from_bytes, packed.getvalue())


def plain_storage():
    """The bytes that torch writes for the six numbers of VECTORS."""
    load_from_bytes, (inner,) = VECTORS.__reduce_ex__(5)[1][0].__reduce__()
    return inner


def tensor_that_claims(size, stride, offset=0):
    return Call(torch._utils._rebuild_tensor_v2, Call(torch.storage._load_from_bytes, plain_storage()), offset, size, stride, False,
                OrderedDict())


def storage_that_claims(count):
    numbers = VECTORS.numpy().tobytes()
    return plain_storage().replace(b"cpuq\x03K\x06", b"cpuq\x03J" + count.to_bytes(4, "little")).replace(
        (6).to_bytes(8, "little") + numbers, count.to_bytes(8, "little") + numbers)


def array_that_claims(shape):
    return pickle.dumps([NAMES, VECTORS.numpy()], protocol=4).replace(b"K\x02K\x03\x86", shape)


BAD = {
    "os.system": ([NAMES, Call(os.system, "touch pwned")], "posix.system|nt.system"),
    "builtins.eval": ([NAMES, Call(eval, "1")], "builtins.eval"),
    "a function that is nearly on the list": (pickle.dumps([NAMES, VECTORS]).replace(b"_rebuild_tensor_v2", b"_rebuild_parameter"), "_rebuild_parameter"),
    "code inside the tensor's bytes": ([NAMES, nested_tensor()], "posix.system|nt.system"),
    "an archive inside the tensor's bytes": ([NAMES, zipped_tensor()], "archive"),
    "a tensor without strides": ([NAMES, tensor_that_claims((2, 10 ** 9), (0, 0))], "reaches beyond"),
    "a tensor larger than its numbers": ([NAMES, tensor_that_claims((2, 10 ** 6), (10 ** 6, 1))], "reaches beyond"),
    "a tensor that starts behind its numbers": ([NAMES, tensor_that_claims((2, 3), (3, 1), 5)], "reaches beyond"),
    "a storage that claims a gigabyte": ([NAMES, Call(torch.storage._load_from_bytes, storage_that_claims(2 ** 28))], "claims 268,435,456 numbers"),
    "an array that claims a gigabyte": (array_that_claims(b"J\x00\x00\x00\x10K\x01\x86"), "claims the shape"),
    "an instruction that is not needed": (b"\x80\x04\x8b\xff\xff\xff\x7f.", "instruction LONG4"),
    "protocol 0": (pickle.dumps([NAMES, [1.0]], protocol=0), "instruction"),
    "a memo bomb": (b"\x80\x04Nr\xff\xff\xff\x3f.", "memo of 1,073,741,823"),
    "a string that claims 4 GB": (b"\x80\x04X\xff\xff\xff\xffa.", "claims 4,294,967,295 bytes"),
    "bytes that claim 2**62": (b"\x80\x04\x8e" + (2 ** 62).to_bytes(8, "little") + b"a.", "claims 4,611,686,018,427,387,904 bytes"),
    "a frame that claims 2**62": (b"\x80\x04\x95" + (2 ** 62).to_bytes(8, "little") + b"N.", "frame"),
    "a million steps": (b"\x80\x04" + b"N" * 1_000_000 + b".", "over 500,000 steps"),
    "two tensors that share": ([NAMES, VECTORS, VECTORS.clone()], "more than one tensor"),
    "a change to a function": (b"\x80\x04\x8c\x0ctorch._utils\x8c\x12_rebuild_tensor_v2\x93}\x8c\x01aK\x01sb.", "change a function"),
    "objects in the array": ([NAMES, np.array([[1, "a"], [2, "b"]], dtype=object)], "not floating-point|names and numbers"),
    "whole numbers": ([NAMES, np.arange(6).reshape(2, 3)], "not floating-point"),
    "cut short": (pickle.dumps([NAMES, VECTORS])[:-40], "cut short|damaged"),
    "no pickle": (b"images/a.jpg,1,2,3\n", "instruction|damaged"),
    "three parts": ([NAMES, VECTORS, 1], "pair"),
    "a number": (42, "pair"),
    "one dimension": ([NAMES, VECTORS[0]], r"shape \(3,\)"),
    "no features": ([NAMES, torch.zeros(2, 0)], r"shape \(2, 0\)"),
    "no photos": ([[], torch.zeros(0, 3)], "at least one"),
    "names that are numbers": ([[1, 2], VECTORS], "list of at least one file name"),
    "a name too many": ([NAMES + ["images/c.jpg"], VECTORS], "3 names for 2 vectors"),
    "NaN": ([NAMES, torch.tensor([[1.0, 2.0], [float("nan"), 1.0]])], "NaN or infinity.*images/b.jpg"),
    "infinity": ([NAMES, torch.tensor([[float("inf"), 2.0], [1.0, 1.0]])], "NaN or infinity.*images/a.jpg"),
    "a name that climbs out": ([["images/../../etc/passwd", "images/b.jpg"], VECTORS], "leads out of the folder"),
    "an absolute name": ([["/etc/passwd", "images/b.jpg"], VECTORS], "leads out of the folder"),
    "a Windows name": ([["C:\\a.jpg", "images/b.jpg"], VECTORS], "leads out of the folder"),
    "nonsense behind the vectors": (pickle.dumps([NAMES, VECTORS]) + b"{", "damaged"),
    "labels of another length": (pickle.dumps([NAMES, VECTORS]) + json.dumps({"labels": ["Hat"]}).encode(), "1 labels for 2 names"),
    "an empty file": (b"", "empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    content, words = BAD[case]
    path = write(tmp_path / "e.pickle", content)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=words) as error:
        load_embeddings(path)
    assert time.perf_counter() - start < 1
    assert "e.pickle" in str(error.value), "the message names the file"
    assert os.listdir(tmp_path) == ["e.pickle"], "nothing in it was run"


BOMBS = ["a memo bomb", "an archive inside the tensor's bytes", "a tensor without strides", "a storage that claims a gigabyte",
         "an array that claims a gigabyte", "a string that claims 4 GB", "bytes that claim 2**62", "a frame that claims 2**62", "a million steps"]


@linux
def test_refusing_takes_little_memory(tmp_path):
    lines = [f"helpers.load_embeddings({str(write(tmp_path / f'{i}.pickle', BAD[case][0]))!r})" for i, case in enumerate(BOMBS)]
    grown = memory_of(lines)
    assert len(grown) == len(BOMBS) and max(grown) < 50, dict(zip(BOMBS, grown))


def test_missing_file_says_how_to_make_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="notebook 01"):
        load_embeddings(tmp_path / "e.pickle")


# ---- writing -----------------------------------------------------------------------------------------------------------------
def test_a_good_pickle_is_not_replaced_by_a_worse_one(tmp_path, backbone):
    save_embeddings(tmp_path / "e.pickle", NAMES, VECTORS, backbone)
    with pytest.raises(ValueError, match="holds 2 photos, more than the 1"):
        save_embeddings(tmp_path / "e.pickle", NAMES[:1], VECTORS[:1], backbone)
    for names, vectors in [(NAMES[:1], VECTORS), (NAMES, VECTORS * float("nan")), (["../a.jpg", "b.jpg"], VECTORS)]:
        with pytest.raises(Refused, match="what you want to save"):
            save_embeddings(tmp_path / "e.pickle", names, vectors, backbone, overwrite=True)
    assert load_embeddings(tmp_path / "e.pickle")[0] == NAMES
    save_embeddings(tmp_path / "e.pickle", NAMES[:1], VECTORS[:1], backbone, overwrite=True)
    assert load_embeddings(tmp_path / "e.pickle")[0] == NAMES[:1]


def test_an_interrupted_save_leaves_the_old_file(tmp_path, backbone, monkeypatch):
    save_embeddings(tmp_path / "e.pickle", NAMES, VECTORS, backbone)
    for function, error in [("fsync", OSError(28, "No space left on device")), ("replace", KeyboardInterrupt())]:
        def stop(*_, error=error):
            raise error
        with monkeypatch.context() as patch, pytest.raises(type(error)):
            patch.setattr(os, function, stop)
            save_embeddings(tmp_path / "e.pickle", NAMES, VECTORS * 2, backbone)
        assert torch.equal(load_embeddings(tmp_path / "e.pickle")[1], VECTORS)
        assert os.listdir(tmp_path) == ["e.pickle"]


def test_leftovers_of_a_killed_save_are_cleared(tmp_path, backbone):
    (tmp_path / "e.pickle.x7f.tmp").write_bytes(b"half")
    save_embeddings(tmp_path / "e.pickle", NAMES, VECTORS, backbone)
    assert os.listdir(tmp_path) == ["e.pickle"]
