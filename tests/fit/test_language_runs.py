"""Language of whole runs: fitted, asked, scored, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gsfields import cli
from gsfields.data.language_features import TextEmbeddings
from gsfields.fields.relevancy import CANONICAL, relevancy
from gsfields.fit import language_files, language_runs, texts
from gsfields.fit.language_files import (
    evaluate_openvocab,
    protocol_for,
    query,
    relevancy_maps,
    scored,
    where_shown,
)
from gsfields.fit.language_runs import Language, fit_language
from gsfields.language_config import LanguageConfig
from tests.fit.tiny_room import TEST, TinyRoom, layered_room
from tests.fit.tiny_speech import PROMPTS, embeddings, vocabulary, with_words

ROOM = TinyRoom(width=48, height=36)


def fit(run, features=None, **changes) -> Path:
    config = LanguageConfig()
    config.field.dim, config.field.groups = 64, 4
    more = {"overwrite": changes.pop("overwrite", False), "data": changes.pop("data", None)}
    for name, value in changes.items():
        setattr(config.field, name, value)
    return fit_language(run, features, config, progress=False, say=lambda line: None, **more)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """(run with language, its data)."""
    folder = tmp_path_factory.mktemp("language")
    data = with_words(ROOM, ROOM.write(folder / "data"))
    run = ROOM.run(folder / "run", data)
    fit(run)
    return run, data


@pytest.mark.parametrize("scales", ["prompt", "composite"])
def test_prompts_are_found_where_they_are(spoken, tmp_path, scales):
    run, _ = spoken
    report = query(run, PROMPTS, out=tmp_path / "out", overrides=[("scales", scales)])
    index = Language.open(run).index_of(None)
    assert report.view == ROOM.stem(index) and index in TEST
    ids = ROOM.photo(index)[1]
    for number, found in enumerate(report.found, start=1):
        here = int(ids[found.y, found.x])
        assert here == number if found.prompt != "toys" else here > 0
        assert found.relevancy > 0.9 and 30 <= found.gaussians <= (150 if found.prompt == "toys" else 45)
    assert report.bound <= 1.001e-3
    if scales == "prompt":  # and how large they are
        red, green, blue, toys = (found.scale for found in report.found)
        assert max(red, green, blue) < toys < 1 and report.bound == 0 and "exact" in str(report)
    else:
        assert {found.scale for found in report.found} == {None} and report.channels
    assert all(found.prompt in str(report) for found in report.found)


def test_answers_are_files(spoken, tmp_path):
    run, _ = spoken
    out = tmp_path / "answers"
    report = query(run, ["blue", "red", "blue"], view="1", out=out)
    assert [found.prompt for found in report.found] == ["blue", "red"] and report.view == ROOM.stem(1)
    names = {p.relative_to(out).as_posix() for p in out.rglob("*.*")}
    pictures = {f"{kind}/{k}.png" for kind in ("relevancy", "masks") for k in (1, 2)}
    assert names == pictures | {"gaussians.npy", "queries.json", "sheet.png"}
    content = json.loads((out / "queries.json").read_text())
    assert [row["prompt"] for row in content["prompts"]] == ["blue", "red"]
    maps = np.asarray(Image.open(out / "relevancy" / "1.png")).astype(float) / 65535
    best = content["prompts"][0]
    assert maps.shape == (36, 48) and maps[best["y"], best["x"]] == maps.max()
    mask = np.asarray(Image.open(out / "masks" / "1.png")) > 0
    assert mask.sum() == best["pixels"] > 10 and (ROOM.photo(1)[1].numpy() == 3)[mask].mean() > 0.7
    scores = np.load(out / "gaussians.npy")
    assert scores.shape == (len(ROOM.gaussians), 2) and scores.dtype == np.float32
    blue = ROOM.owners.numpy() == 3
    assert np.median(scores[blue, 0]) > 0.9 > 0.5 > np.median(scores[~blue, 0])
    query(run, ["green"], view=ROOM.stem(1), out=out)  # replaces it all
    assert not (out / "masks" / "2.png").exists()


def test_what_is_shown_is_relevancy_of_what_is_blended(spoken):
    """With all numbers of the composite embeddings of every pixel, and the phrases that are there."""
    run, _ = spoken
    language = Language.open(run, overrides=[("query.scales", "composite")])
    answer = language.ask(ROOM.stem(0), PROMPTS)
    basis = language.composite.basis
    plan = language.view(0).plan
    whole = plan.blend(basis.coefficients @ basis.directions.T)
    expected = relevancy(whole, language.texts.of(PROMPTS), language.phrases)
    opaque = answer.alpha > 0.5
    assert (answer.relevancy - expected)[opaque].abs().max() <= 1e-3
    weights = language.nested.weights(language.phrases)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(ROOM.gaussians)))


def test_scales_name_parts_or_the_whole(spoken):
    """Small ones the thing itself, larger ones all of them together."""
    run, _ = spoken
    language = Language.open(run)
    bases = [language.at(0.0), language.at(0.6)]
    maps = relevancy_maps(language, TEST[0], bases, ["red", "toys"], (36, 48))
    ids = ROOM.photo(TEST[0])[1]
    assert maps.shape == (2, 36, 48, 2)
    assert maps[0, ids == 1, 0].mean() > 0.9 and maps[0, ids == 1, 1].mean() < 0.7
    assert maps[1, ids > 0, 1].mean() > 0.9


def test_scores(spoken):
    run, data = spoken
    path, table = evaluate_openvocab(run)
    content = json.loads(path.read_text())
    assert path == run / "openvocab.json" and content["labels"] == "3d-ovs" and content["views"] == len(TEST)
    assert content["langsplat"]["pairs"] == 8 and content["langsplat"]["localisation"] == 1
    # each toy is as relevant to "toys" as all of them together
    found = {"R@1": 0.75, "R@5": 1.0, "R@10": 1.0, "iou": 0.5, "pairs": 8}
    assert content["retrieval"] == found and "R@5 100.0" in table
    assert content["langsplat"]["miou"] > 0.55 and content["assignment"]["miou"] > 0.1
    assert "'green'" in table and "accuracy" in table
    labels = language_files.open_labels(data)
    by_scale, assigned, retrieved = scored(Language.open(run), labels, scales=[0.0, 0.6])
    assert assigned is None and not retrieved.hits and {row.level for row in by_scale.rows} == {0, 1}
    deaf = replace(Language.open(run), features=None)
    assert not scored(deaf, labels)[2].hits
    elsewhere = data.parent / "labels"
    shutil.copytree(data / "segmentations", elsewhere)
    for i in TEST:
        (elsewhere / ROOM.stem(i)).rename(elsewhere / f"other_{i}")
    with pytest.raises(ValueError, match=r"none of the 2 labelled views .* is in the data"):
        evaluate_openvocab(run, truth=elsewhere)


def test_what_is_empty_has_the_least_relevancy():
    """Of each map by itself; and a prompt is nowhere where there is nothing."""
    maps = torch.rand(2, 5, 6, 3, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.5
    alpha = torch.ones(5, 6)
    alpha[:2] = 0.5
    found = where_shown(maps, alpha)
    assert torch.equal(found[:, 2:], maps[:, 2:])
    assert torch.equal(found[:, :2], maps[:, 2:].amin(dim=(1, 2), keepdim=True).expand(2, 2, 6, 3))
    assert not where_shown(maps, torch.zeros(5, 6)).any()


@pytest.mark.parametrize("scales", ["prompt", "composite"])
def test_images_mean_something_else_than_texts(spoken, tmp_path, scales):
    """Embeddings of images lie far from those of texts, all to the same side: no relevancy is far from a half. Some
    pixels show nothing. Masks are cut from what the others say.
    """
    _, data = spoken
    shutil.copytree(data, tmp_path / "data")
    aside = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(1)))[0][-1].numpy()
    for path in (tmp_path / "data").glob("language_features/*_f.npy"):
        own = 0.15 * np.load(path).astype(np.float32) + aside
        np.save(path, own / np.linalg.norm(own, axis=1, keepdims=True))
    far = ROOM.run(tmp_path / "run", tmp_path / "data")
    fit(far)
    overrides = [("scales", scales)]
    maps = Language.open(far, overrides=overrides).ask(TEST[0], ["red"])
    shown = maps.relevancy[maps.alpha > 0.5]
    assert 0.45 < shown.min() < shown.max() < 0.85 and (maps.alpha <= 0.5).any()
    query(far, ["red"], overrides=overrides, out=tmp_path / "out")
    mask = torch.from_numpy(np.asarray(Image.open(tmp_path / "out" / "masks" / "1.png")) > 0)
    red = ROOM.photo(TEST[0])[1] == 1
    assert (mask & red).sum() > 0.4 * (mask | red).sum()


def test_labels_on_another_grid(spoken):
    """Relevancy is brought onto the grid of the labels."""
    run, _ = spoken
    language = Language.open(run)
    maps = relevancy_maps(language, 0, [language.composite], ["red"], (18, 24))
    whole = relevancy_maps(language, 0, [language.composite], ["red"], (36, 48))
    assert maps.shape == (1, 18, 24, 1)
    means = torch.nn.functional.avg_pool2d(whole[0, ..., 0][None, None], 2)[0, 0]
    assert (maps[0, ..., 0] - means).abs().mean() < 0.05


def test_embeddings_in_a_file_are_enough(spoken, tmp_path):
    """And are found beside the features or the data, unless one is given; phrases may be fewer."""
    run, data = spoken
    moved = tmp_path / "data"
    shutil.copytree(data, moved)
    (moved / "text_embeddings.npz").unlink()
    run = ROOM.run(tmp_path / "run", moved)
    fit(run)
    with pytest.raises(ValueError, match="prompts have no embeddings: give --embeddings FILE"):
        query(run, ["red"])
    given = tmp_path / "some.npz"
    embeddings(("red", "green")).save(given)
    assert query(run, ["red"], embeddings=given).found[0].relevancy > 0.9
    with pytest.raises(ValueError, match="no embedding of the prompt 'blue'"):
        query(run, ["blue"], embeddings=given)
    wide = TextEmbeddings(("red", *CANONICAL), torch.eye(5, 30))
    wide.save(given)
    with pytest.raises(ValueError, match="have 30 numbers, but those of the run 12"):
        query(run, ["red"], embeddings=given)
    with pytest.raises(FileNotFoundError, match="are missing"):
        query(run, ["red"], embeddings=tmp_path / "none.npz")


def test_others_are_asked_of_the_model_of_the_features(spoken, tmp_path, monkeypatch):
    run, data = spoken
    shutil.copytree(data, tmp_path / "data")
    features = tmp_path / "data" / "language_features"
    (features / "settings.json").write_text(json.dumps({"clip_model": "tiny", "clip_pretrained": "weights"}))
    run = ROOM.run(tmp_path / "run", tmp_path / "data")
    fit(run)
    asked = []

    class Model:
        dim = 12

        def texts(self, prompts):
            asked.extend(prompts)
            return vocabulary()[[1] * len(prompts)]

    import gsfields.priors.clip

    monkeypatch.setattr(gsfields.priors.clip, "load_clip", lambda *names: asked.append(names) or Model())
    crimson, red = query(run, ["crimson", "red"]).found
    assert (crimson.x, crimson.y) == (red.x, red.y)
    assert asked == [("tiny", "weights"), "crimson"]
    query(run, ["crimson"], overrides=[("scales", "composite")])
    # of the phrases that weigh scales, too, those that the file lacks
    del asked[:2]
    assert asked[0] == ("tiny", "weights") and set(asked[1:]) == {"crimson", "thing", "part"}
    monkeypatch.setattr(Model, "dim", 13)
    with pytest.raises(ValueError, match="of tiny have 13 numbers, but those of the run 12"):
        query(run, ["crimson"])


def test_layered_scenes_and_lenses(tmp_path):
    """Moving Gaussians are those of the view's time; answers are over the photo as taken."""
    lens = TinyRoom(width=48, height=36, k1=-0.08)
    data = with_words(lens, lens.write(tmp_path / "data"))
    run = lens.run(tmp_path / "run", data, layered_room(lens))
    fit(run)
    for scales in ("prompt", "composite"):
        for found, number in zip(query(run, PROMPTS[:3], overrides=[("scales", scales)]).found, (1, 2, 3)):
            assert int(lens.photo(TEST[0])[1][found.y, found.x]) == number
    assert json.loads(evaluate_openvocab(run)[0].read_text())["langsplat"]["localisation"] >= 0.75


