"""What the tests of fitting share."""

import pytest

from gsfields.fit import runs
from tests.fit.tiny import write_scene
from tests.fit.tiny_video import TinyVideo, config_of


@pytest.fixture(scope="session")
def ball(tmp_path_factory):
    """Folder of the ball scene in Blender's format."""
    return write_scene(tmp_path_factory.mktemp("ball"))


@pytest.fixture(scope="session")
def video(tmp_path_factory):
    """Folder of the tiny video."""
    return TinyVideo().write(tmp_path_factory.mktemp("tiny") / "video")


@pytest.fixture(scope="session")
def fitted(video, tmp_path_factory):
    """(folder, outcome) of a layered run on the tiny video; copy the folder before changing it."""
    run = tmp_path_factory.mktemp("fitted") / "run"
    return run, runs.start(config_of(video, steps=240), run, progress=False)
