"""Training a head on the vectors, its file, and the tuned recommender."""
import copy
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.model_selection import StratifiedGroupKFold
from torch import nn

import helpers
from lookalike import tuning
from lookalike.folders import scan
from lookalike.networks import load_backbone
from lookalike.stand_in import draw_catalogue

KINDS = np.repeat(["Hat", "Shoes", "Dress"], 20)
RNG = np.random.default_rng(0)
# 60 vectors, a third around each of three points, with so much noise that they mix
VECTORS = torch.tensor(np.repeat(RNG.normal(size=(3, 1280)), 20, axis=0)
                       + RNG.normal(size=(60, 1280)) * 4, dtype=torch.float32)


def new_head(n_features=1280):
    torch.manual_seed(1)
    return tuning.projection_head(n_features)


def trained(epochs=3, **options):
    """A head, and the loss after each epoch."""
    head = new_head()
    return head, list(tuning.train_epochs(head, VECTORS, KINDS, epochs, **options))


@pytest.fixture(scope="module")
def head():
    return trained()[0]


# ---- training --------------------------------------------------------------------------------
def test_the_loss_falls_and_every_vector_has_the_same_length():
    head, losses = trained(epochs=8)
    assert losses[-1] < losses[0]
    with torch.inference_mode():
        assert torch.allclose(head(VECTORS).norm(dim=1), torch.tensor(512**0.5), rtol=1e-3)


def test_the_loss_is_supervised_contrastive_at_a_temperature_of_a_tenth():
    """By hand, of a network that changes nothing, before its first step."""
    x = nn.functional.normalize(VECTORS)
    layer = nn.Linear(1280, 1280, bias=False)
    nn.init.eye_(layer.weight)
    loss, = tuning.train_epochs(layer, x, KINDS, 1)
    logits = (x @ x.T / 0.1).fill_diagonal_(-torch.inf)
    same = torch.from_numpy(KINDS[:, None] == KINDS).fill_diagonal_(False)
    assert loss == pytest.approx(-logits.log_softmax(1)[same].mean().item(), rel=1e-3)


def test_a_step_falls_to_zero_along_a_cosine():
    """A network that only adds up: AdamW's first steps are as long as the learning rate."""
    layer, lengths, before = nn.Linear(1280, 8, bias=False), [], None
    for _ in tuning.train_epochs(layer, VECTORS, KINDS, epochs=20, learning_rate=1e-3):
        after = layer.weight.detach().clone()
        lengths += [] if before is None else [(after - before).norm().item()]
        before = after
    assert lengths[-1] < 0.05 * max(lengths)


def test_the_seed_decides_order_and_dropout():
    """Whatever was drawn before."""
    losses = []
    for seed, drawn in ((0, 1), (0, 2), (5, 1)):
        head = new_head()
        torch.manual_seed(drawn)
        losses.append(list(tuning.train_epochs(head, VECTORS, KINDS, 2, batch=20, seed=seed)))
    assert losses[0] == losses[1] != losses[2]


def test_the_caller_may_look_after_each_epoch_and_stop():
    head = new_head()
    next(tuning.train_epochs(head, VECTORS, KINDS))
    assert not any(module.training for module in head.modules())


def test_batchnorm_of_pictures_keeps_the_statistics_that_it_came_with():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(),
                            nn.BatchNorm1d(4 * 36), nn.Linear(4 * 36, 8))
    of_maps, of_vectors = copy.deepcopy(network[1]), copy.deepcopy(network[3])
    list(tuning.train_epochs(network, VECTORS[:, :192].reshape(60, 3, 8, 8), KINDS, 1))
    assert torch.equal(network[1].running_mean, of_maps.running_mean)
    assert not torch.equal(network[3].running_mean, of_vectors.running_mean)
    assert not torch.equal(network[1].weight, of_maps.weight), "its weights are trained"


def test_a_last_batch_of_one_does_not_stop_the_training():
    assert np.isfinite(trained(epochs=1, batch=59)[1]).all()


@pytest.mark.parametrize("labels, message", [(["Hat"] * 60, "of 1 kinds"),
                                             (["Hat", "Shoes"], "60 inputs with 2 labels")])
def test_nothing_to_tell_apart(labels, message):
    with pytest.raises(ValueError, match=message):
        next(tuning.train_epochs(new_head(), VECTORS, labels))


