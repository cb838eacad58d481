"""The fusion benchmark: its tables from known rows, what it keeps, and a tiny study from end to end."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from benchmarks import fusion, fusion_tables, fusion_trial, layers_cost
from benchmarks.fusion_scenes import ManyProcesses, Video
from benchmarks.fusion_studies import (
    BUDGETS,
    DOUBTS,
    FIT,
    FLAT,
    FULL,
    NERF,
    OURS,
    REFINED,
    STUDIES,
    SWITCHES,
    WINDOWS,
    moving_frames,
    stop,
)
from gsfields.data.egocentric import EgocentricConfig, make_sequence
from gsfields.evaluate.udos import evaluate_run_folder
from gsfields.fit.checkpoint import Checkpoint
from gsfields.fit.scene import open_dataset
from gsfields.layers import render_layers
from gsfields.rendering import render

TINY = ["--frames", "8", "--width", "48", "--height", "27", "--visits", "1", "--jobs", "1", "--seeds", "0"]
FEW = ["steps=16", "sweep_points=200", "shell_count=100", "semistatic_count=100", "dynamic_count=30"]


def asked(folder, study, *more):
    files = [word for name in ("out", "scenes", "runs") for word in (f"--{name}", str(folder / name))]
    sets = [word for field in FEW for word in ("--set", field)]
    return [study, *TINY, *files, *sets, *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which table3 has been run, its trials in this process."""
    path = tmp_path_factory.mktemp("fusion")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fusion_trial, "in_own_process", fusion_trial.run)
        assert fusion.main(asked(path, "table3", "--every", "3")) == 0
    return path


@pytest.fixture
def no_trials(monkeypatch):
    def refuse(trial):
        raise AssertionError(f"{trial} was run again")

    monkeypatch.setattr(fusion_trial, "in_own_process", refuse)


def results(folder, study):
    (path,) = (folder / "out").glob(f"*-{study}.json")
    return json.loads(path.read_text()), path


def test_a_study_writes_all_its_rows(folder):
    content, path = results(folder, "table3")
    rows = content["rows"]
    assert set(rows) == {f"0/{name}" for name in (FLAT, FIT, *(f"N={n}" for n in WINDOWS))}
    frames = moving_frames(folder / "scenes" / "seed0-8-48x27")[::3]
    assert all(set(row["per_frame"]) == set(frames) for row in rows.values())
    assert rows["0/N=0"]["fitted"] == len(frames) and rows["0/N=20"]["fitted"] == 8
    assert rows["0/N=0"]["ap"]["dynamic"] != rows[f"0/{FIT}"]["ap"]["dynamic"]
    text = path.with_suffix(".md").read_text()
    assert "| before | " in text and text.endswith("1 visits per refined frame\n")


def test_the_kept_run_is_not_touched_by_refinements(folder):
    """Its masks score what the row of the fit says."""
    scene = folder / "scenes" / "seed0-8-48x27"
    frames = moving_frames(scene)[::3]
    run = folder / "runs" / scene.name / "full"
    row = results(folder, "table3")[0]["rows"][f"0/{FIT}"]
    again = evaluate_run_folder(run / "masks", scene).mean("dynamic", frames)
    assert again == pytest.approx(row["ap"]["dynamic"])
    assert not (run / "refined").exists() and [p.name for p in run.parent.iterdir()] == ["full"]


def test_what_is_finished_is_not_run_again(folder, no_trials, capsys):
    assert fusion.main(asked(folder, "table3", "--every", "3")) == 0
    assert "| N = 20 | " in capsys.readouterr().out


def test_rows_of_other_settings_are_not_mixed(folder, no_trials, capsys):
    assert fusion.main(asked(folder, "table3", "--every", "3", "--set", "pmf=2")) == 2
    assert "holds rows of other settings: give --fresh" in capsys.readouterr().err


def test_a_fit_is_used_again_only_for_its_configuration(folder, monkeypatch):
    fitted = []
    monkeypatch.setattr(fusion_trial.runs, "start", lambda *a, **k: fitted.append(1) or 1 / 0)
    scene = folder / "scenes" / "seed0-8-48x27"
    overrides = [tuple(field.split("=")) for field in FEW]
    run = str(folder / "runs" / scene.name / "full")
    kept = (folder / "runs" / scene.name / "full" / fusion_trial.FITTED).read_text()
    assert fusion_trial.fit(fusion_trial.Trial(str(scene), run, overrides))["steps"] == 16 and not fitted
    with pytest.raises(ZeroDivisionError):
        fusion_trial.fit(fusion_trial.Trial(str(scene), run, [*overrides, ("nmf", "0")]))
    (folder / "runs" / scene.name / "full" / fusion_trial.FITTED).write_text(kept)


