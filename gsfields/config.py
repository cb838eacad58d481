"""What a run can be told: dataclasses whose every field carries its description, filled from YAML and
overrides.

A recipe is a YAML file of sections and fields, for instance

    fit:
      steps: 3000

and an override is a field's name, `steps` or `fit.steps`, with a text. Names are unique over all sections. A
name that no field has is refused with the nearest one suggested; a value of the wrong type is refused in one
sentence.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import types
import typing
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import yaml

Sections = TypeVar("Sections")  # a dataclass of dataclasses, such as Config


def described(default: Any, text: str, *, low: float = -math.inf, high: float = math.inf) -> Any:
    """A field with its description and, for numbers, the range it must lie in."""
    return field(default=default, metadata={"doc": text, "low": low, "high": high})


@dataclass
class DataConfig:
    """Which photographs, at which size."""

    path: str = described("", "folder of the scene")
    width: int | None = described(None, "width of the images in pixels (none: as they are)", low=1)
    downscale: float | None = described(
        None, "divide the size of the images by this (none: as they are)", low=1
    )
    split_every: int = described(
        8, "hold out every n-th image in name order, where the data name no test set (0: none)", low=0
    )
    background: Literal["white", "black", "random"] = described(
        "white", "colour behind the scene and behind transparent images; random draws one per step"
    )


@dataclass
class InitConfig:
    """The Gaussians that the fit starts from."""

    source: Literal["auto", "points", "sweep", "random"] = described(
        "auto",
        "points: those of the data; sweep: where photos look alike; random: uniform in the scene's box; auto: the "
        "first of these that there is, no sweep of transparent photos",
    )
    random_count: int = described(20_000, "how many Gaussians start without points of the data", low=1)
    sweep_points: int = described(
        8000, "model layered: fill up points to this many by a plane sweep over the images (0: never)", low=0
    )
    init_opacity: float = described(0.1, "opacity of each Gaussian at the start", low=1e-4, high=0.99)
    sh_degree: int = described(
        3, "degree of the spherical harmonics, 0 (no view dependence) to 3", low=0, high=3
    )


@dataclass
class OptimConfig:
    """Adam's learning rates; each decays exponentially over the run."""

    means_lr: float = described(4e-4, "centres, times the extent of the scene", low=0)
    quats_lr: float = described(2e-3, "rotations", low=0)
    scales_lr: float = described(5e-3, "logarithms of the scales", low=0)
    opacities_lr: float = described(5e-2, "logits of the opacities", low=0)
    sh0_lr: float = described(2.5e-3, "SH coefficient of degree 0", low=0)
    shN_lr: float = described(2.5e-3, "the other SH coefficients", low=0)
    means_decay: float = described(
        0.01, "rate of the centres at the end, relative to the start", low=1e-6, high=1
    )
    decay: float = described(
        0.1, "rate of everything else at the end, relative to the start", low=1e-6, high=1
    )


@dataclass
class DensifyConfig:
    """How the number of Gaussians grows and shrinks."""

    strategy: Literal["ranked", "mcmc", "gsplat", "none"] = described(
        "ranked",
        "ranked: split those with the largest image-plane gradients, prune the faint; "
        "mcmc: move the dead onto the living and add noise; "
        "gsplat: its DefaultStrategy (needs gsplat); none: a fixed set",
    )
    max_gaussians: int = described(
        60_000, "never more Gaussians than this; model layered: in each layer", low=1
    )
    growth: float = described(0.2, "share of the Gaussians that one round may add", low=0, high=1)
    refine_every: int = described(100, "steps between two rounds", low=1)
    refine_start: float = described(0.05, "share of the run after which rounds begin", low=0, high=1)
    refine_stop: float = described(0.6, "share of the run after which they end", low=0, high=1)
    prune_opacity: float = described(
        0.005, "a Gaussian fainter than this is dead: pruned (ranked) or moved (mcmc)", low=0, high=1
    )
    prune_scale: float = described(0.5, "ranked: prune above this scale, times the extent", low=0)
    noise: float = described(
        5e5, "mcmc: strength of the noise on the centres, times their learning rate", low=0
    )
    opacity_weight: float = described(0.0, "weight of the mean opacity in the loss", low=0)
    scale_weight: float = described(0.0, "weight of the mean scale in the loss", low=0)


