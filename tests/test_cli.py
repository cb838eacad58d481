"""The command line from end to end on a tiny scene, and its refusals."""

import contextlib
import io
import json
import subprocess
import sys
import time

import pytest
from PIL import Image

from gsfields.cli import main, split_overrides
from tests.fit.tiny import write_scene
from tests.fit.tiny_room import TinyRoom

FAST = ["--steps", "12", "--random-count", "200", "--sh-degree=1", "--refine-every", "5"]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture(scope="module")
def run(scene, tmp_path_factory):
    out = tmp_path_factory.mktemp("fitted") / "run"
    assert main(["fit", str(scene), "--out", str(out), *FAST]) == 0
    return out


def refused(capsys, *words):
    """The sentence with which a command refuses."""
    assert main([str(word) for word in words]) == 2
    text = capsys.readouterr().err.strip().splitlines()[-1]
    assert text.startswith(f"gsfields {words[0]}: ")
    return text


def test_fit_writes_a_run(run):
    assert (run / "checkpoint-000012" / "scene.safetensors").is_file()
    kinds = [json.loads(line)["kind"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert kinds[-1] == "eval"


def test_eval_writes_scores_that_agree_with_the_fit(run, capsys):
    assert main(["eval", str(run)]) == 0
    scores = json.loads((run / "eval.json").read_text())
    fitted = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert (
        scores["psnr"] == pytest.approx(fitted["psnr"])
        and scores["views"] == 2
        and len(scores["per_view"]) == 2
    )
    assert "PSNR" in capsys.readouterr().out


def test_render_held_out_views_and_paths(run, tmp_path):
    assert main(["render", str(run)]) == 0
    images = sorted((run / "renders").glob("*.png"))
    assert len(images) == 2 and Image.open(images[0]).size == (24, 24)
    for path in ("orbit", "spiral", "views"):
        assert main(["render", str(run), "--path", path, "--frames", "3", "--out", str(tmp_path / path)]) == 0
        assert len(list((tmp_path / path).glob("*.png"))) == 3


def test_render_video(run, tmp_path):
    av = pytest.importorskip("av")
    assert (
        main(["render", str(run), "--path", "orbit", "--frames", "5", "--out", str(tmp_path / "orbit.mp4")])
        == 0
    )
    with av.open(str(tmp_path / "orbit.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 5


def test_export_import_render(run, tmp_path, capsys):
    ply, imported = tmp_path / "scene.ply", tmp_path / "imported"
    assert main(["export", str(run), str(ply)]) == 0
    assert main(["import", str(ply), "--out", str(imported)]) == 0
    assert main(["export", str(imported), str(tmp_path / "again.ply")]) == 0
    assert ply.read_bytes() == (tmp_path / "again.ply").read_bytes()
    assert main(["render", str(imported), "--path", "orbit", "--frames", "2"]) == 0
    assert "give --path orbit" in refused(capsys, "render", imported)
    assert "no held-out views" in refused(capsys, "eval", imported)
    assert "was imported, not fitted" in refused(capsys, "fit", "--out", imported, "--resume")


def test_demo_of_a_given_scene_writes_pictures(scene, tmp_path, capsys):
    out = tmp_path / "demo"
    words = ["demo", "--scene", str(scene), "--out", str(out), "--width", "24", *FAST]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert str(out / "contact_sheet.png") in text and "PSNR" in text
    assert Image.open(out / "contact_sheet.png").size[0] > 3 * 24
    assert main(words) == 0  # a second demo replaces the first


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["fit", "SCENE", "--out", "OUT", "--stepz", "5"],
            "there is no field 'stepz'; did you mean 'steps'?",
        ),
        (["fit", "SCENE", "--out", "OUT", "--steps", "x"], "steps must be a whole number, but is 'x'"),
        (["fit", "SCENE", "--out", "OUT", "--steps"], "--steps needs a value"),
        (["fit", "SCENE", "--out", "OUT", "--config", "nope"], "no recipe or YAML file 'nope'"),
        (["fit", "--out", "OUT"], "fit needs the folder of a scene, or --resume"),
        (["fit", "--out", "OUT", "--resume"], "holds no checkpoint"),
        (["fit", "NOWHERE", "--out", "OUT"], "nowhere"),
        (["render", "NOWHERE"], "holds no checkpoint"),
        (["render", "RUN", "--frames", "0"], "frames and fps must be at least 1"),
        (["export", "NOWHERE", "x.ply"], "holds no checkpoint"),
        (["import", "NOWHERE", "--out", "OUT"], "no ply file"),
    ],
)
def test_refusals_are_one_sentence(scene, run, tmp_path, capsys, words, sentence):
    places = {"SCENE": scene, "RUN": run, "OUT": tmp_path / "out", "NOWHERE": tmp_path / "nowhere"}
    assert sentence in refused(capsys, *(places.get(word, word) for word in words))
    assert not (tmp_path / "out").exists()


def test_fields_and_arguments_may_come_in_any_order():
    from gsfields.cli import build_parser

    words = ["fit", "--steps", "5", "data", "--antialiased", "--out=run", "--sh-degree=2", "--resume"]
    kept, overrides = split_overrides(words, build_parser())
    assert kept == ["fit", "data", "--out=run", "--resume"]
    assert overrides == [("steps", "5"), ("antialiased", None), ("sh-degree", "2")]


def test_help_is_instant_and_imports_nothing_heavy():
    code = "import sys, gsfields.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'numpy', 'scipy'} & set(sys.modules)"
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout and time.monotonic() - start < 3


def test_fields_lists_every_field(capsys):
    assert main(["fields"]) == 0
    text = capsys.readouterr().out
    assert "--means-lr" in text and "recipes (--config): blender, colmap, default, demo, lmf" in text


def test_bench_times_this_machine(tmp_path, capsys):
    out = tmp_path / "bench.json"
    assert main(["bench", "--quick", "--device", "cpu", "--stage", "bin", "--out", str(out)]) == 0
    assert "20000 Gaussians, 256x256" in capsys.readouterr().out
    assert [row["stage"] for row in json.loads(out.read_text())["rows"]] == ["bin"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["bench", "--stage", "blur"],
            "stage is 'blur', but must be one of: respond, respond backward, project, ",
        ),
        (["bench", "--device", "tpu"], "device is 'tpu', but must be 'cpu' or 'cuda'"),
        (["bench", "--profile", "blend", "--device", "cpu"], "a profile needs a GPU"),
        (["bench", "--profile", "blend", "--stage", "bin"], "--profile times nothing"),
    ],
)
def test_bench_refusals_are_one_sentence(capsys, words, sentence):
    assert sentence in refused(capsys, *words)


