"""A SLURM of one node that lives in a folder: its daemons are started and stopped here and touch no other."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
# Debian keeps daemons where a user's search path does not lead.
os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])

CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=20
SlurmctldPort={controller}
SlurmdPort={node}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
KillWait=10
JobRequeue=0
SlurmctldParameters=idle_on_node_suspend
SchedulerParameters=batch_sched_delay=1,sched_interval=5,bf_interval=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Say why there can be no SLURM here, None if there can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"needs a SLURM, and {missing[0]} is not installed (apt-get install slurm-wlm munge)"
    return None if os.getuid() == 0 else "starts the daemons of SLURM, which needs root"


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Slurm:
    """The daemons; ``environment`` leads SLURM's commands to them."""

    def __init__(self, folder: Path, cpus: int = 1):
        self.folder = folder
        self._daemons: list[subprocess.Popen] = []
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        for name in ("state", "spool", "munge"):
            (folder / name).mkdir(parents=True)
        text = CONFIGURATION.format(
            host=socket.gethostname().partition(".")[0],
            user=pwd.getpwuid(os.getuid()).pw_name,
            folder=folder,
            controller=_free_port(),
            node=_free_port(),
            cpus=cpus,
        )
        (folder / "slurm.conf").write_text(text)

    def __enter__(self) -> Slurm:
        try:
            self._start_munge()
            self._start("slurmctld", "-D", "-i")
            self._start("slurmd", "-D")
            self.wait_for(lambda: "idle" in self.ask("sinfo", "-h", "-o", "%T"), 60, "an idle node")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(Exception):
            self.ask("scancel", "--signal=KILL", "--state=RUNNING", "--user", pwd.getpwuid(os.getuid()).pw_name)
            self.ask("scancel", "--user", pwd.getpwuid(os.getuid()).pw_name)
            self.wait_for(lambda: not self.ask("squeue", "-h").strip(), 30, "an empty queue")
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _start_munge(self) -> None:
        folder, user = self.folder / "munge", pwd.getpwnam("munge")
        key = folder / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        for path in (folder, key):
            os.chown(path, user.pw_uid, user.pw_gid)
        folder.chmod(0o755)
        for parent in folder.parents:  # munge refuses a socket whose folder not everybody can enter
            if parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)
        files = ("--key-file=key", "--socket=socket", "--pid-file=pid", "--log-file=log", "--seed-file=seed")
        options = [f"{option}={folder / name}" for option, name in (file.split("=") for file in files)]
        self._start("munged", "--foreground", *options, user=user.pw_uid, group=user.pw_gid, extra_groups=[])
        self.wait_for((folder / "socket").exists, 20, "munge's socket")

    def _start(self, program: str, *words: str, **options: object) -> None:
        log = (self.folder / f"{program}.out").open("wb")
        environment = {**os.environ, **self.environment}
        self._daemons.append(
            subprocess.Popen(
                [program, *words], stdout=log, stderr=log, env=environment, start_new_session=True, **options
            )
        )

    def ask(self, *words: str) -> str:
        """Run a command of SLURM and give what it prints."""
        return subprocess.run(
            words, env={**os.environ, **self.environment}, capture_output=True, text=True, check=False, timeout=60
        ).stdout

    def wait_for(self, is_so, seconds: float, what: str) -> None:
        """Wait until something is so; fail with the daemons' logs if that takes too long."""
        deadline = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > deadline:
                logs = [path.read_text(errors="replace")[-2000:] for path in sorted(self.folder.glob("*.[lo][ou][gt]"))]
                raise AssertionError(f"waited {seconds} s for {what}\n" + "\n".join(logs) + self.ask("squeue"))
            time.sleep(0.5)


def stamp(folder: Path, number: int) -> None:
    """Write when this began and ended; what a job does."""
    begun = time.time()
    time.sleep(0.2)
    (folder / str(number)).write_text(f"{begun} {time.time()}")
