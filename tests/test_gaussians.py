"""Gaussians: initial values, shapes, and files in both directions."""

import numpy as np
import pytest
import torch

from gsfields.gaussians import SH_C0, Gaussians


def random_gaussians(n=7, degree=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    return Gaussians(
        means=torch.randn(n, 3, generator=g),
        quats=torch.randn(n, 4, generator=g),
        log_scales=torch.randn(n, 3, generator=g),
        opacity_logits=torch.randn(n, generator=g),
        sh0=torch.randn(n, 1, 3, generator=g),
        shN=torch.randn(n, (degree + 1) ** 2 - 1, 3, generator=g),
    )


def assert_equal(a: Gaussians, b: Gaussians):
    for name, value in a.parameters().items():
        assert torch.equal(value, b.parameters()[name]), name


def test_from_points_takes_scales_from_three_nearest_neighbours():
    line = torch.tensor([[0.0, 0, 0], [1, 0, 0], [3, 0, 0], [7, 0, 0], [15, 0, 0]])
    g = Gaussians.from_points(line, torch.full((5, 3), 0.5), sh_degree=1, opacity=0.25)
    expected = torch.tensor(
        [(1 + 3 + 7) / 3, (1 + 2 + 6) / 3, (2 + 3 + 4) / 3, (4 + 6 + 7) / 3, (8 + 12 + 14) / 3]
    )
    torch.testing.assert_close(g.scales, expected[:, None].repeat(1, 3))
    torch.testing.assert_close(g.opacities, torch.full((5,), 0.25))
    assert g.sh_degree == 1 and g.shN.shape == (5, 3, 3) and len(g) == 5


def test_from_points_reproduces_the_colours_at_degree_zero():
    colors = torch.rand(6, 3, generator=torch.Generator().manual_seed(1))
    g = Gaussians.from_points(torch.eye(6, 3), colors, sh_degree=0)
    torch.testing.assert_close(0.5 + SH_C0 * g.sh0[:, 0], colors)
    assert g.sh.shape == (6, 1, 3) and g.sh_degree == 0


def test_from_points_with_coinciding_points_stays_finite():
    g = Gaussians.from_points(torch.ones(5, 3), torch.zeros(5, 3))
    assert g.log_scales.isfinite().all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"points": torch.zeros(0, 3), "colors": torch.zeros(0, 3)}, "points must be"),
        ({"points": torch.zeros(4, 2)}, "points must be"),
        ({"colors": torch.zeros(3, 3)}, "colors must be"),
        ({"colors": torch.full((4, 3), 2.0)}, "colors must lie in"),
        ({"points": torch.full((4, 3), float("nan"))}, "points must be finite, but 4 of 4"),
        ({"opacity": 0.0}, "opacity must lie"),
        ({"opacity": 1.0}, "opacity must lie"),
        ({"sh_degree": 4}, "sh_degree must be 0 to 3, but is 4"),
        ({"scale": -1.0}, "scale must be positive"),
        ({"points": torch.zeros(1, 3), "colors": torch.zeros(1, 3)}, "pass scale"),
    ],
)
def test_from_points_refuses(change, sentence):
    arguments = {"points": torch.eye(4, 3), "colors": torch.zeros(4, 3)} | change
    points, colors = arguments.pop("points"), arguments.pop("colors")
    with pytest.raises(ValueError, match=sentence):
        Gaussians.from_points(points, colors, **arguments)


def test_random_stays_in_its_box_and_follows_its_generator():
    def draw(seed):
        return Gaussians.random(
            100, torch.tensor([1.0, 2, 3]), 0.5, generator=torch.Generator().manual_seed(seed), sh_degree=0
        )

    g = draw(0)
    assert (g.means - torch.tensor([1.0, 2, 3])).abs().max() <= 0.5
    assert_equal(g, draw(0))
    assert not torch.equal(g.means, draw(1).means)


def test_shapes_are_checked():
    g = random_gaussians()
    with pytest.raises(ValueError, match=r"quats must be \[7, 4\], but is \[7, 3\]"):
        Gaussians(**(g.parameters() | {"quats": torch.zeros(7, 3)}))
    with pytest.raises(ValueError, match="shN must be"):
        Gaussians(**(g.parameters() | {"shN": torch.zeros(7, 5, 3)}))


def test_select_and_to():
    g = random_gaussians()
    mask = torch.arange(7) % 2 == 0
    assert_equal(g.select(mask), g.select(torch.tensor([0, 2, 4, 6])))
    assert g.to(dtype=torch.float64).dtype == torch.float64


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_safetensors_round_trip(tmp_path, degree):
    g = random_gaussians(degree=degree)
    g.save(tmp_path / "scene.safetensors")
    assert_equal(g, Gaussians.load(tmp_path / "scene.safetensors"))
    assert [p.name for p in tmp_path.iterdir()] == ["scene.safetensors"]