# ------------------------------------------------------------------------------------------------------------- objects

FEW = ["--steps", "120", "--pixels=256", "--min-segment", "5", "--class-steps", "10", "--split-rounds=0"]


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """(folder of the data, folder of a run with objects, what fitting them printed)."""
    pytest.importorskip("sklearn", reason="clustering needs scikit-learn")
    folder, made = tmp_path_factory.mktemp("room"), TinyRoom()
    data = made.write(folder / "data", segments="elsewhere/segments")
    run = made.run(folder / "run", data)
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        words = ["fit-instances", run, "--segments", data / "elsewhere", *FEW, "--samples", "1500"]
        assert main([str(word) for word in words]) == 0
    return data, run, text.getvalue()


def test_fit_instances_prints_a_table(room):
    _, run, text = room
    lines = text.strip().splitlines()
    assert lines[-1] == f"3 objects; files: {run / 'instances'}"
    assert lines[-5].split() == ["id", "class", "pixels", "views", "Gaussians", "bounding", "box"]
    assert "steps: 120" in (run / "instances" / "config.yaml").read_text()


def test_instances_at_a_pixel(room, capsys):
    _, run, _ = room
    with Image.open(run / "instances" / "ids" / "photo_03.png") as image:
        y, x = next((y, x) for y in range(24) for x in range(32) if image.getpixel((x, y)))
    assert main(["instances", str(run), "--at", f"photo_03,{x},{y}"]) == 0
    assert capsys.readouterr().out.startswith("object ")
    assert main(["instances", str(run), "--at=photo_03,0,0"]) == 0
    assert capsys.readouterr().out == "no object at pixel (0, 0) of photo_03\n"


