"""Where a student's process lives: without network, other processes and files that are not its own, within limits.

Each wall is Linux's (namespaces since 3.8, Landlock since 5.13) and needs no rights. `enter` names those that the
system refuses, as some containers do; elsewhere only the limits hold, on Windows none.
"""

import contextlib
import ctypes
import os
import signal
import site
import struct
import sys
from pathlib import Path

MEMORY, FILE, SECONDS, PROCESSES = 4 << 30, 256 << 20, 3600, 256  # bytes, bytes, processor time, count
NEW_USER, NEW_PID, NEW_NET, NEW_IPC = 0x10000000, 0x20000000, 0x40000000, 0x08000000
SIGNAL_WHEN_PARENT_ENDS, CHILD_SUBREAPER, NO_NEW_PRIVILEGES = 1, 36, 38  # prctl
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # Landlock's system calls, the same on every processor
READ, OF_A_FILE = 0b1101, 0b111  # execute, write a file, read a file, read a folder
TCP, SCOPES = 0b11, 0b11  # bind and connect; signals and abstract sockets


def enter(folder: Path) -> list[str]:
    """Go on behind the walls, in a child process that may write only below `folder`; the walls that are missing.

    The parent runs nothing of the student's: it waits, ends what the child leaves behind, and exits. On Windows there
    is no child and no wall.
    """
    if os.name != "posix":
        return ["this system has no walls: all is in reach"]
    linux, missing = sys.platform == "linux", []
    libc = ctypes.CDLL(None, use_errno=True)
    apart = linux and libc.unshare(NEW_USER | NEW_PID | NEW_NET | NEW_IPC) == 0
    if linux:
        libc.prctl(CHILD_SUBREAPER, 1, 0, 0, 0)
    child = os.fork()
    if child:
        _guard(child)
    if linux:
        libc.prctl(SIGNAL_WHEN_PARENT_ENDS, signal.SIGKILL, 0, 0, 0)
    if not apart:
        missing.append("no namespaces: other processes and the network are in reach")
    if not (linux and _landlock(libc, folder)):
        missing.append("no Landlock: files are in reach")
    _limit(apart)
    return missing


def _guard(child: int) -> None:
    """Wait for the end of the child, which a SIGTERM brings about, end every process that it left behind, and exit."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGKILL))
    os.waitpid(child, 0)
    with contextlib.suppress(OSError):  # until nobody is left to wait for
        while True:
            for left in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                os.kill(int(left), signal.SIGKILL)
            os.wait()
    os._exit(0)


def _limit(apart: bool) -> None:
    import resource

    bounds = {"RLIMIT_AS": MEMORY, "RLIMIT_FSIZE": FILE, "RLIMIT_CPU": SECONDS, "RLIMIT_CORE": 0}
    if apart:  # elsewhere every process of this user counts
        bounds["RLIMIT_NPROC"] = PROCESSES
    for name, most in bounds.items():
        with contextlib.suppress(ValueError, OSError):  # macOS knows a limit on memory and refuses to set it
            resource.setrlimit(getattr(resource, name), (most, most))


def _landlock(libc: ctypes.CDLL, folder: Path) -> bool:
    """Whether from now on files are out of reach, but for Python, what it has installed, and `folder`."""
    version = libc.syscall(CREATE_RULESET, None, 0, 1)
    if version < 1:
        return False
    everything = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    rules = (ctypes.c_uint64 * 3)(everything, TCP if version >= 4 else 0, SCOPES if version >= 6 else 0)
    size = 8 * (1 + (version >= 4) + (version >= 6))
    ruleset = libc.syscall(CREATE_RULESET, rules, size, 0)
    for path, rights in [*((path, READ) for path in _readable()), (folder, everything), (Path(os.devnull), OF_A_FILE)]:
        with contextlib.suppress(OSError):
            place = os.open(path, os.O_PATH)
            rights = rights if path.is_dir() else rights & OF_A_FILE
            # struct landlock_path_beneath_attr: 8 bytes of rights, 4 of the descriptor
            libc.syscall(ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, place), 0)
            os.close(place)
    libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    return libc.syscall(RESTRICT_SELF, ruleset, 0) == 0


def _readable() -> list[Path]:
    package = Path(__file__).resolve().parents[1]
    system = [Path("/", name) for name in ("usr", "lib", "lib64", "bin", "etc", "sys", "dev/urandom", "proc/cpuinfo")]
    python = [sys.prefix, sys.base_prefix, sys.exec_prefix, *site.getsitepackages(), site.getusersitepackages()]
    return [path for path in (*system, *map(Path, python), package) if path.exists()]
