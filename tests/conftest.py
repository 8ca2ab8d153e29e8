"""Fixtures that the whole test suite shares."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import nibabel.processing
import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

import hyps_bids

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parents[1]
# Small products gain nothing from several threads, and those that wait take much CPU time.
threadpool_limits(1, user_api="blas")
#: What takes longest starts first, so that several processes end at about the same time.
LONGEST = (
    "tests/test_concurrency.py",
    "tests/documentation/test_commands.py",
    "tests/recipe/",
    "tests/test_termination.py",
    "tests/reports/",
    "tests/workflows/test_series.py",
    "tests/workflows/",
    "tests/evaluation/",
    "tests/norms/",
    "tests/classification/",
    "tests/adaptation/",
    "tests/longitudinal/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of :data:`LONGEST` in front; all others keep their order."""

    def place(item: pytest.Item) -> int:
        found = (i for i, name in enumerate(LONGEST) if item.nodeid.startswith(name))
        return next(found, len(LONGEST))

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Keep that order, and all tests of reports in one process, which share costly fixtures."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Folders(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            folder = "tests/reports/"
            return folder if nodeid.startswith(folder) else super()._split_scope(nodeid)

    config.option.loadscopereorder = False
    return Folders(config, log)


#: WebGL2 without a graphics card.
_ARGUMENTS = [
    *("--no-sandbox", "--disable-dev-shm-usage", "--ignore-gpu-blocklist"),
    *("--enable-unsafe-swiftshader", "--use-angle=swiftshader"),
]
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Start every test with one thread and the same seed; a run of the app may change both."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_logger() -> Iterator[None]:
    """Let caplog see the app's log, and restore the logger, which a run of the app configures."""
    logger = logging.getLogger("hyps_bids")
    handlers, propagate, level = logger.handlers, logger.propagate, logger.level
    logger.handlers, logger.propagate = [], True
    # A fixture of a module may have run the app before.
    logger.setLevel(logging.NOTSET)
    yield
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def demo_bids() -> Path:
    """The BIDS dataset that comes with the package; tests must not write to it."""
    return Path(hyps_bids.__file__).parent / "data" / "demo"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Data too large for the project; tests that use it are marked ``shared``."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("larger check skipped: there is no ../shared/data beside the project")
    return folder


@pytest.fixture(scope="session")
def coarse_head(demo_bids: Path) -> nib.Nifti1Image:
    """The whole head of the demo, resampled to 2 mm to be quick to process."""
    head = nib.load(demo_bids / "sub-0001/anat/sub-0001_T1w.nii.gz")
    coarse = nibabel.processing.resample_to_output(head, voxel_sizes=2, order=1)
    image = nib.Nifti1Image(np.asarray(coarse.dataobj, dtype=np.int16), coarse.affine)
    image.set_qform(coarse.affine, code=1)
    image.set_sform(coarse.affine, code=1)
    return image


@pytest.fixture(scope="session")
def _answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("answers")


@pytest.fixture(scope="module")
def networks_once(_answers: Path) -> Iterator[None]:
    """Let networks compute each volume once, for modules that are about what is around them.

    Runs of the app in this process, and the workers that it forks, share the answers.
    """
    from hyps_bids.segmentation.openvino_inference import OpenVinoNetwork
    from tests.remembering import remembered

    def key(network: OpenVinoNetwork, batch: np.ndarray) -> object:
        return network.labels, [float(w.sum()) for w in network._state.values()], batch

    with pytest.MonkeyPatch.context() as patch:
        predict = remembered(OpenVinoNetwork.predict, _answers, key)
        patch.setattr(OpenVinoNetwork, "predict", predict)
        yield


@pytest.fixture(scope="session")
def validator() -> str:
    """Path of bids-validator-deno; this environment takes precedence over the search path."""
    path = sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"]
    found = shutil.which("bids-validator-deno", path=path)
    if found is None:
        pytest.skip("bids-validator-deno is not installed")
    return found


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """A headless Chromium; tests that need it are skipped where there is none."""
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("browser tests skipped: playwright is not installed")
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.skip("browser tests skipped: no Chromium on the search path")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_ARGUMENTS)
        yield browser
        browser.close()