@dataclass
class FitConfig:
    """The run itself."""

    model: Literal["static", "layered"] = described(
        "static",
        "one static set of Gaussians, or static, semi-static and dynamic layers (sections layers, motion)",
    )
    steps: int = described(
        3000, "optimisation steps, one image each (0: what steps_per_image says, and 2000 at least)", low=0
    )
    steps_per_image: int = described(33, "how many for each training image, if steps is 0", low=1)
    seed: int = described(
        0, "seed of all randomness: the start, the order of the images, densification", low=0
    )
    ssim_weight: float = described(0.2, "the loss is (1 - w) L1 + w (1 - SSIM)", low=0, high=1)
    sh_interval: float = described(
        0.1, "share of the run after which the SH degree rises by one", low=0, high=1
    )
    coarse: float = described(0.25, "share of the run that is fitted at coarse_scale", low=0, high=1)
    coarse_scale: float = described(
        0.5, "size of the images in that part, relative to the full size", low=0.05, high=1
    )
    near: float = described(
        0.01, "nearest depth drawn, world units; lower it for scenes of a small scale", low=1e-9
    )
    antialiased: bool = described(
        False, "compensate the opacity of Gaussians thinner than a pixel (Mip-Splatting)"
    )
    max_minutes: float | None = described(
        None, "end the run after this time, schedules unchanged (none: no limit)", low=0
    )


@dataclass
class LayersConfig:
    """Model layered: the semi-static and dynamic Gaussians, and where they start."""

    shell_count: int = described(1500, "Gaussians of the far shell behind everything (0: none)", low=0)
    shell_radius: float = described(3.0, "radius of the shell, times the depth of the farthest points", low=1)
    semistatic_count: int = described(1500, "semi-static seeds over the whole video, at most", low=0)
    dynamic_count: int = described(
        200, "dynamic seeds per frame; up to four times as many where much moves", low=0
    )
    dynamic_total: int = described(60_000, "dynamic seeds over the whole video, at most", low=0)
    semistatic_rank: int = described(4, "length of the semi-static time code", low=1)
    semistatic_rows: int = described(9, "rows of its basis", low=1)
    semistatic_steps: int = described(4, "how many of those rows are steps instead of waves", low=0)
    dynamic_rank: int = described(8, "length of the dynamic time code", low=1)
    dynamic_rows: int | None = described(
        None, "rows of its basis (none: a quarter of the frames, 21 to 64)", low=1
    )
    dynamic_frame: Literal["camera", "world"] = described("camera", "frame that the dynamic layer lives in")
    semistatic_span: float = described(0.15, "half life span of semi-static seeds, share of the video", low=0)
    spans_lr: float = described(
        5e-3, "births and deaths of static Gaussians in the warm-up, shares of the video", low=0
    )
    agreement: float = described(
        0.9, "share of mortal neighbours that makes a mortal static Gaussian semi-static", low=0, high=1
    )
    contrast: float = described(
        0.04, "and by how much the errors there would be greater, were it always there", low=0, high=1
    )
    softness: float = described(0.2, "softness of the ends of life spans, frames", low=1e-3)
    seed_opacity: float = described(0.3, "opacity of the seeds of moving layers", low=1e-3, high=0.99)
    from_mask: float = described(
        0.6, "share of dynamic seeds drawn from the motion masks; the others from the residual", low=0, high=1
    )
    gain_rows: int = described(1, "rows of the brightness of the static layer over time (1: constant)", low=1)
    static_beta: bool = described(
        False, "an uncertainty of static Gaussians too (LMF's text; NeuralDiff's code has none)"
    )


