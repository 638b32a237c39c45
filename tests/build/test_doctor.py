"""What the doctor says about a machine."""

import io

import pytest
from rich.console import Console

from sana_build import bundle, doctor
from sana_runtime.errors import ConfigError


def findings() -> dict[str, doctor.Finding]:
    return {finding.part: finding for finding in doctor.inspect()}


def test_this_machine_can_build_and_serve() -> None:
    found = findings()
    assert found["torch"].ok
    assert found["triton server"].ok
    assert "stub for Python 3." in found["triton server"].found


def test_missing_part_comes_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor, "version", lambda name: "0.50.0")
    output = io.StringIO()
    doctor.render(doctor.inspect(), Console(file=output, width=200))
    assert f"pip install --no-deps {bundle.WHEEL}" in output.getvalue()
    assert "install diffusers 0.42.1" in output.getvalue()


def test_machine_without_libpython_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(bundle.sysconfig, "get_config_var", {"py_version_short": "3.11"}.get)
    monkeypatch.setattr(bundle.sys, "base_prefix", str(tmp_path))
    monkeypatch.setattr(bundle, "find_library", lambda name: None)
    with pytest.raises(ConfigError, match=r"no libpython3\.11\.so\.1\.0 on this machine"):
        bundle.find_libpython()