def test_a_failed_trial_is_told_and_the_others_go_on(folder, tmp_path, monkeypatch, capsys):
    def broken(trial):
        if trial.refine and trial.refine["window"] == 2:
            raise RuntimeError("out of luck")
        return fusion_trial.run(trial)

    monkeypatch.setattr(fusion_trial, "in_own_process", broken)
    words = asked(folder, "table3", "--every", "3", "--out", str(tmp_path))
    assert fusion.main(words) == 1
    assert "0/N=2: out of luck" in capsys.readouterr().err
    (path,) = tmp_path.glob("*.json")
    rows = json.loads(path.read_text())["rows"]
    assert "0/N=5" in rows and "0/N=2" not in rows


def test_a_plain_scene_of_the_same_gaussians_renders_the_same_image(folder):
    checkpoint = Checkpoint.load(folder / "runs" / "seed0-8-48x27" / "full")
    camera = open_dataset(checkpoint.config.data).views[4].camera
    scene = checkpoint.scene
    scene.gain = torch.zeros_like(scene.gain)  # the plain scene has no brightness
    layered = render_layers(scene, camera, 0.6).color
    plain = render(layers_cost.as_plain(scene, camera, 0.6), camera).color
    assert torch.allclose(plain, layered.clamp(min=0), atol=2e-3)


def known_rows():
    """Two seeds: 2D masks find two of three frames; the fit and its refinement are better by known amounts."""
    rows = {}
    for seed in (0, 1):
        flat = {"a": 70.0, "b": 50.0, "c": 3.0 + seed}

        def row(gain, own, iou, flat=flat):
            per_frame = {stem: ap + gain for stem, ap in flat.items()}
            columns = {
                "dynamic": sum(per_frame.values()) / 3,
                "semistatic": 25.0,
                "dynamic_semistatic": 70 + gain,
            }
            ap = columns if own is None else columns | {"semistatic_own": own}
            return {"ap": ap, "per_frame": per_frame, "iou": iou, "best_iou": iou + 5}

        rows[f"{seed}/{FLAT}"] = row(0, None, 40)
        for variant in SWITCHES:
            rows[f"{seed}/{variant}/{FIT}"] = row(8 + 10 * seed, 30 if variant == FULL else 35, 44)
            rows[f"{seed}/{variant}/{REFINED}"] = row(20, 36, 50)
    return rows


def test_targets_are_met_or_missed_by_the_right_amount():
    lines = fusion_tables.targets(known_rows(), (0, 1)).splitlines()[2:]
    verdicts = [re.findall(r"(-?[\d.]+): (met|missed) by ([\d.]+)", line) for line in lines]
    assert verdicts == [
        [("13.00", "missed", "2.00"), ("20.00", "met", "5.00")],  # Dyn
        [("8.00", "met", "0.00"), ("20.00", "met", "12.00")],  # worst seed
        [("13.00", "met", "3.00"), ("20.00", "met", "10.00")],  # found frames
        [("83.00", "met", "3.00"), ("90.00", "met", "10.00")],  # Dyn+SS
        [("-5.00", "missed", "5.00"), ("1.00", "met", "1.00")],  # SS own
        [("-1.00", "missed", "1.00"), ("5.00", "met", "5.00")],  # IoU
    ]


def test_frames_found_and_missed_in_2d_are_told_apart():
    rows = known_rows()
    row, flat = rows[f"0/{FULL}/{REFINED}"], rows[f"0/{FLAT}"]
    assert fusion_tables.on_frames(True)(row, flat) == pytest.approx(80)
    assert fusion_tables.on_frames(False)(row, flat) == pytest.approx(23)
    text = fusion_tables.table5(rows, (0, 1))
    assert "| +TR +PMF +NMF | 61.2 ± 0.2 |" in text and "no masks at all |" not in text


def test_tables_of_what_is_not_measured_say_so():
    for name, table in fusion_tables.TABLES.items():
        text = table({}, (0, 1))
        assert text.startswith("# ") and "nan" not in text, name
    assert fusion_tables.verdict(1.2, 1.4, at_most=True) == "1.20: met by 0.20"


