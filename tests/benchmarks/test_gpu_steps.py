"""The steps of `make gpu` as far as they can be seen without a GPU: what they make of what they are told."""

import subprocess
import sys
import time

import pytest
import torch

from benchmarks import report
from benchmarks.results import Results
from gsfields.bench import device as devices
from tests.gpu import __main__ as command
from tests.gpu import small, steps
from tests.gpu.steps import Counts, Ran, Verdict

NO_GPU = pytest.mark.skipif(devices.gpu_problem() is None, reason="there is a GPU here")


def pytest_report(*cases):
    """A pytest report of (name, outcome) pairs."""
    inner = {"passed": "", "failed": '<failure message="no"/>', "error": '<error message="no"/>'}
    skipped = '<skipped type="pytest.skip" message="torch sees no GPU">where</skipped>'
    lines = [f'<testcase name="{name}">{inner.get(what, skipped)}</testcase>' for name, what in cases]
    return f"<testsuites><testsuite>{''.join(lines)}</testsuite></testsuites>"


@NO_GPU
@pytest.mark.parametrize("step", steps.STEPS)
def test_without_a_gpu_every_step_fails_in_one_sentence(step, capsys):
    assert command.main([step]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"gpu-{step}: FAIL needs an NVIDIA GPU: torch ")


@pytest.mark.parametrize(
    ("version", "cuda", "sentence"),
    [
        ("2.13.0+cpu", None, "torch 2.13.0+cpu is built without CUDA"),
        ("2.13.0+cu130", "13.0", "torch 2.13.0+cu130 finds no usable NVIDIA GPU and driver"),
    ],
)
def test_the_sentence_says_what_is_missing(monkeypatch, version, cuda, sentence):
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.gpu_problem() == sentence


def test_all_steps_run_in_order_and_a_failed_build_ends_them(monkeypatch, capsys):
    outcomes = {"build": True, "test": False, "sanitize": True, "bench": True, "channels": True}
    monkeypatch.setattr(steps, "take", lambda name: Verdict(outcomes[name], f"{name} figures"))
    assert command.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-5:] == [
        "gpu-build: PASS build figures",
        "gpu-test: FAIL test figures",
        "gpu-sanitize: PASS sanitize figures",
        "gpu-bench: PASS bench figures",
        "gpu-channels: PASS channels figures",
    ]
    outcomes["build"] = False
    assert command.main([]) == 1
    assert capsys.readouterr().out.splitlines() == ["gpu-build: FAIL build figures"]
    outcomes |= {"build": True, "test": True}
    assert command.main([]) == 0
    assert command.main(["tset"]) == 2
    assert "no step 'tset'" in capsys.readouterr().err


def test_pytest_report_is_counted():
    counts = steps.count_tests(
        pytest_report(
            ("test_a[cpu-float64]", "passed"),
            ("test_a[cuda-float32]", "passed"),
            ("test_a[3-cuda-float64]", "skipped"),
            ("test_b", "failed"),
            ("test_c", "error"),
            ("test_d[cpu-float32-avx512]", "skipped"),
        )
    )
    assert counts == Counts(2, 2, 2, 1, ("torch sees no GPU",))


@pytest.mark.parametrize(
    ("counts", "status", "passed", "words"),
    [
        (Counts(812, 0, 3, 200, ()), 0, True, "812 passed (200 on the GPU), 0 failed, 3 skipped in 201 s"),
        (
            Counts(812, 0, 203, 0, ("torch sees no GPU",)),
            0,
            False,
            "1 CUDA variants were skipped: torch sees",
        ),
        (Counts(812, 0, 3, 199, ("the CUDA kernels are not built",)), 0, False, "kernels are not built"),
        (Counts(812, 0, 3, 0, ()), 0, False, "no test ran on the GPU"),
        (Counts(811, 1, 3, 200, ()), 1, False, "1 failed"),
        (Counts(812, 0, 3, 200, ()), 3, False, "812 passed"),  # pytest broke after its report
    ],
)
def test_tests_pass_only_if_they_ran_on_the_gpu(counts, status, passed, words):
    verdict = steps.test_verdict(counts, Ran(status, 201.0, ""))
    assert verdict.passed is passed and words in verdict.text


def test_build_is_held_to_its_bar_where_it_is_stated():
    assert steps.build_verdict(74, 20, 20, 16).passed
    assert not steps.build_verdict(181, 20, 20, 16).passed
    slow = steps.build_verdict(400, 20, 20, 2)
    assert slow.passed and slow.text.startswith("20 of 20 objects compiled in 400 s on 2 cores")


CLEAN = "small scenes: ok\n========= ERROR SUMMARY: 0 errors\n"


@pytest.mark.parametrize(
    ("ran", "complaint"),
    [
        (Ran(0, 1, CLEAN), ""),
        (Ran(steps.SANITIZER_ERROR, 1, "========= ERROR SUMMARY: 4 errors\n"), "ERROR SUMMARY: 4 errors"),
        (Ran(1, 1, "small scenes: WRONG\n========= ERROR SUMMARY: 0 errors\n"), "exit status 1"),
        (Ran(None, 1, ""), "took too long"),
        (Ran(0, 1, "========= ERROR SUMMARY: 0 errors\n"), "the program did not get to its end"),
        (Ran(0, 1, "small scenes: ok\n"), "the tool printed no summary"),
    ],
)
def test_a_sanitizer_that_proved_nothing_is_no_pass(ran, complaint):
    assert steps.sanitizer_complaint(ran) == complaint


