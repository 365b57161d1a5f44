"""Data files: a checkout's own come first, an installed package has a copy."""

import pytest

from pipeinfer import assets


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with its copy of one file, and other people's folders beside it."""
    package = tmp_path / "pipeinfer"
    for root in (package / "_data", tmp_path):
        (root / "workloads").mkdir(parents=True)
        (root / "workloads" / "sweep.toml").touch()
    monkeypatch.setattr(assets, "PACKAGE", package)
    return package


def test_an_installed_package_finds_its_own_copy(package):
    assert assets.asset("workloads/sweep.toml") == package / "_data" / "workloads" / "sweep.toml"


def test_a_checkout_comes_first(package):
    (package.parent / "pyproject.toml").touch()
    assert assets.asset("workloads/sweep.toml") == package.parent / "workloads" / "sweep.toml"


@pytest.mark.usefixtures("package")
def test_what_is_nowhere_is_named():
    with pytest.raises(FileNotFoundError, match=r"'workloads/other\.toml' in .*_data"):
        assets.asset("workloads/other.toml")
