"""Installed from a wheel or editable, fisherlab finds its configs and runs from any folder."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
OFFLINE = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index"]


def run(*command: object, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(*PIP, "wheel", *OFFLINE, "--wheel-dir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture
def clean(tmp_path) -> Path:
    """A virtual environment that has this one's packages (torch is not installed again), but not its fisherlab."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    # A path inside a .pth file adds the folder alone: the editable install's own .pth file there is not followed.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (tmp_path / "elsewhere").mkdir()
    return tmp_path


def check_installed(clean: Path, configs: Path) -> None:
    program, python, elsewhere = clean / "venv/bin/fisherlab", clean / "venv/bin/python", clean / "elsewhere"
    found = run(python, "-c", "from fisherlab.config import conf_dir; print(conf_dir())", cwd=elsewhere)
    assert Path(found.strip()) == configs.resolve()
    for kind in ("dataset", "model", "optimizer"):
        listed = run(program, "list", kind, cwd=elsewhere).split("\n")
        for path in (ROOT / "conf" / kind).glob("*.yaml"):
            assert any(line.startswith(f"  {path.stem} ") for line in listed)
    assert "_target_: fisherlab.optim.KFAC" in run(program, "train", "--cfg", "job", cwd=elsewhere)
    assert "usage" not in run(program, cwd=elsewhere)
    assert not list(elsewhere.iterdir())


def test_the_wheel_has_code_and_configs_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert f"fisherlab/conf/{path.relative_to(ROOT / 'conf')}" in names
    assert "fisherlab/cli.py" in names
    assert {name.split("/")[0].partition("-")[0] for name in names} <= {"fisherlab", "hydra_plugins"}


def test_an_installed_wheel_runs_from_any_folder(wheel, clean):
    run(*PIP, "--python", clean / "venv/bin/python", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=clean)
    (site,) = (clean / "venv").glob("lib/python*/site-packages")
    check_installed(clean, site / "fisherlab" / "conf")


def test_an_editable_install_runs_from_any_folder(clean):
    run(*PIP, "--python", clean / "venv/bin/python", "install", *OFFLINE, "--editable", ROOT, cwd=clean)
    check_installed(clean, ROOT / "conf")