@pytest.mark.parametrize("model", ["direct", "triplane"])
def test_models_that_are_trained(spoken, tmp_path, model):
    _, data = spoken
    run = ROOM.run(tmp_path / "run", data)
    steps = {"direct": 20, "triplane": 300}[model]
    fit(run, model=model, steps=steps, pixels=256, resolution=32, channels=16, hidden=32)
    content = json.loads(evaluate_openvocab(run)[0].read_text())
    assert content["langsplat"]["localisation"] >= 0.75


def test_what_is_there_is_kept_unless_told_otherwise(spoken, tmp_path):
    _, data = spoken
    run = ROOM.run(tmp_path / "run", data)
    root = fit(run, data / "language_features")
    before = (root / "nested.safetensors").read_bytes()
    with pytest.raises(ValueError, match="already holds language: give --overwrite"):
        fit(run)
    (root / "mine.txt").write_text("kept")
    query(run, ["red"])
    fit(run, overwrite=True, groups=2)
    assert (root / "nested.safetensors").read_bytes() != before
    assert (root / "mine.txt").exists() and not (root / "queries").exists()


def test_what_is_missing_or_damaged(spoken, tmp_path):
    _, data = spoken
    run = ROOM.run(tmp_path / "run", data)
    with pytest.raises(FileNotFoundError, match="gsfields fit-language RUN"):
        query(run, ["red"])
    with pytest.raises(FileNotFoundError, match="no language features at"):
        fit(run, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no language features"):
        fit(run, data / "images")
    root = fit(run)
    for bad, message in (([], "prompts are empty"),):
        with pytest.raises(ValueError, match=message):
            query(run, bad)
    for view in ("photo_99", "99", "-1"):
        with pytest.raises(ValueError, match="view must be a stem such as photo_00 or a number below 10"):
            query(run, ["red"], view=view)
    (root / "nested.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is damaged"):
        query(run, ["red"])
    with pytest.raises(ValueError, match="prompts are empty"):
        texts.Texts(12, embeddings()).of([])


def test_blurs_are_in_proportion_to_small_images():
    assert protocol_for(986).kernel == 30 and protocol_for(500).kernel == 30
    assert protocol_for(320).kernel == 10 and protocol_for(8).kernel == 1


def test_command_line(spoken, tmp_path, capsys):
    _, data = spoken
    run = ROOM.run(tmp_path / "run", data)
    assert cli.main(["fit-language", str(run), "--dim", "32", "--groups", "4"]) == 0
    assert "lifted" in capsys.readouterr().out
    assert cli.main(["query", str(run), "red", "toys", "--view", "3", "--out", str(tmp_path / "out")]) == 0
    assert "ms a prompt" in capsys.readouterr().out and (tmp_path / "out" / "sheet.png").is_file()
    assert cli.main(["eval", "openvocab", str(run)]) == 0
    assert "openvocab.json" in capsys.readouterr().out
    assert cli.main(["fields", "language"]) == 0 and "--tolerance" in capsys.readouterr().out
    composite = ["query", str(run), "red", "--scales", "composite", "--tolerance=0.01"]
    assert cli.main(composite) == 0 and "    -\n" in capsys.readouterr().out
    assert cli.main(["eval", "openvocab", str(run), "--heed", "0"]) == 0
    capsys.readouterr()
    for words, complaint in (
        (["query", str(run), "red", "--dim", "8"], "dim is no field of section query"),
        (["eval", "panoptic", str(run), "--heed", "0"], "--heed is no option of eval panoptic"),
        (["query", str(run), "red", "--scales", "mine"], "scales"),
    ):
        assert cli.main(words) == 2 and complaint in capsys.readouterr().err
    assert cli.main(["query", str(run), "yellow"]) == 2
    assert "no embedding of the prompt 'yellow'" in capsys.readouterr().err
    assert cli.main(["fit-language", str(run), "--dim", "0", "--overwrite"]) == 2
    assert language_runs.FOLDER == "language"


@pytest.mark.parametrize("model", ["lifted", "direct", "triplane"])
def test_segments_as_odd_as_they_come(spoken, tmp_path, model):
    """Views without any, with nothing but void, with segments of one pixel, and embeddings of any length."""
    _, data = spoken
    shutil.copytree(data, tmp_path / "data")
    folder = tmp_path / "data" / "language_features"
    words = [i for i in range(ROOM.views) if i not in TEST]
    void, empty, dots, long = (folder / ROOM.stem(i) for i in words[:4])

    def rewrite(path, embeddings, rows):
        np.save(f"{path}_f.npy", embeddings.astype(np.float32))
        np.save(f"{path}_s.npy", rows.astype(np.float32))

    before = np.load(f"{long}_f.npy"), np.load(f"{long}_s.npy")
    rewrite(void, before[0], np.full_like(before[1], -1))
    rewrite(empty, before[0][:0], np.full_like(before[1], -1))
    few = np.full_like(before[1], -1)
    few[0, 3, 4], few[0, 20, 20], few[1, 20, 20] = 0, 1, 2
    rewrite(dots, before[0], few)
    rewrite(long, 40 * before[0], before[1])
    run = ROOM.run(tmp_path / "run", tmp_path / "data")
    fit(run, model=model, steps=200, pixels=256, resolution=32, channels=16, hidden=32)
    ids = ROOM.photo(TEST[0])[1]
    for number, found in enumerate(query(run, PROMPTS[:3]).found, start=1):
        assert int(ids[found.y, found.x]) == number


def test_segments_that_teach_nothing(spoken, tmp_path):
    """Void in all views, or where the scene is too transparent to have a depth."""
    _, data = spoken
    shutil.copytree(data, tmp_path / "data")
    for path in (tmp_path / "data" / "language_features").glob("*_s.npy"):
        np.save(path, np.full_like(np.load(path), -1))
    run = ROOM.run(tmp_path / "run", tmp_path / "data")
    with pytest.raises(ValueError, match="none of the 8 training views has segments that can be used"):
        fit(run)
    thin = replace(ROOM.gaussians, opacity_logits=torch.full_like(ROOM.gaussians.opacity_logits, -6.0))
    run = ROOM.run(tmp_path / "thin", data, thin)
    with pytest.raises(ValueError, match="none of the 8 training views has segments that can be used"):
        fit(run)