def test_eval_panoptic_and_instances_once_more(room, capsys):
    data, run, _ = room
    assert main(["eval", "panoptic", str(run)]) == 0
    rows = capsys.readouterr().out.strip().splitlines()
    assert rows[-1] == str(run / "panoptic.json") and [r.split()[0] for r in rows[:-1]] == [
        "PQ",
        "objects",
        "2D",
    ]
    found = json.loads((run / "panoptic.json").read_text())
    assert found["objects"]["rq"] == 1 and found["objects"]["frames"] == found["views"] == 2
    words = ["--truth", str(data / "annotations" / "instances"), "--data", str(data)]
    assert main(["eval", "panoptic", str(run), *words]) == 0
    assert json.loads((run / "panoptic.json").read_text()) == found
    capsys.readouterr()
    assert main(["instances", str(run), "--method", "dbscan", "--min-size=40"]) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1].startswith("3 objects; files: ")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["fit-instances", "NOWHERE"], "holds no checkpoint"),
        (["fit-instances", "RUN", "--segments", "NOWHERE"], "no segments at"),
        (["fit-instances", "RUN", "--segments", "SEGMENTS"], "already holds instances: give --overwrite"),
        (["fit-instances", "RUN", "--dims", "3"], "there is no field 'dims'; did you mean 'dim'?"),
        (["fit-instances", "RUN", "--dim"], "--dim needs a value"),
        (["fit-instances", "RUN", "--dim", "0"], "dim must be at least 1, but is 0"),
        (
            ["fit-instances", "RUN", "--loss", "magic"],
            "loss must be one of slow-fast, vanilla, associative, margin",
        ),
        (["instances", "NOWHERE"], "no instance field at"),
        (["instances", "NOWHERE", "--at", "a,1,2"], "has no objects for a view a"),
        (["instances", "RUN", "--at", "photo_03,1"], "must be STEM,X,Y with X and Y in whole pixels"),
        (
            ["instances", "RUN", "--at", "photo_03,99,1"],
            "pixel (99, 1) lies outside the image, which is 32x24",
        ),
        (["instances", "RUN", "--at", "photo_03,1,1", "--min-size", "5"], "it takes no --min-size"),
        (["instances", "RUN", "--rate", "1"], "rate is no field of section objects"),
        (["eval", "panoptic", "NOWHERE"], "no instance field at"),
        (["eval", "panoptic", "RUN", "--truth", "NOWHERE"], "no true labels at"),
        (["prep", "messy-rooms", "SEGMENTS"], "exists: give --overwrite to replace a generated messy room"),
        (
            ["prep", "messy-rooms", "OUT", "--object", "5"],
            "there is no option 'object' of a generated messy room",
        ),
        (["prep", "segments", "NOWHERE"], "no dataset at"),
        (["prep", "segments", "DATA"], "checkpoint"),
    ],
)
def test_refusals_about_objects_are_one_sentence(room, tmp_path, capsys, words, sentence):
    data, run, _ = room
    places = {"RUN": run, "DATA": data, "SEGMENTS": data / "elsewhere"}
    places |= {"NOWHERE": tmp_path / "nowhere", "OUT": tmp_path / "out"}
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert sentence in refused(capsys, *(places.get(word, word) for word in words))
    assert not (tmp_path / "out").exists()
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_prep_makes_a_messy_room_that_can_be_fitted(tmp_path, capsys):
    data = tmp_path / "room"
    words = [
        "prep",
        "messy-rooms",
        str(data),
        "--objects",
        "4",
        "--views=3",
        "--width",
        "24",
        "--height",
        "24",
    ]
    assert main(words) == 0
    assert "3 views of 24x24, 4 objects" in capsys.readouterr().out
    assert (data / "metadata.json").is_file() and len(list((data / "color").iterdir())) == 3
    assert main([*words, "--overwrite"]) == 0
    assert main(["fit", str(data), "--out", str(tmp_path / "run"), *FAST]) == 0


def test_fields_of_instances(capsys):
    assert main(["fields", "instances"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n{section}: " in "\n" + text for section in ("geometry", "field", "objects"))
    assert "--split-rounds" in text and "--means-lr" not in text and "recipes" not in text


def test_arguments_of_the_commands_with_fields():
    from gsfields.cli import build_parser

    for words, kept, overrides in [
        (
            ["fit-instances", "--dim", "8", "run", "--segments", "dir", "--normalise=false", "--overwrite"],
            ["fit-instances", "run", "--segments", "dir", "--overwrite"],
            [("dim", "8"), ("normalise", "false")],
        ),
        (
            ["instances", "--min-size=5", "run", "--at", "a,1,2"],
            ["instances", "run", "--at", "a,1,2"],
            [("min-size", "5")],
        ),
        (["eval", "panoptic", "run", "--truth", "d"], ["eval", "panoptic", "run", "--truth", "d"], []),
    ]:
        assert split_overrides(words, build_parser()) == (kept, overrides)
