"""The steps of `make gpu`. Each is a function that returns a Verdict and takes less than LIMIT_S."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 470  # under eight minutes
BUILD_BAR_S = 180  # on BUILD_BAR_CORES or more
BUILD_BAR_CORES = 16
BENCH_MINUTES = 5  # the last case begun in that time may take a while longer
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
# Which kernels a tool looks into: torch's own make it slow. memcheck and initcheck need all of them, the latter
# because what an unwatched kernel wrote would count as uninitialised.
ONLY_OURS = {"racecheck": ["--kernel-regex", "kns=gsfields"], "synccheck": ["--kernel-regex", "kns=gsfields"]}
SANITIZER_ERROR = 97  # exit status that stands for the tool's own findings


@dataclass(frozen=True)
class Verdict:
    """Whether a step passed, and its figures in a few words."""

    passed: bool
    text: str

    def line(self, step: str) -> str:
        return f"gpu-{step}: {'PASS' if self.passed else 'FAIL'} {self.text}"


@dataclass(frozen=True)
class Ran:
    """A command that has ended, or was ended for taking too long."""

    status: int | None  # None: it took too long
    seconds: float
    output: str  # empty unless it was captured

    @property
    def complaint(self) -> str:
        return "took too long" if self.status is None else f"exit status {self.status}"


def take(name: str) -> Verdict:
    """One step, from its name. Without a GPU it fails in one sentence."""
    problem = gpu_problem()
    return Verdict(False, f"needs an NVIDIA GPU: {problem}") if problem else STEPS[name]()


def gpu_problem() -> str | None:
    """Why there is no GPU to use here, or None. Needs no built library."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        return f"torch cannot be imported ({error})"
    from gsfields.bench import device

    return device.gpu_problem()


def build() -> Verdict:
    """Both libraries, in place, for the GPUs of this machine."""
    began = time.time()
    environment = {
        "GSFIELDS_CUDA": "1",
        "GSFIELDS_CUDA_ARCHS": os.environ.get("GSFIELDS_CUDA_ARCHS", "native"),
    }
    ran = run([sys.executable, "setup.py", "build_ext", "--inplace"], environment)
    if ran.status != 0:
        return Verdict(False, f"{ran.complaint} after {ran.seconds:.0f} s; the message is above")
    loads = "from gsfields.bench import device; import sys; sys.exit(device.cuda_problem())"
    loaded = run([sys.executable, "-c", loads], capture=True)
    if loaded.status != 0:
        return Verdict(False, f"the libraries were built, but cannot be used: {last_line(loaded.output)}")
    objects = list((ROOT / "build" / "native").glob("*.o"))
    fresh = sum(path.stat().st_mtime >= began for path in objects)
    return build_verdict(ran.seconds, fresh, len(objects), len(os.sched_getaffinity(0)))


def build_verdict(seconds: float, fresh: int, objects: int, cores: int) -> Verdict:
    text = f"{fresh} of {objects} objects compiled in {seconds:.0f} s on {cores} cores"
    bar = f"the bar is {BUILD_BAR_S} s on {BUILD_BAR_CORES}"
    return Verdict(seconds <= BUILD_BAR_S or cores < BUILD_BAR_CORES, f"{text} ({bar})")


def test() -> Verdict:
    """The kernel tests, whose CUDA variants compare the GPU with the CPU in float64."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # The emulator stands in for a GPU elsewhere; here it would only take time.
        options = ["-k", "not emulated", "-p", "no:cacheprovider", "--maxfail=25", f"--junitxml={report}"]
        ran = run(
            [sys.executable, "-m", "pytest", "tests/kernels", "tests/cuda/test_streams.py", *options],
            {"PYTHONPATH": str(ROOT)},
        )
        if ran.status is None or not report.is_file():
            return Verdict(False, f"pytest: {ran.complaint} after {ran.seconds:.0f} s")
        return test_verdict(count_tests(report.read_text()), ran)


@dataclass(frozen=True)
class Counts:
    """Tests by outcome, from pytest's report; the CUDA variants once more by themselves."""

    passed: int
    failed: int
    skipped: int
    cuda_passed: int
    cuda_skipped: tuple[str, ...]  # their reasons


def count_tests(xml: str) -> Counts:
    outcomes: dict[str, list[ElementTree.Element]] = {"passed": [], "failed": [], "skipped": []}
    for case in ElementTree.fromstring(xml).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            outcome = "failed"
        else:
            outcome = "passed" if case.find("skipped") is None else "skipped"
        outcomes[outcome].append(case)

    def on_cuda(cases: Sequence[ElementTree.Element]) -> list[ElementTree.Element]:
        return [case for case in cases if "cuda-float" in case.get("name", "")]

    reasons = (case.find("skipped") for case in on_cuda(outcomes["skipped"]))
    return Counts(
        passed=len(outcomes["passed"]),
        failed=len(outcomes["failed"]),
        skipped=len(outcomes["skipped"]),
        cuda_passed=len(on_cuda(outcomes["passed"])),
        cuda_skipped=tuple(reason.get("message", "") for reason in reasons if reason is not None),
    )


