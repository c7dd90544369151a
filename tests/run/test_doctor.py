"""The checks one by one on made-up machines, and the command on this one."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from stylora.run import doctor as page
from stylora.run.doctor import Check


def test_this_machine_is_fit(command):
    ran = command("doctor", "--json")
    found = json.loads(ran.out)
    checks = {check["name"]: check for check in found["checks"]}
    failed = [check for check in found["checks"] if check["status"] == "failure"]
    assert found["fit"] is (not failed) is (ran.code == 0)
    assert checks["torch"]["found"].startswith(version("torch")) and checks["base tiny"]["status"] == "ok"
    asked = "python|platform|cores|memory|disk|torch build|device|bf16|HF_ENDPOINT|hub cache|token cache|tokenizers|transformers|peft"
    assert set(asked.split("|")) <= set(checks)
    assert all(bool(check["do"]) == (check["status"] != "ok") for check in found["checks"])


def test_a_missing_package_fails_and_nothing_that_needs_it_is_tried(command, monkeypatch):
    monkeypatch.setattr(page, "packages", lambda: [Check("peft", "failure", "not installed", "pip install 'peft>=0.21'")])
    monkeypatch.setattr(page, "machine", lambda: pytest.fail("tried"))
    ran = command("doctor")
    assert ran.code == 1 and "failure peft" in ran.out and "→ pip install 'peft>=0.21'" in ran.out
    assert json.loads(command("doctor", "--json").out)["fit"] is False


@pytest.mark.parametrize(
    ("installed", "status"), [("0.21.0", "ok"), ("0.22.0.dev0", "ok"), ("2.13.0+cpu", "ok"), ("0.20.9", "failure"), (None, "failure")]
)
def test_packages_against_their_minimum(installed, status):
    check = page.package(Requirement("peft>=0.21"), installed)
    assert check.status == status and ("pip install 'peft>=0.21'" in check.do) == (status == "failure")


def test_packages_are_those_of_the_metadata_without_extras():
    named = {check.name for check in page.packages()}
    assert {"torch", "transformers", "peft", "typer"} <= named and "pytest" not in named


def test_geforce_cards_cannot_copy_to_each_other():
    cards = [("NVIDIA GeForce RTX 4090", 24 << 30)] * 2
    *two, told = page.graphics_cards(cards, {})
    assert [check.found for check in two] == ["NVIDIA GeForce RTX 4090, 24.0 GiB"] * 2
    assert told.status == "warning" and "NCCL_P2P_DISABLE=1 NCCL_IB_DISABLE=1" in told.do
    assert list(page.graphics_cards(cards, {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"}))[-1].status == "ok"
    assert len(list(page.graphics_cards(cards[:1], {}))) == 1
    assert len(list(page.graphics_cards([("NVIDIA H200", 141 << 30)] * 8, {}))) == 8


def test_machines_that_will_be_slow_or_full():
    assert page.memory(1 << 30, 8 << 30).status == "warning" and page.memory(4 << 30, 8 << 30).status == "ok"
    assert page.torch_build("2.13.0+cpu", None, nvidia=True).status == "warning"
    assert page.torch_build("2.13.0+cpu", None, nvidia=False).status == "ok"
    assert page.torch_build("2.13.0+cu130", "13.0", nvidia=True).status == "ok"
    assert [page.parallelism(value).status for value in (None, "true", "1", "false", "0", "Off")] == ["ok"] * 3 + ["warning"] * 3
    assert [check.status for check in page.hub("https://hf-mirror.com", offline=True)] == ["ok", "warning"]


def test_caches_are_measured_and_tried(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(bytes(1 << 20))
    assert page.folder("c", tmp_path, do="x") == Check("c", "ok", f"{tmp_path}, 0.00 GiB")
    assert page.folder("c", tmp_path / "not" / "yet", do="x").status == "ok" and not (tmp_path / "not").exists()
    assert list(tmp_path.iterdir()) == [tmp_path / "a"], "trying leaves nothing behind"

    def read_only(dir: Path):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(page.tempfile, "TemporaryFile", read_only)
    check = page.folder("c", tmp_path, do="set HF_HOME")
    assert check.status == "failure" and "Read-only file system" in check.found and check.do == "set HF_HOME"


def test_a_base_that_is_not_there_fails(tmp_path, monkeypatch):
    from stylora.model import base
    from stylora.model.device import choose_device

    monkeypatch.setattr(base, "TINY", tmp_path)
    assert page.bundled_base(choose_device()).status == "failure"
