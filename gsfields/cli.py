"""The command line: its grammar. What the commands do is in commands.py."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from gsfields import commands
from gsfields.commands import Overrides


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
    known = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace, Overrides], int], text: str
    ) -> argparse.ArgumentParser:
        sub = known.add_parser(
            name,
            help=text,
            description=text,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(command=run)
        return sub

    sub = command("fit", commands.fit, "fit Gaussians to a scene")
    sub.add_argument(
        "data", nargs="?", help="folder of the scene; with --resume that of the run, unless given"
    )
    sub.add_argument("--out", required=True, metavar="RUN", help="folder of the run")
    sub.add_argument("--config", default="default", help="a recipe's name or a YAML file (default: default)")
    sub.add_argument("--resume", action="store_true", help="continue the run from its newest checkpoint")
    sub.add_argument("--overwrite", action="store_true", help="replace the run that is in RUN")
    sub.epilog = "--FIELD VALUE sets a field of the configuration; gsfields fields lists them all."

    sub = command(
        "fields", commands.list_fields, "list every field of the configuration, with its default and meaning"
    )
    sub.add_argument(
        "of", nargs="?", choices=("fit", "instances", "language"), default="fit", help="of which command"
    )

    sub = command("render", commands.render_run, "render the held-out views or a camera path of a run")
    _add_run(sub)
    sub.add_argument("--out", help="folder for PNGs, or a file ending in .mp4 (default: RUN/renders)")
    sub.add_argument(
        "--path", choices=("views", "orbit", "spiral"), help="a moving camera instead of the held-out views"
    )
    sub.add_argument("--frames", type=int, default=120, help="images along the path (default: 120)")
    sub.add_argument("--fps", type=int, default=24, help="frames per second of an MP4 (default: 24)")

    sub = command("refine", commands.refine, "refine the moving layers of a layered run on some frames")
    _add_run(sub)
    sub.add_argument("--frames", help="names, stems or places of frames, a,b,c (default: all)")
    sub.add_argument("--window", type=int, default=0, help="neighbours on each side, too (default: 0)")
    sub.add_argument("--visits", type=int, default=40, help="steps per fitted frame (default: 40)")
    sub.add_argument("--time-code", action="store_true", help="refine the time codes, too")
    sub.add_argument("--reseed", action="store_true", help="new dynamic Gaussians in these frames")

    sub = command(
        "eval",
        commands.evaluate_run,
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

    sub = command("fit-instances", commands.fit_instances, "fit objects to the 2D segments of a run's photos")
    _add_run(sub)
    sub.add_argument("--segments", metavar="DIR", help="2D segments (default: those of the data)")
    sub.add_argument("--overwrite", action="store_true", help="replace the instances that are there")
    sub.epilog = "--FIELD VALUE sets a field; gsfields fields instances lists them."

    sub = command(
        "instances",
        commands.instances,
        "write the objects of a run once more, or name the one at a pixel (--at)",
    )
    _add_run(sub)
    sub.add_argument("--at", metavar="VIEW,X,Y", help="only tell which object that pixel of a photo shows")
    sub.epilog = "--FIELD VALUE sets a field of the section objects; gsfields fields instances lists them."

    sub = command(
        "fit-language", commands.fit_language, "fit a language field to what segments of a run's photos mean"
    )
    _add_run(sub)
    sub.add_argument(
        "--features", metavar="DIR", help="segments with embeddings (default: those of the data)"
    )
    sub.add_argument("--overwrite", action="store_true", help="replace the language that is there")
    sub.epilog = "--FIELD VALUE sets a field; gsfields fields language lists them."

    sub = command("query", commands.query, "ask a view of a run with language where things are")
    _add_run(sub)
    sub.add_argument("prompts", nargs="+", help="what to look for, such as 'bag of cookies'")
    sub.add_argument("--view", help="stem of the photo, or its place (default: the first that was held out)")
    sub.add_argument("--out", metavar="DIR", help="folder of the answers (default: RUN/language/queries)")
    _add_embeddings(sub)
    sub.epilog = "--FIELD VALUE sets a field of the section query; gsfields fields language lists them."

    sub = command(
        "prep",
        commands.prepare,
        "prepare data: `prep motion DATA` makes 2D motion masks, `prep segments DATA` 2D segments, `prep language "
        "DATA` segments with embeddings; `prep egocentric DATA` makes up a video, `prep messy-rooms DATA` a room full "
        "of things, `prep nested DATA` things with parts and their names",
    )
    sub.add_argument(
        "what",
        choices=tuple(commands.PREPARATIONS),
        help="motion, segments, language: of the photos in DATA; egocentric, messy-rooms, nested: make a scene",
    )
    sub.add_argument("data", help="folder of the scene")
    sub.add_argument("--overwrite", action="store_true", help="replace what is there")
    sub.epilog = (
        "prep egocentric, messy-rooms and nested write made-up scenes with exact labels to DATA. prep segments and "
        "prep language run Segment Anything, whose weights --checkpoint FILE names, and the latter CLIP. --FIELD VALUE "
        "sets the options of each."
    )

    sub = command("export", commands.export, "write the scene of a run as a 3DGS .ply")
    sub.add_argument("run", help="folder of the run")
    sub.add_argument("ply", help="the file to write")

    sub = command("import", commands.import_ply, "make a run of a 3DGS .ply")
    sub.add_argument("ply", help="the file to read")
    sub.add_argument("--out", required=True, metavar="RUN", help="folder of the run")

    sub = command(
        "demo",
        commands.demo,
        "fit a small scene and write pictures: the package's own video in layers, or --scene",
    )
    sub.add_argument("--scene", help="folder of a scene instead of the video, for a static fit")
    sub.add_argument(
        "--out", default="runs/demo", metavar="RUN", help="folder of the run (default: runs/demo)"
    )
    sub.epilog = "--FIELD VALUE sets a field of the configuration; gsfields fields lists them all."

    sub = command("bench", commands.bench, "time every stage on this machine, on scenes made up for it")
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

    command("doctor", commands.doctor, "print versions, backends and what to do about what is missing")
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


def _add_run(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("run", help="folder of the run, or of one of its checkpoints")
    sub.add_argument("--data", help="folder of the scene, if it has moved since the fit")


def _add_embeddings(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--embeddings",
        metavar="FILE",
        help="npz with the arrays prompts and embeddings, where no CLIP is to be asked",
    )