def test_verdict(counts: Counts, ran: Ran) -> Verdict:
    """A run in which the GPU took no part is no pass."""
    text = f"{counts.passed} passed ({counts.cuda_passed} on the GPU), {counts.failed} failed, "
    text += f"{counts.skipped} skipped in {ran.seconds:.0f} s"
    if counts.cuda_skipped:
        text += f"; {len(counts.cuda_skipped)} CUDA variants were skipped: {counts.cuda_skipped[0]}"
    elif not counts.cuda_passed:
        text += "; no test ran on the GPU"
    passed = ran.status == 0 and counts.failed == 0 and counts.cuda_passed > 0 and not counts.cuda_skipped
    return Verdict(passed, text)


def sanitize() -> Verdict:
    """Small scenes under compute-sanitizer's tools in turn."""
    sanitizer = find_tool("compute-sanitizer")
    if sanitizer is None:
        return Verdict(False, "compute-sanitizer was found neither on the PATH nor in /usr/local/cuda/bin")
    began, failed = time.monotonic(), []
    for tool in TOOLS:
        left = LIMIT_S - (time.monotonic() - began)
        ran = run(sanitizer_command(sanitizer, tool), SANITIZER_ENVIRONMENT, limit=left, capture=True)
        complaint = sanitizer_complaint(ran)
        print(f"{tool}: {complaint or 'clean'} ({ran.seconds:.0f} s)", flush=True)
        if complaint:
            print(ran.output)
            failed.append(f"{tool}: {complaint}")
    seconds = time.monotonic() - began
    return Verdict(not failed, f"{'; '.join(failed) or ', '.join(TOOLS) + ' clean'} in {seconds:.0f} s")


# Without torch's cache of memory every tensor has bounds of its own.
SANITIZER_ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "CUDA_MODULE_LOADING": "LAZY"}


def sanitizer_command(sanitizer: str, tool: str) -> list[str]:
    own = ["--tool", tool, "--error-exitcode", str(SANITIZER_ERROR), "--print-limit", "20"]
    return [sanitizer, *own, *ONLY_OURS.get(tool, []), sys.executable, "-m", "tests.gpu.small"]


def sanitizer_complaint(ran: Ran) -> str:
    """Why the run is no pass, or nothing. A tool that never got to the end of the program has proven nothing."""
    if ran.status == SANITIZER_ERROR:
        summary = [line for line in ran.output.splitlines() if "SUMMARY" in line]
        return summary[-1].strip("= ") if summary else "errors"
    if ran.status != 0:
        return ran.complaint
    if "small scenes: ok" not in ran.output:
        return "the program did not get to its end"
    if "SUMMARY" not in ran.output:
        return "the tool printed no summary"
    return ""


def bench() -> Verdict:
    """The benchmark grid, its table and the summary in benchmarks/README.md."""
    return measure("benchmarks.kernels", "")


def channels() -> Verdict:
    """Time against the number of channels, likewise."""
    return measure("benchmarks.channels", "-channels")


def measure(module: str, suffix: str) -> Verdict:
    ran = run([sys.executable, "-m", module, "--device", "cuda", "--minutes", str(BENCH_MINUTES)])
    if ran.status is None:
        return Verdict(False, f"{module} took longer than {LIMIT_S} s")
    from gsfields.bench import device as devices

    path = results_path(devices.choose("cuda"), suffix)
    if ran.status != 0 or not path.is_file():
        return Verdict(False, f"{module}: {ran.complaint} after {ran.seconds:.0f} s, see above")
    drawn = run([sys.executable, "-m", "benchmarks.report"], capture=True)
    if drawn.status != 0:
        return Verdict(False, f"benchmarks.report: {last_line(drawn.output)}")
    return bench_verdict(path, ran.seconds)


def results_path(device: object, suffix: str = "") -> Path:
    from benchmarks import machine, report

    return report.RESULTS / f"{machine.slug(machine.describe(device))}{suffix}.json"


def bench_verdict(path: Path, seconds: float) -> Verdict:
    from benchmarks.results import Results

    results = Results.load(path)
    text = f"{len(results.times)} times of {len(results.cases)} cases in {seconds:.0f} s, "
    text += f"{len(results.notes)} notes: benchmarks/results/{path.name} and .md"
    return Verdict(bool(results.times) and not results.disagreements, text)


STEPS: Mapping[str, Callable[[], Verdict]] = {
    "build": build,
    "test": test,
    "sanitize": sanitize,
    "bench": bench,
    "channels": channels,
}


def run(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    limit: float = LIMIT_S,
    capture: bool = False,
) -> Ran:
    """One command in the repository's root, with what it started ended after `limit` seconds."""
    start = time.monotonic()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if capture else {}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | dict(environment or {}),
        text=True,
        errors="replace",
        start_new_session=True,
        **pipes,
    )
    try:
        output, _ = process.communicate(timeout=max(limit, 1))
        status: int | None = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        status = None
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return Ran(status, time.monotonic() - start, output or "")


def find_tool(name: str) -> str | None:
    return shutil.which(name) or shutil.which(f"/usr/local/cuda/bin/{name}")


def last_line(output: str) -> str:
    return (output.strip().splitlines() or ["it said nothing"])[-1]
