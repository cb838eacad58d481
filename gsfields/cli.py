"""The command line: parses, calls, prints. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gsfields.fit.loop import Outcome

Overrides = list[tuple[str, str | None]]  # (field, its text; None for a flag without one)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 for a bad request, 130 after an interrupt."""
    parser = build_parser()
    words, overrides = split_overrides(list(sys.argv[1:] if argv is None else argv), parser)
    args = parser.parse_args(words)
    try:
        status: int = args.command(args, overrides)
        return status
    except (
        ValueError,
        TypeError,
        FileNotFoundError,
        NotADirectoryError,
        ImportError,
        FloatingPointError,
    ) as error:
        print(f"gsfields {args.name}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, say `head`, has seen enough
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "gsfields", description="Fit and render scenes of 3D Gaussians.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace, Overrides], int], text: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=text,
            description=text,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(command=run)
        return sub

    sub = command("fit", fit, "fit Gaussians to a scene")
    sub.add_argument(
        "data", nargs="?", help="folder of the scene; with --resume that of the run, unless given"
    )
    sub.add_argument("--out", required=True, metavar="RUN", help="folder of the run")
    sub.add_argument("--config", default="default", help="a recipe's name or a YAML file (default: default)")
    sub.add_argument("--resume", action="store_true", help="continue the run from its newest checkpoint")
    sub.add_argument("--overwrite", action="store_true", help="replace the run that is in RUN")
    sub.epilog = "--FIELD VALUE sets a field of the configuration; gsfields fields lists them all."

    sub = command(
        "fields", list_fields, "list every field of the configuration, with its default and meaning"
    )
    sub.add_argument(
        "of", nargs="?", choices=("fit", "instances", "language"), default="fit", help="of which command"
    )

    sub = command("render", render_run, "render the held-out views or a camera path of a run")
    _add_run(sub)
    sub.add_argument("--out", help="folder for PNGs, or a file ending in .mp4 (default: RUN/renders)")
    sub.add_argument(
        "--path", choices=("views", "orbit", "spiral"), help="a moving camera instead of the held-out views"
    )
    sub.add_argument("--frames", type=int, default=120, help="images along the path (default: 120)")
    sub.add_argument("--fps", type=int, default=24, help="frames per second of an MP4 (default: 24)")

    sub = command("refine", refine, "refine the moving layers of a layered run on some frames")
    _add_run(sub)
    sub.add_argument("--frames", help="names, stems or places of frames, a,b,c (default: all)")
    sub.add_argument("--window", type=int, default=0, help="neighbours on each side, too (default: 0)")
    sub.add_argument("--visits", type=int, default=40, help="steps per fitted frame (default: 40)")
    sub.add_argument("--time-code", action="store_true", help="refine the time codes, too")
    sub.add_argument("--reseed", action="store_true", help="new dynamic Gaussians in these frames")

    sub = command(
        "eval",
        evaluate_run,
        "score a run: `eval RUN` its images on held-out views (RUN/eval.json), `eval udos RUN` its masks against "
        "annotations (RUN/udos.json), `eval panoptic RUN` its objects against true labels (RUN/panoptic.json), "
        "`eval openvocab RUN` its answers to prompts (RUN/openvocab.json)",
    )
    sub.add_argument(
        "protocol",
        nargs="?",
        choices=("images", "udos", "panoptic", "openvocab"),
        default="images",
        help="what is scored",
    )
    _add_run(sub)
    sub.add_argument("--truth", metavar="DIR", help="panoptic, openvocab: labels, if not with the data")
    sub.add_argument("--scene", help="openvocab: the scene's name, where DIR holds labels of several")
    _add_embeddings(sub)
    sub.epilog = (
        "openvocab: --FIELD VALUE sets a field of the section query; gsfields fields language lists them."
    )

    sub = command("fit-instances", fit_instances, "fit objects to the 2D segments of a run's photos")
    _add_run(sub)
    sub.add_argument("--segments", metavar="DIR", help="2D segments (default: those of the data)")
    sub.add_argument("--overwrite", action="store_true", help="replace the instances that are there")
    sub.epilog = "--FIELD VALUE sets a field; gsfields fields instances lists them."

    sub = command(
        "instances", instances, "write the objects of a run once more, or name the one at a pixel (--at)"
    )
    _add_run(sub)
    sub.add_argument("--at", metavar="VIEW,X,Y", help="only tell which object that pixel of a photo shows")
    sub.epilog = "--FIELD VALUE sets a field of the section objects; gsfields fields instances lists them."

    sub = command(
        "fit-language", fit_language, "fit a language field to what segments of a run's photos mean"
    )
    _add_run(sub)
    sub.add_argument(
        "--features", metavar="DIR", help="segments with embeddings (default: those of the data)"
    )
    sub.add_argument("--overwrite", action="store_true", help="replace the language that is there")
    sub.epilog = "--FIELD VALUE sets a field; gsfields fields language lists them."

    sub = command("query", query, "ask a view of a run with language where things are")
    _add_run(sub)
    sub.add_argument("prompts", nargs="+", help="what to look for, such as 'bag of cookies'")
    sub.add_argument("--view", help="stem of the photo, or its place (default: the first that was held out)")
    sub.add_argument("--out", metavar="DIR", help="folder of the answers (default: RUN/language/queries)")
    _add_embeddings(sub)
    sub.epilog = "--FIELD VALUE sets a field of the section query; gsfields fields language lists them."

    sub = command(
        "prep",
        prepare,
        "prepare data: `prep motion DATA` makes 2D motion masks, `prep segments DATA` 2D segments, `prep language "
        "DATA` segments with embeddings; `prep egocentric DATA` makes up a video, `prep messy-rooms DATA` a room full "
        "of things, `prep nested DATA` things with parts and their names",
    )
    sub.add_argument(
        "what",
        choices=tuple(PREPARATIONS),
        help="motion, segments, language: of the photos in DATA; egocentric, messy-rooms, nested: make a scene",
    )
    sub.add_argument("data", help="folder of the scene")
    sub.add_argument("--overwrite", action="store_true", help="replace what is there")
    sub.epilog = (
        "prep egocentric, messy-rooms and nested write made-up scenes with exact labels to DATA. prep segments and "
        "prep language run Segment Anything, whose weights --checkpoint FILE names, and the latter CLIP. --FIELD VALUE "
        "sets the options of each."
    )

    sub = command("export", export, "write the scene of a run as a 3DGS .ply")
    sub.add_argument("run", help="folder of the run")
    sub.add_argument("ply", help="the file to write")

    sub = command("import", import_ply, "make a run of a 3DGS .ply")
    sub.add_argument("ply", help="the file to read")
    sub.add_argument("--out", required=True, metavar="RUN", help="folder of the run")

    sub = command(
        "demo", demo, "fit a small scene and write pictures: the package's own video in layers, or --scene"
    )
    sub.add_argument("--scene", help="folder of a scene instead of the video, for a static fit")
    sub.add_argument(
        "--out", default="runs/demo", metavar="RUN", help="folder of the run (default: runs/demo)"
    )
    sub.epilog = "--FIELD VALUE sets a field of the configuration; gsfields fields lists them all."

    sub = command("bench", bench, "time every stage on this machine, on scenes made up for it")
    sub.add_argument("--quick", action="store_true", help="one small scene, a few seconds")
    sub.add_argument(
        "--device", help="cpu or cuda (default: the GPU if there is one and its kernels are built)"
    )
    sub.add_argument("--stage", help="only this stage, such as 'blend backward'")
    sub.add_argument("--out", metavar="FILE", help="write the table as JSON, too")
    sub.add_argument(
        "--profile",
        metavar="STAGE",
        help="call one stage a few times for a profiler, and name the command for it",
    )
    sub.epilog = "benchmarks/ in the source tree compares the kernels with baselines and other rasterizers."

    command("doctor", doctor, "print versions, backends and what to do about what is missing")
    return parser


def split_overrides(words: list[str], parser: argparse.ArgumentParser) -> tuple[list[str], Overrides]:
    """Separate `--field value` pairs of the configuration from the arguments that the parser knows.

    Only for the commands that take fields; for others every word stays, and the parser complains itself.
    """
    own = {
        "fit": {"--out", "--config", "--resume", "--overwrite"},
        "demo": {"--scene", "--out"},
        "prep": {"--overwrite"},
        "fit-instances": {"--data", "--segments", "--overwrite"},
        "instances": {"--data", "--at"},
        "fit-language": {"--data", "--features", "--overwrite"},
        "eval": {"--data", "--truth", "--scene", "--embeddings"},
        "query": {"--data", "--view", "--out", "--embeddings"},
    }
    if not words or words[0] not in own:
        return words, []
    known = own[words[0]]
    kept: list[str] = [words[0]]
    overrides: Overrides = []
    rest = words[1:]
    while rest:
        word = rest.pop(0)
        name, has_value, value = word.partition("=")
        if not word.startswith("--") or word in ("--", "--help") or name in known:
            kept.append(word)
            if name in known - {"--resume", "--overwrite"} and not has_value and rest:
                kept.append(rest.pop(0))
        elif has_value:
            overrides.append((name[2:], value))
        else:
            overrides.append((name[2:], rest.pop(0) if rest and not rest[0].startswith("--") else None))
    return kept, overrides


# --------------------------------------------------------------------------------------------------- commands


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


def _add_run(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("run", help="folder of the run, or of one of its checkpoints")
    sub.add_argument("--data", help="folder of the scene, if it has moved since the fit")


def _add_embeddings(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--embeddings",
        metavar="FILE",
        help="npz with the arrays prompts and embeddings, where no CLIP is to be asked",
    )


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
