"""The picture of the layers is that of the import contracts."""

import sys

import pytest

from support import layers


@pytest.mark.skipif(sys.version_info < (3, 11), reason="needs tomllib")
def test_the_picture_of_the_layers_is_drawn_from_the_contracts():
    assert layers.shown() == layers.picture(), "draw it anew: python tests/support/layers.py"
