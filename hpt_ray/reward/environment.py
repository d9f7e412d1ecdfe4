"""The environment of grading processes: what every program needs, and nothing that is secret.

A reward function is run on what a model wrote, and what a model wrote it may run. So keys of hubs, trackers and clouds
are not in its environment, unless `reward.environment` names them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import hpt_ray
from hpt_ray.utils.plugins import VARIABLE

KEPT = frozenset(
    "PATH HOME USER LOGNAME LANG LANGUAGE TZ TMPDIR VIRTUAL_ENV CONDA_PREFIX LD_LIBRARY_PATH CUDA_VISIBLE_DEVICES "
    "SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY "
    f"XDG_CACHE_HOME HF_HOME HF_HUB_CACHE HF_HUB_OFFLINE TRANSFORMERS_OFFLINE HPT_RAY_CACHE {VARIABLE}".split()
)
KEPT_BEGINNINGS = ("LC_", "PYTHON")
_PACKAGE_PARENT = str(Path(hpt_ray.__file__).resolve().parents[1])


def clean_environment(further: Sequence[str]) -> dict[str, str]:
    """What of this process's environment a grading process gets: `KEPT`, and the variables of `further`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.upper() in KEPT or name.startswith(KEPT_BEGINNINGS) or name in further
    }
    return kept | {
        "PYTHONPATH": os.pathsep.join([_PACKAGE_PARENT, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONHASHSEED": "0",  # sympy's order of terms, the same in every process
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",  # each of its threads would reserve address space
        "PYTHONUNBUFFERED": "1",  # what is printed before a kill is not lost
    }


def hint(detail: str, environment: Mapping[str, str]) -> str:
    """What to say after an error that names a variable which is set here and was kept from a grading process."""
    withheld = (os.environ.keys() - environment.keys()) & {*re.findall(r"\w+", detail)}
    if not withheld:
        return ""
    names = ", ".join(sorted(withheld))
    return f" (reward functions see no {names} of the environment unless reward.environment=[{names}])"
