"""Launchers, and runs that are kept going."""

import os
import shutil
import signal
import subprocess

from .harness import (
    PROGRAM, ROOT, SHAPE, Running, check, check_equal, check_refused, check_same_checkpoint, checkpoint, command_line,
    descendants, finish, make_shards, read_file, read_metrics, script, steps_kept, test, to_flags, train, wait_until,
    write_file, write_script,
)
from .processes import PARALLEL, check_close_losses, make_noise


def check_goes_on(go_on):
    """A run that stopped has its last step as checkpoint, and goes on from there as if it had not. Compared to the byte with
    a run of as many processes: how many steps it had made is chance, and after a hundred of them one process, which rounds
    otherwise, has picked other entries at a near-tie."""
    stopped = read_metrics()[-1]["step"]
    check_equal("checkpoints", steps_kept(), [stopped])
    for out in ("out", "whole"):
        go_on(stopped + 2, out)
    check_same_checkpoint(checkpoint(stopped + 2), checkpoint(stopped + 2, "whole"), processes=2)
    check_equal("losses", [m["loss"] for m in read_metrics()], [m["loss"] for m in read_metrics("whole")])


@test
def one_command_trains_on_all_devices_of_a_machine():
    make_noise()
    train(out="one", **PARALLEL)
    options = to_flags(PARALLEL | SHAPE | {"steps": 4, "warmup_steps": 3})
    said = finish(script("launch/mpirun_one_node.sh", "-n", "2", *options, "--cp", "2", "--out", "two")).stdout
    check("processes: 2, 2 for each sequence" in said, said)
    check_close_losses("two", "one")
    check_refused(script("launch/mpirun_one_node.sh", "-n", "none"), "-n none")
    finish(script("launch/mpirun_one_node.sh", "--help"))


@test
def the_1m_recipe_trains_on_the_hosts_of_a_file():
    make_noise()
    # As it stands, it asks for what was published.
    environment = os.environ | {"LAUNCHER": "echo", "OUT": os.path.abspath("out")}
    recipe = script("recipes/530m_1m_four_nodes.sh")
    said = subprocess.run(recipe, env=environment, capture_output=True, text=True, check=True).stdout
    for words in ("--seq-len 1048576", "--levels 4 --pool 4 --topk 4096 --dense-layers none", "--cp 8 --zero 1"):
        check(words in said, f"{words} expected: {said}")
    # Smaller, on two processes of this host, which go on where they were.
    write_file("hosts", b"# all of them\nlocalhost slots=2 # two\n")
    environment |= {"LAUNCHER": "", "HOSTS": os.path.abspath("hosts"), "VAL_DATA": "",
                    "DATA": os.path.abspath("noise_train.bin")}
    options = to_flags({**SHAPE, **PARALLEL, "cp": 2, "warmup_steps": 3, "train_data": environment["DATA"]})
    for steps in ("2", "4"):
        done = subprocess.run([*recipe, *options, "--steps", steps], env=environment, capture_output=True, text=True)
        check_equal(f"exit code; {done.stderr}", done.returncode, 0)
    train(out="one", **PARALLEL)
    check_close_losses("out", "one")
    for hosts, words in ((b"", ["no host"]), (b"localhost\n", ["localhost", "slots=8"]),
                         (b"a slots=2\nb slots=none\n", ["b slots=none", "slots=8"])):
        write_file("hosts", hosts)
        check_refused(script("launch/mpirun_hosts.sh", "hosts"), "hosts", *words)
    check_refused(script("launch/mpirun_hosts.sh", "missing"), "missing", "slots=8")


