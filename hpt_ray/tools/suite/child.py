"""`python -m hpt_ray.tools.suite.child PARENT MODULE WORDS…`: a module that ends when its parent process does.

However the parent ends, also by SIGKILL: a run that went on alone would write into a folder that the next call
takes for cut off. Linux only, as everything here.
"""

import ctypes
import os
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def main() -> None:
    parent, module, *words = sys.argv[1:]
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != int(parent):  # it has ended meanwhile
        sys.exit(1)
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
