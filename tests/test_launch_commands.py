"""Command lines of the launchers: what they say, and that words and variables arrive on the other side."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from small_stores import write_finetune, write_pretrain
from typer.testing import CliRunner, Result

from jmp_ds.cli import launch_commands, launching, restarting, train_verbs
from jmp_ds.cli.app import app
from jmp_ds.cli.launch_commands import Command, Flavour, Launcher, Layout
from jmp_ds.cli.launching import execute, launched
from jmp_ds.errors import UserError

WORDS = ["pretrain", "a.yaml", "train={steps: 5}"]
HOSTS = {"a": 2, "b": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launch")
    write_pretrain(folder)
    (folder / "hosts").write_text("# mine\na slots=2\n\nb slots=2\n")
    return folder


def dry(folder: Path, launcher: str, *options: str) -> Result:
    """The commands that would be run."""
    words = ["launch", "--with", launcher, *options, "--dry-run", "--", "pretrain", str(folder / "pretrain.yaml")]
    return CliRunner().invoke(app, words)


def test_local() -> None:
    words = launch_commands.local(WORDS, 2, 12345).words
    assert words[:3] == (sys.executable, "-m", "deepspeed.launcher.runner")
    assert words[-5:] == ("--module", "jmp_ds.cli", *WORDS)
    assert " ".join(words).count("--num_accelerators 2 --master_port 12345") == 1


def test_dry_runs_print_commands_that_a_shell_reads_back(folder: Path) -> None:
    said = dry(folder, "hostfile", "--hostfile", str(folder / "hosts")).stdout
    words = (
        rf"--hostfile {re.escape(str(folder))}/run/launch/hostfile --force_multi --master_addr a --master_port \d{{5}} "
    )
    assert re.search(words, said)
    assert f"DS_ENV_FILE={folder}/run/launch/environment" in said
    assert not (folder / "run").exists()
    said = dry(folder, "no-ssh", "--nodes", "2", "--per-node", "4", "--master", "a:123").stdout
    assert "node-0 slots=4\nnode-1 slots=4\nEND\n" in said
    assert [f"--no_ssh --node_rank {i} --master_addr a --master_port 123" in said for i in range(3)] == [
        True,
        True,
        False,
    ]
    said = dry(folder, "torchrun", "--nodes", "2", "--per-node", "4", "--master", "a:123", "--node-rank", "1").stdout
    assert "--nnodes 2 --nproc_per_node 4 --node_rank 1 --master_addr a --master_port 123" in said
    assert said.count("torch.distributed.run") == 1
    said = dry(folder, "srun", "--nodes", "2", "--per-node", "4").stdout
    assert "srun --kill-on-bad-exit=1 --nodes=2 --ntasks-per-node=4 --ntasks=8 " in said
    said = dry(folder, "mpirun", "--hostfile", str(folder / "hosts"), "--per-node", "1").stdout
    assert "-np 2" in said
    assert "a slots=1\nb slots=1\n" in said or "a:1\nb:1\n" in said


def test_srun_takes_what_the_allocation_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    assert "srun --kill-on-bad-exit=1 --cpus-per-task=8 " in dry(folder, "srun").stdout


def test_both_kinds_of_mpirun(tmp_path: Path) -> None:
    layout = Layout(nodes=2, per_node=2, master="a", port=5, hosts=HOSTS)
    environ = {"NCCL_DEBUG": "INFO", "SECRET": "x"}
    made = launch_commands.mpirun(WORDS, layout, tmp_path, environ, Flavour.open_mpi)
    text = " ".join(made.words)
    assert "-np 4 --map-by ppr:2:node --bind-to none --hostfile" in text
    assert "-x MASTER_ADDR=a -x MASTER_PORT=5 -x NCCL_DEBUG=INFO" in text
    assert "SECRET" not in text
    made = launch_commands.mpirun(WORDS, layout, tmp_path, environ, Flavour.hydra)
    assert "-np 4 -ppn 2 -f" in " ".join(made.words)
    assert "-genv MASTER_ADDR a -genv MASTER_PORT 5" in " ".join(made.words)
    assert list(made.files.values()) == ["a:2\nb:2\n"]


def test_every_run_folder_has_a_port_of_its_own(folder: Path) -> None:
    options = ("--nodes", "2", "--per-node", "1", "--master", "a", "--node-rank", "0")
    first = dry(folder, "torchrun", *options).stdout
    words = ["launch", "--with", "torchrun", *options, "--dry-run", "--", "pretrain", str(folder / "pretrain.yaml")]
    other = CliRunner().invoke(app, [*words, f"run.dir={folder / 'other'}"]).stdout
    assert dry(folder, "torchrun", *options).stdout == first  # every machine thinks of the same
    ports = [text.split("--master_port ")[1].split()[0] for text in (first, other)]
    assert ports[0] != ports[1]
    assert all(15000 <= int(port) < 29000 for port in ports)


@pytest.mark.parametrize(
    "word", ["plain", "train={steps: 5}", 'a=["x y"]', "a=$HOME", "a=`b` c", "a=100%n", "x=[1,*]", r"p=a\b c", "q=it's"]
)
def test_words_arrive_through_pdsh(word: str) -> None:
    """DeepSpeed's quoting, pdsh's replacement and a shell, one after the other."""
    passed = launch_commands._through_pdsh(word)
    if " " in passed:
        passed = '"{}"'.format(passed.replace('"', '\\"'))
    passed = passed.replace("%%", "%")
    assert (
        subprocess.run(["bash", "-c", f"printf %s {passed}"], capture_output=True, text=True, check=True).stdout == word
    )


def test_variables_that_are_passed_on(tmp_path: Path) -> None:
    environ = {
        "NCCL_IB_HCA": "mlx5",
        "OMP_NUM_THREADS": "4",
        "RANK": "3",
        "OMPI_X": "1",
        "TORCHELASTIC_RUN_ID": "x",
        "NCCL_BAD": '"',
    }
    assert launch_commands.forwarded(environ) == {"NCCL_IB_HCA": "mlx5", "OMP_NUM_THREADS": "4"}
    (tmp_path / ".deepspeed_env").write_text("# comment\n\nWANDB_MODE=offline\nNCCL_IB_HCA=mine\n")
    own = launch_commands.own_environment({}, tmp_path, tmp_path / "nowhere")
    made = launch_commands.hostfile(WORDS, Layout(hosts=HOSTS), tmp_path, environ, own)
    written = made.files[tmp_path / "environment"].splitlines()
    assert set(written) == {"NCCL_IB_HCA=mine", "OMP_NUM_THREADS=4", "WANDB_MODE=offline"}
    assert all("=" in line for line in written)  # DeepSpeed breaks on an empty line


def test_hostfiles(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    for text, message in (
        ("", "names no host"),
        ("a\n", "hosts:1: 'a' is not"),
        ("a slots=1\na slots=2\n", "hosts:2: .* again"),
        ("a slots=0", "hosts:1"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            launch_commands.read_hostfile(file)
    with pytest.raises(UserError, match="there is no hostfile"):
        launch_commands.read_hostfile(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("launcher", "options", "message"),
    [
        ("hostfile", [], "needs --hostfile FILE"),
        ("local", ["--nodes", "2"], "this machine alone"),
        ("no-ssh", ["--nodes", "2"], "need --master HOST"),
        ("torchrun", ["--nodes", "2", "--master", "a", "--node-rank", "2"], "--node-rank 2 of 2"),
        ("torchrun", ["--nodes", "2", "--master", "a:b"], "HOST or HOST:PORT"),
        ("srun", [], "outside an allocation needs --nodes and --per-node"),
        ("mpirun", ["--hostfile", "HOSTS", "--per-node", "3"], "a has 2 slots"),
        ("mpirun", ["--hostfile", "HOSTS", "--nodes", "3"], "the hostfile names 2"),
    ],
)
def test_mistakes(
    folder: Path, launcher: str, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    result = dry(folder, launcher, *[str(folder / "hosts") if o == "HOSTS" else o for o in options])
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "x"], "launch starts pretrain or finetune, not evaluate"),
        (["pretrain", "a.yaml", "--processes", "2"], "takes only --recipe here, not --processes"),
        (["pretrain", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_what_cannot_be_launched(words: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["launch", *words])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_a_recipe_goes_with_the_verb(folder: Path) -> None:
    write_finetune(folder, "scratch")
    found = train_verbs.prepare(["finetune", str(folder / "finetune.yaml"), "model.preset=tiny", "run.dir=/x"])
    assert found.folders == [Path("/x")]
    with pytest.raises(UserError, match="nothing_like_it"):
        train_verbs.prepare(["finetune", str(folder / "finetune.yaml"), "--recipe", "nothing_like_it"])


def test_a_launched_process_launches_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}.items():
        monkeypatch.setenv(name, value)
    assert launched()
    result = CliRunner().invoke(app, ["pretrain", str(folder / "pretrain.yaml"), "--processes", "2"])
    assert result.exit_code == 2
    assert "(process 1): launch: this process was itself started by a launcher" in " ".join(result.stderr.split())


def outcome_by(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch, node_rank: int = 0, restarts: int = 0) -> int:
    """Exit code of a launch whose launcher runs a piece of Python in the run folder's parent."""
    prepared = train_verbs.Prepared([folder / "run"], "cpu", None, lambda: None, lambda: None, list)
    command = Command(
        words=(sys.executable, "-c", f"import sys, pathlib; run = pathlib.Path({str(folder / 'run')!r}); {code}")
    )
    monkeypatch.setattr(launching, "make_command", lambda *_: command)
    monkeypatch.setattr(restarting, "_LONGEST_PAUSE", 0.001)
    try:
        train_verbs.start(prepared, [], Launcher.local, Layout(nodes=2, node_rank=node_rank), restarts)
    except typer.Exit as end:
        return end.exit_code
    return 0