@test
def a_crashed_run_is_started_again():
    make_shards()
    options = {"steps": 60, "save_every": 3, "seq_len": 16}
    train(out="whole", **options)
    # The first try is killed once it has a checkpoint, the second before it does anything.
    write_script("crashing", f"""#!/bin/sh
echo try >> tries
case $(wc -l < tries) in
    1) '{PROGRAM}' "$@" & while [ ! -f out/latest ]; do sleep 0.01; done; kill -9 $!; wait $!;;
    2) kill -9 $$;;
    *) exec '{PROGRAM}' "$@";;
esac
""")
    done = finish(script("launch/run_resilient.sh", "--wait", "0", "--out", "out", "./crashing",
                         *command_line(**options)[1:]))
    check_same_checkpoint(checkpoint(60), checkpoint(60, "whole"))
    check_equal("losses", [m["loss"] for m in read_metrics()], [m["loss"] for m in read_metrics("whole")])
    starts = [" ".join(line.split()[:4]) for line in done.stderr.splitlines() if " starts " in line]
    check_equal("tries", starts, [f"run_resilient: try {number} starts" for number in (1, 2, 3)])


@test
def a_run_that_is_kept_going_saves_when_it_is_asked_to_stop():
    def command(steps, out="out"):
        return script("launch/run_resilient.sh", "--out", out, *script("launch/mpirun_one_node.sh", "-n", "2"),
                      *command_line(**PARALLEL, cp=2, steps=steps)[1:])

    make_noise()
    with Running(command(100000)) as run:
        wait_until(lambda: "step 2/" in run.said()[0], "the second step")
        run.send(signal.SIGTERM)
        code = run.wait()
        check_equal(f"exit code; {run.said()}", code, 75)
    check_goes_on(lambda steps, out: finish(command(steps, out)))


@test
def a_signal_to_all_processes_of_a_run_that_is_kept_going_loses_nothing():
    make_noise()
    options = command_line(**PARALLEL, steps=100000)[1:]
    for command in ([PROGRAM, *options], script("launch/mpirun_one_node.sh", "-n", "2", *options, "--cp", "2")):
        shutil.rmtree("out", ignore_errors=True)
        with Running(script("launch/run_resilient.sh", "--out", "out", *command)) as run:
            wait_until(lambda: "step 2/" in run.said()[0], "the second step")
            for process in descendants(run.process.pid):
                os.kill(process, signal.SIGTERM)
            code = run.wait()
            check_equal(f"exit code; {run.said()}", code, 75)
        check_equal("checkpoints", steps_kept(), [read_metrics()[-1]["step"]])


@test
def launchers_hear_what_was_ignored_or_blocked_when_they_were_started():
    make_noise()
    heard = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}

    def ignore():
        for number in heard:
            signal.signal(number, signal.SIG_IGN)

    command = script("launch/run_resilient.sh", "--out", "out", *script("launch/mpirun_one_node.sh", "-n", "2"),
                     *command_line(**PARALLEL, cp=2, steps=100000)[1:])
    for prepare in (ignore, lambda: signal.pthread_sigmask(signal.SIG_BLOCK, heard)):
        shutil.rmtree("out", ignore_errors=True)
        with Running(command, prepare=prepare) as run:
            wait_until(lambda: "step 2/" in run.said()[0], "the second step")
            run.send(signal.SIGTERM)
            code = run.wait()
            check_equal(f"exit code; {run.said()}", code, 75)


# A try takes its line of the file `plan`: the step of its checkpoint (or -) and its exit code, or "asked" for one that runs
# until it is asked to stop.
FAKE_TRAINER = """#!/bin/bash
echo "$*" >> calls
read -r step code <<< "$(sed -n "$(wc -l < calls)p" plan)"
mkdir -p out
if [ "$step" != - ]; then printf 'step_%08d\n' "$step" > out/latest; fi
if [ "$code" = asked ]; then
    trap 'echo step_00000009 > out/latest; exit 75' USR1
    touch running
    while :; do sleep 0.02; done
fi
exit "$code"
"""


