"""The language benchmark: a tiny study from end to end on geometry that is known, its tables from known rows, and what
the ways to query agree on.
"""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import language, language_queries, language_trial
from benchmarks.baselines import langsplat, lerf
from benchmarks.language import CEILING, COMPOSITE, EXPLICIT, FLAT, LANGSPLAT, ORACLE, OURS
from gsfields.data.nested_texts import Vocabulary
from gsfields.fit.frozen import FrozenViews
from gsfields.fit.language_labels import LanguageLabels
from gsfields.fit.querying import asked_plainly
from gsfields.fit.scene import open_dataset
from gsfields.language_config import NestedConfig
from tests.benchmarks.test_instances_benchmark import from_depths
from tests.fit.tiny_room import TinyRoom
from tests.fit.tiny_speech import speak, vocabulary

SMALL = [
    "--seeds",
    "1",
    "--objects",
    "3",
    "--size",
    "48",
    "--views",
    "9",
    "--jobs",
    "1",
    "--models",
    "lifted",
    *("--set", "steps=40", "--set", "resolution=32", "--set", "hidden=32", "--set", "pixels=256"),
]


def words_of(folder, study, *more):
    files = [word for name in ("out", "scenes", "runs") for word in (f"--{name}", str(folder / name))]
    return [study, *files, *SMALL, *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which both studies have been run on one tiny scene with known geometry."""
    path = tmp_path_factory.mktemp("language")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_trial.runs, "start", from_depths)
        patch.setattr(language_trial, "in_own_process", language_trial.run)
        quick = langsplat.Recipe(epochs=4, steps=60)
        patch.setattr(language_trial.langsplat, "Recipe", lambda: quick)
        assert language.main(words_of(path, "accuracy")) == 0
        assert language.main(words_of(path, "steps", "--set", "dim=64")) == 0
    return path


def results(folder, study):
    (path,) = (folder / "out").glob(f"*-{study}.json")
    return json.loads(path.read_text())["rows"], path.with_suffix(".md").read_text()


def test_a_study_writes_its_rows(folder):
    rows, text = results(folder, "accuracy")
    titles = [t.format("lifted") for t in (OURS, EXPLICIT, ORACLE, FLAT, COMPOSITE)]
    assert set(rows) == {f"1/{t}" for t in (*titles, LANGSPLAT, language.LERF, CEILING, language.GEOMETRY)}
    ours, oracle = rows[f"1/{titles[0]}"], rows[f"1/{titles[2]}"]
    assert set(ours["miou"]) == {"all", "simple", "compound", "partitive"} == set(ours["localisation"])
    assert f"| {titles[0]} | {ours['miou']['all']:.1f} | " in text
    assert all(f"## Targets: {title.format('lifted')}" in text for title in (OURS, COMPOSITE))
    assert ours["miou"] != rows[f"1/{titles[4]}"]["miou"]
    assert rows[f"1/{CEILING}"]["miou"]["all"] > ours["miou"]["all"] > 15
    for kind in ours["miou"]:  # the truth chooses at least as well as the map
        assert oracle["miou"][kind] >= rows[f"1/{titles[1]}"]["miou"][kind]
        assert oracle["localisation"][kind] >= rows[f"1/{titles[1]}"]["localisation"][kind]


def test_steps_and_temperatures(folder):
    rows, _ = results(folder, "steps")
    assert rows["1/every 1, lifted"]["miou"] == rows["1/temperature 1.0, lifted"]["miou"]
    assert rows["1/every 170, lifted"]["miou"] != rows["1/every 1, lifted"]["miou"]
    assert len(rows) == 1 + len(language.STEPS) + len(language.TEMPERATURES)


def test_what_is_finished_is_not_run_again(folder, monkeypatch, capsys):
    def refuse(trial):
        raise AssertionError(f"{trial} was run again")

    monkeypatch.setattr(language_trial, "in_own_process", refuse)
    assert language.main(words_of(folder, "accuracy")) == 0
    assert LANGSPLAT in capsys.readouterr().out
    assert language.main(words_of(folder, "accuracy", "--set", "groups=3")) == 2
    assert "--fresh" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "lifted,other"], "models must be among lifted, direct, triplane, but are 'other'"),
        (["--seeds", "x"], "seeds must look like"),
        (["--set", "dims=3"], "there is no field 'dims'"),
        (["--steps", "0"], "must be positive"),
    ],
)
def test_bad_arguments_are_told_before_any_work(tmp_path, capsys, words, message):
    assert language.main(words_of(tmp_path, "accuracy", *words)) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_targets_are_met_or_missed_by_the_right_amount():
    def row(value, located):
        return {"miou": {"all": value, "compound": value}, "localisation": {"all": located}, "seconds": 1.0}

    rows = {}
    for seed, gain in ((0, 2.0), (1, 5.0)):
        rows[f"{seed}/{OURS.format('lifted')}"] = row(40 + gain, 84 + seed)
        rows[f"{seed}/{LANGSPLAT}"] = rows[f"{seed}/{FLAT.format('lifted')}"] = row(40.0, 0)
    text = language.targets_table(rows, "lifted", OURS)
    lines = {line.split("|")[1].strip(): line for line in text.splitlines()[2:]}
    assert "3.50: met by 0.50" in lines["mIoU above three levels, after LangSplat"]
    assert "3.50: missed by 0.50" in lines["mIoU the same, compound prompts"]
    assert "3.50: met by 1.50" in lines["mIoU above a field that is not nested"]
    assert "84.50: missed by 0.50" in lines["localisation, %"] and len(lines) == 4


def test_three_levels_learn_what_segments_say(tmp_path):
    """The first level tells the toys apart, the second knows no more than that they are toys."""
    room = TinyRoom()
    config = room.config(room.write(tmp_path / "data"))
    views = FrozenViews(room.gaussians, open_dataset(config.data), config, limit_bytes=1 << 24)
    source = speak(room, tmp_path / "language_features")
    recipe = langsplat.Recipe(
        levels=((0,), (1,), (5,)), epochs=150, batch=8, autoencoder_rate=3e-3, steps=400, rate=2e-2
    )
    found = langsplat.train(views, source, views.dataset.train, recipe)
    assert not found.codes[2].any()  # there is no such level
    index = views.dataset.test[0]
    ids = room.photo(index)[1]
    plan, drawn = views.drawn(index)
    found.codes = [codes[drawn] for codes in found.codes]
    maps = found.relevancy(plan, vocabulary()[:5], vocabulary()[5:])
    assert maps.shape == (3, *ids.shape, 5)
    best = maps.argmax(dim=-1)
    assert (best[0] == ids)[ids > 0].float().mean() > 0.8 and (best[1] == 4)[ids > 0].float().mean() > 0.9


def test_ways_to_query_answer_alike(tmp_path, capsys):
    words = [
        "--scene",
        "synthetic",
        "--count",
        "1500",
        "--size",
        "80x60",
        "--seconds",
        "0.1",
        "--threads",
        "1",
    ]
    assert language_queries.main([*words, "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*-queries.json")
    content = json.loads(path.read_text())
    assert content["agreement"]["error"] <= content["agreement"]["bound"] + 1e-4 <= 1.2e-3
    assert len(content["ways"]) == 9 and "Target: 20 times" in capsys.readouterr().out
    assert language_queries.main([*words, "--scene", "none"]) == 2


def test_made_up_language_is_as_a_fit_leaves_it():
    """Words of cells and groups, told apart although each view hears them with noise."""
    scene = language_queries.scenes.load("synthetic", 2000, 64)
    s = language_queries.spoken(scene, 64, 48)
    fine = torch.nn.functional.normalize(s.nested.at(0.0) @ s.nested.projection.T, dim=1)
    names = [f"thing {k}" for k in range(language_queries.CELLS + language_queries.GROUPS)]
    words = torch.stack([language_queries._vector(Vocabulary(dimension=512, seed=0), name) for name in names])
    products = fine @ words.T
    assert (products.max(dim=1).values > 0.9).all()
    assert (products.argmax(dim=1) < language_queries.CELLS).float().mean() > 0.99
    coarse = s.nested.at(0.5) @ s.nested.projection.T
    assert ((coarse @ words.T).argmax(dim=1) >= language_queries.CELLS).float().mean() > 0.99
    calls, asked = language_queries.ways(s, 1e-3)
    ours, paper = calls["ours: each prompt"](), calls["the paper's way: a prompt"]()
    torch.testing.assert_close(ours, paper, atol=1.1e-3, rtol=0)
    further = calls["the same, blended and normalised once: each further prompt"]()
    torch.testing.assert_close(further, paper, atol=1e-4, rtol=0)
    torch.testing.assert_close(paper, asked_plainly(s.plan, asked, s.texts[:1]))


def test_thirty_scales_learn_what_segments_say(tmp_path):
    """The best of them names each toy, and a larger one all of them together."""
    room = TinyRoom()
    config = room.config(room.write(tmp_path / "data"))
    views = FrozenViews(room.gaussians, open_dataset(config.data), config, limit_bytes=1 << 24)
    labels = LanguageLabels(speak(room, tmp_path / "language_features"), views, views.dataset.train, 512)
    recipe = NestedConfig(model="triplane", steps=300, pixels=256, resolution=32, channels=16, hidden=32)
    found = lerf.train(views, labels, recipe)
    index = views.dataset.test[0]
    ids = room.photo(index)[1]
    maps = found.relevancy(*views.drawn(index), vocabulary()[:5], vocabulary()[5:])
    assert maps.shape == (lerf.SCALES, *ids.shape, 5)
    small, large = maps[: lerf.SCALES // 2].amax(dim=0), maps.amax(dim=0)
    for word in (1, 2, 3):
        assert small[ids == word, word].mean() > 0.85 and small[ids == 0, word].mean() < 0.75
    assert large[ids > 0, 4].mean() > 0.8
