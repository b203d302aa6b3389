"""The benchmarks of methods: what is timed, and the table of a ladder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import ladder, methods, overview
from tests.test_report import write_run
from udskd import methods as known


def test_the_step_of_every_method_asked_for_is_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo = str(Path(known.__file__).parents[1] / "demo.toml")
    few = ["--rounds", "1", "--methods", "kd", "akd", "--json", str(tmp_path / "speed.json")]
    assert methods.main([demo, *few, "--training.batch_size", "16"]) == 0
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["kd", "akd"]
    assert all(row["images_per_s"] == pytest.approx(16e6 / row["median_us"], rel=0.01) for row in rows)
    assert "| kd " in capsys.readouterr().out


def test_the_overview_has_both_students_and_the_speed_in_one_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write_run(tmp_path / f"{m}{s}", method=m, seed=s, top1=60.0 + 2 * s) for m in ("kd", "akd") for s in (0, 1)]
    speed = tmp_path / "speed.json"
    speed.write_text(json.dumps({"rows": [{"method": "kd", "images_per_s": 41.6}]}))
    assert overview.main([*map(str, runs), "--speed", str(speed)]) == 0
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[4:]]
    cells = ["61.0 ± 1.4", "1.25 ± 0.00", "0.050 ± 0.000", "56.0 ± 1.4", "1.25 ± 0.00", "0.050 ± 0.000"]
    assert lines == [["`kd`", *cells, "42"], ["`akd`", *cells, ""]]


def test_the_ladder_climbs_every_method() -> None:
    assert {options[1] for options in ladder.RUNGS.values()} == set(known.names())


@pytest.mark.parametrize(("cached", "name"), [(True, "kd"), (True, "cud"), (True, "akd"), (False, "akd")])
def test_the_ladder_gives_cached_logits_to_who_asks_for_logits_alone(
    cached: bool, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(ladder.Ladder, "_udskd", lambda self, command, folder: commands.append(list(command)))
    ladder.Ladder("recipe.toml", tmp_path, [], 1, cached).run(name, 0)
    assert ("--teacher.cache" in commands[0]) == (cached and name == "akd")
    assert ("--teacher.checkpoint" in commands[0]) == (name != "kd")