def resilient(*plan, wait="0", failures="2"):
    """Keeps a fake trainer going, whose tries end as planned."""
    write_script("trainer", FAKE_TRAINER)
    write_file("plan", "".join(line + "\n" for line in plan).encode())
    for path in ("calls", "running", "out/latest"):
        if os.path.exists(path):
            os.remove(path)
    return script("launch/run_resilient.sh", "--max-failures", failures, "--wait", wait, "--out", "out", "./trainer",
                  "--a", "b")


def check_calls(tries):
    """The first try is a new run, the others resume."""
    calls = read_file("calls").decode().splitlines()
    place = f"--a b --out {os.path.abspath('out')}"
    check_equal("calls", calls, [place, *[f"{place} --resume latest"] * (tries - 1)])


@test
def a_run_without_progress_is_given_up():
    # Progress and preemptions count as no failure.
    said = finish(resilient("2 1", "2 139", "4 1", "4 1", "4 75", "4 75", "6 1", "6 1", "8 0")).stderr.splitlines()
    check_calls(9)
    check_equal("events", said[:4], [
        "run_resilient: try 1 starts anew",
        "run_resilient: try 1 ended with exit code 1, the newest checkpoint has step 2: again in 0 seconds",
        "run_resilient: try 2 starts from step 2",
        "run_resilient: try 2 ended with exit code 139, the newest checkpoint has step 2: again in 0 seconds"])
    check_equal("lines", (len(said), said[-1]), (18, "run_resilient: done"))
    done = subprocess.run(resilient("2 1", "2 1", "2 3", "2 0"), capture_output=True, text=True)
    check_equal(f"exit code; {done.stderr}", done.returncode, 3)
    check_calls(3)
    check("given up" in done.stderr.splitlines()[-1] and "step 2" in done.stderr, done.stderr)
    done = subprocess.run(resilient("- 1", "- 1", "- 0"), capture_output=True, text=True)
    check_equal(f"exit code; {done.stderr}", done.returncode, 1)
    check("--resume" not in read_file("calls").decode(), "it resumes without a checkpoint")
    for arguments, words in ((["--out", "out"], ["command"]), (["./trainer"], ["--out"]), (["--outt", "out"], ["--outt"]),
                             (["--out", "out", "./nothing"], ["./nothing"]),
                             (["--wait", "soon", "--out", "out", "./trainer"], ["--wait soon"]),
                             (["--max-failures", "0", "--out", "out", "./trainer"], ["--max-failures 0"])):
        check_refused(script("launch/run_resilient.sh", *arguments), *words)


@test
def a_signal_stops_a_run_that_is_kept_going():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        with Running(resilient("2 1", "4 asked", "6 0")) as run:
            wait_until(lambda: os.path.exists("running"), "the second try")
            run.send(number)
            code = run.wait()
            check_equal(f"exit code after {number.name}; {run.said()[1]}", code, 75)
            check(number.name in run.said()[1], f"{number.name} is not named: {run.said()[1]}")
        check_equal("latest", read_file("out/latest"), b"step_00000009\n")
        check_calls(2)
    with Running(resilient("2 1", "4 0", wait="600")) as run:
        wait_until(lambda: "again in 600 seconds" in run.said()[1], "the wait between tries")
        run.send(signal.SIGTERM)
        code = run.wait()
        check_equal(f"exit code; {run.said()[1]}", code, 75)
    check_calls(1)


