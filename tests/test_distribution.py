"""Training on several devices and hosts: real runs, in processes of their own."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import adversarial_training
from utils.errors import InputError
from utils.tasks import overrides
from utils.training.devices import Sharing, _jax_devices

PROJECT = Path(__file__).parents[1]
SETTINGS = {"BASE_FILTERS": 2, "BATCH_SIZE": 4, "EPOCH": 2, "STEPS_PER_EPOCH": 6, "VALIDATION_B_SCANS": 3}
SETTINGS |= {"SAVE_MINUTES": 1e-6, "DROP_HEALTHY": 0.5}

# Host 1 writes nothing by itself; this makes it leave its weights.
LEAVE_WEIGHTS = """
import sys, numpy, utils.training.run
path, *sys.argv = sys.argv[1:]
end_epoch = utils.training.run.TrainingRun.end_epoch
def end_and_leave(run, *arguments):
    row = end_epoch(run, *arguments)
    numpy.savez(path, *[numpy.asarray(variable) for variable in run.variables])
    return row
utils.training.run.TrainingRun.end_epoch = end_and_leave
import model_training
model_training.main(sys.argv[1:])
"""


def start(*command, backend, **settings):
    return subprocess.Popen(
        [sys.executable, *map(str, command), *overrides(settings)],
        cwd=PROJECT,
        env={**os.environ, "KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": "-1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, expected=0):
    printed, _ = process.communicate(timeout=280)
    assert process.returncode == expected, printed
    return printed


def test_of_each_hosts_gpus_as_many_are_taken_as_asked_for():
    found = [SimpleNamespace(platform="gpu", id=number, process_index=number // 3) for number in range(6)]
    assert _jax_devices(found, 2) == ["gpu:0", "gpu:1", "gpu:3", "gpu:4"]


@pytest.mark.usefixtures("set_config")
def test_fine_tuning_is_host_0s():
    settings = {"HOSTS": 2, "HOST": 1, "COORDINATOR": "first-host:5000"}
    with pytest.raises(InputError, match=r"config\.HOST = 1: adversarial training runs on host 0 alone"):
        adversarial_training.main(overrides(settings))


def test_hosts_agree_on_what_has_no_value_and_on_what_is_not_a_number(monkeypatch):
    values, of_host_0 = {"val_dice_srf": None, "val_loss": 0.2, "val_dice": 0.5}, [0.0, np.nan, 0.6]
    monkeypatch.setattr("jax.experimental.multihost_utils.broadcast_one_to_all", lambda _: np.array(of_host_0))
    agreed = Sharing(hosts=2, host=1).agreed(values)
    assert agreed["val_dice_srf"] is None
    assert np.isnan(agreed["val_loss"])
    assert agreed["val_dice"] == 0.6
    assert Sharing().agreed(values) is values


def train(backend, **settings):
    """Train; returns the log as a DataFrame."""
    finish(start("model_training.py", backend=backend, **settings))
    return pd.read_csv(folder_of(settings) / "log.csv")


def folder_of(settings):
    return settings["OUTPUT_ROOT"] / "runs" / settings["RUN_NAME"] / "segmentation"


def arrays(path):
    with np.load(path) as stored:
        return [stored[name] for name in stored.files]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    settings = {**SETTINGS, "DATA_ROOT": folder / "data", "OUTPUT_ROOT": folder / "output"}
    sizes = ("--cases", 12, "--slices", 2, "--seed", 4)
    finish(start("-m", "utils.phantom", "--output", folder / "data", *sizes, backend="tensorflow"))
    finish(start("prepare_data.py", backend="tensorflow", **settings))
    return settings


@pytest.fixture(scope="module")
def alone(prepared):
    """The log of one process with one device, on JAX."""
    return train("jax", **prepared, RUN_NAME="alone")


def host_commands(settings):
    """Settings of two hosts that find each other at a free port."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    return [{**settings, "HOSTS": 2, "HOST": host, "COORDINATOR": coordinator} for host in (0, 1)]


@pytest.mark.slow
@pytest.mark.ci
def test_two_devices_on_jax_train_as_one(prepared, alone):
    log = train("jax", **prepared, RUN_NAME="jax2", DEVICES=2)
    np.testing.assert_allclose(log.loss, alone.loss, rtol=1e-4)
    np.testing.assert_allclose(log.val_loss, alone.val_loss, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.ci
def test_two_devices_on_tensorflow_share_the_loss(prepared):
    """Known mistake: a loss that is one number for the batch counted once for every replica. Dice is each replica's."""
    one = train("tensorflow", **prepared, RUN_NAME="tensorflow1", EMA_MOMENTUM=0.9)
    two = train("tensorflow", **prepared, RUN_NAME="tensorflow2", EMA_MOMENTUM=0.9, DEVICES=2)
    np.testing.assert_allclose(two.loss, one.loss, atol=0.15)


@pytest.mark.slow
def test_two_hosts_hold_equal_weights_and_train_as_one(prepared, alone, tmp_path):
    settings = {**prepared, "RUN_NAME": "hosts"}
    hosts = [
        start("-c", LEAVE_WEIGHTS, tmp_path / f"{number}.npz", "model_training.py", backend="jax", **host)
        for number, host in enumerate(host_commands(settings))
    ]
    for host in hosts:
        finish(host)
    for first, second in zip(arrays(tmp_path / "0.npz"), arrays(tmp_path / "1.npz"), strict=True):
        np.testing.assert_array_equal(first, second)
    log = pd.read_csv(folder_of(settings) / "log.csv")
    # The same patches, except at most one of each block, so nearly the same batches.
    np.testing.assert_allclose(log.loss, alone.loss, atol=0.1)
    np.testing.assert_allclose(log.val_loss, alone.val_loss, atol=0.02)
    fine_tuning = {**host_commands(settings)[0], "ADVERSARIAL_EPOCH": 1, "D_BASE_FILTERS": 2}
    assert "one host, not on HOSTS = 2" in finish(start("adversarial_training.py", backend="jax", **fine_tuning))


@pytest.mark.slow
def test_a_lost_host_ends_the_other_and_both_go_on_together(prepared):
    settings = {**prepared, "RUN_NAME": "lost", "EPOCH": 30}
    first, second = (start("model_training.py", backend="jax", **host) for host in host_commands(settings))
    while len(list(folder_of(settings).glob("last-*.json"))) < 2:
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.2)
    second.send_signal(signal.SIGKILL)
    second.communicate()
    assert "another host stopped" in finish(first, expected=2)
    reached = max(path.stem for path in folder_of(settings).glob("last-*.json"))
    settings["EPOCH"] = int(reached.split("-")[1]) + 1
    again = [start("model_training.py", backend="jax", **host) for host in host_commands(settings)]
    printed = [finish(host) for host in again]
    assert "continuing after epoch" in printed[0]
    assert len(pd.read_csv(folder_of(settings) / "log.csv")) == settings["EPOCH"]
