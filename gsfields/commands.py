"""What the commands of the command line do. Everything heavy is imported inside the one that needs it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gsfields.fit.loop import Outcome

Overrides = list[tuple[str, str | None]]  # (field, its text; None for a flag without one)


def fit(args: argparse.Namespace, overrides: Overrides) -> int:
    from gsfields import config as configuration
    from gsfields.fit import runs

    if args.resume:
        outcome = runs.resume(args.out, overrides, data=args.data)
    else:
        if args.data is None:
            raise ValueError("fit needs the folder of a scene, or --resume")
        config = configuration.load(args.config)
        config.data.path = args.data
        configuration.apply(config, overrides)
        outcome = runs.start(config, args.out, overwrite=args.overwrite)
    return _report(outcome, args.out)


def list_fields(args: argparse.Namespace, overrides: Overrides) -> int:
    from gsfields import config as configuration

    if args.of == "instances":
        from gsfields.instances_config import InstancesConfig

        print(configuration.describe(InstancesConfig))
        return 0
    if args.of == "language":
        from gsfields.language_config import LanguageConfig

        print(configuration.describe(LanguageConfig))
        return 0
    print(configuration.describe())
    print(f"\nrecipes (--config): {', '.join(configuration.recipes())}")
    return 0


def render_run(args: argparse.Namespace, overrides: Overrides) -> int:
    from gsfields.fit import runs

    if args.frames < 1 or args.fps < 1:
        raise ValueError(f"frames and fps must be at least 1, but are {args.frames} and {args.fps}")
    out, count = runs.render_run(
        args.run, out=args.out, path=args.path, frames=args.frames, fps=args.fps, data=args.data
    )
    print(f"{count} images in {out}")
    return 0


def refine(args: argparse.Namespace, overrides: Overrides) -> int:
    from gsfields.fit import refine as refinement

    options = refinement.RefineOptions(
        window=args.window, visits=args.visits, code=args.time_code, reseed=args.reseed
    )
    frames = None if args.frames is None else [name for name in args.frames.split(",") if name]
    done = refinement.refine_run(args.run, frames, options, data=args.data)
    before, after = done.loss
    print(f"{done.frames} frames refined, {done.fitted} with their neighbours, in {done.seconds:.1f} s")
    print(f"loss {before:.4f} before, {after:.4f} after; checkpoint: {done.checkpoint}")
    print(f"{done.shares}; written to {Path(args.run) / 'masks'}")
    return 0


def evaluate_run(args: argparse.Namespace, overrides: Overrides) -> int:
    from gsfields.fit import runs

    if overrides and args.protocol != "openvocab":
        raise ValueError(f"--{overrides[0][0]} is no option of eval {args.protocol}")
    if args.protocol != "images":
        if args.protocol == "udos":
            path, lines = runs.evaluate_masks_of_run(args.run, data=args.data)
        elif args.protocol == "openvocab":
            from gsfields.fit.language_files import evaluate_openvocab

            path, lines = evaluate_openvocab(
                args.run, data=args.data, truth=args.truth, scene=args.scene, embeddings=args.embeddings,
                overrides=overrides,
            )  # fmt: skip
        else:
            from gsfields.fit.instance_runs import evaluate_panoptic

            path, lines = evaluate_panoptic(args.run, data=args.data, truth=args.truth)
        print(lines)
        print(path)
        return 0
    path, scores = runs.evaluate_run(args.run, data=args.data)
    views = f"mean of {len(scores.names)} held-out views"
    print(f"PSNR {scores.psnr:.2f} dB, SSIM {scores.ssim:.4f}, {views}: {path}")
    return 0


def prepare(args: argparse.Namespace, overrides: Overrides) -> int:
    print(PREPARATIONS[args.what](args.data, args.overwrite, _options(overrides)))
    return 0


def _prepare_motion(data: str, overwrite: bool, options: dict[str, Any]) -> object:
    from gsfields.priors.motion import parse_options, prepare_motion

    return prepare_motion(data, overwrite=overwrite, **parse_options(options))


def _prepare_segments(data: str, overwrite: bool, options: dict[str, Any]) -> object:
    from gsfields.priors.segments import parse_options, prepare_segments

    return prepare_segments(data, overwrite=overwrite, **parse_options(options))


def _prepare_egocentric(data: str, overwrite: bool, options: dict[str, Any]) -> object:
    from gsfields.data.egocentric_files import prepare_egocentric

    return prepare_egocentric(data, overwrite=overwrite, **options)


def _prepare_messy(data: str, overwrite: bool, options: dict[str, Any]) -> object:
    from gsfields.data.messy_files import prepare_messy

    return prepare_messy(data, overwrite=overwrite, **options)


def _prepare_language(data: str, overwrite: bool, options: dict[str, Any]) -> object:
    from gsfields.priors.language import parse_options, prepare_language

    return prepare_language(data, overwrite=overwrite, **parse_options(options))


def _prepare_nested(data: str, overwrite: bool, options: dict[str, Any]) -> object:
    from gsfields.data.nested_files import prepare_nested

    return prepare_nested(data, overwrite=overwrite, **options)


PREPARATIONS: dict[str, Callable[[str, bool, dict[str, Any]], object]] = {
    "motion": _prepare_motion,
    "segments": _prepare_segments,
    "language": _prepare_language,
    "egocentric": _prepare_egocentric,
    "messy-rooms": _prepare_messy,
    "nested": _prepare_nested,
}


def fit_instances(args: argparse.Namespace, overrides: Overrides) -> int:
    from gsfields import config as configuration
    from gsfields.fit import instance_runs
    from gsfields.instances_config import InstancesConfig

    config = InstancesConfig()
    configuration.apply(config, overrides)
    table = instance_runs.fit_instances(
        args.run, args.segments, config, data=args.data, overwrite=args.overwrite
    )
    print(f"{table}\n{len(table)} objects; files: {Path(args.run) / instance_runs.FOLDER}")
    return 0


def instances(args: argparse.Namespace, overrides: Overrides) -> int:
    from gsfields.fit import instance_runs

    if args.at is not None:
        if overrides:
            raise ValueError(
                f"--at only looks at the objects that are there: it takes no --{overrides[0][0]}"
            )
        instance_runs.select(args.run, args.at)
        return 0
    table = instance_runs.make_objects(args.run, overrides, data=args.data)
    print(f"{table}\n{len(table)} objects; files: {Path(args.run) / instance_runs.FOLDER}")
    return 0


def fit_language(args: argparse.Namespace, overrides: Overrides) -> int:
    from gsfields import config as configuration
    from gsfields.fit import language_runs
    from gsfields.language_config import LanguageConfig

    config = LanguageConfig()
    configuration.apply(config, overrides)
    folder = language_runs.fit_language(
        args.run, args.features, config, data=args.data, overwrite=args.overwrite
    )
    print(f"files: {folder}")
    return 0


def query(args: argparse.Namespace, overrides: Overrides) -> int:
    from gsfields.fit import language_files

    report = language_files.query(
        args.run, args.prompts, view=args.view, data=args.data, embeddings=args.embeddings, out=args.out,
        overrides=overrides,
    )  # fmt: skip
    print(report)
    return 0


def export(args: argparse.Namespace, overrides: Overrides) -> int:
    from gsfields.fit.checkpoint import Checkpoint

    gaussians = Checkpoint.load(args.run).gaussians
    gaussians.to_ply(args.ply)
    print(f"{len(gaussians)} Gaussians of SH degree {gaussians.sh_degree} in {args.ply}")
    return 0


def import_ply(args: argparse.Namespace, overrides: Overrides) -> int:
    from gsfields.fit import runs

    path, gaussians = runs.import_ply(args.ply, args.out)
    print(f"{len(gaussians)} Gaussians of SH degree {gaussians.sh_degree} in {path}")
    return 0


def demo(args: argparse.Namespace, overrides: Overrides) -> int:
    from gsfields.fit.demo import demo

    outcome, sheet = demo(args.scene, args.out, overrides)
    status = _report(outcome, args.out)
    if sheet is not None:
        print(f"pictures: {sheet}")
    return status


def bench(args: argparse.Namespace, overrides: Overrides) -> int:
    from gsfields.bench import command

    if args.profile is None:
        command.run(device=args.device, quick=args.quick, stage=args.stage, out=args.out)
    elif args.stage is not None or args.out is not None:
        raise ValueError("--profile times nothing: it takes neither --stage nor --out")
    else:
        command.profile(args.profile, device=args.device, quick=args.quick)
    return 0


def doctor(args: argparse.Namespace, overrides: Overrides) -> int:
    from gsfields import doctor

    return doctor.main()


# ---------------------------------------------------------------------------------------------------- details


def _options(overrides: Overrides) -> dict[str, Any]:
    """Options of a preparation by name; the preparation checks them."""
    return {name.replace("-", "_"): text for name, text in overrides}


def _report(outcome: Outcome, run: str) -> int:
    minutes = f"{outcome.seconds / 60:.1f} min"
    print(f"step {outcome.step}, {outcome.count} Gaussians, {minutes}; checkpoint: {outcome.checkpoint}")
    for line in outcome.report:
        print(line)
    if outcome.ended == "interrupted":
        print(f"interrupted; continue with: gsfields fit --out {run} --resume")
        return 130
    if outcome.ended == "time":
        print("ended by max_minutes")
    if outcome.scores is not None:
        print(f"held-out views: PSNR {outcome.scores.psnr:.2f} dB, SSIM {outcome.scores.ssim:.4f}")
    print(f"metrics: {Path(run) / 'metrics.jsonl'}")
    return 0