# ---- its file --------------------------------------------------------------------------------
def test_the_file_gives_back_the_same_recommender(tmp_path, backbone, head):
    path = tmp_path / "new" / "head.safetensors"
    tuning.save_tuned(path, backbone, head)
    tuned = tuning.load_tuned(path)
    photo = [Image.new("RGB", (300, 400), "red")]
    with torch.inference_mode():
        assert torch.equal(tuned.network[-1](VECTORS), head(VECTORS))
        assert torch.allclose(tuned.embed(photo), head(backbone.embed(photo)), atol=1e-2)
    assert (tuned.n_features, tuned.last_block) == (512, False)
    assert "head.safetensors" in tuned.weights
    assert tuned.fingerprint != backbone.fingerprint == tuned.base.fingerprint
    assert os.listdir(path.parent) == ["head.safetensors"]


@pytest.mark.parametrize("look, features", [(0, 512), (0.7, 1280 + 512)])
def test_a_head_beside_the_old_vector_and_colour(known, home, backbone, photos, head, look,
                                                 features):
    """The file knows the weights that it was chosen with; the reader's word counts more."""
    tuning.save_tuned(home / "a.safetensors", backbone, head, look=look, colour=0.5)
    tuned = tuning.load_tuned(home / "a.safetensors", backbone)
    catalogue = helpers.open_catalogue(photos, tuned)
    assert catalogue.colour == 0.5 and tuned.n_features == features
    assert catalogue.img_emb_tensors.shape == (56, features + 343)
    own = helpers.pil_loader(photos / catalogue.img_names[7])
    outside = catalogue.query_vector([(None, own)], 30)
    assert np.allclose(outside, catalogue.compressed[7:8, :30], atol=1e-3)
    plain = helpers.open_catalogue(photos, tuned, colour=0)
    assert plain.img_emb_tensors.shape == (56, features)
    if look:
        with torch.inference_mode():
            old = helpers.open_catalogue(photos, backbone).img_emb_tensors[:2]
            (a, b), (c, d) = (nn.functional.normalize(one) for one in (old, head(old)))
        expected = look**2 * ((a - b)**2).sum() + ((c - d)**2).sum()
        one, other = plain.img_emb_tensors[:2]
        assert torch.allclose(((one - other)**2).sum(), expected, atol=1e-4)
    tuning.save_tuned(home / "b.safetensors", backbone, head, look=0.9)
    assert tuning.load_tuned(home / "b.safetensors", backbone).fingerprint != tuned.fingerprint


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, backbone, head, monkeypatch):
    path = tmp_path / "head.safetensors"
    tuning.save_tuned(path, backbone, head)
    before = path.read_bytes()
    write = type(path).write_bytes

    def disk_is_full(file, content):
        write(file, content[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_bytes", disk_is_full)
    with pytest.raises(OSError, match="No space"):
        tuning.save_tuned(path, backbone, new_head())
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("wrong", [{"look": -1}, {"colour": 200}, {"look": float("nan")}, {}])
def test_what_could_not_be_loaded_is_not_saved(tmp_path, backbone, head, wrong):
    """And what was saved before stays."""
    path = tmp_path / "head.safetensors"
    tuning.save_tuned(path, backbone, head)
    before, bad = path.read_bytes(), new_head()
    if not wrong:
        nn.init.constant_(bad[2].bias, torch.nan)
    with pytest.raises(ValueError, match="a weight is|holds NaN or infinity"):
        tuning.save_tuned(path, backbone, bad, **wrong)
    assert path.read_bytes() == before


@pytest.mark.parametrize("other", [{"fingerprint": "0"}, {"name": "resnet50"}], ids=str)
def test_another_backbone_is_refused(tmp_path, backbone, head, other):
    tuning.save_tuned(tmp_path / "head.safetensors", backbone, head)
    with pytest.raises(ValueError, match="belongs to efficientnet_lite1"):
        tuning.load_tuned(tmp_path / "head.safetensors", replace(backbone, **other))


def test_a_missing_file_says_what_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="notebook 06"):
        tuning.load_tuned(tmp_path / "none.safetensors")


def changed(key, tensor):
    """What makes a file with another tensor out of a good one."""
    return lambda path, about: save_file(load_file(path) | {key: tensor}, path, about)


def metadata(**more):
    return lambda path, about: save_file(load_file(path), path, about | more)


def claims(shape):
    """What makes a file of 70 bytes that says of its one tensor that it is huge."""
    header = json.dumps({"head.6.bias": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}})
    return lambda path, _: path.write_bytes(len(header).to_bytes(8, "little") + header.encode()
                                            + bytes(4))


