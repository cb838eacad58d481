"""The CUDA library without a GPU: it loads, registers its ops, checks arguments, and says what is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gsfields import ops

PACKAGE = Path(ops.__file__).parents[1]
ON_CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)

PROGRAM = """
import sys, torch
for library in sys.argv[1:]:
    torch.ops.load_library(library)
has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
ops = torch._C._dispatch_get_registrations_for_dispatch_key("CPU")
print([op for op in ops if op.startswith("gsfields::") and not has_kernel(op, "CUDA")])
on_cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
harmonics = torch.ops.gsfields.spherical_harmonics.default
dirs, sh0, shN = torch.ones(1, 2, 3), torch.ones(2, 1, 3), torch.ones(2, 3, 3)
for degree in (2, 1):
    try:
        harmonics.redispatch(on_cuda, dirs, sh0, shN, None, degree)
    except Exception as error:
        print(type(error).__name__, str(error).splitlines()[0])
"""


def test_library_loads_in_a_torch_without_cuda():
    library = PACKAGE / "_cuda.so"
    if not library.exists():
        pytest.skip("the CUDA library is not built")
    if torch.version.cuda:
        pytest.skip("this torch has CUDA")
    command = [sys.executable, "-c", PROGRAM, str(PACKAGE / "_C.so"), str(library)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    missing, refused, unusable = done.stdout.splitlines()
    assert missing == "[]", "every op of the CPU has a CUDA kernel"
    assert refused == "ValueError shN has 3 coefficients per Gaussian, but degree 2 needs 8"
    assert unusable.startswith("RuntimeError the CUDA kernels of gsfields need a torch with CUDA")


@pytest.mark.parametrize(
    "op",
    [
        "project",
        "spherical_harmonics",
        "bin_tiles",
        "blend",
        "seen_pairs",
        "ssim",
        "contrast",
        "adam_rows",
        "follow_rows",
        "sum_bags",
    ],
)
def test_ops_without_a_cuda_kernel_say_so(op):
    if torch.version.cuda and (PACKAGE / "_cuda.so").exists():
        pytest.skip("all ops have CUDA kernels here")
    overload = getattr(torch.ops.gsfields, op).default
    given = {"Tensor": torch.ones(1), "Optional[Tensor]": None, "int": 1, "float": 1.0, "bool": False}
    arguments = [given[str(argument.type)] for argument in overload._schema.arguments]
    with pytest.raises(
        NotImplementedError, match=f"^{op} has no CUDA kernel in this build; move the tensors"
    ):
        overload.redispatch(ON_CUDA, *arguments)
