"""A Ray cluster that was started as the guide says: with a token, by one command per machine."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from studies import quiet, same_study, tiny_choices
from waiting import PATIENCE, once_there

from fasttransfer.training import grid
from fasttransfer.training.study_plan import command_words

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "clusters.md"
RAY = Path(sys.executable).with_name("ray")


@contextmanager
def start_machine(command: list[str], environment: dict[str, str]) -> Iterator[Callable[[], None]]:
    """Run `ray start` as a machine of a cluster; yield a function that kills all of it at once."""
    command = [str(RAY), *command[1:], "--block", "--num-cpus", "1", "--disable-usage-stats"]
    machine = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )

    def kill() -> None:
        os.killpg(machine.pid, signal.SIGKILL)

    assert machine.stdout is not None
    try:
        lines = []
        for line in machine.stdout:
            lines.append(line)
            if "Ray runtime started" in line:
                break
        assert lines and "Ray runtime started" in lines[-1], "".join(lines)
        yield kill
    finally:
        if machine.poll() is None:
            kill()
        machine.communicate()


def test_a_cluster_started_by_the_guide_trains_a_study_and_loses_nothing_with_a_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not RAY.exists():
        pytest.skip("the extra ray is not installed")
    name, value = re.findall(r"^export (RAY_AUTH_MODE)=(\w+) +#", GUIDE.read_text(), re.MULTILINE)[0]
    token, head, member = re.findall(r"^ray (.+?) +#", GUIDE.read_text(), re.MULTILINE)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "RAY_TMPDIR": "/tmp"}
    machine = environment | {name: value}
    choices = tiny_choices(tmp_path, layers=(2,), treatments=("transfer", "selffer+"), steps=100)
    out = tmp_path / "run"
    subprocess.run([RAY, *token.split()], env=machine, check=True, capture_output=True)
    with ExitStack() as machines:
        start = ["ray", *head.split(), "--port", address.rpartition(":")[2], "--include-dashboard", "false"]
        machines.enter_context(start_machine(start, machine))
        start = ["ray", *re.sub(r"--address=\S+", f"--address={address}", member).split()]
        kill = machines.enter_context(start_machine(start, machine))
        with once_there(out, "weights/base*", kill):
            words = [*command_words(choices), "--engine", "ray", "--out", str(out)]
            ran = subprocess.run(
                [sys.executable, "-m", "fasttransfer", *words],
                env=environment | {"RAY_ADDRESS": address},
                capture_output=True,
                text=True,
                timeout=PATIENCE,
            )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    monkeypatch.setenv("HOME", str(tmp_path))
    assert grid.run(choices, tmp_path / "undisturbed", console=quiet())
    same_study(tmp_path / "undisturbed", out)
