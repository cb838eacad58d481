"""Registers and shared memory of the CUDA kernels of the last build: no kernel takes more than budget.json allows."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.cuda import budget
from tests.cuda.budget import Build, Usage

REPORT = """\
nvcc: NVIDIA (R) Cuda compiler driver
Cuda compilation tools, release 13.0, V13.0.88
Build cuda_13.0.r13.0/compiler.36424714_0
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'void gsfields::cuda::(anonymous namespace)::filter<\
gsfields::cuda::(anonymous namespace)::Pass<float>, 3>(gsfields::Args<float>, int*)' for 'sm_80'
ptxas info    : Function properties for void gsfields::cuda::(anonymous namespace)::filter<...>
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 94 registers, used 1 barriers, 14784 bytes smem, 472 bytes cmem[0]
ptxas info    : Compiling entry function 'void cub::sort<int>(int*)' for 'sm_80'
    8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 50 registers, used 1 barriers
ptxas info    : Compiling entry function 'gsfields::cuda::(anonymous namespace)::fill(float*)' for 'sm_80'
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 20 registers, used 0 barriers, 16 bytes cumulative stack size, 472 bytes cmem[0]
"""


def kernels(**usage: dict[str, Usage]) -> Build:
    return Build({"V13.0.88"}, usage)


def test_kernels_keep_their_budget():
    build, limits = budget.read_build(), json.loads(budget.BUDGET.read_text())
    if not build.kernels:
        pytest.skip("the CUDA library was not built in this tree")
    if build.nvcc != {limits["nvcc"]}:
        pytest.skip(f"built by nvcc {', '.join(sorted(build.nvcc))}, the budget is for {limits['nvcc']}")
    if missing := set(limits["architectures"]) - set(build.archs):
        pytest.skip(f"not built for compute capability {', '.join(sorted(missing, key=budget.capability))}")
    assert not budget.violations(build, limits), "if it has to be: python -m tests.cuda.budget --update"


@pytest.mark.parametrize(
    ("kernel", "most"), [("blend_kernel<float, 3, false>", 40), ("blend_backward_kernel<float, 3>", 64)]
)
def test_budget_of_colour_lets_a_multiprocessor_be_full(kernel, most):
    """Six blocks of the forward pass and four of the backward; sm_75 takes no more than four of either."""
    limits = json.loads(budget.BUDGET.read_text())
    registers = limits["kernels"][kernel]["registers"]  # of each architecture, or of all
    for arch in limits["architectures"]:
        used = registers if isinstance(registers, int) else registers[arch]
        assert used <= (64 if arch == "75" else most), registers


def test_reports_are_read():
    build = Build()
    budget.read_report(REPORT, build)
    assert build == kernels(
        **{"filter<Pass<float>, 3>": {"80": Usage(94, 14784, 0)}, "fill": {"80": Usage(20, 0, 36)}}
    )


def test_mangled_names_are_read(tmp_path, monkeypatch):
    if shutil.which("c++filt") is None:
        pytest.skip("c++filt is not installed")
    kernel = "_ZN8gsfields4cuda45_GLOBAL__N__ef07c697_7_ssim_cu_c931d0b8_2649111ssim_kernelINS1_7ForwardIdEEdEEvPT0_"
    (tmp_path / "csrc" / "cuda").mkdir(parents=True)
    for name in ("ssim.cu", "new.cu"):
        (tmp_path / "csrc" / "cuda" / name).write_text("")
    for name in ("ssim.cu", "removed.cu"):
        report = f"Compiling entry function '{kernel}' for 'sm_90'\nUsed 7 registers"
        (tmp_path / f"cuda_{name}.o.ptxas").write_text(report.replace("ssim", name.split(".")[0]))
    monkeypatch.setattr(budget, "ROOT", tmp_path)
    assert budget.read_build(tmp_path).kernels == {
        "ssim_kernel<Forward<double>, double>": {"90": Usage(7, 0, 0)}
    }


def test_budget_of_a_build_is_what_it_takes():
    build = kernels(
        a={"90": Usage(30, 64, 0), "120": Usage(32, 64, 0)}, b={"90": Usage(8, 0, 0), "120": Usage(8, 0, 0)}
    )
    text = budget.dump(build)
    assert (
        '"a": {"registers": {"90": 30, "120": 32}, "shared": 64},\n    "b": {"registers": 8, "shared": 0}\n'
        in text
    )
    assert json.loads(text)["architectures"] == ["90", "120"]
    assert not budget.violations(build, json.loads(text))


@pytest.mark.parametrize(
    ("build", "sentences"),
    [
        (kernels(a={"90": Usage(29, 0, 0)}), []),
        (kernels(a={"90": Usage(31, 64, 0)}), ["a on sm_90: registers 31, budget 30"]),
        (kernels(a={"90": Usage(30, 65, 0)}), ["a on sm_90: shared 65, budget 64"]),
        (kernels(a={"90": Usage(30, 64, 8)}), ["a on sm_90: 8 bytes of stack and spills"]),
        (kernels(a={"90": Usage(30, 64, 0), "90a": Usage(31, 64, 0)}), []),
        (kernels(), ["a: has a budget but is not built"]),
        (
            kernels(a={"90": Usage(30, 64, 0)}, b={"90": Usage(1, 0, 4)}),
            ["b: has no budget", "b on sm_90: 4 bytes of stack and spills"],
        ),
    ],
    ids=["less", "registers", "shared", "spills", "other_architecture", "not_built", "new"],
)
def test_what_a_budget_refuses(build: Build, sentences: list[str]):
    limits = json.loads(budget.dump(kernels(a={"90": Usage(30, 64, 0)})))
    assert budget.violations(build, limits) == sentences
