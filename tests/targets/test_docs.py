"""The page of targets has the targets, schemes, devices and opsets that the tables have."""

import re

from qcompile.targets import TARGETS
from tests.assets import ROOT

PAGE = (ROOT / "docs" / "targets.md").read_text("utf-8")
OPTIONS = {
    "int8": "--int8",
    "int8-dynamic": "--dynamic",
    "weight-only": "--int4",
    "fp8": "--fp8",
    "fp16": "--fp16",
    "bf16": "--bf16",
}


def rows() -> dict[str, list[str]]:
    found = re.findall(r"^\| `([\w-]+)` \| (.*--.*) \|$", PAGE.partition("\n## ")[0], re.MULTILINE)
    return {name: cells.split(" | ") for name, cells in found}


def test_schemes_and_opsets():
    for name, target in TARGETS.items():
        schemes, _, opset, *_ = rows()[name]
        assert re.findall(r"`(--\S+)`", schemes) == [OPTIONS[s] for s in target.schemes()], name
        assert int(opset) == target.opset, name
    assert rows().keys() == TARGETS.keys()


def test_devices():
    for name, target in TARGETS.items():
        told = rows()[name][1]
        if not target.devices:
            assert told == "any"
            continue
        option, *names = re.findall(r"[\w-]+", " ".join(re.findall(r"`(.*?)`", told)))
        assert option == target.device_option
        known = list(target.devices)
        assert names == known or names == [known[1], known[-1]], name  # from the first to the last
