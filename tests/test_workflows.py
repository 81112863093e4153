"""The workflows run the commands that README.md and noxfile.py have, with exact actions and the least rights; and what
a new release leads to is proposed once. git is real, gh is a stand-in that notes how it was called.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in ROOT.glob(".github/workflows/*.yml")
}
JOBS = {f"{name}: {job}": content for name, flow in WORKFLOWS.items() for job, content in flow["jobs"].items()}
ON = True  # what YAML 1.1 makes of the key `on`
GH = """#!/bin/sh
echo "gh $*" >> "$LOG"
case "$*" in
    "issue list"*) cat "$ISSUES" ;;
    "pr create"*) exit "$PR_STATUS" ;;
esac
"""
PATCH = """--- a/CHANGELOG.md
+++ b/CHANGELOG.md
@@ -1 +1,3 @@
 # Changelog
+- transformers 9.1 is supported.
+- peft 9.0 is supported.
"""


def commands(job) -> list[str]:
    """The simple commands of a job, without their redirections."""
    lines = "\n".join(step.get("run", "") for step in job["steps"])
    return [part.split(">")[0].strip() for part in re.split(r"&&|\|\||\||\n", lines) if part.strip()]


def test_pushes_and_pull_requests_run_the_test_command():
    assert {"push", "pull_request", "workflow_dispatch"} == set(WORKFLOWS["tests"][ON])
    assert commands(JOBS["tests: tests"])[-1] == ".ci/run"  # tests/test_ci.py: that is README's command


def test_new_releases_are_looked_for_each_week():
    ((schedule,),) = [each.values() for each in WORKFLOWS["new-releases"][ON]["schedule"]]
    minute, hour, day, month, weekday = schedule.split()
    assert minute.isdigit()
    assert hour.isdigit()
    assert weekday.isdigit()
    assert (day, month) == ("*", "*")


def test_every_session_that_a_workflow_runs_is_in_the_noxfile():
    noxfile = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    run = [shlex.split(each) for job in JOBS.values() for each in commands(job) if each.startswith("nox ")]
    assert run == [["nox", "-s", "new-releases"]]
    assert all(f'@nox.session(name="{words[2]}")' in noxfile for words in run)


def test_every_file_that_a_workflow_runs_is_there_and_may_be_run():
    run = [each.split()[0] for job in JOBS.values() for each in commands(job) if each.startswith(".ci/")]
    assert sorted(run) == [".ci/propose", ".ci/run"]
    assert all((ROOT / name).stat().st_mode & 0o111 for name in run)


def test_the_workflow_that_is_started_on_the_branch_can_be_started():
    (name,) = re.findall(r"gh workflow run (\S+) ", (ROOT / ".ci" / "propose").read_text(encoding="utf-8"))
    assert "workflow_dispatch" in WORKFLOWS[name.removesuffix(".yml")][ON]


@pytest.mark.parametrize("job", JOBS)
def test_every_action_is_an_exact_commit_with_its_version_beside_it(job):
    text = (ROOT / ".github" / "workflows" / f"{job.split(':')[0]}.yml").read_text(encoding="utf-8")
    used = [step["uses"] for step in JOBS[job]["steps"] if "uses" in step]
    assert used
    for action in used:
        assert re.search(rf"uses: {re.escape(action)}  # v\d+\.\d+\.\d+\n", text), action
        assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", action)


@pytest.mark.parametrize("job", JOBS)
def test_what_runs_code_of_packages_may_write_nothing_and_what_may_write_runs_none(job):
    content, flow = JOBS[job], WORKFLOWS[job.split(":")[0]]
    rights = content.get("permissions", flow["permissions"])
    may_write = "write" in rights.values()
    runs_code = any(command.split()[0] in ("nox", "pip", ".ci/run") for command in commands(content))
    assert may_write != runs_code
    if runs_code:
        assert rights == {"contents": "read"}
        assert "secrets" not in str(content)
        assert "token" not in str(content)
        (checkout,) = [step for step in content["steps"] if "checkout" in step.get("uses", "")]
        assert checkout["with"] == {"persist-credentials": False}


def test_the_python_of_the_workflows_is_new_enough_for_the_test_command():
    oldest = re.search(r"sys\.version_info < \((\d+), (\d+)\)", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    for job in JOBS.values():
        for step in job["steps"]:
            version = step.get("with", {}).get("python-version")
            assert version is None or tuple(map(int, version.split("."))) >= (int(oldest[1]), int(oldest[2]))


@pytest.fixture
def propose(tmp_path, monkeypatch):
    """Run .ci/propose with this report and patch in a clone of a repository; what gh was called with, and stdout."""
    if not all(map(shutil.which, ["bash", "git", "sed", "sort", "paste"])):
        pytest.skip("needs bash, git, sed, sort and paste")
    origin, clone = tmp_path / "origin.git", tmp_path / "clone"
    monkeypatch.setenv("HOME", str(tmp_path))
    for key, value in (("user.name", "x"), ("user.email", "x@example.org"), ("init.defaultBranch", "main")):
        git(tmp_path, "config", "--global", key, value)
    git(tmp_path, "init", "-q", "--bare", str(origin))
    git(tmp_path, "clone", "-q", str(origin), str(clone))
    (clone / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "propose", clone / ".ci")
    (clone / "CHANGELOG.md").write_text("# Changelog\n")
    git(clone, "add", "-A")
    git(clone, "commit", "-qm", "first")
    git(clone, "push", "-q", "origin", "main")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "gh").write_text(GH)
    (programs / "gh").chmod(0o755)

    def run(report: str, patch: str = "", issues: str = "", pr_status: int = 0):
        log = tmp_path / "log"
        for name, text in (("report", report), ("patch", patch), ("issues", issues), ("log", "")):
            (tmp_path / name).write_text(text)
        monkeypatch.setenv("PATH", str(programs), prepend=":")
        for name, value in (("LOG", log), ("ISSUES", tmp_path / "issues"), ("PR_STATUS", pr_status)):
            monkeypatch.setenv(name, str(value))
        git(clone, "switch", "-q", "main")
        script = ["bash", str(clone / ".ci" / "propose"), str(tmp_path / "report"), str(tmp_path / "patch")]
        done = subprocess.run(script, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        called = [line.split(" --body-file")[0] for line in log.read_text().splitlines()]
        return [line for line in called if not line.startswith("gh issue list")], done.stdout

    run.origin = origin
    return run


def git(folder, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout


BRANCH = "releases/peft-9.0-transformers-9.1"
PINNED = "peft 9.0 has a new peft:lora: pinned.\ntransformers 9.1 has the transformers:qwen2 of 9.0: pinned.\n"
STOPPED = "transformers 9.2 is stopped: verify: exact: plain\n"


def test_what_holds_becomes_one_pull_request_whose_tests_are_started(propose):
    called, _ = propose(PINNED, PATCH)
    assert called == [
        f"gh pr create --head {BRANCH} --title Pin peft 9.0, transformers 9.1",
        f"gh workflow run tests.yml --ref {BRANCH}",
    ]
    shown = git(propose.origin, "show", BRANCH)
    assert "+- transformers 9.1 is supported.\n" in shown
    assert "    Pin peft 9.0, transformers 9.1\n" in shown


def test_what_is_proposed_already_is_left_alone(propose):
    propose(PINNED, PATCH)
    git(propose.origin, "branch", "-f", BRANCH, "main")  # somebody works on it
    assert propose(PINNED, PATCH) == ([], f"There is a branch already: {BRANCH}\n")
    assert git(propose.origin, "rev-parse", BRANCH) == git(propose.origin, "rev-parse", "main")
    called, said = propose(STOPPED, issues="Another\ntransformers 9.2 is stopped\n")
    assert (called, said) == ([], "There is an issue already: transformers 9.2 is stopped\n")


def test_a_release_that_is_stopped_becomes_an_issue_beside_the_pull_request_of_another(propose):
    called, _ = propose(PINNED + STOPPED, PATCH)
    assert [line.split(" --")[0] for line in called] == ["gh pr create", "gh workflow run tests.yml", "gh issue create"]
    assert called[-1] == "gh issue create --title transformers 9.2 is stopped"


def test_where_no_pull_request_may_be_opened_an_issue_names_the_branch(propose):
    called, _ = propose(PINNED, PATCH, pr_status=1)
    assert f"gh issue create --title Pin peft 9.0, transformers 9.1: branch {BRANCH}" in called


def test_nothing_new_proposes_nothing(propose):
    assert propose("No new release: peft 9.0 and transformers 9.1 are pinned, and newest.\n") == ([], "")
