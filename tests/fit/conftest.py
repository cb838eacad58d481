"""What the tests of fitting share."""

import pytest

from tests.fit.tiny import write_scene


@pytest.fixture(scope="session")
def ball(tmp_path_factory):
    """Folder of the ball scene in Blender's format."""
    return write_scene(tmp_path_factory.mktemp("ball"))
