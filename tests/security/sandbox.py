"""A container without Docker: the confinement that compose.yaml asks for, made of the same parts.

A mount namespace whose file systems are read-only, a /tmp in memory, a user without a name, no
capability, and none to be had again; process ids and System V's objects of its own. What it lacks
of Docker's: the image's own file system, its network, and its seccomp filter.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = "/srv"
"""The one folder that may be written, as /data is in the image."""

# A mount that cannot be made read-only is another's, or gone meanwhile; what matters is asked of
# the kernel by the test. Where Python or logpipe is in root's home or in /tmp, which become empty
# ones, it is laid there again.
SETUP = """
set -eu
uid=$1 tmp=$2 pids=$3 base=$4 prefix=$5 root=$6
shift 6
mount -t proc proc /proc
mount -t tmpfs tmpfs /mnt
for path in "$base" "$prefix" "$root"; do
  case $path in /root/*|/tmp/*) mkdir -p "/mnt$path"; mount --rbind "$path" "/mnt$path" ;; esac
done
mount -t tmpfs -o mode=755 tmpfs /root
mount -t tmpfs -o "$tmp" tmpfs /tmp
for path in "$base" "$prefix" "$root"; do
  case $path in /root/*|/tmp/*) mkdir -p "$path"; mount --rbind "/mnt$path" "$path" ;; esac
done
while read -r _ _ _ _ where _; do
  case $where in /tmp|/proc|/proc/*) continue ;; esac
  mount -o remount,bind,ro "$where" 2>/dev/null || true
done < /proc/self/mountinfo
mount -t tmpfs -o mode=700,uid=$uid,gid=$uid tmpfs {data}
cd /
exec setpriv --reuid $uid --regid $uid --clear-groups --no-new-privs \
  --inh-caps=-all --ambient-caps=-all --bounding-set=-all \
  prlimit --nproc=$pids -- "$@"
""".replace("{data}", DATA)

PATH = f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
NAMESPACES = ("--mount", "--propagation", "private", "--pid", "--fork", "--ipc")


class Sandbox:
    """Commands run in one after the other, or while a first one runs, all confined alike."""

    def __init__(self, uid: int, tmp: str, pids: int) -> None:
        needed = (sys.base_prefix, sys.prefix, str(ROOT))
        self._confined = ["sh", "-c", SETUP, "sandbox", str(uid), tmp, str(pids), *needed]
        self._uid = uid

    def why_not(self) -> str:
        """Why this machine does not let a test make one; empty where it does."""
        if os.getuid() != 0:
            return "only root makes namespaces, mounts and other users"
        for program in ("unshare", "setpriv", "prlimit", "nsenter"):
            if shutil.which(program) is None:
                return f"{program} is not there"
        import_it = [sys.executable, "-c", "import logpipe"]
        tried = subprocess.run(
            self.command(import_it), env={"PATH": PATH}, capture_output=True, text=True, check=False
        )
        return tried.stderr.strip()[-200:] if tried.returncode else ""

    def command(self, words: Sequence[str]) -> list[str]:
        """The command that runs another one confined."""
        return ["unshare", *NAMESPACES, *self._confined, *words]

    @contextlib.contextmanager
    def running(
        self, words: Sequence[str], environ: Mapping[str, str], log: Path
    ) -> Iterator["Inside"]:
        """A command that runs confined, with these variables and no others, until the end."""
        with log.open("wb") as out:
            process = subprocess.Popen(self.command(words), env=environ, stdout=out, stderr=out)
        inside = Inside(process, self._uid, environ, log)
        try:
            yield inside
        finally:
            inside.end()


class Inside:
    """What runs in a sandbox, and others who join it, as `docker exec` does."""

    def __init__(
        self,
        process: "subprocess.Popen[bytes]",
        uid: int,
        environ: Mapping[str, str],
        log: Path,
    ) -> None:
        self.process = process
        self._uid = uid
        self.environ = environ
        self.log = log

    @property
    def pid(self) -> int:
        """The first process inside, as it is known outside."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return int(children.split()[0])

    def end(self) -> None:
        """Kills the first process, and so the kernel all of its namespace; the one outside waits
        for it. Who becomes another user is no longer killed with its parent."""
        if self.process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        self.process.wait(10)

    def joining(self, words: Sequence[str]) -> list[str]:
        """The command that runs another one there."""
        enter = ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--ipc"]
        user = ["setpriv", f"--reuid={self._uid}", f"--regid={self._uid}", "--clear-groups"]
        return [*enter, *user, "--no-new-privs", "--bounding-set=-all", *words]

    def run(self, *words: str, timeout: float = 30.0) -> "subprocess.CompletedProcess[str]":
        """Runs a command there to its end."""
        return subprocess.run(
            self.joining(words),
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
