"""The comparison of notebooks itself: a wrong neighbour must not pass."""
from notebook_checks import alike


def test_alike():
    text = "[images/a.jpg  T-Shirt  76.9,\n images/b.jpg  Polo  91.6]"
    assert alike(text, text)
    assert alike(text.replace("76.9", "77.0"), text), "the last digit may differ"
    assert not alike(text.replace("76.9", "79.9"), text)
    assert not alike(text.replace("b.jpg", "c.jpg"), text)
    assert not alike(text.replace("Polo", "Hat"), text)
    assert not alike("found 3", "found 4"), "whole numbers must not"
    assert not alike("P@5 0.683", "P@5 0.659")
    assert not alike("P@5 0.683", "P@5 0.683, 0.683")
