"""The picture of the layers is that of the import contracts."""

from support import layers


def test_the_picture_of_the_layers_is_drawn_from_the_contracts():
    assert layers.shown() == layers.picture(), "draw it anew: python tests/support/layers.py"