@dataclass
class MotionConfig:
    """Model layered: the terms of its loss, and the learning rates of what moves."""

    warmup: float = described(0.4, "share of the run in which only the static layer is fitted", low=0, high=1)
    pmf: float = described(1.1, "weight of positive motion fusion (LMF equation 11; 0: off)", low=0)
    nmf: float = described(1.0, "weight of negative motion fusion (LMF equation 12; 0: off)", low=0)
    nmf_threshold: float = described(0.5, "motion scores above this count as moving in it", low=0, high=1)
    consensus: bool = described(
        True, "weigh the 2D scores by what the static layer knows (no: fuse them as they are, as LMF does)"
    )
    habit: float = described(
        0.3, "and drop static Gaussians whose pixels score more in the mean over the video", low=0, high=1
    )
    support: float = described(
        0.04,
        "written semi-static masks are weighed by their means over this share of the image's width (0: as rendered)",
        low=0,
        high=1,
    )
    rgb_form: Literal["released", "paper"] = described(
        "released", "form of the colour loss (LMF equation 4): of NeuralDiff's code or of the text"
    )
    sparsity: float = described(0.01, "weight of the mean masks of the moving layers", low=0)
    purity: float = described(0.1, "weight of the colour errors of each layer by itself", low=0)
    entropy: float = described(
        0.0, "weight of the entropy of the dynamic mask, from half of the run on", low=0
    )
    moving_means_lr: float = described(
        4e-4, "centres of moving Gaussians, times the depth of the scene", low=0
    )
    moving_scales_lr: float = described(1e-2, "logarithms of their scales", low=0)
    moving_quats_lr: float = described(5e-3, "rotations", low=0)
    moving_opacities_lr: float = described(5e-2, "logits of their opacities", low=0)
    moving_colors_lr: float = described(2e-2, "SH coefficients of degree 0", low=0)
    response_lr: float = described(
        2e-4, "responses to the time code; of positions times the depth of the scene", low=0
    )
    windows_lr: float = described(2e-2, "middles (frames) and log half lengths of life spans", low=0)
    uncertainty_lr: float = described(2e-2, "uncertainties before softplus", low=0)
    code_lr: float = described(1e-3, "the learned part of the time codes, and the brightness", low=0)


@dataclass
class OutputConfig:
    """What a run writes and when."""

    eval_every: int = described(
        1000, "steps between evaluations on the held-out views, besides the last (0: only that)", low=0
    )
    eval_views: int | None = described(
        None, "evaluations before the last use this many held-out views (none: all)", low=1
    )
    checkpoint_every: int = described(
        1000, "steps between checkpoints, besides the last (0: only that)", low=0
    )
    keep_checkpoints: int = described(2, "how many of the newest checkpoints stay", low=1)
    log_every: int = described(50, "steps between two lines of training metrics", low=1)
    tensorboard: bool = described(False, "also write TensorBoard files (needs tensorboard)")


