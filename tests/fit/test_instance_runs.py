"""Objects of whole runs: fitted, made anew, picked and scored, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="clustering needs scikit-learn")
from gsfields import config as configuration
from gsfields.data.segments import read_labels, write_ids
from gsfields.fit import instance_runs, object_files, runs
from gsfields.fit.checkpoint import Checkpoint
from gsfields.fit.instance_runs import evaluate_panoptic, fit_instances, make_objects, select
from gsfields.fit.object_files import ObjectTable
from gsfields.fit.recognition import FittedField
from gsfields.fit.scene import open_dataset
from gsfields.fit.straddlers import mending
from gsfields.gaussians import Gaussians
from gsfields.instances_config import InstancesConfig
from tests.fit.tiny_room import MEMBERS, PLACES, TEST, TinyRoom, layered_room

ROOM = TinyRoom()
FAST = {"steps": 120, "pixels": 256, "min_segment": 5, "class_steps": 10, "split_rounds": 0, "samples": 1500}


def settings(**changes) -> InstancesConfig:
    config = InstancesConfig()
    configuration.apply(config, [(name, str(value)) for name, value in (FAST | changes).items()])
    return config


def fit(run, segments=None, *, lines=None, overwrite=False, data=None, **changes) -> ObjectTable:
    say = (lambda line: None) if lines is None else lines.append
    return fit_instances(
        run, segments, settings(**changes), data=data, overwrite=overwrite, progress=False, say=say
    )


def scores(run, **more):
    path, _ = evaluate_panoptic(run, **more)
    return json.loads(path.read_text())


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_right(run, table, **more) -> None:
    """Three objects, each the whole of one blob, in every held-out view."""
    assert len(table) == 3
    found = scores(run, **more)["objects"]
    assert found["rq"] == 1 and found["pq"] > 0.88 and found["per_frame_pq"] > 0.85
    assert found["classes"]["1"]["tp"] == 3 and found["classes"]["1"]["kind"] == "thing"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return ROOM.write(tmp_path_factory.mktemp("room") / "data")


@pytest.fixture(scope="module")
def fitted(data, tmp_path_factory):
    """(run, table, what was said); copy the folder before changing it."""
    run = ROOM.run(tmp_path_factory.mktemp("fitted") / "run", data)
    lines: list[str] = []
    table = fit(run, lines=lines, split_rounds=1, split_steps=3)
    return run, table, lines


@pytest.fixture
def run(fitted, tmp_path):
    return Path(shutil.copytree(fitted[0], tmp_path / "run", ignore=shutil.ignore_patterns("panoptic.json")))


@pytest.fixture
def bare(data, tmp_path):
    return ROOM.run(tmp_path / "run", data)


# ------------------------------------------------------------------------------------------------------- what comes out


def test_objects_are_found_and_scored(fitted):
    run, table, lines = fitted
    assert_right(run, table)
    found = scores(run)
    assert found["views"] == len(TEST)
    flat = found["2D segments"]  # right in each frame, but numbered anew in each
    assert flat["per_frame_pq"] == 1 and flat["pq"] < found["objects"]["pq"] - 0.1
    assert lines[0] == "segments of 8 of 8 training views, classes (0, 1)"
    assert any("lie across segments" in line for line in lines)


def test_what_is_written(fitted):
    run, table, _ = fitted
    root = run / "instances"
    names = set(contents(root))
    stems = [ROOM.stem(i) for i in range(10)]
    assert names == {
        *(f"{folder}/{stem}.png" for folder in ("ids", "semantics") for stem in stems),
        *(f"objects/{k}.ply" for k in (1, 2, 3)),
        *(f"checkpoint-000100/{name}" for name in ("scene.safetensors", "optimizer.safetensors")),
        *("checkpoint-000100/config.yaml", "checkpoint-000100/meta.json"),
        *("field.safetensors", "objects.safetensors", "objects.json", "config.yaml", "sheet.png"),
    }
    for stem in stems:
        ids, semantics = (read_labels(root / folder / f"{stem}.png") for folder in ("ids", "semantics"))
        assert ids.shape == (24, 32) and np.array_equal(ids > 0, semantics == 1)
    written = json.loads((root / "objects.json").read_text())["objects"]
    assert [o["id"] for o in written] == [1, 2, 3] == [o.id for o in table.objects]
    assert sum(o["pixels"] for o in written) == sum(
        int((read_labels(root / "ids" / f"{s}.png") > 0).sum()) for s in stems
    )
    assert Checkpoint.load(run).step == 100 and len(Checkpoint.load(run).gaussians) == len(ROOM.gaussians)


def test_each_file_holds_the_gaussians_of_one_blob(fitted):
    run, table, _ = fitted
    seen = set()
    for o in table.objects:
        gaussians = Gaussians.from_ply(run / "instances" / "objects" / f"{o.id}.ply")
        assert len(gaussians) == o.gaussians and abs(o.gaussians - MEMBERS) <= 6
        distance = (gaussians.means[:, None, :2] - torch.tensor(PLACES)).norm(dim=-1)
        nearest, counts = distance.argmin(dim=1).unique(return_counts=True)
        seen.add(int(nearest[counts.argmax()]))
        assert counts.max() >= 0.95 * len(gaussians)
        assert o.box is not None and all(a < b for a, b in zip(*o.box))
    assert seen == {0, 1, 2}


def test_a_pixel_names_its_object(fitted):
    run, _, _ = fitted
    stem = ROOM.stem(3)
    _, truth = ROOM.photo(3)
    ids = read_labels(run / "instances" / "ids" / f"{stem}.png")
    answers = set()
    for k in (1, 2, 3):
        y, x = ((truth == k).nonzero()[int((truth == k).sum()) // 2]).tolist()
        lines: list[str] = []
        found = select(run, f"{stem},{x},{y}", say=lines.append)
        assert found == ids[y, x] > 0
        assert lines == [
            f"object {found}: its Gaussians are {run / 'instances' / 'objects' / f'{found}.ply'}"
        ]
        answers.add(found)
    assert answers == {1, 2, 3}
    lines = []
    assert select(run, f"{stem},0,0", say=lines.append) == 0
    assert lines == [f"no object at pixel (0, 0) of {stem}"]


def test_an_object_without_gaussians_of_its_own_says_so(run):
    for path in (run / "instances" / "objects").iterdir():
        path.unlink()
    _, truth = ROOM.photo(3)
    y, x = (truth == 1).nonzero()[20].tolist()
    lines: list[str] = []
    assert select(run, f"{ROOM.stem(3)},{x},{y}", say=lines.append) > 0
    assert "none of the Gaussians is its own" in lines[0]


# ------- kinds of run


def test_linear_assignment(bare):
    table = fit(bare, loss="linear-assignment", identifiers=6, steps=200)
    assert len(table) == 3 and all(o.pixels > 50 for o in table.objects)  # of six identifiers
    found = scores(bare)["objects"]
    assert found["classes"]["1"]["tp"] == 3 and found["pq"] > 0.75


def test_fitted_jointly_geometry_follows_the_photos_and_not_the_segments(bare):
    """The same steps on the photos, with and without embeddings beside them, end in the same Gaussians to the bit."""
    table = fit(bare, joint=True, steps=60, split_rounds=0, prune_weight=0)
    assert sum(o.pixels > 50 for o in table.objects) == 3
    after = Checkpoint.load(bare / "instances").gaussians
    before = Checkpoint.load(bare)
    assert not torch.equal(after.means, before.gaussians.means)
    alone = mending(before.gaussians, before.config, open_dataset(before.config.data), 60)
    for _ in range(60):
        alone.train_step()
    assert all(
        torch.equal(a, b) for a, b in zip(alone.scene.parameters().values(), after.parameters().values())
    )


def test_joint_fits_are_of_static_runs(data, tmp_path):
    run = ROOM.run(tmp_path / "run", data, layered_room(ROOM))
    with pytest.raises(ValueError, match="joint is for static runs only"):
        fit(run, joint=True)


def test_a_layered_run(data, tmp_path):
    run = ROOM.run(tmp_path / "run", data, layered_room(ROOM))
    table = fit(run)
    assert sum(o.pixels > 150 for o in table.objects) == 3
    assert scores(run)["objects"]["classes"]["1"]["tp"] == 3
    field = FittedField.load(run / "instances" / "field.safetensors")
    assert len(field.theta) == len(layered_room(ROOM).layer_ids())
    files = [Gaussians.from_ply(p).means for p in (run / "instances" / "objects").glob("*.ply")]
    blob = torch.tensor([*PLACES[2], 0.0])  # in the semi-static layer
    assert max(int(((m - blob).norm(dim=1) < 0.5).sum()) for m in files) >= 0.8 * MEMBERS
    field.probabilities = torch.tensor([0.0, 1.0]).expand(len(field.theta), 2)  # all show things
    field.save(run / "instances" / "field.safetensors")
    table = make_objects(run, say=lambda line: None)
    dynamic = layered_room(ROOM).dynamic.gaussians.means  # has no place in the world
    files = [Gaussians.from_ply(p).means for p in (run / "instances" / "objects").glob("*.ply")]
    assert sum(map(len, files)) == sum(o.gaussians for o in table.objects) > len(field.theta) / 2
    assert torch.cdist(torch.cat(files), dynamic).min() > 1e-3


def test_views_without_segments_are_shown_all_the_same(tmp_path):
    data = ROOM.write(tmp_path / "data", without=(0, 2, 3))
    run = ROOM.run(tmp_path / "run", data)
    lines: list[str] = []
    table = fit(run, lines=lines)
    assert lines[0].startswith("segments of 6 of 8 training views")
    assert_right(run, table)
    assert (run / "instances" / "ids" / f"{ROOM.stem(2)}.png").is_file()
    assert "2D segments" not in scores(run)  # a held-out view has none


@pytest.mark.parametrize("k1", [-0.25, 0.3])
def test_photos_through_a_lens_at_half_their_width(tmp_path, k1):
    """Objects lie on the grid of the photo as taken, and agree with the labels there."""
    room = TinyRoom(width=64, height=48, k1=k1)
    data = room.write(tmp_path / "data")
    run = room.run(tmp_path / "run", data, width=32)
    assert_right(run, fit(run))
    for i in (0, 1):
        ids = torch.from_numpy(read_labels(run / "instances" / "ids" / f"{room.stem(i)}.png"))
        _, truth = room.photo(i)
        assert ids.shape == (48, 64)
        assert ((ids > 0) == (truth > 0)).float().mean() > 0.97
        shown, there = ((m > 0).nonzero().float().mean(dim=0) for m in (ids, truth))
        assert (shown - there).abs().max() < 0.6  # pixels


def test_photos_and_labels_in_folders(tmp_path):
    data = ROOM.write(tmp_path / "data", nested=True)
    run = ROOM.run(tmp_path / "run", data)
    assert_right(run, fit(run))
    assert scores(run)["2D segments"]["per_frame_pq"] == 1


def test_an_imported_run_needs_its_photos(data, tmp_path):
    ROOM.gaussians.to_ply(tmp_path / "room.ply")
    run = tmp_path / "run"
    runs.import_ply(tmp_path / "room.ply", run)
    with pytest.raises(
        ValueError, match=r"was imported, not fitted: --data must name the folder of its photos$"
    ):
        fit(run)
    assert not (run / "instances").exists()
    assert len(fit(run, data=str(data), split_rounds=1, split_steps=2)) == 3
    assert len(make_objects(run, say=lambda line: None)) == 3  # the objects know where their photos are


def test_data_that_has_moved(data, bare, tmp_path):
    moved = shutil.copytree(data, tmp_path / "elsewhere")
    config = Checkpoint.load(bare).config
    config.data.path = str(tmp_path / "gone")
    Checkpoint(ROOM.gaussians, config, 100).save(bare)
    with pytest.raises(FileNotFoundError, match="gone"):
        fit(bare)
    assert_right(bare, fit(bare, data=str(moved)), data=str(moved))


def test_segments_from_elsewhere_and_truth_from_elsewhere(data, bare, tmp_path):
    shutil.copytree(data / "segments", tmp_path / "ids")
    shutil.copytree(data / "annotations", tmp_path / "true" / "annotations")
    assert_right(bare, fit(bare, tmp_path / "ids"), truth=tmp_path / "true")
    assert FittedField.load(bare / "instances" / "field.safetensors").segments == str(tmp_path / "ids")


@pytest.fixture
def classified(tmp_path):
    """Data of a ball (5), two cubes (8) and a floor (3), and of void (0) on the left of each photo."""
    data = ROOM.write(tmp_path / "data")
    for folder in ("semantics", "annotations/semantics"):
        (data / folder).mkdir()
        for stem in map(ROOM.stem, range(10)):
            semantics = np.array([3, 5, 8, 8])[
                read_labels(data / "annotations" / "instances" / f"{stem}.png")
            ]
            semantics[:, :4] = 0
            write_ids(data / folder / f"{stem}.png", semantics)
    return data


def test_objects_of_several_classes(classified, tmp_path):
    told = {"things": [8, 5], "stuff": [3], "names": {"5": "ball", "8": "cube"}}
    (classified / "classes.json").write_text(json.dumps(told))
    run = ROOM.run(tmp_path / "run", classified)
    table = fit(run)
    assert [(o.class_id, o.class_name) for o in table.objects] == [(5, "ball"), (8, "cube"), (8, "cube")]
    assert table.objects[0].box is not None and table.objects[0].box[0][0] > 0.2  # the first blob is the ball
    found = scores(run)["objects"]
    assert found["rq"] == 1 and found["pq"] > 0.88
    counts = {c: (s["kind"], s["tp"]) for c, s in found["classes"].items()}
    assert counts == {"8": ("thing", 2), "5": ("thing", 1), "3": ("stuff", 1)}
    semantics = read_labels(run / "instances" / "semantics" / f"{ROOM.stem(0)}.png")
    assert set(np.unique(semantics)) == {3, 5, 8}


def test_all_of_it_void(classified, tmp_path):
    (classified / "classes.json").write_text(json.dumps({"things": [9], "stuff": [4]}))
    run = ROOM.run(tmp_path / "run", classified)
    assert len(fit(run)) == 0


def test_nothing_but_stuff(bare, data, tmp_path):
    (tmp_path / "ids").mkdir()
    for i in range(10):
        write_ids(tmp_path / "ids" / f"{ROOM.stem(i)}.png", torch.zeros(24, 32, dtype=torch.int32))
    lines: list[str] = []
    assert len(fit(bare, tmp_path / "ids", lines=lines)) == 0
    assert "no pixel shows a thing: no objects" in lines
    assert not list((bare / "instances" / "objects").iterdir())
    assert scores(bare)["objects"]["pq_things"] == 0


# ------- once more, or not


def test_a_second_fit_must_be_asked_for_and_is_the_same(run):
    before = contents(run)
    with pytest.raises(ValueError, match=r"already holds instances: give --overwrite to replace them$"):
        fit(run)
    assert contents(run) == before
    (run / "instances" / "note.txt").write_text("of someone else")
    of_a_longer_run = run / "instances" / "checkpoint-000200"
    shutil.copytree(run / "instances" / "checkpoint-000100", of_a_longer_run)
    theta = FittedField.load(run / "instances" / "field.safetensors").theta
    scores(run)
    fit(run, overwrite=True, split_rounds=1, split_steps=3)
    assert torch.equal(FittedField.load(run / "instances" / "field.safetensors").theta, theta)
    after = contents(run)
    assert after.pop("instances/note.txt") == b"of someone else"
    assert after.keys() == before.keys()  # the scores of before are gone
    in_any_order = ("meta.json", "field.safetensors")  # times; safetensors' header
    same = [name for name in before if not name.endswith(in_any_order)]
    assert {name: after[name] for name in same} == {name: before[name] for name in same}


def test_objects_are_made_anew(run):
    field = (run / "instances" / "field.safetensors").read_bytes()
    assert len(make_objects(run, [("min-size", "700")], say=lambda line: None)) == 1
    table = make_objects(run, [("method", "dbscan"), ("objects.min_size", "40")], say=lambda line: None)
    assert_right(run, table)
    written = (run / "instances" / "config.yaml").read_text()
    assert "method: dbscan" in written and "min_size: 40" in written and "steps: 120" in written
    assert (run / "instances" / "field.safetensors").read_bytes() == field


def test_only_the_section_objects_can_change(run):
    before = contents(run)
    for overrides, sentence in [
        ([("method", "dbscan"), ("steps", "5")], "steps is no field of section objects, and only these can"),
        ([("metod", "dbscan")], "metod is no field of section objects"),
        ([("method", "kmeans")], "method must be one of hdbscan, dbscan, meanshift, but is 'kmeans'"),
    ]:
        with pytest.raises(ValueError, match="^" + sentence):
            make_objects(run, overrides)
    assert contents(run) == before


def test_objects_can_be_made_when_the_segments_are_gone(data, bare, tmp_path):
    shutil.copytree(data / "segments", tmp_path / "ids")
    fit(bare, tmp_path / "ids")
    shutil.rmtree(tmp_path / "ids")
    assert_right(bare, make_objects(bare, [("min_size", "40")], say=lambda line: None))
    assert "2D segments" not in scores(bare)


def fails(*args, **kwargs):
    raise RuntimeError("out of luck")


def test_a_fit_that_fails_leaves_what_was_there(run, monkeypatch):
    before = contents(run)
    monkeypatch.setattr(instance_runs.ClassTrainer, "run", fails)
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(run, overwrite=True)
    assert contents(run) == before


def test_a_fit_that_fails_at_the_end_can_be_completed(bare, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(object_files, "save_png", fails)
        with pytest.raises(RuntimeError, match="out of luck"):
            fit(bare)
    left = [path.name for path in (bare / "instances").rglob("*")]
    assert not any("partial" in name or name.endswith(".old") for name in left)
    assert_right(bare, make_objects(bare, say=lambda line: None))


# ------- what is refused


def test_refusals_before_any_work(data, bare, tmp_path):
    (tmp_path / "empty").mkdir()
    other = ROOM.write(tmp_path / "other", without=tuple(range(10)))
    cases = [
        ((tmp_path / "nowhere",), FileNotFoundError, "holds no checkpoint"),
        (
            (bare, tmp_path / "nowhere"),
            FileNotFoundError,
            "no segments at .*nowhere: there is no such folder",
        ),
        ((bare, tmp_path / "empty"), ValueError, "holds no segments: it must hold segments"),
        ((bare, other), ValueError, "is empty"),
    ]
    for arguments, kind, sentence in cases:
        with pytest.raises(kind, match=sentence) as caught:
            fit(*arguments)
        assert "\n" not in str(caught.value)
    assert not (bare / "instances").exists()
    for call in (make_objects, evaluate_panoptic):
        with pytest.raises(
            FileNotFoundError, match=r"no instance field at .*: `gsfields fit-instances RUN` makes"
        ):
            call(bare)
    with pytest.raises(FileNotFoundError, match="`gsfields instances` writes the objects"):
        select(bare, "photo_00,1,1")


def test_refusals_of_the_evaluation(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="no true labels at"):
        evaluate_panoptic(run, truth=tmp_path / "nowhere")
    write_ids(tmp_path / "unknown.png", torch.ones(4, 4, dtype=torch.int32))
    with pytest.raises(ValueError, match="none of the views to be scored has true labels in"):
        evaluate_panoptic(run, truth=tmp_path)
    assert not (run / "panoptic.json").exists()


def test_a_field_comes_back_as_it_was_saved(tmp_path):
    field = FittedField(
        torch.rand(5, 2), torch.rand(5, 3), (9, 4, 2), (4, 2), "/some where", identifiers=True
    )
    field.save(tmp_path / "f.safetensors")
    back = FittedField.load(tmp_path / "f.safetensors")
    assert torch.equal(back.theta, field.theta) and torch.equal(back.probabilities, field.probabilities)
    assert (back.class_ids, back.things, back.segments, back.identifiers) == (
        (9, 4, 2),
        (4, 2),
        "/some where",
        True,
    )
    assert back.class_at(torch.tensor([[2, 0]])).tolist() == [[2, 9]]
    whole = (tmp_path / "f.safetensors").read_bytes()
    from safetensors.torch import save_file

    for number, spoil in enumerate(("cut", "other")):
        path = tmp_path / f"{number}.safetensors"
        if spoil == "cut":
            path.write_bytes(whole[:-20])
        else:
            save_file({"theta": torch.zeros(1, 1), "probabilities": torch.zeros(1, 1)}, path)
        with pytest.raises(ValueError, match="is damaged"):
            FittedField.load(path)
