"""Whether an engine that did not start was built for another torch.

In: what it failed with. Out: the user's mistake that explains it, or nothing. vLLM's compiled parts are bound to
the torch they were built with. With another one they may work, or be left out with a warning; then whatever needs
them fails, in words that say nothing of versions. So nothing is refused beforehand: only a failure is explained.
"""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from hpt_ray.errors import UserError, in_one_line


def wrong_torch(error: Exception, installed: str | None = None) -> UserError | None:
    """The error to raise instead where torch is not of a version that vLLM asks for; None where it is."""
    installed = installed or metadata.version("torch")
    for package in metadata.packages_distributions().get("vllm", ()):
        wanted = torch_of(metadata.requires(package) or [])
        if not wanted.contains(installed, prereleases=True):
            return UserError(
                f"{package} {metadata.version(package)} is built for torch{wanted}, but torch {installed} is "
                f"installed, and the engine does not start with it ({in_one_line(error)}). Install the two "
                "together: torch, vLLM and DeepSpeed as requirements/cpu.lock or requirements/gpu.lock has them."
            )
    return None


def torch_of(requires: list[str]) -> SpecifierSet:
    """The versions of torch that a package asks for on this machine, from its requirements; all without any."""
    requirements = [Requirement(line) for line in requires]
    of_torch = [one.specifier for one in requirements if one.name == "torch" and applies(one)]
    return SpecifierSet(",".join(str(specifier) for specifier in of_torch))


def applies(requirement: Requirement) -> bool:
    """Whether it is asked for here, without an extra."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})