def test_exit_codes_follow_from_what_this_start_has_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = "from jmp_ds.training.outcome import Outcome; Outcome('{}').write(run)"
    assert outcome_by(write.format("finished"), tmp_path, monkeypatch) == 0
    assert outcome_by("pass", tmp_path, monkeypatch) == 1  # the file is of the time before
    assert outcome_by(write.format("stopped"), tmp_path, monkeypatch) == 3
    assert outcome_by("sys.exit(7)", tmp_path, monkeypatch) == 7
    assert outcome_by(write.format("stopped") + "; sys.exit(1)", tmp_path, monkeypatch) == 3
    assert outcome_by(write.format("failed") + "; sys.exit(9)", tmp_path, monkeypatch) == 9
    assert outcome_by(write.format("running"), tmp_path, monkeypatch) == 1
    assert outcome_by("sys.exit(2)", tmp_path, monkeypatch) == 2


def test_only_the_first_machine_judges_by_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others may end before the outcome is written; with --auto-restart they go by the launcher's exit code."""
    write = "from jmp_ds.training.outcome import Outcome; Outcome('{}').write(run); "
    fails_once = "mark = run.parent / 'second'; again = mark.exists(); mark.touch(); sys.exit(0 if again else 5)"
    assert outcome_by(write.format("running"), tmp_path, monkeypatch, 1, restarts=1) == 0
    assert outcome_by(write.format("running") + fails_once, tmp_path, monkeypatch, 1) == 5
    (tmp_path / "second").unlink()
    assert outcome_by(write.format("running") + fails_once, tmp_path, monkeypatch, 1, restarts=1) == 0
    (tmp_path / "second").unlink()
    assert outcome_by(write.format("stopped") + fails_once, tmp_path, monkeypatch, 0, restarts=1) == 3
    assert (tmp_path / "second").exists()
    assert outcome_by(write.format("running"), tmp_path, monkeypatch, 0, restarts=1) == 1


