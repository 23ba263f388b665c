"""A bank: what it is of, how it is opened, and how it changes."""

import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
from commits import commit

from training import bank as bank_module
from training.arm import Arm, ArmSpec, Rows
from training.bank import Bank, Manifest, Panel, require_space
from training.errors import UserError
from training.store import Store

SPEC = ArmSpec("main", 6, 4, 2, 0, 0, {"kind": "bernoulli", "alpha": 0.5, "replicates": 1})


def make_manifest(**changes):
    fields = {
        "identity": "0123456789abcdef",
        "parts": {"data": "0123", "numerics": {"width": 8}},
        "arms": {"main": SPEC},
        "example_ids": (3, 1, 4, 2),
        "target_ids": ("train:3", "clean:9"),
        "panels": (Panel(2, "abcd"),),
        "made_with": {"jax": "0.0"},
    }
    return Manifest(**{**fields, **changes})


def test_a_bank_comes_back_as_it_was_made(tmp_path):
    made = Bank.create(tmp_path / "run", make_manifest())
    rows = Rows(np.eye(6, 4, dtype=bool), np.ones((6, 2), np.float32) / 3, np.zeros(6, np.uint8))
    for unit in range(3):
        commit(made.arm("main"), unit, rows)
    opened = Bank.open(tmp_path / "run")
    assert opened.manifest == make_manifest()
    assert opened.example_ids.tolist() == [3, 1, 4, 2]
    assert opened.target_ids == ("train:3", "clean:9")
    for stored, written in zip(opened.arm("main").read(), rows, strict=True):
        np.testing.assert_array_equal(stored, written)


def test_who_comes_second_gets_the_bank_of_the_first(tmp_path):
    Bank.create(tmp_path, make_manifest())
    second = Bank.create(tmp_path, make_manifest(identity="another"))
    assert second.manifest.identity == "0123456789abcdef"


def test_of_many_at_once_one_makes_the_bank_and_all_get_it(tmp_path):
    found = []
    threads = [
        threading.Thread(
            target=lambda i=i: found.append(Bank.create(tmp_path, make_manifest(identity=str(i))))
        )
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({bank.manifest.identity for bank in found}) == 1
    assert len(found) == 8


def test_changes_by_many_at_once_are_all_kept(tmp_path):
    bank = Bank.create(tmp_path, make_manifest(arms={}))

    def add(name):
        Bank.open(tmp_path).changed(
            lambda m: replace(m, arms=m.arms | {name: replace(SPEC, name=name)})
        )

    threads = [threading.Thread(target=add, args=(f"arm{i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(Bank.open(tmp_path).arms) == [f"arm{i}" for i in range(6)]
    assert bank.arms == {}


def test_no_bank_and_no_arm_are_named(tmp_path):
    assert Bank.find(tmp_path) is None
    with pytest.raises(UserError, match="holds no bank"):
        Bank.open(tmp_path)
    bank = Bank.create(tmp_path, make_manifest())
    with pytest.raises(UserError, match="has no arm extra; it has main"):
        bank.arm("extra")


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"garbage"])
def test_a_damaged_manifest_is_named(tmp_path, content):
    Bank.create(tmp_path, make_manifest())
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        Bank.open(tmp_path)


def test_a_bit_flipped_anywhere_in_the_manifest_changes_nothing_or_is_refused(tmp_path):
    Bank.create(tmp_path, make_manifest())
    path = tmp_path / "manifest.json"
    content = path.read_bytes()
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        try:
            assert Bank.open(tmp_path).manifest == make_manifest()
        except UserError as error:
            assert "manifest.json" in str(error)


def test_a_manifest_of_another_format_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(bank_module, "FORMAT", 99)
        Bank.create(tmp_path / "new", make_manifest())
    with pytest.raises(UserError, match="is of another format"):
        Bank.open(tmp_path / "new")
    (tmp_path / "manifest.json").write_text('{\n "format": 1,\n "identity": ""\n}\n')
    with pytest.raises(UserError, match="is of format 1"):
        Bank.open(tmp_path)


def test_too_little_disk_is_refused_with_the_arithmetic(tmp_path):
    half = shutil.disk_usage(tmp_path).free * 6 // 10 // 4
    specs = [replace(SPEC, members=half, groups=0)] * 2
    store = Store(tmp_path / "bank")
    require_space(store, specs[:1], 1)
    with pytest.raises(UserError, match=r"needs \d*\.\d GB .* GB free; choose another --out"):
        require_space(store, specs, 1)
    assert not (tmp_path / "bank").exists()


def test_arms_know_the_targets_of_every_panel(tmp_path):
    panels = (Panel(2, "abcd"), Panel(3, "ef"))
    bank = Bank.create(tmp_path, make_manifest(panels=panels))
    assert isinstance(bank.arm("main"), Arm)
    assert bank.arm("main").targets == 5
