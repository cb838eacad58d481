"""What the CUDA kernels take of an SM: registers of a thread and static shared memory of a block.

The build keeps ptxas's report beside each object (build/native/*.cu.o.ptxas), so that reading it compiles nothing.
budget.json holds what each kernel may take on each architecture; no kernel may spill registers or need a stack.

    python -m tests.cuda.budget            what the kernels of the last build take
    python -m tests.cuda.budget --update   makes that their budget
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUDGET = Path(__file__).with_name("budget.json")


def capability(arch: str) -> int:
    """90 for 90a."""
    return int(arch.rstrip("af"))


@dataclass(frozen=True)
class Usage:
    """Of one kernel on one architecture."""

    registers: int
    shared: int
    memory: int  # bytes of stack frame and spills, per thread


@dataclass
class Build:
    """What one build's kernels take, by kernel and architecture, and the nvcc that built them."""

    nvcc: set[str] = field(default_factory=set)
    kernels: dict[str, dict[str, Usage]] = field(default_factory=dict)

    @property
    def archs(self) -> list[str]:
        return sorted({arch for usage in self.kernels.values() for arch in usage}, key=capability)


def short_name(kernel: str) -> str:
    """blend_kernel<float, 3> for void gsfields::cuda::(anonymous namespace)::blend_kernel<float, 3>(...)."""
    bare = re.sub(r"(\(anonymous namespace\)|\w+)::", "", kernel.removeprefix("void "))
    match = re.match(r"\w+(<.*?>)?(?=\()", bare)
    return match[0] if match else bare


def read_report(report: str, build: Build) -> None:
    """Adds what nvcc and ptxas reported of one source to the build; report is demangled."""
    build.nvcc |= set(re.findall(r"^Cuda compilation tools, .*(V[\d.]+)$", report, re.MULTILINE))
    for part in report.split("Compiling entry function ")[1:]:
        kernel, arch = re.match(r"'(.*)' for 'sm_(\w+)'", part).groups()
        if not kernel.removeprefix("void ").startswith("gsfields::"):
            continue  # CUB's
        memory = sum(map(int, re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", part)))
        registers = int(re.search(r"Used (\d+) registers", part)[1])
        shared = re.search(r"(\d+) bytes smem", part)
        usage = Usage(registers, int(shared[1]) if shared else 0, memory)
        build.kernels.setdefault(short_name(kernel), {})[arch] = usage


def read_build(folder: Path = ROOT / "build" / "native") -> Build:
    """Of the sources that exist: reports of others may lie there from before."""
    build = Build()
    for source in sorted(ROOT.glob("csrc/cuda/*.cu")):
        report = folder / f"cuda_{source.name}.o.ptxas"
        if report.is_file():
            command = ["c++filt"]
            text = subprocess.run(
                command, input=report.read_text(), capture_output=True, text=True, check=True
            )
            read_report(text.stdout, build)
    return build


def merge(by_arch: dict[str, int]) -> int | dict[str, int]:
    """One number where all architectures agree."""
    numbers = set(by_arch.values())
    return numbers.pop() if len(numbers) == 1 else by_arch


def dump(build: Build) -> str:
    """The budget that the build keeps exactly, as JSON with one line per kernel."""
    lines = []
    for name, usages in sorted(build.kernels.items()):
        by_arch = sorted(usages.items(), key=lambda item: capability(item[0]))
        row = {
            key: merge({arch: getattr(usage, key) for arch, usage in by_arch})
            for key in ("registers", "shared")
        }
        lines.append(f"    {json.dumps(name)}: {json.dumps(row)}")
    head = f'  "nvcc": {json.dumps(min(build.nvcc))},\n  "architectures": {json.dumps(build.archs)},\n'
    return f'{{\n{head}  "kernels": {{\n' + ",\n".join(lines) + "\n  }\n}\n"


def allowed(budget: dict[str, int | dict[str, int]], key: str, arch: str) -> int:
    number = budget[key]
    return number[arch] if isinstance(number, dict) else number


def violations(build: Build, budget: dict) -> list[str]:
    """One sentence for each way in which the build does not keep its budget."""
    found = [f"{name}: has no budget" for name in build.kernels if name not in budget["kernels"]]
    found += [
        f"{name}: has a budget but is not built" for name in budget["kernels"] if name not in build.kernels
    ]
    for name, usages in build.kernels.items():
        for arch, usage in usages.items():
            where = f"{name} on sm_{arch}"
            if usage.memory:
                found.append(f"{where}: {usage.memory} bytes of stack and spills")
            limited = name in budget["kernels"] and arch in budget["architectures"]
            for key in ("registers", "shared") if limited else ():
                actual, limit = getattr(usage, key), allowed(budget["kernels"][name], key, arch)
                if actual > limit:
                    found.append(f"{where}: {key} {actual}, budget {limit}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.cuda.budget", description=__doc__.split("\n")[0])
    parser.add_argument("--update", action="store_true", help=f"write {BUDGET.name}")
    update = parser.parse_args().update
    build = read_build()
    if not build.kernels:
        parser.error("build/native holds no reports of CUDA kernels; build the CUDA library first")
    if not update:
        print(dump(build), end="")
        return
    before = json.loads(BUDGET.read_text())["architectures"] if BUDGET.is_file() else []
    if missing := set(before) - set(build.archs):
        parser.error(
            f"the last build left out {', '.join(sorted(missing, key=capability))}: build without GSFIELDS_CUDA_ARCHS"
        )
    if len(build.nvcc) > 1:
        parser.error(f"objects of several nvcc, {', '.join(sorted(build.nvcc))}: make clean, and build again")
    BUDGET.write_text(dump(build))


if __name__ == "__main__":
    main()
