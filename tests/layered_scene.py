"""Layered scenes of a few Gaussians before a small camera, for the tests of layers and of what is built on them."""

import torch

from gsfields import Camera, Gaussians
from gsfields.gaussians import SH_C0
from gsfields.layers import RESPONSES, Frame, LayeredScene, MovingLayer

DURATION = 10.0  # frames


def camera(
    width=24, height=20, *, eye=(0.0, 0.0, 0.0), target=(0.0, 0.0, 1.0), dtype=torch.float32
) -> Camera:
    """Looks along +z from the origin, x to the right and y down as in the image, unless told otherwise."""
    return Camera.look_at(eye, target, (0, -1, 0), fov_y_degrees=50, width=width, height=height).to(dtype)


def rest(means, colors, *, scale=0.2, opacity=0.9, degree=0, dtype=torch.float32) -> Gaussians:
    """Round Gaussians at means [N, 3] with colours [N, 3]."""
    means, colors = torch.as_tensor(means, dtype=dtype), torch.as_tensor(colors, dtype=dtype)
    n = len(means)
    quats = torch.zeros(n, 4, dtype=dtype)
    quats[:, 0] = 1
    return Gaussians(
        means=means.reshape(n, 3),
        quats=quats,
        log_scales=torch.full((n, 3), scale, dtype=dtype).log(),
        opacity_logits=torch.full((n,), opacity, dtype=dtype).logit(),
        sh0=(colors.reshape(n, 1, 3) - 0.5) / SH_C0,
        shN=torch.zeros(n, (degree + 1) ** 2 - 1, 3, dtype=dtype),
    )


def nothing(dtype=torch.float32) -> Gaussians:
    return rest(torch.zeros(0, 3), torch.zeros(0, 3), dtype=dtype)


def moving(
    gaussians: Gaussians, frame: Frame = "world", *, rank=1, rows=4, middle=5.0, half=100.0
) -> MovingLayer:
    """A layer that does not respond, of one life span [middle - half, middle + half] in frames."""
    like, n = gaussians.means, len(gaussians)
    windows = like.new_tensor([middle, half]).repeat(n, 1)
    windows[:, 1].log_()
    return MovingLayer(
        gaussians,
        response=like.new_zeros(n, RESPONSES, rank),
        windows=windows,
        uncertainty=like.new_full((n,), -3.0),
        basis=torch.eye(rank, rows, dtype=like.dtype),
        frame=frame,
    )


def layered(static=None, semistatic=None, dynamic=None, shell=None, *, gain_rows=1) -> LayeredScene:
    """A scene of the given parts; those left out are empty."""
    given = next(p for p in (static, semistatic, dynamic, shell) if p is not None)
    dtype = (given if isinstance(given, Gaussians) else given.gaussians).means.dtype
    empty = nothing(dtype)
    return LayeredScene(
        static=empty if static is None else static,
        shell=empty if shell is None else shell,
        semistatic=moving(empty) if semistatic is None else semistatic,
        dynamic=moving(empty, "camera") if dynamic is None else dynamic,
        gain=torch.zeros(3, gain_rows, dtype=dtype),
        duration=DURATION,
    )


def random_scene(counts=(7, 4, 6, 5), *, seed=0, dtype=torch.float64, static_beta=True) -> LayeredScene:
    """`counts` Gaussians of static layer, shell, semi-static and dynamic layer; nothing is at rest.

    They are large and opaque enough that most pixels see all of them.
    """
    g = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0):
        return scale * torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    def cloud(n, depth, degree=0):
        means = normal(n, 3, scale=0.3) + torch.tensor([0, 0, depth], dtype=dtype)
        made = rest(
            means, 0.5 + normal(n, 3, scale=0.1), scale=0.3 * depth, opacity=0.4, degree=degree, dtype=dtype
        )
        made.quats = made.quats + normal(n, 4, scale=0.3)
        made.log_scales = made.log_scales + normal(n, 3, scale=0.1)
        made.shN = normal(*made.shN.shape, scale=0.05)
        return made

    def responding(n, depth, frame):
        layer = moving(cloud(n, depth), frame, rank=3, rows=6, half=3.0)
        layer.response = normal(n, RESPONSES, 3, scale=0.05)
        layer.windows = layer.windows + normal(n, 2, scale=0.3)
        layer.uncertainty = layer.uncertainty + normal(n)
        layer.basis = layer.basis + normal(3, 6, scale=0.1)
        layer.steps = 2
        return layer

    scene = layered(
        cloud(counts[0], 3.0, degree=1),
        responding(counts[2], 2.5, "world"),
        responding(counts[3], 1.5, "camera"),
        cloud(counts[1], 6.0),
        gain_rows=3,
    )
    scene.gain = normal(3, 3, scale=0.1)
    scene.static_uncertainty = normal(counts[0]) - 3 if static_beta else None
    return scene