def race_rows(ours):
    """Two seeds after 2 and 8 minutes: the field reaches 60 and 80, ours `ours`."""
    rows = {}
    for seed in (0, 1):
        rows[f"{seed}/{FLAT}"] = {"ap": {"dynamic": 50.0}, "iou": 30, "best_iou": 35}
        for minutes, field, own in zip((2, 8), (60.0, 80.0), ours, strict=True):
            for name, ap in ((NERF, field), (OURS, own)):
                columns = {"dynamic": ap + seed, "dynamic_semistatic": ap - 10, "semistatic_own": 40.0}
                row = {"ap": columns, "iou": 50, "best_iou": 51, "psnr": {"whole": 20.0}}
                rows[f"{seed}/{stop(name, minutes)}"] = row
    speed = {"neuraldiff_ms": 1000.0, "ours_ms": 5.0, "ratio": 200.0}
    return rows | {"speed/small/rendering a frame": speed}


def test_the_race_is_a_line_for_each_stop_and_a_curve_for_each_contender():
    rows = race_rows((90.0, 95.0))
    assert fusion_tables.budgets(rows) == [2, 8]
    lines = fusion_tables.race(rows, (0, 1)).splitlines()
    order = [line.split(" | ")[0][2:] for line in lines if " min" in line and "|" in line]
    stops = [stop(NERF, 2), stop(OURS, 2), stop(NERF, 8), stop(OURS, 8)]
    stops += [stop(c, 8, refined=True) for c in (NERF, OURS)]
    assert order == [name.replace("/", " ") for name in stops]
    assert any(line.startswith(f"| {OURS} 8 min | 95.5 ± 0.7 | 40.0 ± 0.0 | 85.0") for line in lines)
    assert "| small | rendering a frame | 1000 | 5.0 | 200 |" in lines
    drawing = fusion_tables.race_curves(rows, (0, 1))
    assert drawing.count('class="l"') == 2 * 2 + 2 and "100 - Dyn+SS AP" in drawing
    assert fusion_tables.race_curves(race_rows((80.0, 95.0)), (0, 1)) != drawing
    assert fusion_tables.race_curves({}, (0,)) is None


def test_seeds_and_settings_are_read(tmp_path, capsys):
    assert fusion.parse_seeds("0-2,7,1") == (0, 1, 2, 7)
    for text in ("", "2-0", "a", "1-"):
        with pytest.raises(ValueError, match="seeds must look like"):
            fusion.parse_seeds(text)
    assert fusion.main(asked(tmp_path, "table5", "--set", "stepz=3")) == 2
    assert "did you mean 'steps'" in capsys.readouterr().err
    assert fusion.main(asked(tmp_path, "table5", "--set", "steps")) == 2
    assert "--set takes field=value" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_videos_of_other_options_have_other_folders(tmp_path):
    settings = fusion.settings_of(fusion._parser().parse_args(asked(tmp_path, "doubts")))
    videos = STUDIES["doubts"].videos(settings)
    assert len({video.name for video in videos.values()}) == len(videos) == len(DOUBTS)
    assert Video(3, 60, 228, 128, {"speed": 0.4}).name == "seed3-60-228x128-speed=0.4"
    for video in videos.values():  # every option is one that the generator has
        EgocentricConfig(**video.options)


@pytest.mark.slow
def test_processes_render_the_same_frames_in_the_same_order():
    config = EgocentricConfig(seed=1, frames=12, width=48, height=27, supersample=1)
    for one, other in zip(ManyProcesses(config, 2).stream(), make_sequence(config).stream(), strict=True):
        assert one.index == other.index and np.array_equal(one.image, other.image)
        assert np.array_equal(one.instances, other.instances)


@pytest.mark.slow
def test_trials_run_in_processes_of_their_own(folder, tmp_path):
    words = asked(folder, "layers-cost", "--minutes", "0.1", "--out", str(tmp_path))
    assert fusion.main(words) == 0
    (path,) = tmp_path.glob("*.json")
    rows = json.loads(path.read_text())["rows"]
    assert len(rows) == 6 and all(row["ratio"] > 0 for row in rows.values())


@pytest.mark.slow
def test_the_race_scores_both_and_times_them(folder, tmp_path):
    words = asked(folder, "race", "--minutes", "0.08", "--out", str(tmp_path))
    assert fusion.main(words) == 0
    (path,) = tmp_path.glob("*.json")
    rows = json.loads(path.read_text())["rows"]
    stops = {f"0/{stop(c, 0.08 * share)}" for c in (NERF, OURS) for share in BUDGETS}
    refined = {f"0/{stop(c, 0.08, refined=True)}" for c in (NERF, OURS)}
    speeds = {name for name in rows if name.startswith("speed/")}
    assert set(rows) == stops | refined | speeds | {f"0/{FLAT}"} and len(speeds) == 4
    assert all(rows[name]["ratio"] > 1 for name in speeds)
    assert path.with_suffix(".svg").read_text().startswith("<svg")
    assert fusion.main(words) == 0  # nothing is run again
