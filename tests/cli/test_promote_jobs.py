"""job.sbatch of a bundle, run by a scheduler that stands in for SLURM."""

import os
import subprocess
import time

import pytest
from promotions import promotion_of

from firstorder.backends.promote import bundle

SRUN = """#!/bin/bash
echo "${SRUN_CPUS_PER_TASK} $*" >> "$TOOLS/srun.log"
while [[ "$1" != */task.sh ]]; do
    case $1 in --nodelist) hosts=$2 ;; --output) log=$2 ;; esac
    shift
done
number=0 code=0 pids=()
trap 'kill $(jobs -p) 2>/dev/null' TERM
for host in ${hosts//,/ }; do
    out=${log//%N/$host}
    SLURM_PROCID=$number HOST=$host "$@" >> "${out//%j/$SLURM_JOB_ID}" 2>&1 &
    pids+=($!)
    number=$((number + 1))
done
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
exit $code
"""


@pytest.fixture
def slurm(folder):
    """Runs job.sbatch on four nodes of a scheduler that stands in for SLURM; what it wrote, by log."""
    tools = folder / "tools"
    tools.mkdir()
    scripts = {
        "tools/srun": SRUN,
        "tools/scontrol": '#!/bin/bash\n[ $1 = requeue ] && echo $2 > "$TOOLS/requeue" || printf "n%s\\n" 0 1 2 3\n',
        "tools/getent": '#!/bin/bash\necho "10.0.0.${2#n} STREAM $2"\n',
        "preflight.sh": '#!/bin/bash\necho "firstorder: $HOST: fit as $1"\n',
        "serve.sh": '#!/bin/bash\necho "serve $HOST $SERVER_HOST"; exec sleep 60\n',
        "train.sh": '#!/bin/bash\necho "train $HOST $NODE_RANK $HEAD $ROLLOUT_HOSTS $1"\n',
    }
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)

    def submit(changes=None, **variables):
        for name, text in (changes or {}).items():
            (folder / name).write_text(text)
        environment = os.environ | {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "TOOLS": str(tools),
            "SLURM_SUBMIT_DIR": str(folder),
            "SLURM_JOB_NODELIST": "n[0-3]",
            "SLURM_JOB_ID": "7",
            "SLURM_CPUS_PER_TASK": "96",
            "NODES": "2",
            "POLL": "0.05",
            **variables,
        }
        words = ["bash", folder / "job.sbatch", "--more"]
        return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return submit


def ended(process):
    out, err = process.communicate(timeout=30)
    return process.returncode, out + err


STEP = '#!/bin/bash\nmkdir -p "$BUNDLE/run/checkpoints"; touch "$BUNDLE/run/checkpoints/step-0000001.pt"\n'
FAULT = 'echo "firstorder: $HOST: no space left" >&2; exit 2\n'


def test_a_slurm_job_gives_every_node_its_part_and_a_log(folder, slurm):
    # the job ends with its trainer
    wait = "until [ $(cat $BUNDLE/logs/7-serve-* 2>/dev/null | wc -l) = 2 ]; do sleep 0.05; done"
    train = (folder / "train.sh").read_text()
    assert ended(slurm({"train.sh": train.replace("\n", f"\n{wait}\n", 1)})) == (0, "")
    said = {file.name: file.read_text() for file in (folder / "logs").iterdir()}
    assert said["7-serve-n2.log"] == "serve n2 10.0.0.2\n"
    assert said["7-serve-n3.log"] == "serve n3 10.0.0.3\n"
    assert said["7-train-n0.log"] == "train n0 0 n0 10.0.0.2,10.0.0.3 --more\n"
    assert said["7-train-n1.log"] == "train n1 1 n0 10.0.0.2,10.0.0.3 --more\n"
    assert said["7-preflight-n1.log"] == "firstorder: n1: fit as train\n"
    assert said["7-preflight-n3.log"] == "firstorder: n3: fit as serve\n"
    calls = (folder / "tools/srun.log").read_text().splitlines()
    assert len(calls) == 4
    assert all(call.startswith("96 ") and "--open-mode=append" in call for call in calls)


def test_a_job_with_a_placeholder_does_not_start(folder, slurm, shape):
    text = bundle.launchers(promotion_of(shape))["job.sbatch"]
    code, said = ended(slurm({"job.sbatch": text}))
    assert code == 2
    for option in ("account=SET_ACCOUNT", "partition=SET_PARTITION", "time=SET_TIME"):
        assert f"#SBATCH --{option}" in said
    assert not (folder / "logs").exists()


def test_a_node_that_is_not_fit_ends_the_job_with_what_it_lacks(folder, slurm):
    code, said = ended(slurm({"preflight.sh": f"#!/bin/bash\n[ $HOST != n3 ] || {{ {FAULT.strip()}; }}\n"}))
    assert code == 1
    assert "firstorder: n3: no space left" in said
    assert "a node is not fit to start" in said
    assert not (folder / "logs/7-train-n0.log").exists()


def test_a_node_that_is_known_as_itself_alone_is_refused(slurm):
    code, said = ended(slurm({"tools/getent": "#!/bin/bash\necho 127.0.1.1 STREAM\n"}))
    assert code == 2
    assert "node n2 has no address that others reach: '127.0.1.1'" in said


@pytest.mark.parametrize(
    ("changes", "variables", "queued", "reason"),
    [
        ({"train.sh": f"#!/bin/bash\n{FAULT}"}, {}, False, "no step was saved since it started; not started again"),
        ({"train.sh": STEP + FAULT}, {}, True, "queued again, to resume from"),
        ({"train.sh": STEP + FAULT}, {"SLURM_RESTART_COUNT": "36"}, False, "which is MAX_RESTARTS"),
        ({}, {"SLURM_RESTART_COUNT": "37"}, False, "which is MAX_RESTARTS"),
        (
            {"serve.sh": f"#!/bin/bash\n{FAULT}", "train.sh": "#!/bin/bash\nexec sleep 60\n"},
            {},
            False,
            "the rollout engines ended with code 2, and no step was saved",
        ),
    ],
)
def test_a_fault_is_started_again_where_that_may_help(folder, slurm, changes, variables, queued, reason):
    code, said = ended(slurm(changes, **variables))
    assert (code == 0) == queued == (folder / "tools/requeue").exists()
    assert reason in said
    assert ("no space left" in said) == bool(changes)


def test_sigterm_reaches_the_trainer_and_the_job_is_queued_again(folder, slurm):
    train = STEP + "trap 'echo saved; exit 143' TERM\ntouch $BUNDLE/ready-$HOST; while true; do sleep 0.05; done\n"
    job = slurm({"train.sh": train})
    deadline = time.monotonic() + 20
    while len(list(folder.glob("ready-*"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    job.terminate()
    code, said = ended(job)
    assert code == 0
    assert "SIGTERM: the step is finished and saved first" in said
    assert "queued again" in said
    assert (folder / "logs/7-train-n1.log").read_text() == "saved\n"
