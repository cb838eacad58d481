"""A simulated 2D motion segmenter: soft masks of what moves, wrong in the ways of Motion Grouping (Yang et
al., "Self-supervised Video Object Segmentation by Motion Grouping", ICCV 2021).

Its masks are incomplete but precise. They lack parts of hands, slow things and whole frames, they bleed over
edges, and they take parallax for motion. The errors stick to surfaces and change over time as first-order
autoregressive processes, whose coefficient is `correlation`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

import numpy as np
from scipy import ndimage

from gsfields.data.egocentric import EgocentricFrame, EgocentricSequence
from gsfields.data.solids import Array

_WAVES = 24  # plane waves that a random field is made of
_FAST = -0.5  # log-odds of the score of a surface that moves fast, on average: it has holes, too
_REFERENCE_WIDTH = 228  # pixels; lengths in pixels below are those of an image this wide


@dataclass(frozen=True)
class SegmenterConfig:
    """How the segmenter errs; lengths in pixels are those of an image 228 wide.

    correlation: of an error in one frame with the same error in the next, 0 (independent) to 1 (for ever;
    errors of whole frames, 0.8 at most).
    missed_frames: the share of frames in which nothing is found. seen_speed: image motion (pixels from frame
    to frame, relative to the static scene) below which things are seen ever less. holes: how uneven the score
    of one surface is, as log-odds. parallax: excess of a static surface's image motion over the median that
    makes it as suspicious as `seen_speed` does a moving one. bleed: blur and spread at edges, pixels. shift:
    how far a mask is off, pixels.
    """

    seed: int = 0
    correlation: float = 0.7
    missed_frames: float = 0.12
    seen_speed: float = 3.0
    holes: float = 3.3
    parallax: float = 5.0
    bleed: float = 2.0
    shift: float = 1.5

    def __post_init__(self) -> None:
        bounds: dict[str, tuple[float, float]] = {
            "correlation": (0, 1),
            "missed_frames": (0, 0.99),
            "seed": (0, 2**63 - 1),
        }
        for item in fields(self):
            value = getattr(self, item.name)
            low, high = bounds.get(item.name, (0, 1e6))
            if item.name in ("seen_speed", "parallax"):
                low = 1e-3
            kind, allowed = (int, "a whole number") if item.name == "seed" else (int | float, "a number")
            if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:
                raise ValueError(f"{item.name} must be {allowed} from {low} to {high}, but is {value!r}")


class MotionSegmenter:
    """The segmenter's view of one sequence; `scores` may be asked for in any order."""

    def __init__(self, sequence: EgocentricSequence, config: SegmenterConfig | None = None) -> None:
        self.sequence, self.config = sequence, config or SegmenterConfig()
        rng = np.random.default_rng([self.config.seed, sequence.config.seed, 10])
        count, rho = len(sequence), self.config.correlation
        # What befalls whole frames does not last for ever: then it would be no error, but another segmenter.
        of_frames = _autoregressive(rng, count, 5, min(rho, 0.8))
        chance, self._gain, self._spread, *self._shift = of_frames.T
        silent = np.argsort(chance)[: round(self.config.missed_frames * count)]
        self._silent = np.isin(np.arange(count), silent)
        self._on_moving = _SurfaceField(rng, count, rho, length=0.05)
        self._on_static = _SurfaceField(rng, count, rho, length=0.12)
        self._in_image = _SurfaceField(rng, count, rho, length=0.25)

    def scores(self, frame: EgocentricFrame) -> Array:
        """Soft motion scores float32 [H, W] in [0, 1] of a frame of the sequence."""
        config, index = self.config, frame.index
        height, width = frame.labels.shape
        scale = width / _REFERENCE_WIDTH
        # A field's offset per thing keeps what is alike on two things apart.
        moving = self._on_moving(index, frame.surface, frame.instances)
        static = self._on_static(index, frame.surface, frame.part)
        speed = frame.motion / scale
        found = _sigmoid(
            np.minimum(1.5 * np.log2((speed + 0.2) / config.seen_speed), _FAST)
            + config.holes * (moving + 0.25 * self._gain[index])
        )
        parallax = self._parallax(frame) / scale
        fooled = _sigmoid(1.5 * np.log2((parallax + 0.2) / config.parallax) + config.holes * (static - 1.5))
        scores = np.where(frame.dynamic, found, 0.8 * fooled)
        if self._silent[index]:
            scores = scores * 0.03
        scores = self._bleed(scores, index, scale)
        y, x = np.mgrid[:height, :width].astype(np.float32) / width
        haze = self._in_image(index, np.stack([x, y, x * 0], axis=-1), np.zeros_like(frame.part))
        return np.clip(scores + 0.05 * haze, 0, 1).astype(np.float32)

    def _parallax(self, frame: EgocentricFrame) -> Array:
        """By how much the camera's translation moves each pixel more than it moves the median one, from frame
        to frame: pixels [H, W].
        """
        sequence, last = self.sequence, len(self.sequence) - 1
        before, after = max(frame.index - 1, 0), min(frame.index + 1, last)
        if before == after:
            return np.zeros_like(frame.depth)
        step = sequence.exact_pose(after)[:3, 3] - sequence.exact_pose(before)[:3, 3]
        x, y, z = sequence.exact_pose(frame.index)[:3, :3].T @ step / (after - before)
        K = sequence.K
        rows, columns = np.mgrid[: frame.depth.shape[0], : frame.depth.shape[1]] + 0.5
        across = (K[0, 0] * x - (columns - K[0, 2]) * z) / frame.depth
        down = (K[1, 1] * y - (rows - K[1, 2]) * z) / frame.depth
        length = np.hypot(across, down)
        return np.maximum(length - np.median(length), 0)

    def _bleed(self, scores: Array, index: int, scale: float) -> Array:
        """Spread, shifted and blurred scores."""
        size = self.config.bleed * scale
        spread = round(size * max(0.6 + 0.7 * self._spread[index], 0))
        offset = [self.config.shift * scale * axis[index] for axis in self._shift]
        shifted = ndimage.shift(scores, offset, order=1, mode="nearest")
        return ndimage.gaussian_filter(ndimage.maximum_filter(shifted, 2 * spread + 1), size, mode="nearest")


