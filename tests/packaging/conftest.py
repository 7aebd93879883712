"""Fixtures of the tests of manifests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.packaging.manifests import ROOT
from tests.packaging.schemas import Crds
from tests.support.options import CRDS


@pytest.fixture(scope="session")
def crds(pytestconfig: pytest.Config) -> Crds:
    """The CRDs of the option ``--crds``; none where nobody names any and none lie beside us."""
    option: str = pytestconfig.getoption("--crds")
    directories = [ROOT / Path(each).expanduser() for each in option.split(os.pathsep)]
    missing = [str(each) for each in directories if not each.is_dir()]
    assert not missing or option == CRDS, f"--crds: {', '.join(missing)} is no directory"
    return Crds(directories)