def test_load_refuses_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no scene file"):
        Gaussians.load(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("hello, this is not a scene")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        Gaussians.load(tmp_path / "text.safetensors")


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_ply_round_trip(tmp_path, degree):
    g = random_gaussians(degree=degree)
    g.to_ply(tmp_path / "scene.ply")
    assert_equal(g, Gaussians.from_ply(tmp_path / "scene.ply"))


def test_ply_bytes_are_the_3dgs_layout(tmp_path):
    """Header and record written out by hand: degree 1, values chosen so that each field is recognisable."""
    g = Gaussians(
        means=torch.tensor([[1.0, 2, 3]]),
        quats=torch.tensor([[0.1, 0.2, 0.3, 0.4]]),
        log_scales=torch.tensor([[-1.0, -2, -3]]),
        opacity_logits=torch.tensor([0.75]),
        sh0=torch.tensor([[[10.0, 20, 30]]]),
        shN=torch.tensor([[[11.0, 21, 31], [12, 22, 32], [13, 23, 33]]]),  # [coefficient, channel]
    )
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    names += [f"f_rest_{i}" for i in range(9)]
    names += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    header = "ply\nformat binary_little_endian 1.0\nelement vertex 1\n"
    header += "".join(f"property float {name}\n" for name in names) + "end_header\n"
    record = [
        1,
        2,
        3,
        0,
        0,
        0,
        10,
        20,
        30,
        11,
        12,
        13,
        21,
        22,
        23,
        31,
        32,
        33,
        0.75,
        -1,
        -2,
        -3,
        0.1,
        0.2,
        0.3,
        0.4,
    ]
    expected = header.encode() + np.array(record, "<f4").tobytes()

    g.to_ply(tmp_path / "scene.ply")
    assert (tmp_path / "scene.ply").read_bytes() == expected
    (tmp_path / "by_hand.ply").write_bytes(expected)
    assert_equal(Gaussians.from_ply(tmp_path / "by_hand.ply"), g)


def _ascii_ply(path, names, rows):
    lines = [
        "ply",
        "format ascii 1.0",
        f"element vertex {len(rows)}",
        *(f"property float {n}" for n in names),
    ]
    path.write_text("\n".join([*lines, "end_header", *(" ".join(map(str, row)) for row in rows)]) + "\n")


def test_ply_without_normals_and_in_another_order_is_read(tmp_path):
    names = ["rot_0", "rot_1", "rot_2", "rot_3", "opacity", "f_dc_0", "f_dc_1", "f_dc_2"]
    names += ["scale_0", "scale_1", "scale_2", "z", "y", "x"]
    _ascii_ply(tmp_path / "a.ply", names, [range(14)])
    g = Gaussians.from_ply(tmp_path / "a.ply")
    assert g.means.tolist() == [[13, 12, 11]] and g.quats.tolist() == [[0, 1, 2, 3]] and g.sh_degree == 0


def test_ply_lacking_fields_is_refused_by_naming_them(tmp_path):
    _ascii_ply(tmp_path / "cloud.ply", ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2"], [range(6)])
    with pytest.raises(
        ValueError, match="lack opacity, scale_0, scale_1, scale_2, rot_0, rot_1, rot_2, rot_3"
    ):
        Gaussians.from_ply(tmp_path / "cloud.ply")
    names = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2"]
    names += ["rot_0", "rot_1", "rot_2", "rot_3"]
    _ascii_ply(tmp_path / "rest.ply", [*names, "f_rest_0", "f_rest_1"], [range(16)])
    with pytest.raises(ValueError, match="must have 0, 9, 24, 45 f_rest fields, but has 2"):
        Gaussians.from_ply(tmp_path / "rest.ply")


def test_ply_refuses_what_is_no_ply(tmp_path):
    with pytest.raises(FileNotFoundError, match="no ply file"):
        Gaussians.from_ply(tmp_path / "none.ply")
    (tmp_path / "text.ply").write_text("not a ply\n")
    with pytest.raises(ValueError, match="not a readable ply file"):
        Gaussians.from_ply(tmp_path / "text.ply")
    (tmp_path / "cut.ply").write_bytes(
        b"ply\nformat binary_little_endian 1.0\nelement vertex 9\nproperty float x\nend_header\n12"
    )
    with pytest.raises(ValueError, match="not a readable ply file"):
        Gaussians.from_ply(tmp_path / "cut.ply")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "scene.ply"
    random_gaussians().to_ply(path)
    before = path.read_bytes()

    def fail(self, stream):
        from pathlib import Path

        Path(stream).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("plyfile.PlyData.write", fail)
    with pytest.raises(OSError, match="disk full"):
        random_gaussians(seed=1).to_ply(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["scene.ply"]
