"""The files of a report."""

from __future__ import annotations

from pathlib import Path

from kserve_lmcache.bench.page import page
from kserve_lmcache.bench.picture import LIGHT, Picture
from kserve_lmcache.bench.report import Report, as_csv, as_json

NO_PICTURES = (
    "There are no pictures: matplotlib is not installed (pip install 'kserve-lmcache[bench]')"
)


def write(found: Report, directory: Path) -> list[str]:
    """``report.json``, ``report.csv``, ``report.html`` and a PNG for each picture.

    Files of the same names are replaced.

    Returns:
        What the user is to know.
    """
    directory.mkdir(parents=True, exist_ok=True)
    drawn, notes = _pictures(found)
    (directory / "report.json").write_text(as_json(found) + "\n", encoding="utf-8")
    (directory / "report.csv").write_text(as_csv(found), encoding="utf-8")
    (directory / "report.html").write_text(page(found, drawn), encoding="utf-8")
    for picture in drawn:
        (directory / f"{picture.name}.png").write_bytes(picture.draw(LIGHT))
    return [*notes, f"The report is in {directory}/ (report.html, .json, .csv, pictures)"]


def _pictures(found: Report) -> tuple[list[Picture], list[str]]:
    try:
        from kserve_lmcache.bench.pictures import pictures
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        return [], [NO_PICTURES]
    return pictures(found), []
