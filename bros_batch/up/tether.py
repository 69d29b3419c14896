"""Start a command that does not outlive its parent.

`python tether.py PARENT_PID SIGNAL COMMAND...` asks the kernel to send itself SIGNAL when PARENT_PID ends,
however it ends, then becomes COMMAND. The wish survives exec. Linux only; elsewhere the command runs
untethered.
"""

from __future__ import annotations

import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def tethered(command: list[str], signum: signal.Signals = signal.SIGKILL) -> list[str]:
    """`command` tied to the calling process. Start it from the main thread: the kernel watches the thread
    that forked, not the process."""
    # -I -S: this runs before anything of ours matters, so no site-packages, no environment, 15 ms.
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(int(signum)), *command]


def main(argv: list[str]) -> None:
    parent, signum, command = int(argv[0]), int(argv[1]), argv[2:]
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signum, 0, 0, 0)
        if os.getppid() != parent:  # it ended before the wish was made
            return
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
