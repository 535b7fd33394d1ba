"""The launch scripts: what their dry runs print, what they do with exit codes and signals, and their syntax."""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from jobset_schema import faults

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.rglob("*.sh"), *LAUNCH.glob("*.sbatch")])
COMMAND = ["launch.halo", "configs/halo_2b/halo.py", "--run-dir", "two words", '--data=a"b\\']
PLACE = {"PROJECT": "some-project", "ZONE": "some-zone"}
CLUSTER = {
    "IMAGE": "some/image:1",
    "CLAIM": "some-claim",
    "ACCELERATOR": "tpu-v5p-slice",
    "TOPOLOGY": "2x4x4",
    "HOSTS": "8",
}


def bash(script: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    return subprocess.run(
        ["bash", str(LAUNCH / script), *words],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def printed(script: str, *words: str, **environment: str) -> list[list[str]]:
    """The commands of a dry run, each as its words."""
    done = bash(script, "--dry-run", *words, **environment)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def program(folder: pathlib.Path, name: str, text: str) -> None:
    """Something to find on PATH in place of the real one."""
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


# every script ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_strict_documented_and_parses(script):
    text = script.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n# ")
    assert "set -euo pipefail" in text
    assert "--dry-run" in text
    subprocess.run(["bash", "-n", script], check=True)
    assert bash(str(script.relative_to(LAUNCH))).returncode == 2


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    beside = pathlib.Path(sys.executable).with_name("shellcheck")
    checker = str(beside) if beside.exists() else shutil.which("shellcheck")
    if checker is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([checker, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# processes.sh ---------------------------------------------------------------------------------------


def test_processes_differ_only_in_their_number():
    first, second = printed("processes.sh", "--devices", "4", "2", *COMMAND, PYTHON="py")
    assert first[-1] == "0"
    assert second[-1] == "1"
    assert first[:-1] == second[:-1]
    assert first[1:3] == ["JAX_PLATFORMS=cpu", "XLA_FLAGS=--xla_force_host_platform_device_count=4"]
    assert first[3 : 5 + len(COMMAND)] == ["py", "-m", *COMMAND]
    assert first[5 + len(COMMAND) : -1] == [
        *("--coordinator", "127.0.0.1:8476", "--num-processes", "2", "--process-id")
    ]


def test_without_virtual_devices_each_process_takes_one_accelerator():
    for process, words in enumerate(printed("processes.sh", "3", *COMMAND)):
        assert words[1] == f"JAX_LOCAL_DEVICE_IDS={process}"


@pytest.mark.parametrize("code", [0, 5, 42])
def test_the_exit_code_of_a_process_is_that_of_the_script(tmp_path, code):
    program(tmp_path, "py", f"[[ ${{!#}} == 1 ]] && exit {code}; exit 0")
    assert bash("processes.sh", "2", *COMMAND, PYTHON=str(tmp_path / "py")).returncode == code


def test_sigterm_reaches_every_process_and_the_script_waits_for_them(tmp_path):
    said = f"sleep 0.3; echo saved >> {tmp_path}/said; exit 42"
    program(tmp_path, "py", f"trap '{said}' TERM; touch {tmp_path}/up${{!#}}\nsleep 30 & wait")
    script = subprocess.Popen(
        ["bash", str(LAUNCH / "processes.sh"), "2", *COMMAND],
        env={**os.environ, "PYTHON": str(tmp_path / "py")},
    )
    while not all((tmp_path / f"up{i}").exists() for i in (0, 1)):
        time.sleep(0.02)
    script.send_signal(signal.SIGTERM)
    assert script.wait(20) == 42
    assert (tmp_path / "said").read_text(encoding="utf-8") == "saved\nsaved\n"


# slurm.sbatch ---------------------------------------------------------------------------------------


def test_slurm_runs_one_task_per_gpu_and_is_warned_before_the_limit():
    ((srun, *words),) = printed("slurm.sbatch", *COMMAND)
    assert srun == "srun"
    assert words[-len(COMMAND) - 2 :] == ["python", "-m", *COMMAND]
    text = (LAUNCH / "slurm.sbatch").read_text(encoding="utf-8")
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.MULTILINE))
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert options["signal"] == "TERM@120"  # no B:, so that it reaches the tasks
    assert options["open-mode"] == "append"
    assert "requeue" in options
    assert text.index("#SBATCH --signal") < text.index("set -euo"), "sbatch stops reading there"


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (2, False), (42, True), (134, False)])
def test_slurm_puts_back_in_the_queue_only_what_was_saved(tmp_path, code, requeued):
    program(tmp_path, "srun", f"exit {code}")
    program(tmp_path, "scontrol", f'echo "$@" > {tmp_path}/asked')
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert bash("slurm.sbatch", *COMMAND, PATH=path, SLURM_JOB_ID="77").returncode == code
    assert (tmp_path / "asked").exists() == requeued
    if requeued:
        assert (tmp_path / "asked").read_text(encoding="utf-8") == "requeue 77\n"


# tpu_vm.sh ------------------------------------------------------------------------------------------


def test_a_slice_is_queued_and_then_asked_for():
    create, ask = printed("tpu_vm.sh", "create", "pod", TYPE="v5p-64", CAPACITY="--spot", **PLACE)
    assert create[:5] == ["gcloud", "compute", "tpus", "queued-resources", "create"]
    assert create[create.index("--accelerator-type") + 1] == "v5p-64"
    assert "--spot" in create
    assert "describe" in ask
    for words in (create, ask):
        assert words[words.index("--project") + 1] == "some-project"


