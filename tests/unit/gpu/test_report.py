"""The report has every step, in both forms."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.gpu import __main__ as script
from tests.gpu.plan import BACKENDS, CPU, GPU, Step, plan
from tests.gpu.report import markdown, report, write
from tests.gpu.runner import FAILED, LEFT_OUT, PASSED, Result

RESULTS = [
    Result(Step("machine", "A.", "m", 1, 1), PASSED, 1.26, found={"facts": {"GPU": "H200"}}),
    Result(
        Step("ttft", "B.", "m", 1, 1),
        PASSED,
        20.0,
        found={
            "facts": {"a": True},
            "tables": {"Times": [{"tokens": 512, "ms": 0.1234}, {"tokens": 1024, "x": "a|b"}]},
        },
    ),
    Result(Step("broken", "C.", "m", 1, 1), FAILED, 3.0, "Traceback\n  line\nValueError: no\n"),
    Result(Step("later", "D.", "m", 1, 1), LEFT_OUT, 0.0, "3 s were left"),
]
RUN = {"device": "gpu", "seconds": 24.3}


def test_json_has_every_step_with_result_and_duration(tmp_path: Path) -> None:
    write(report(RUN, RESULTS), tmp_path)
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["run"] == RUN
    assert found["failed"] == ["broken"]
    assert [(s["name"], s["status"], s["seconds"]) for s in found["steps"]] == [
        ("machine", "passed", 1.3),
        ("ttft", "passed", 20.0),
        ("broken", "failed", 3.0),
        ("later", "left out", 0.0),
    ]
    assert found["steps"][1]["tables"]["Times"][0] == {"tokens": 512, "ms": 0.1234}
    assert found["steps"][3]["reason"] == "3 s were left"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.md"]


def test_markdown_has_the_device_the_steps_and_the_tables() -> None:
    text = markdown(report(RUN, RESULTS))
    for line in (
        "| device | gpu |",
        "| GPU | H200 |",
        "| broken | failed | 3 | C. | ValueError: no |",
        "| later | left out | 0 | D. | 3 s were left |",
        "### Times",
        "| tokens | ms | x |",
        "| 512 | 0.123 |  |",
        "| 1024 |  | a\\|b |",
        "| a | yes |",
        "Traceback\n  line\nValueError: no\n```",
    ):
        assert line in text
    assert "## later" not in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("is_installed", [True, False])
def test_a_plan_is_possible(device: str, is_installed: bool) -> None:
    steps = plan(device, is_installed)
    names = [each.name for each in steps]
    assert len(set(names)) == len(names)
    for number, each in enumerate(steps):
        assert re.fullmatch(r"[a-z-]+", each.name)
        assert set(each.needs) <= set(names[:number])
        assert 0 < each.least < each.budget
        module = Path(script.__file__).parent / "steps" / f"{each.module}.py"
        assert each.module == "" or module.exists()
        # A step that stays has users, and none of them runs beside others.
        if each.stays:
            assert [user for user in steps if each.name in user.needs]
    assert [each.argument for each in steps if each.module == "backend"] == [*BACKENDS[device]]
    # The script finds time for all of them where none is slow.
    assert sum(each.least for each in steps) < 9.5 * 60


def test_a_gpu_is_tried_with_every_backend_and_measured_alone() -> None:
    assert BACKENDS[GPU] == ("FLASH_ATTN", "FLASHINFER", "TRITON_ATTN")
    measured = [each for each in plan(GPU, True) if each.module in ("ttft", "tpot", "stall")]
    assert len(measured) == 3
    assert not any(each.together for each in measured)


def test_what_a_chosen_step_needs_runs_as_well() -> None:
    steps = plan(CPU, True)
    assert [each.name for each in script.chosen(steps, ["ttft"])] == [
        "machine",
        "model",
        "replicas",
        "ttft",
    ]
    assert script.chosen(steps, None) == steps
    with pytest.raises(SystemExit, match="copies is no step; the steps are machine, "):
        script.chosen(steps, ["copies"])


def run_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, minutes: float = 1.0
) -> tuple[int, dict[str, object]]:
    """The script with one step, ``module``, that is run for real."""
    one = Step("one", "It is tried.", module, 30, 1)
    monkeypatch.setattr(script, "plan", lambda device, is_installed: [one])
    arguments = ["--device=cpu", f"--output={tmp_path}", f"--minutes={minutes}"]
    code = script.main(arguments)
    return code, json.loads((tmp_path / "report.json").read_text())["steps"][0]


def test_the_exit_status_is_1_when_a_step_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, one = run_script(tmp_path, monkeypatch, "no_such_step")
    assert (code, one["status"]) == (1, FAILED)
    assert "No module named 'tests.gpu.steps.no_such_step'" in str(one["reason"])
    assert {path.name for path in tmp_path.iterdir()} == {
        "report.json",
        "report.md",
        "logs.tar.gz",
    }


def test_the_exit_status_is_0_when_a_step_was_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, one = run_script(tmp_path, monkeypatch, "machine", minutes=0.2)
    assert (code, one["status"]) == (0, LEFT_OUT)


def test_the_exit_status_is_0_when_all_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, one = run_script(tmp_path, monkeypatch, "machine")
    assert (code, one["status"]) == (0, PASSED)
    assert "torch" in one["facts"]  # type: ignore[operator]
