"""Several hosts on one machine: each has network, process, mount and name-of-host namespaces of its own.

A host is nothing but a sleeping process in new namespaces; ending that process ends whatever runs there, takes the
network away and unmounts what was mounted. Nothing is named outside, so tests in parallel do not meet.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

#: Seconds after which a host ends by itself, should its test be killed.
LIFETIME = 600


def skip_unless_possible(*programs: str) -> None:
    """Skip the calling test, with the reason, where hosts cannot be made or a program is missing."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("needs root on Linux, to make namespaces")
    for program in ("unshare", "nsenter", "ip", "mount", *programs):
        if shutil.which(program, path=search_path()) is None:
            pytest.skip(f"needs the program {program}")
    probe = subprocess.run(
        [
            "unshare",
            "--net",
            "--uts",
            "--pid",
            "--mount",
            "--ipc",
            "--fork",
            "--mount-proc",
            "mount",
            "-t",
            "tmpfs",
            "tmpfs",
            "/run",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.returncode:
        pytest.skip(f"needs namespaces and mounts, which are not allowed here: {probe.stderr.strip()}")


def search_path() -> str:
    """Where programs lie, those of administrators included."""
    return f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"


class Hosts:
    """Hosts `node1` (10.77.0.1), `node2`, … that reach each other, with private /run and /dev/shm.

    Args:
        folder: for their files; it and the rest of the file system are seen by all of them.
        count: how many.
    """

    def __init__(self, folder: Path, count: int = 2) -> None:
        self.folder = folder
        self.names = [f"node{number}" for number in range(1, count + 1)]
        self.variables: dict[str, str] = {}  # for everything that runs on the hosts
        self._sleepers: list[subprocess.Popen[bytes]] = []
        self._inside: list[int] = []
        self._started: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Hosts:
        table = self.folder / "hosts"
        table.write_text("127.0.0.1 localhost\n" + "".join(f"{self.address(n)} {n}\n" for n in self.names))
        try:
            for name in self.names:
                self._create()
                setup = (
                    f"hostname {name}; mount --bind {table} /etc/hosts; mount -t tmpfs tmpfs /run; mkdir /run/sshd;"
                    "mount -t tmpfs tmpfs /dev/shm; ip link set lo up"
                )
                self.run(name, ["sh", "-ec", setup])
            self._wire()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for sleeper in self._sleepers:
            sleeper.kill()  # its child, the first process of the host, goes with it, and with that one all others
        for process in [*self._sleepers, *self._started]:
            process.wait(30)

    def address(self, name: str) -> str:
        """A host's address."""
        return f"10.77.0.{self.names.index(name) + 1}"

    def command(self, name: str, command: Sequence[str]) -> list[str]:
        """What runs a command on a host."""
        inside = self._inside[self.names.index(name)]
        return ["nsenter", "-t", str(inside), "-n", "-u", "-p", "-m", "-i", "--", *command]

    def run(self, name: str, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run to its end; a failure shows the output."""
        done = subprocess.run(
            self.command(name, command),
            env={**environment(), **self.variables},
            capture_output=True,
            text=True,
            check=False,
            **options,
        )
        assert done.returncode == 0, f"{command} on {name}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def start(
        self, name: str, command: Sequence[str], log: Path, extra: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start, with what it says in a file."""
        with log.open("a") as file:
            process = subprocess.Popen(
                self.command(name, command),
                env={**environment(), **self.variables, **(extra or {})},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def wait(self, process: subprocess.Popen[str], seconds: float = 400.0) -> int:
        """Exit code of what `start` started.

        Where something has stopped it for a while (SIGSTOP) and let it go on, the program around it is still stopped.
        """

        def ended() -> bool:
            process.send_signal(signal.SIGCONT)
            return process.poll() is not None

        wait_for("end of a program", ended, seconds)
        return process.returncode

    def signal(self, process: subprocess.Popen[str], number: int) -> None:
        """Send a signal to what `start` started: the child of the program that went into the host."""
        os.kill(int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()), number)

    def kill_trainer(self, name: str) -> None:
        """SIGKILL for the oldest process on a host that trains."""
        words = "^[^ ]*python[0-9.]* -u -m jmp_ds.cli pretrain"
        found = self.run(name, ["pgrep", "-o", "-f", words])
        self.run(name, ["kill", "-9", found.stdout.strip()])

    def serve_ssh(self) -> None:
        """Every host lets root of every host in, by a key made for the occasion."""
        key, config, server = (self.folder / name for name in ("key", "ssh_config", "sshd_config"))
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        config.write_text(
            f"Host *\n IdentityFile {key}\n StrictHostKeyChecking no\n UserKnownHostsFile /dev/null\n LogLevel ERROR\n"
        )
        server.write_text(
            f"HostKey {key}\nAuthorizedKeysFile {key}.pub\nStrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\n"
        )
        sshd = shutil.which("sshd", path=search_path())
        for name in self.names:
            self.run(name, ["mount", "--bind", str(config), "/etc/ssh/ssh_config"])
            self.start(name, [str(sshd), "-D", "-e", "-f", str(server)], self.folder / f"sshd_{name}.log")
        for name in self.names:
            wait_for(f"sshd of {name}", lambda name=name: self._answers(name), 10)

    def _answers(self, name: str) -> bool:
        call = self.command(self.names[0], ["ssh", name, "true"])
        return subprocess.run(call, env=environment(), capture_output=True, check=False).returncode == 0

    def _create(self) -> None:
        """Start a host's first process and find it."""
        new = ["--net", "--uts", "--pid", "--mount", "--ipc", "--fork", "--kill-child", "--mount-proc"]
        sleeper = subprocess.Popen(["unshare", *new, "sleep", str(LIFETIME)], start_new_session=True)
        self._sleepers.append(sleeper)
        children = Path(f"/proc/{sleeper.pid}/task/{sleeper.pid}/children")
        wait_for("first process of a host", lambda: children.read_text().strip() != "", 10)
        child = int(children.read_text())
        wait_for("namespaces", lambda: Path(f"/proc/{child}/comm").read_text().strip() == "sleep", 10)
        self._inside.append(child)

    def _wire(self) -> None:
        """A bridge in the first host, a cable from every other one to it."""
        first = self.names[0]
        lines = [
            "ip link add switch type bridge",
            "ip link set switch up",
            f"ip addr add {self.address(first)}/24 dev switch",
        ]
        for number in range(1, len(self.names)):
            there = self._inside[number]
            lines.append(f"ip link add port{number} type veth peer name eth0 netns {there}")
            lines.append(f"ip link set port{number} master switch up")
        # the other host's process is named by its number outside: enter the network alone
        subprocess.run(["nsenter", "-t", str(self._inside[0]), "-n", "sh", "-ec", "\n".join(lines)], check=True)
        for name in self.names[1:]:
            self.run(name, ["sh", "-ec", f"ip addr add {self.address(name)}/24 dev eth0; ip link set eth0 up"])


def environment() -> dict[str, str]:
    """What programs on a host see: this process's variables, one thread, and administrators' programs."""
    return {**os.environ, "PATH": search_path(), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def wait_for(what: str, condition: Any, seconds: float = 120.0) -> None:
    """Wait until a condition holds; fail after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"no {what} after {seconds} s"
        time.sleep(0.1)
