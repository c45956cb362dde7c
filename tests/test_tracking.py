"""wandb as an exporter: what is read back from its offline files is what was logged."""

import json
import struct

import numpy as np
import pytest

from jaxmarl_tad.statistics import iqm, stratified_bootstrap
from jaxmarl_tad.tracking import Tracker, summary

MEMBERS = [{"env": "hallway", "lr": lr, "seed": seed} for lr in (0.1, 0.2) for seed in (3, 5, 8)]
RETURNS = np.asarray([[1, 2, 4, 8, 16, 32], [3, 3, 3, 0.5, np.nan, 1.5]], np.float32)
ABOUT = {
    "name": "try",
    "algorithm": "ippo",
    "members": MEMBERS,
    "config": {"envs": 8, "hidden": [64, 64]},
    "sweep": "sweep-1",
}


def log_all(tracker):
    for number, returns in enumerate(RETURNS):
        tracker.log(number, 100 * (number + 1), {"return": returns, "length": np.full(6, 2.0)})
    tracker.finish()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Everything that two settings, and then six members, left behind, ``{name: run}``."""
    import wandb

    folder = tmp_path_factory.mktemp("run")
    for per_member in (False, True):
        log_all(Tracker(mode="offline", folder=folder, per_member=per_member, **ABOUT))
    wandb.teardown()
    runs = [read(file) for file in (folder / "wandb").glob("offline-run-*/*.wandb")]
    return {run["name"]: run for run in runs}


def read(file):
    """What a ``.wandb`` file holds: a log of protocol buffers in LevelDB's format."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, part, found = file.read_bytes(), 7, b"", {"history": []}
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # too short for a header: the rest of the block is padding
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + 7])
        part += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record, part = Record.FromString(part), b""
            if record.HasField("run"):
                run = record.run
                config = {item.key: json.loads(item.value_json) for item in run.config.update}
                found |= {"name": run.display_name, "group": run.run_group, "config": config}
                found |= {"job_type": run.job_type, "tags": list(run.tags), "id": run.run_id}
            if record.HasField("history"):
                items = record.history.item
                row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
                found["history"].append(row)
    return found


def test_one_run_per_setting_and_one_per_member(files):
    settings = [f"try env=hallway lr={lr}" for lr in (0.1, 0.2)]
    members = [f"try env=hallway lr={m['lr']} seed={m['seed']}" for m in MEMBERS]
    assert sorted(files) == sorted(settings + members)
    assert len({run["id"] for run in files.values()}) == 8
    for name, run in files.items():
        assert (run["group"], run["job_type"]) == ("sweep-1", "ippo")
        assert run["tags"] == ["setting" if name in settings else "member"]
        assert (run["config"]["envs"], run["config"]["hidden"]) == (8, [64, 64])
        assert run["config"]["algorithm"] == "ippo"
    assert files[settings[1]]["config"]["lr"] == 0.2
    assert files[settings[1]]["config"]["seeds"] == [3, 5, 8]
    assert files[members[1]]["config"]["seed"] == 5


def test_a_setting_tells_of_its_seeds_together(files):
    for name, own in (("try env=hallway lr=0.1", slice(3)), ("try env=hallway lr=0.2", slice(3, 6))):
        history = files[name]["history"]
        assert [row["_step"] for row in history] == [100, 200]
        assert [row["evaluation"] for row in history] == [0, 1]
        for row, returns in zip(history, RETURNS[:, own], strict=True):
            told = {key: value for key, value in row.items() if key.startswith("return/")}
            finite = returns[np.isfinite(returns)].astype(float)
            low, high = stratified_bootstrap(finite)
            expected = {
                "return/mean": finite.mean(),
                "return/iqm": iqm(finite),
                "return/iqm_low": low,
                "return/iqm_high": high,
                "return/min": finite.min(),
                "return/max": finite.max(),
            }
            if len(finite) < 3:
                expected["return/not_finite"] = 1
            assert told == pytest.approx(expected)
            assert row["length/mean"] == 2


def test_a_member_tells_of_itself(files):
    history = files["try env=hallway lr=0.2 seed=3"]["history"]
    assert [row["return"] for row in history] == [8, 0.5]
    diverged = files["try env=hallway lr=0.2 seed=5"]["history"]
    assert diverged[0]["return"] == 16
    assert not isinstance(diverged[1]["return"], float) or np.isnan(diverged[1]["return"])


def test_a_summary_of_nothing_finite_says_so():
    assert summary([np.nan, np.inf]) == {"not_finite": 2}
    assert summary([2.0])["iqm_high"] == 2


@pytest.mark.parametrize("where", ["init", "log"])
def test_a_failure_warns_once_and_training_goes_on(where, tmp_path, monkeypatch):
    import wandb

    class Broken:
        def log(self, row, step):
            raise OSError("no space\nleft on device")

        def finish(self):
            pass

    def init(**_):
        if where == "init":
            raise wandb.errors.UsageError("not logged in")
        return Broken()

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "setup", lambda settings: None)
    with pytest.warns(UserWarning, match="wandb failed and is not used any more: no") as caught:
        log_all(Tracker(mode="online", folder=tmp_path, **ABOUT))
    assert len(caught) == 1
