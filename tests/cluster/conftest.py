"""One local Ray for all cluster tests, and tiny models to run on it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from hpt_ray.cluster.runtime import Cluster
from hpt_ray.config.schema import ClusterConfig
from hpt_ray.data.mini.model import Architecture, model_config
from hpt_ray.data.mini.tokenizer import build_tokenizer


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Cluster]:
    """A local Ray, started as a run starts it, but with 8 logical CPUs whatever the machine has.

    For room of its own a test connects again: `Cluster.connect(ClusterConfig())` joins this Ray.
    """
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 8}')
        # Actors may come from helper modules of this folder.
        environment.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        cluster = Cluster.connect(ClusterConfig(address="local"))
    yield cluster
    cluster.close()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Architecture, bool], Path]:
    """`tiny_model(architecture, tied)`: a folder with weights and tokenizer, made once.

    2 layers, 64 wide, 2 query heads of 32 on 1 key head, 82 tokens; no weight is zero or one, so that
    a bias or a norm that gets lost is noticed.
    """
    made: dict[tuple[Architecture, bool], Path] = {}

    def make(architecture: Architecture, tied: bool) -> Path:
        if (architecture, tied) not in made:
            from transformers import AutoModelForCausalLM

            config = model_config("t", architecture)
            config.tie_word_embeddings = tied
            torch.manual_seed(1)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            with torch.no_grad():
                for weight in model.parameters():
                    weight.add_(0.1 * torch.randn_like(weight))
            folder = tmp_path_factory.mktemp("models") / f"{architecture}-{'tied' if tied else 'untied'}"
            model.save_pretrained(folder)
            build_tokenizer().save_pretrained(folder)
            made[architecture, tied] = folder
        return made[architecture, tied]

    return make