@pytest.mark.parametrize("change, words", [
    (lambda path, _: path.write_bytes(b"not this"), ""),
    (lambda path, _: path.write_bytes(path.read_bytes()[:-1000]), ""),
    (lambda path, _: torch.save({"x": torch.ones(2)}, path), ""),
    (lambda path, _: save_file(load_file(path), path), "backbone"),
    (lambda path, about: save_file({"x": torch.ones(2)}, path, about), "head.6.bias"),
    (changed("head.6.bias", torch.full((512,), torch.nan)), "NaN or infinite"),
    (changed("head.6.bias", torch.zeros(511)), "other names or shapes"),
    (changed("head.6.bias", torch.tensor(0.0)), ""),
    (changed("head.6.bias", torch.zeros(10**12, 0)), "other names or shapes"),
    (changed("head.2.weight", torch.zeros(512, 1281)), "other names or shapes"),
    (changed("head.2.weight", torch.zeros(1280, 512)), "other names or shapes"),
    (changed("layer4.0.conv1.weight", torch.zeros(1)), "layer4"),
    (changed("head.6.bias", torch.zeros(512, dtype=torch.float16)), "other names or shapes"),
    (claims([10**12]), ""), (claims([2**40, 2**40]), ""),
    (metadata(colour="nan"), "weight is nan"), (metadata(look="-1"), "weight is -1"),
    (metadata(colour="much"), "much"), (metadata(backbone="resnet51"), "is called 'resnet51'")],
    ids=["text", "cut off", "torch's", "says nothing", "no head", "NaN", "other width",
         "no width", "no memory has that width", "more features", "swapped", "a block",
         "half precision", "huge", "larger still", "colour NaN", "look below 0",
         "colour a word", "unknown network"])
def test_files_that_are_refused_in_a_sentence(tmp_path, backbone, head, change, words):
    path = tmp_path / "head.safetensors"
    tuning.save_tuned(path, backbone, head)
    change(path, backbone.about)
    with pytest.raises(ValueError, match="head.safetensors is damaged, or save_tuned did not "
                                         f"write it.*{words}.*train it anew") as error:
        tuning.load_tuned(path, backbone)
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)


@pytest.mark.slow
def test_the_last_block_travels_with_the_head(tmp_path, resnet50_weights):
    resnet = load_backbone("resnet50", resnet50_weights)
    block = copy.deepcopy(resnet.network.layer4)
    with torch.no_grad():
        block[0].conv1.weight += 1
    tuning.save_tuned(tmp_path / "block.safetensors", resnet, new_head(2048), block)
    tuned = tuning.load_tuned(tmp_path / "block.safetensors", resnet)
    assert tuned.last_block
    assert torch.equal(tuned.network[0].layer4[0].conv1.weight, block[0].conv1.weight)
    assert not torch.equal(resnet.network.layer4[0].conv1.weight, block[0].conv1.weight)


# ---- the whole way ---------------------------------------------------------------------------
@pytest.mark.slow
def test_held_out_precision_rises_on_the_drawn_catalogue(home, backbone, capsys):
    """A head trained on four fifths of the people, the others ask; then the recommender."""
    drawn = draw_catalogue(home / "drawn", a_kind=10, new=0)
    catalogue = helpers.open_catalogue(drawn, backbone)
    X, y = catalogue.img_emb_tensors, np.array(catalogue.labels)
    who = [scan(drawn, "sender_id").labels[name] for name in catalogue.img_names]
    train, held_out = next(StratifiedGroupKFold(5, shuffle=True, random_state=0).split(X, y, who))
    head = new_head()
    list(tuning.train_epochs(head, X[train], y[train], epochs=15))
    with torch.inference_mode():
        before, after = (helpers.label_precision(v[held_out], y[held_out]) for v in (X, head(X)))
    assert after > before + 0.01, (before, after)

    tuning.save_tuned(home / "head.safetensors", backbone, head)
    tuned = helpers.open_catalogue(drawn, tuning.load_tuned(home / "head.safetensors"))
    assert tuned.img_emb_tensors.shape == (len(y), 512)
    query = int(held_out[0])
    photo = helpers.pil_loader(drawn / catalogue.img_names[query])
    outside = helpers.nearest(photo, 300, catalogue=tuned)
    assert outside[0].index == query, "a photo from outside goes through the head as well"
    assert "tuned by head.safetensors" in capsys.readouterr().out
