"""Training a head on the embeddings, its file, and the tuned recommender. Three kinds of made-up
vectors; the last test, garments.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.model_selection import StratifiedGroupKFold

import helpers
import lookalike
from lookalike import tuning
from lookalike.stand_in import draw_catalogue

KINDS = np.repeat(["Hat", "Shoes", "Dress"], 20)


def vectors():
    """60 vectors of 1,280 features, a third around each of three points, with so much noise that
    they mix.
    """
    rng = np.random.default_rng(0)
    return torch.from_numpy(
        (
            np.repeat(rng.normal(size=(3, 1280)), 20, axis=0) + rng.normal(size=(60, 1280)) * 4
        ).astype(np.float32)
    )


def trained(epochs=3):
    torch.manual_seed(0)
    head = tuning.projection_head(1280)
    return head, list(tuning.train_epochs(head, vectors(), KINDS, epochs))


@pytest.fixture(scope="module")
def backbone():
    return helpers.load_backbone("efficientnet_lite1")


def test_the_loss_falls_and_every_vector_has_the_same_length():
    head, losses = trained(epochs=8)
    assert losses[-1] < losses[0]
    with torch.inference_mode():
        assert torch.allclose(head(vectors()).norm(dim=1), torch.tensor(512**0.5), rtol=1e-3)


def test_the_same_seed_trains_the_same_head():
    assert trained()[1] == pytest.approx(trained()[1], rel=1e-3)


def test_the_caller_may_look_after_each_epoch_and_stop():
    torch.manual_seed(0)
    head = tuning.projection_head(1280)
    for _ in tuning.train_epochs(head, vectors(), KINDS):
        assert not head.training
        break
    with torch.inference_mode():
        assert torch.equal(head(vectors()), head(vectors()))


def test_a_last_batch_of_one_does_not_stop_the_training():
    torch.manual_seed(0)
    assert np.isfinite(
        list(
            tuning.train_epochs(tuning.projection_head(1280), vectors(), KINDS, epochs=1, batch=59)
        )
    ).all()


@pytest.mark.parametrize(
    "labels, message", [(["Hat"] * 60, "of 1 kinds"), (["Hat", "Shoes"], "60 inputs with 2 labels")]
)
def test_nothing_to_tell_apart(labels, message):
    with pytest.raises(ValueError, match=message):
        next(tuning.train_epochs(tuning.projection_head(1280), vectors(), labels))


def test_the_file_gives_back_the_same_recommender(tmp_path, backbone):
    head = trained()[0]
    tuning.save_tuned(tmp_path / "head.safetensors", backbone, head)
    tuned = tuning.load_tuned(tmp_path / "head.safetensors")
    with torch.inference_mode():
        assert torch.equal(tuned.network[-1](vectors()), head(vectors()))
    photo = helpers.Image.new("RGB", (300, 400), "red")
    with torch.inference_mode():
        assert torch.allclose(tuned.embed([photo]), head(backbone.embed([photo])), atol=1e-2)
    assert (tuned.n_features, tuned.last_block) == (
        512,
        False,
    ) and "head.safetensors" in tuned.weights
    assert tuned.fingerprint != backbone.fingerprint == tuned.base
    assert [p.name for p in tmp_path.iterdir()] == ["head.safetensors"]


def test_kind_and_look(tmp_path, backbone):
    """Side by side, and the file keeps the weight."""
    head, x = trained()[0], vectors()
    tuning.save_tuned(tmp_path / "both.safetensors", backbone, tuning.KindAndLook(head, 0.7))
    tuned = tuning.load_tuned(tmp_path / "both.safetensors")
    assert tuned.n_features == 1280 + 512
    with torch.inference_mode():
        both, new = tuned.network[-1](x), head(x)
    cosines = torch.nn.functional.cosine_similarity(x[0], x[1], dim=0), (
        torch.nn.functional.cosine_similarity(new[0], new[1], dim=0)
    )
    distance = 2 * (1 - cosines[0]) + 0.7**2 * 2 * (1 - cosines[1])
    assert torch.allclose(((both[0] - both[1]) ** 2).sum(), distance, atol=1e-3)
    tuning.save_tuned(tmp_path / "more.safetensors", backbone, tuning.KindAndLook(head, 0.8))
    assert tuning.load_tuned(tmp_path / "more.safetensors").fingerprint != tuned.fingerprint


def test_another_backbone_is_refused(tmp_path, backbone):
    tuning.save_tuned(tmp_path / "head.safetensors", backbone, trained()[0])
    for other in (replace(backbone, fingerprint="0"), replace(backbone, name="resnet50")):
        with pytest.raises(ValueError, match="belongs to efficientnet_lite1"):
            tuning.load_tuned(tmp_path / "head.safetensors", other)


def test_files_that_are_none_of_ours(tmp_path, backbone):
    with pytest.raises(FileNotFoundError, match="notebook 06"):
        tuning.load_tuned(tmp_path / "none.safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"not this")
    save_file({"x": torch.ones(2)}, tmp_path / "b.safetensors")
    torch.save({"x": torch.ones(2)}, tmp_path / "c.safetensors")
    tuning.save_tuned(tmp_path / "whole.safetensors", backbone, trained()[0])
    (tmp_path / "d.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-1000])
    for name in "abcd":
        with pytest.raises(ValueError, match="is damaged, or save_tuned did not write it"):
            tuning.load_tuned(tmp_path / f"{name}.safetensors", backbone)


@pytest.mark.slow
def test_the_last_block_travels_with_the_head(tmp_path):
    from torchvision.models import resnet50

    torch.manual_seed(0)
    torch.save(resnet50().state_dict(), tmp_path / "weights.pth")
    resnet = helpers.load_backbone("resnet50", tmp_path / "weights.pth")
    with torch.no_grad():
        resnet.network.layer4[0].conv1.weight += 1
    trained_block = resnet.network.layer4
    tuning.save_tuned(
        tmp_path / "block.safetensors", resnet, tuning.projection_head(2048), trained_block
    )
    tuned = tuning.load_tuned(
        tmp_path / "block.safetensors", helpers.load_backbone("resnet50", tmp_path / "weights.pth")
    )
    assert tuned.last_block
    assert torch.equal(tuned.network[0].layer4[0].conv1.weight, trained_block[0].conv1.weight)


def test_a_table_without_senders_is_named(tmp_path):
    (tmp_path / "images.csv").write_text("image,label\na,Hat\n")
    with pytest.raises(ValueError, match="no column 'sender_id'"):
        helpers.read_labels(tmp_path, "sender_id")


@pytest.mark.slow
def test_held_out_precision_rises_on_the_drawn_catalogue(tmp_path, monkeypatch, backbone, capsys):
    """The whole way: drawn garments, a head trained on four fifths of the people, the others
    ask; then the recommender.
    """
    monkeypatch.setattr(lookalike, "HERE", tmp_path)
    drawn = tmp_path / "drawn"
    draw_catalogue(drawn)
    monkeypatch.setenv("FASHION_IMAGES", str(drawn))
    catalogue = helpers.open_catalogue()
    who = helpers.read_labels(drawn, "sender_id")
    X, y = catalogue.img_emb_tensors, np.array(catalogue.labels)
    train, held_out = next(
        StratifiedGroupKFold(5, shuffle=True, random_state=0).split(
            X, y, [who[n] for n in catalogue.img_names]
        )
    )
    torch.manual_seed(0)
    head = tuning.projection_head(1280)
    for _ in tuning.train_epochs(head, X[train], y[train], epochs=30):
        pass
    with torch.inference_mode():
        before, after = (
            helpers.label_precision(vectors[held_out], y[held_out]) for vectors in (X, head(X))
        )
    assert after > before + 0.01, (before, after)

    tuning.save_tuned(tmp_path / "head.safetensors", backbone, head)
    tuned = helpers.open_catalogue(backbone=tuning.load_tuned(tmp_path / "head.safetensors"))
    assert tuned.img_emb_tensors.shape == (len(y), 512)
    query = int(held_out[0])
    outside = helpers.nearest(
        helpers.pil_loader(helpers.photo_path(catalogue.img_names[query], drawn)),
        300,
        catalogue=tuned,
    )
    assert outside[0].index == query  # a photo from outside goes through the head as well
    assert "tuned by head.safetensors" in capsys.readouterr().out

    names, vectors = helpers.load_embeddings(helpers.embeddings_file(drawn))
    other = replace(backbone, fingerprint="0")
    helpers.save_embeddings(tmp_path / "other.safetensors", names, vectors, other)
    with pytest.raises(ValueError, match="does not belong to it"):
        helpers.open_catalogue(
            tmp_path / "other.safetensors", tuning.load_tuned(tmp_path / "head.safetensors")
        )
