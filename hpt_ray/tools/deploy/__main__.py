"""`python -m hpt_ray.tools.deploy render --config FILE --image IMAGE [options] [key=value …]`
`python -m hpt_ray.tools.deploy attempt --config FILE`
`python -m hpt_ray.tools.deploy drain`

`render` writes the Kubernetes manifests of a run; `kubectl apply -k DIR` starts it. `attempt` is the run in a RayJob,
`drain` runs in a pod before it ends. Exit code 0: done. 2: the user must change something. 1: not everything had ended
in time (`drain`). Those of `attempt` are the run's.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hpt_ray.errors import exit_code
from hpt_ray.tools.deploy.drain import JOB_SERVER, drain

STOP_S = 60.0  # for the job server to stop the job


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the commands; the exit code."""
    parser = argparse.ArgumentParser(prog="hpt_ray deploy", description="Runs on Kubernetes.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("render", help="write the manifests of a run as a kustomize overlay")
    command.add_argument(
        "--config", required=True, action="append", help="a YAML file; of several, later ones win"
    )
    command.add_argument("--image", required=True, help="image of all pods, e.g. registry/hpt_ray:gpu")
    command.add_argument("--kind", choices=["RayJob", "RayCluster"], default="RayJob")
    command.add_argument("--out", type=Path, help="folder to write; default: build/kuberay/NAME")
    command.add_argument("--gpus-per-node", type=int, default=8, help="GPUs of a node (8)")
    command.add_argument("--cpus-per-node", type=int, default=96, help="CPU cores of a node (96)")
    command.add_argument("--gpu-resource", default="nvidia.com/gpu", help="what Kubernetes calls a GPU")
    command.add_argument("--namespace", default="hpt-ray", help="of all objects (hpt-ray)")
    command.add_argument(
        "--operator-namespace", default="default", help="where KubeRay's operator is (default)"
    )
    command.add_argument("--deadline", type=_seconds, metavar="SECONDS", help="a RayJob ends after this long")
    command.add_argument(
        "--pods",
        type=Path,
        metavar="FILE",
        help="YAML with what every pod gets: account, pull secrets, node selector, volumes, … (docs/cluster.md)",
    )
    command.add_argument(
        "--with",
        dest="components",
        action="append",
        default=[],
        metavar="COMPONENT",
        help="a folder of deploy/kuberay/components, e.g. kueue; may be repeated",
    )
    command.add_argument("overrides", nargs="*", metavar="key=value", help="keys to replace")
    command.set_defaults(run=_render)
    server = argparse.ArgumentParser(add_help=False)
    server.add_argument("--job-server", default=JOB_SERVER, metavar="URL", help=f"the head's ({JOB_SERVER})")
    command = commands.add_parser(
        "attempt", parents=[server], help="in a RayJob: run, and end the job where retrying does not help"
    )
    command.add_argument("--config", required=True, help="a YAML file")
    command.set_defaults(run=_attempt)
    command = commands.add_parser(
        "drain", parents=[server], help="in a pod that ends: stop the run and wait for its save"
    )
    command.add_argument("--timeout", type=float, default=950.0, help="seconds to wait at most (950)")
    command.set_defaults(run=_drain)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except Exception as error:
        return exit_code(error)


def _render(options: argparse.Namespace) -> int:
    # Not above: `drain` must come up fast, and the run's modules import torch.
    from hpt_ray.config.checks import check_config
    from hpt_ray.config.load import load_config
    from hpt_ray.tools.deploy.pod_fields import read_fields
    from hpt_ray.tools.deploy.pods import NodeSize
    from hpt_ray.tools.deploy.render import Target, object_name, render
    from hpt_ray.utils import plugins

    config = load_config(options.config, options.overrides)
    plugins.load(config.run.plugins)
    check_config(config)
    out = options.out or Path("build", "kuberay", object_name(config.run.name))
    node = NodeSize(options.cpus_per_node, options.gpus_per_node)
    target = Target(
        options.image,
        options.kind,
        node,
        options.gpu_resource,
        tuple(options.components),
        options.namespace,
        options.operator_namespace,
        options.deadline,
        read_fields(options.pods) if options.pods else {},
    )
    files = render(config, target, out)
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (out / name).write_text(content, encoding="utf-8")
    print(f"{out}: {', '.join(files)}\nTo start it:\n    kubectl apply -k {out}")
    if options.kind == "RayJob":
        job = f"rayjob hpt-ray-{object_name(config.run.name)}"
        print(
            "To go on from its newest checkpoint, whatever has become of it (it is stopped and saved if it runs):\n"
            f"    kubectl -n {options.namespace} delete --ignore-not-found {job} && kubectl apply -k {out}"
        )
    return 0


def _seconds(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1 second")
    return value


def _attempt(options: argparse.Namespace) -> int:
    """KubeRay retries a job that failed, whatever its exit code, but not one that was stopped. So a run whose user must
    change something stops its own job."""
    # The job server signals all processes of a job. The run answers, and this one waits for it.
    signal.signal(signal.SIGTERM, lambda *_: None)
    code = subprocess.call([sys.executable, "-m", "hpt_ray.main", "--config", options.config])
    if code == 2:
        print("Not tried again, since that would end the same way.", flush=True)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        drain(options.job_server, STOP_S)
    return code


def _drain(options: argparse.Namespace) -> int:
    return 0 if drain(options.job_server, options.timeout) else 1


if __name__ == "__main__":
    sys.exit(main())