@dataclass
class Config:
    """A run, described completely; saved beside every checkpoint."""

    data: DataConfig = field(default_factory=DataConfig)
    init: InitConfig = field(default_factory=InitConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    densify: DensifyConfig = field(default_factory=DensifyConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    layers: LayersConfig = field(default_factory=LayersConfig)
    motion: MotionConfig = field(default_factory=MotionConfig)
    output: OutputConfig = field(default_factory=OutputConfig)


# ------------------------------------------------------------------------------------------- reading, writing


def load(name_or_path: str | Path = "default") -> Config:
    """The recipe of that name (a file of `configs/`) or the YAML file at that path.

    Raises FileNotFoundError listing the recipes, or ValueError naming the file and what is wrong in it.
    """
    path = _find(name_or_path)
    try:
        tree = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not readable YAML ({' '.join(str(error).split())})") from None
    try:
        return from_dict(tree or {})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


@overload
def from_dict(tree: Any) -> Config: ...
@overload
def from_dict(tree: Any, kind: type[Sections]) -> Sections: ...
def from_dict(tree: Any, kind: type[Any] = Config) -> Any:
    """A Config, or another dataclass of sections, from nested mappings, as read from YAML. Fields not named keep their
    defaults.
    """
    config = kind()
    if not isinstance(tree, dict):
        raise ValueError(f"a configuration is a mapping of sections, but this is {tree!r}")
    sections = {f.name: getattr(config, f.name) for f in fields(config)}
    for section_name, content in tree.items():
        if section_name not in sections:
            raise ValueError(_unknown("section", section_name, sections))
        section = sections[section_name]
        if not isinstance(content, dict):
            raise ValueError(f"section {section_name} is a mapping of fields, but this is {content!r}")
        for name, value in content.items():
            known = {f.name for f in fields(section)}
            if name not in known:
                raise ValueError(_unknown(f"field of section {section_name}", name, known))
            _assign(section, name, value)
    return config


def override(config: Any, name: str, text: str) -> None:
    """Set the field `name` (`steps`, `fit.steps`, dashes allowed) of `config` from a command-line text."""
    table = _table(config)
    name = name.replace("-", "_")
    if name not in table:
        raise ValueError(_unknown("field", name, table))
    section, field_name = table[name]
    _assign(section, field_name, _parse(text, _hint(section, field_name)))


def apply(config: Any, overrides: typing.Iterable[tuple[str, str | None]]) -> None:
    """Set several fields; a text of None stands for a flag given without a value, which only true/false
    fields take.
    """
    for name, text in overrides:
        if (
            text is None
            and (place := _table(config).get(name.replace("-", "_")))
            and _hint(*place) is not bool
        ):
            raise ValueError(f"--{name} needs a value")
        override(config, name, "true" if text is None else text)


def to_dict(config: Any) -> dict[str, dict[str, Any]]:
    return {
        s.name: {f.name: getattr(getattr(config, s.name), f.name) for f in fields(getattr(config, s.name))}
        for s in fields(config)
    }


def dump(config: Any) -> str:
    """YAML that `load` (of another dataclass than Config: `from_dict`) reads back to an equal one."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def describe(kind: type[Any] = Config) -> str:
    """Every field with its default and description, for `--help`."""
    lines = []
    config = kind()
    for section in fields(config):
        values = getattr(config, section.name)
        lines.append(f"{section.name}: {type(values).__doc__}")
        for f in fields(values):
            choices = typing.get_args(_hint(values, f.name)) if _is_literal(_hint(values, f.name)) else ()
            allowed = f" one of {', '.join(choices)};" if choices else ""
            default = "none" if f.default is None else f.default
            lines.append(
                f"  --{f.name.replace('_', '-'):<18} {f.metadata['doc']};{allowed} default {default}"
            )
    return "\n".join(lines)


def recipes() -> dict[str, Path]:
    """The YAML files that come with the package, by name."""
    here = Path(__file__).resolve().parent
    for folder in (here / "configs", here.parent / "configs"):  # installed as package data, or a source tree
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


# ---------------------------------------------------------------------------------------------------- details


def _find(name_or_path: str | Path) -> Path:
    known = recipes()
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    path = Path(name_or_path)
    if path.is_file():
        return path
    raise FileNotFoundError(
        f"no recipe or YAML file {str(name_or_path)!r}; the recipes are {', '.join(known)}"
    )


def _table(config: Any) -> dict[str, tuple[Any, str]]:
    """Both spellings of every field, to the section that holds it and its name there."""
    table: dict[str, tuple[Any, str]] = {}
    for section in fields(config):
        holder = getattr(config, section.name)
        for f in fields(holder):
            table[f.name] = table[f"{section.name}.{f.name}"] = (holder, f.name)
    return table


def _unknown(kind: str, name: Any, known: typing.Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    if not near:  # a part of the right name is also a good guess: lr_means -> means_lr
        near = [k for k in known if set(str(name).split("_")) & set(k.split("_"))][:1]
    return f"there is no {kind} {str(name)!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def _hint(section: Any, name: str) -> Any:
    return typing.get_type_hints(type(section))[name]


def _is_literal(hint: Any) -> bool:
    return typing.get_origin(hint) is Literal


def _options(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the type itself."""
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _parse(text: str, hint: Any) -> Any:
    if _is_literal(hint) or hint is str:
        return text
    if type(None) in _options(hint) and text.lower() in ("none", "null"):
        return None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _assign(section: Any, name: str, value: Any) -> None:
    """Set a field after checking type and range. YAML 1.1 reads 1e-3 as a text: numbers in texts are
    accepted.
    """
    hint = _hint(section, name)
    options = _options(hint)
    if isinstance(value, str) and float in options:
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, int) and not isinstance(value, bool) and float in options and int not in options:
        value = float(value)
    if _is_literal(hint):
        if value not in typing.get_args(hint):
            raise ValueError(f"{name} must be one of {', '.join(typing.get_args(hint))}, but is {value!r}")
    elif type(value) not in options:
        words = {
            int: "a whole number",
            float: "a number",
            bool: "true or false",
            str: "a text",
            type(None): "none",
        }
        raise ValueError(f"{name} must be {' or '.join(words[o] for o in options)}, but is {value!r}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        meta = next(f for f in fields(section) if f.name == name).metadata
        if not meta["low"] <= value <= meta["high"]:
            span = (
                f"at least {meta['low']:g}"
                if meta["high"] == math.inf
                else f"{meta['low']:g} to {meta['high']:g}"
            )
            raise ValueError(f"{name} must be {span}, but is {value:g}")
    setattr(section, name, value)
