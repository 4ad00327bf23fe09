"""docs/schedule.md is held to its word: cron's line and systemd's units are run as they stand there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from conftest import CountingEngine
from pipelines import demo
from pipelines.embedding import worker
from pipelines.retraining import RetrainOptions, retrain

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "schedule.md").read_text(encoding="utf-8")
RECIPE = '[source]\nlocation = "photos"\n[compare]\nheads = ["ncm"]\n[promote]\nrule = "better"\n'
CRON = {"HOME": "/", "LOGNAME": "root", "SHELL": "/bin/sh", "PATH": "/usr/bin:/bin"}  # all that cron sets
SYSTEMD = {"HOME": "/", "LOGNAME": "root", "USER": "root", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"}


def block(language: str) -> str:
    """The page's only block of code in a language."""
    [found] = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return found


def crontab() -> str:
    """The page's line for cron, without the five fields that say when."""
    [line] = [line for line in block("crontab").splitlines() if "penult" in line]
    *when, command = line.split(maxsplit=5)
    assert when == ["0", "3", "*", "*", "*"]
    return command


def unit(name: str) -> str:
    """One of the page's units."""
    found = re.split(r"^# /etc/systemd/system/(.*)\n", block("ini"), flags=re.MULTILINE)[1:]
    return dict(zip(found[::2], found[1::2], strict=True))[name]


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, a recipe, a store after its first night, and penult."""
    folder = tmp_path_factory.mktemp("schedule")
    demo.write_digits(folder / "photos")
    for path in sorted((folder / "photos").rglob("*.png"), key=lambda path: path.name)[300:]:
        path.unlink()
    (folder / "photos.toml").write_text(RECIPE)
    (folder / "penult").write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m pipelines "$@"\n')
    (folder / "penult").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "open_engine", lambda *_args, **_options: CountingEngine(64))
        worker.engine_for.cache_clear()
        yesterday = datetime.now(UTC).date() - timedelta(days=1)
        outcome = retrain(folder / "photos.toml", folder / "photos.store", RetrainOptions(date=yesterday))
    worker.engine_for.cache_clear()
    assert outcome["decision"] == "promoted"
    return folder


@pytest.fixture
def sourceless(night: Path, tmp_path: Path) -> Path:
    """The same, but somebody has moved the photos away."""
    for name in ("photos.toml", "penult"):
        shutil.copy(night / name, tmp_path)
    shutil.copytree(night / "photos.store", tmp_path / "photos.store")
    return tmp_path


def here(text: str, folder: Path) -> str:
    """Put a folder's paths in the place of the page's."""
    return text.replace("/opt/penult/.venv/bin/penult", str(folder / "penult")).replace("/srv/photos", str(folder))


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )


def test_cron_is_silent_about_a_night_that_is_done(night: Path) -> None:
    done = run(["/bin/sh", "-c", here(crontab(), night)], CRON)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_cron_mails_why_a_night_failed(sourceless: Path) -> None:
    done = run(["/bin/sh", "-c", here(crontab(), sourceless)], CRON)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith(f"penult: There is no {sourceless / 'photos'}: ") and done.stdout.count("\n") == 1


DAEMON = """
set -e
mount -t overlay overlay -o lowerdir=/usr/sbin,upperdir="$1/sbin",workdir="$1/work" /usr/sbin
for folder in /run /var/spool/cron /etc/cron.d; do mount -t tmpfs tmpfs $folder; done
mount --bind /dev/null /etc/crontab
mkdir -m 1730 /var/spool/cron/crontabs
install -m 600 "$1/crontab" /var/spool/cron/crontabs/root
exec cron -f
"""


def can_have_a_cron() -> bool:
    """Whether there is a cron, and it can be given folders of its own, which the machine's cron does not see."""
    if not shutil.which("cron") or not shutil.which("unshare") or os.geteuid() != 0:
        return False
    return subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not can_have_a_cron(), reason="needs the package cron, root and namespaces")
def test_a_real_cron_mails_why_a_night_failed(sourceless: Path) -> None:
    """A daemon in namespaces of its own; @reboot in the place of the hour, as the daemon looks once per minute."""
    mail = sourceless / "mail"
    for name in ("sbin", "work"):
        (sourceless / name).mkdir()
    sendmail = sourceless / "sbin" / "sendmail"
    sendmail.write_text(f"#!/bin/sh\ncat > {mail}.part && mv {mail}.part {mail}\n")
    sendmail.chmod(0o755)
    [address] = [line for line in block("crontab").splitlines() if line.startswith("MAILTO=")]
    (sourceless / "crontab").write_text(f"{address}\n@reboot {here(crontab(), sourceless)}\n")
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", DAEMON, "sh", str(sourceless)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as daemon:
        end = time.monotonic() + 60
        while not mail.exists() and time.monotonic() < end and daemon.poll() is None:
            time.sleep(0.05)
        daemon.kill()
    head, _, body = mail.read_text().partition("\n\n")
    assert f"To: {address.removeprefix('MAILTO=')}" in head and "Subject: Cron" in head
    assert body.startswith(f"penult: There is no {sourceless / 'photos'}: ")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_finds_no_fault_in_the_units(night: Path) -> None:
    paths = []
    for name in ("penult-photos.service", "penult-photos.timer"):
        paths.append(night / name)
        # the account of the page is not on this machine
        paths[-1].write_text(here(unit(name), night).replace("User=photos", "User=root"))
    done = run(["systemd-analyze", "verify", *map(str, paths)], SYSTEMD)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_service_tells_the_journal_one_object_per_line(night: Path) -> None:
    [command] = re.findall(r"^ExecStart=(.*)$", unit("penult-photos.service"), re.MULTILINE)
    done = run(shlex.split(here(command, night)), SYSTEMD)
    assert (done.returncode, done.stdout) == (0, "")
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert lines and all({"time", "level"} <= line.keys() for line in lines)