@test
def a_slurm_job_goes_on_where_it_was():
    make_noise()
    # srun runs its command once, and ends with the exit code in the file `code` if that ended well.
    here = os.getcwd()
    write_script("bin/srun", f"""#!/bin/sh
echo "$*" >> '{here}/srun_calls'
while [ "$1" != ./train_lighthouse ]; do shift; done
"$@" && exit "$(cat '{here}/code')"
""")
    write_script("bin/scontrol", f"#!/bin/sh\necho \"$*\" >> '{here}/scontrol_calls'\n")
    environment = os.environ | {
        "PATH": f"{here}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": ROOT, "OUT": f"{here}/out",
        "SLURM_CPUS_PER_TASK": "2", "DATA": f"{here}/noise_train.bin", "VAL_DATA": ""}

    def run(code, *arguments):
        write_file("code", str(code).encode())
        done = subprocess.run(script("launch/slurm.sh", *arguments), env=environment, capture_output=True, text=True)
        check_equal(f"exit code; {done.stderr}", done.returncode, code)

    options = to_flags({**SHAPE, **PARALLEL, "save_every": 1, "train_data": environment["DATA"]})
    run(75, *options, "--steps", "2")
    check_equal("requeued", read_file("scontrol_calls"), b"requeue 7\n")
    run(1, *options, "--steps", "3")
    run(0, *options, "--steps", "4")
    check_equal("steps", [entry["step"] for entry in read_metrics()], [1, 2, 3, 4])
    check_equal("tries that resume", [b"--resume latest" in call for call in read_file("srun_calls").splitlines()],
                [False, True, True])
    shutil.rmtree("out")
    recipe = [os.path.join(ROOT, "scripts", "recipes", "530m_98k_two_stage.sh"), "2", "4", *options]
    run(75, *recipe)
    run(0, *recipe)
    check_equal("stages", [entry["selection"] for entry in read_metrics()], ["on"] * 2 + ["off"] * 2)
    check_equal("requeued", read_file("scontrol_calls"), b"requeue 7\n" * 2)
    del environment["SLURM_JOB_ID"]
    check_refused(script("launch/slurm.sh", "--steps", "3"), "sbatch")


def words_of(recipe, environment):
    """What the recipe gives to LAUNCHER."""
    command = script(f"recipes/{recipe}.sh")
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()


@test
def relative_paths_are_from_where_one_stands():
    write_script("show", "#!/bin/sh\nfor word; do echo \"$word\"; done\n")
    environment = os.environ | {"LAUNCHER": "./show", "DATA": "mine_train_*.bin", "VAL_DATA": "mine_val_*.bin",
                                "OUT": "mine"}
    for recipe in ("530m_1m_one_gpu", "530m_512k_one_gpu", "530m_98k_two_stage", "530m_1m_four_nodes"):
        os.makedirs("mine", exist_ok=True)
        write_file("mine/latest", b"step_00010000\n")  # found, if it is looked for here
        said = words_of(recipe, environment)
        for name, value in (("train-data", "mine_train_*.bin"), ("val-data", "mine_val_*.bin"), ("out", "mine"),
                            ("resume", "latest")):
            check(f"--{name}" in said and said[said.index(f"--{name}") + 1] == value, f"{recipe}: --{name} in {said}")
        # What is not named is the repository's, wherever one stands.
        said = words_of(recipe, {name: value for name, value in environment.items()
                                 if name not in ("DATA", "VAL_DATA", "OUT")})
        for name in ("train-data", "val-data", "out"):
            check(said[said.index(f"--{name}") + 1].startswith(f"{ROOT}/"), f"{recipe}: --{name} in {said}")


@test
def a_task_of_slurm_alone_is_no_launcher():
    make_noise()
    # An interactive shell of one task; in a batch script the number of tasks is not set.
    slurm = {"SLURM_PROCID": "0", "SLURM_JOBID": "5", "SLURM_JOB_ID": "5", "SLURM_STEPID": "0", "SLURM_STEP_ID": "0",
             "SLURM_NNODES": "1", "SLURM_NODELIST": "localhost", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
             "SLURM_NPROCS": "1", "SLURM_TASKS_PER_NODE": "1", "SLURM_STEP_TASKS_PER_NODE": "1"}
    for tasks in ({"SLURM_STEP_NUM_TASKS": "1"}, {}):
        done = subprocess.run(command_line(train_data="noise_train.bin", steps=3, out=f"out{len(tasks)}"),
                              env=os.environ | slurm | tasks, capture_output=True, text=True)
        check(done.returncode == 0 and not done.stderr, f"exit code {done.returncode}; {done.stderr}")