def segment(
    sequence: EgocentricSequence,
    config: SegmenterConfig | None = None,
    frames: Iterable[EgocentricFrame] | None = None,
) -> Iterator[Array]:
    """The simulated segmenter's soft scores float32 [H, W] in [0, 1], frame by frame; `frames` are those of
    the sequence where they are at hand.
    """
    segmenter = MotionSegmenter(sequence, config)
    return (segmenter.scores(frame) for frame in (sequence.stream() if frames is None else frames))


class _SurfaceField:
    """A smooth random field on surfaces, of variance 1 and correlation length `length` (metres), whose value
    at a point changes from frame to frame as a first-order autoregressive process: a sum of plane waves with
    such coefficients (Rahimi and Recht, "Random Features for Large-Scale Kernel Machines", NIPS 2007).
    """

    def __init__(self, rng: np.random.Generator, frames: int, correlation: float, length: float) -> None:
        self._waves = rng.normal(0, 1 / length, (3, _WAVES)).astype(np.float32)
        self._phases = rng.uniform(0, 2 * np.pi, _WAVES).astype(np.float32)
        self._apart = rng.uniform(0, 2 * np.pi, (4096, _WAVES)).astype(np.float32)
        self._amplitudes = _autoregressive(rng, frames, _WAVES, correlation) * np.sqrt(2 / _WAVES)

    def __call__(self, index: int, points: Array, owner: Array) -> Array:
        """The field in frame `index` at points [H, W, 3] of things `owner` [H, W]: [H, W]."""
        turns = points @ self._waves + self._phases + self._apart[owner.astype(np.int64) % len(self._apart)]
        return np.cos(turns) @ self._amplitudes[index].astype(np.float32)


def _autoregressive(rng: np.random.Generator, frames: int, count: int, correlation: float) -> Array:
    """`count` independent Gaussian AR(1) processes of variance 1, [frames, count]."""
    values = rng.normal(size=(frames, count))
    fresh = np.sqrt(1 - correlation**2)
    for index in range(1, frames):
        values[index] = correlation * values[index - 1] + fresh * values[index]
    return values


def _sigmoid(x: Array) -> Array:
    return 0.5 + 0.5 * np.tanh(0.5 * x)