def test_install_and_run_reach_all_hosts_with_the_words_intact():
    code = {"REPOSITORY": "https://somewhere/code.git", "REF": "v1"}
    (install,) = printed("tpu_vm.sh", "install", "pod", **PLACE, **code)
    (run,) = printed("tpu_vm.sh", "run", "pod", *COMMAND, **PLACE)
    for words in (install, run):
        assert "--worker=all" in words
    assert "git checkout v1" in install[-1]
    assert shlex.split(run[-1].removeprefix("cd hypenet && ")) == [
        *("exec", ".venv/bin/python", "-m", *COMMAND)
    ]


def test_a_run_on_tpu_hosts_starts_again_while_it_ends_saved(tmp_path):
    tries = tmp_path / "tries"
    program(
        tmp_path, "gcloud", f"echo x >> {tries}; (( $(wc -l < {tries}) < 3 )) && exit 42; exit 5"
    )
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert bash("tpu_vm.sh", "run", "pod", *COMMAND, PATH=path, **PLACE).returncode == 5
    assert tries.read_text(encoding="utf-8") == "x\nx\nx\n"


@pytest.mark.parametrize("missing", sorted(PLACE))
def test_a_missing_place_is_named(missing):
    rest = {key: value for key, value in PLACE.items() if key != missing}
    done = bash("tpu_vm.sh", "--dry-run", "run", "pod", *COMMAND, **rest)
    assert done.returncode != 0
    assert f"{missing} is not set" in done.stderr


@pytest.mark.parametrize(
    ("script", "words"), [("tpu_vm.sh", ["run", "My_Pod"]), ("gke/submit.sh", ["halo.2b"])]
)
def test_a_name_that_is_no_dns_label_is_refused(script, words):
    done = bash(script, "--dry-run", *words, *COMMAND, **PLACE, **CLUSTER)
    assert done.returncode == 2
    assert "lower-case letters" in done.stderr


# gke ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def jobset():
    done = bash("gke/submit.sh", "--dry-run", "halo-2b", *COMMAND, **CLUSTER)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"^[^#]*\$\{", done.stdout, re.MULTILINE)
    return yaml.safe_load(done.stdout)


def test_the_jobset_has_only_fields_that_its_api_knows_and_of_their_types(jobset):
    schema = json.loads((ROOT / "tests/launch/jobset_schema.json").read_text(encoding="utf-8"))
    assert not faults(jobset, schema)
    spec = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    wrong = {**jobset, "spec": {**jobset["spec"], "failurePolicy": {"maxRestarts": "50"}}}
    assert faults(wrong, schema) == ["/spec/failurePolicy/maxRestarts: '50' is no integer"]
    assert faults(
        {"spec": {"replicatedJobs": [{"template": {"spec": {**spec, "backofLimit": 0}}}]}}, schema
    ) == [
        "/spec/replicatedJobs/0: no name",
        "/spec/replicatedJobs/0/template/spec/backofLimit: no such field",
    ]


def test_the_jobset_has_the_kind_and_names_that_the_cluster_expects(jobset):
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["metadata"]["name"] == "halo-2b"
    (slices,) = jobset["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert slices["replicas"] == 1
    assert job["parallelism"] == job["completions"] == 8
    assert (job["completionMode"], job["backoffLimit"]) == ("Indexed", 0)


def test_the_jobset_starts_again_only_after_a_save_or_a_lost_host(jobset):
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 50
    assert policy["rules"] == [
        {"name": "refused", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    codes = rule["onExitCodes"]
    assert (rule["action"], codes["operator"]) == ("FailJob", "NotIn")
    assert codes["containerName"] == job["template"]["spec"]["containers"][0]["name"]
    assert 42 in codes["values"]
    assert not {0, 1, 2, 3, 4, 5, 6} & set(codes["values"])


def test_a_pod_of_the_jobset_runs_the_command_on_all_chips_of_its_host(jobset):
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (train,) = pod["containers"]
    assert train["args"] == COMMAND
    assert train["image"] == "some/image:1"
    assert train["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "2x4x4"
    assert (pod["restartPolicy"], pod["terminationGracePeriodSeconds"]) == ("Never", 120)
    claims = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"]}
    assert claims[train["volumeMounts"][0]["name"]] == "some-claim"


def test_the_image_holds_the_code_and_hands_signals_to_python():
    text = (LAUNCH / "gke" / "Dockerfile").read_text(encoding="utf-8")
    copied = re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE)
    files = [name for line in copied for name in line.split()]
    assert {"hypenet_jax", "pallas_kernels", "launch", "configs", "pyproject.toml"} <= set(files)
    assert all((ROOT / name).exists() for name in files)
    assert 'ENTRYPOINT ["python", "-m"]' in text


def test_what_the_image_copies_is_enough_to_run_a_command(tmp_path):
    text = (LAUNCH / "gke" / "Dockerfile").read_text(encoding="utf-8")
    for *files, where in map(str.split, re.findall(r"^COPY (.+)$", text, re.MULTILINE)):
        for name in files:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, tmp_path / (name if where == "./" else where))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "launch.halo", "configs/halo_2b/halo.py", "--help"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--teacher" in done.stdout