def test_every_tool_runs_and_one_that_finds_something_fails_the_step(monkeypatch, capsys):
    monkeypatch.setattr(steps, "find_tool", lambda name: f"/tools/{name}")
    commands = []

    def run(words, environment, *, limit, capture):
        commands.append(words)
        assert environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1" and 0 < limit <= steps.LIMIT_S
        bad = "racecheck" in words
        output = "hazard here\n========= RACECHECK SUMMARY: 1 hazard\n" if bad else CLEAN
        return Ran(steps.SANITIZER_ERROR if bad else 0, 2.0, output)

    monkeypatch.setattr(steps, "run", run)
    verdict = steps.sanitize()
    assert not verdict.passed and verdict.text.startswith("racecheck: RACECHECK SUMMARY: 1 hazard in ")
    assert [words[2] for words in commands] == list(steps.TOOLS)
    assert "hazard here" in capsys.readouterr().out
    monkeypatch.setattr(steps, "find_tool", lambda name: None)
    assert "compute-sanitizer was found neither" in steps.sanitize().text


def test_a_command_that_takes_too_long_is_ended_with_what_it_started():
    sleeper = "import subprocess, sys, time; print('begun', flush=True);"
    sleeper += "subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    start = time.monotonic()
    ran = steps.run([sys.executable, "-c", sleeper], limit=1.5, capture=True)
    assert ran.status is None and ran.output == "begun\n" and ran.complaint == "took too long"
    assert time.monotonic() - start < 20  # its child held the pipe open


def test_a_command_gets_its_environment_and_is_told_apart():
    code = "import os, sys; print(os.environ['ANSWER']); sys.exit(3)"
    ran = steps.run([sys.executable, "-c", code], {"ANSWER": "42"}, capture=True)
    assert (ran.status, ran.output, ran.complaint) == (3, "42\n", "exit status 3")


def test_bench_passes_with_figures_and_without_disagreement(tmp_path):
    from tests.benchmarks.test_grid import run, wrong

    path = tmp_path / "gpu.json"
    run().save(path)
    verdict = steps.bench_verdict(path, 12.0)
    assert verdict.passed and " times of 1 cases in 12 s" in verdict.text
    run(wrong).save(path)
    assert not steps.bench_verdict(path, 12.0).passed
    Results("full", {}).save(path)
    assert not steps.bench_verdict(path, 12.0).passed
    assert steps.results_path(torch.device("cpu")).parent == report.RESULTS


def test_small_scenes_agree_and_a_wrong_result_is_seen(monkeypatch, capsys):
    monkeypatch.setattr(small, "CHANNELS", {torch.float32: (3,), torch.float64: (3,)})
    assert small.main(["cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "small scenes: ok"
    outputs = small.outputs

    def forgetful(scene, channels, device, dtype):
        image, *rest = outputs(scene, channels, device, dtype)
        return [image * (1 - 1e-2 * (dtype == torch.float32)), *rest]

    monkeypatch.setattr(small, "outputs", forgetful)
    assert small.main(["cpu"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "small scenes: WRONG"


def test_a_result_that_is_not_finite_or_of_another_shape_is_infinitely_wrong():
    one = torch.ones(3, dtype=torch.float64)
    assert small.distance(one * torch.nan, one) == small.distance(one[:2], one) == float("inf")
    assert small.distance(one, one) == 0


@NO_GPU
def test_make_runs_the_steps_with_the_machines_python():
    def words(*arguments, **environment):
        done = subprocess.run(
            ["make", "--dry-run", *arguments], cwd=steps.ROOT, capture_output=True, text=True, check=True,
            env={"PATH": "/usr/bin:/bin", **environment},
        )  # fmt: skip
        return done.stdout.strip()

    assert words("gpu-sanitize") == "python3 -m tests.gpu sanitize"
    assert words("gpu") == "python3 -m tests.gpu"
    assert (
        words("gpu", "PYTHON=/opt/python") == words("gpu", PYTHON="/opt/python") == "/opt/python -m tests.gpu"
    )


def test_build_asks_for_cuda_on_this_machines_gpus(monkeypatch):
    asked = []

    def run(words, environment=None, **_):
        asked.append((words[1:], dict(environment or {})))
        return Ran(1, 5.0, "")

    monkeypatch.setattr(steps, "run", run)
    monkeypatch.delenv("GSFIELDS_CUDA_ARCHS", raising=False)
    assert steps.build() == Verdict(False, "exit status 1 after 5 s; the message is above")
    words, environment = asked[0]
    assert words == ["setup.py", "build_ext", "--inplace"]
    assert environment == {"GSFIELDS_CUDA": "1", "GSFIELDS_CUDA_ARCHS": "native"}
    monkeypatch.setattr(steps, "run", lambda words, *a, **k: Ran("-c" in words, 5.0, "warning\nno kernels\n"))
    assert steps.build().text == "the libraries were built, but cannot be used: no kernels"