def test_a_restart_has_what_is_left_of_the_wall_time_and_a_new_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[list[str], Layout]] = []

    def make(launcher: Launcher | None, words: list[str], layout: Layout, run: Path, device: str) -> Command:
        made.append((words, layout))
        return Command(words=(sys.executable, "-c", "raise SystemExit(1)"))

    monkeypatch.setattr(launching, "make_command", make)
    monkeypatch.setattr(restarting, "_LONGEST_PAUSE", 0.001)
    prepared = train_verbs.Prepared([tmp_path / "run"], "cpu", 2.0, lambda: None, lambda: None, list)
    for launcher in (Launcher.local, Launcher.torchrun):
        made.clear()
        with pytest.raises(typer.Exit):
            train_verbs.start(prepared, WORDS, launcher, Layout(port=29500), restarts=1)
        (words, layout), (words_again, layout_again) = made
        assert (words, layout.port) == (WORDS, 29500)
        assert words_again[:-1] == WORDS
        assert 1.9 < float(words_again[-1].removeprefix("run.wall_time=")) < 2.0
        assert (layout_again.port == 29500) == (launcher is Launcher.torchrun)


def test_every_signal_is_passed_on_and_handlers_are_given_back(tmp_path: Path) -> None:
    code = "import os, signal; os.kill(os.getppid(), signal.SIGUSR1); signal.pause()"
    before = signal.getsignal(signal.SIGUSR1)
    stopped: list[int] = []

    def stop(pid: int) -> None:
        stopped.append(pid)
        os.kill(pid, signal.SIGKILL)

    assert execute(Command(words=(sys.executable, "-c", code)), stop) == -signal.SIGKILL
    assert len(set(stopped)) == 1
    assert signal.getsignal(signal.SIGUSR1) is before
    with pytest.raises(UserError, match="no-such-program is not installed"):
        execute(Command(words=("no-such-program",)), stop)
