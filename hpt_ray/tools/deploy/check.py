"""`python -m hpt_ray.tools.deploy.check [--gpus N] [--shm-gib X] [--cluster URL] [COMMAND …]`

Looks at the machine or the container before anything starts in it, says in one line each what is there, and then
becomes COMMAND. In: what is asked for. Out: exit code 2 and what to do, where something is missing. It waits only
for `--cluster`, the job server of a running cluster, and says so. It starts nothing and changes nothing but its
own limit of open files, which the command inherits. It is the entry point of the images.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hpt_ray.errors import UserError

OPEN_FILES = 8192  # of one Ray node with dozens of actors; Ray itself advises 65536
FREE_SHARE = 0.05  # Ray takes no more objects on a disk that is fuller than 95 %
GIB = 2**30
POLL_S = 2.0


def shared_memory(options: argparse.Namespace) -> str:
    size = shutil.disk_usage(options.shm).total / GIB
    if size < options.shm_gib:
        raise UserError(
            f"{options.shm} holds {size:.2g} GiB, but {options.shm_gib:g} GiB are asked for (--shm-gib). Docker: add "
            f"--shm-size={options.shm_gib:g}g. Kubernetes: mount an emptyDir with `medium: Memory` there."
        )
    return f"{size:.3g} GiB at {options.shm}"


def open_files(options: argparse.Namespace) -> str:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < OPEN_FILES:
        raise UserError(
            f"this process may open {hard} files, {OPEN_FILES} are needed: raise the hard limit with "
            "`ulimit -Hn`, `docker run --ulimit nofile=65536`, or in the settings of the container runtime."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return "no limit" if hard == resource.RLIM_INFINITY else f"{hard}"


def folders(options: argparse.Namespace) -> str:
    """Everything that a run writes beside its run folder can be written, and the disk is not full."""
    # `gettempdir` passes over a TMPDIR that cannot be written.
    found = {"TMPDIR": os.environ.get("TMPDIR") or tempfile.gettempdir()}
    found |= {name: os.environ[name] for name in FOLDERS if os.environ.get(name)}
    for name, folder in found.items():
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UserError(
                f"{name}={folder} cannot be written ({error.strerror}): mount a volume there that user "
                f"{os.getuid()} may write, or set {name} to another folder."
            ) from error
        disk = shutil.disk_usage(folder)
        if disk.free < FREE_SHARE * disk.total:
            raise UserError(
                f"{name}={folder} is on a full disk ({disk.free / GIB:.3g} of {disk.total / GIB:.3g} GiB free): "
                f"make room, or set {name} to a folder on another disk."
            )
    return ", ".join(dict.fromkeys(found.values()))


# Where Ray, the model hub and the compilers write; see docs/docker.md.
FOLDERS = (
    "HOME",
    "HF_HOME",
    "HPT_RAY_CACHE",
    "RAY_TMPDIR",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "VLLM_CACHE_ROOT",
)


def token(options: argparse.Namespace) -> str:
    """Whether Ray asks for a token, and nobody else can read it."""
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode != "token":
        return f"RAY_AUTH_MODE is {mode or 'not set'}: a cluster started with `ray start` lets everybody in"
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "from RAY_AUTH_TOKEN"
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    how = "make one with `head -c 32 /dev/urandom | base64`, the same for all nodes."
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"RAY_AUTH_MODE=token, but {path} cannot be read ({error.strerror}): {how}"
        ) from error
    if not content.strip():
        raise UserError(f"RAY_AUTH_MODE=token, but {path} is empty: {how}")
    if path.stat().st_mode & stat.S_IROTH:
        raise UserError(f"{path} can be read by everybody on this machine: chmod 600 {path}")
    return f"from {path}"


def gpus(options: argparse.Namespace) -> str:
    """As many GPUs as asked for, a build of torch that uses them, and a driver that is new enough for it."""
    if not options.gpus:
        return "none asked for"
    import torch

    build = torch.version.cuda
    if build is None:
        raise UserError(
            f"{options.gpus} GPUs are asked for (--gpus), but this is the CPU build of torch "
            f"{torch.__version__}: use the GPU image, or install as docs/gpu.md says."
        )
    driver = torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined]  # e.g. 13000; 0 without a driver
    if driver // 1000 < int(build.split(".")[0]):
        supports = f"supports CUDA {driver // 1000}.{driver % 1000 // 10}" if driver else "is not there"
        raise UserError(
            f"torch {torch.__version__} needs a driver for CUDA {build}, but the NVIDIA driver {supports}: update the "
            "driver of the node, or run the container with the NVIDIA runtime (docker run --gpus all)."
        )
    seen = torch.cuda.device_count()
    if seen < options.gpus:
        raise UserError(
            f"{seen} GPUs are visible, {options.gpus} are asked for (--gpus): docker run --gpus all, a request for "
            "nvidia.com/gpu in Kubernetes, or CUDA_VISIBLE_DEVICES."
        )
    return f"{seen} × {torch.cuda.get_device_name(0)}, CUDA {build}"


def cluster(options: argparse.Namespace) -> str:
    """The job server answers and is of our version of Ray. The only check that waits."""
    if options.cluster is None:
        return "none asked for"
    import ray
    from ray.job_submission import JobSubmissionClient

    end_s = time.monotonic() + options.wait_s
    says = ""
    while True:
        try:
            # `get_version` gives the version of the protocol; that of Ray is in the same answer.
            answer = JobSubmissionClient(options.cluster)._do_request("GET", "/api/version")
            theirs = answer.json()["ray_version"]
            break
        except (ConnectionError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
        if time.monotonic() > end_s:
            raise UserError(
                f"--cluster={options.cluster}: no job server answered within {options.wait_s:g} s ({reason}). Give "
                "the address of the dashboard, and the token of that cluster."
            )
        if reason != says:
            says = reason
            print(f"waiting for the job server at {options.cluster}: {reason}", flush=True)
        time.sleep(POLL_S)
    if theirs != ray.__version__:
        raise UserError(
            f"the cluster at {options.cluster} has Ray {theirs}, this is Ray {ray.__version__}: use the same "
            "image, or the same lock file, on both sides."
        )
    return f"{options.cluster}, Ray {theirs}"


# In this order: what is quick and everybody needs comes first.
CHECKS: dict[str, Callable[[argparse.Namespace], str]] = {
    "shared memory": shared_memory,
    "open files": open_files,
    "folders": folders,
    "token": token,
    "GPUs": gpus,
    "cluster": cluster,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Check everything, then become the command. The exit code where there is none, or a check failed."""
    options = parser().parse_args(arguments)
    failed = False
    for name, look in CHECKS.items():
        try:
            print(f"{name + ':':<15}{look(options)}", flush=True)
        except UserError as error:
            failed = True
            print(f"error: {error}", file=sys.stderr, flush=True)
    if failed:
        return 2
    if options.command:
        os.execvp(options.command[0], options.command)
    return 0


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m hpt_ray.tools.deploy.check", description="Check this machine, then run COMMAND."
    )
    result.add_argument("--gpus", type=int, default=0, help="GPUs that must be there (0)")
    result.add_argument("--shm-gib", type=float, default=1.0, help="shared memory that must be there (1)")
    result.add_argument("--shm", default="/dev/shm", help="where it is (/dev/shm)")
    result.add_argument("--cluster", metavar="URL", help="job server to wait for, e.g. http://head:8265")
    result.add_argument("--wait-s", type=float, default=120.0, help="limit of that wait, in seconds (120)")
    result.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="what to become")
    return result


if __name__ == "__main__":
    sys.exit(main())
