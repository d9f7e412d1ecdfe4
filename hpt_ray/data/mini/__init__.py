"""The small task: arithmetic prompts on which hybrid post-training can be watched in minutes.

Six families to train on, two held out and two that recombine what the base has read, terse demonstrations, a corpus
for a weak base, an 82-entry tokenizer and model sizes to match: all generated, seeded and byte-reproducible. `resolve`
turns a name such as `mini:train` into a file, generating everything on first use (about two
seconds). Training the base is not done here.
"""

from hpt_ray.data.mini.families import BASE_FAMILIES, FAMILIES, OOD_FAMILIES, TRAIN_FAMILIES
from hpt_ray.data.mini.files import PREFIX, VERSION, is_mini, resolve, write_mini

__all__ = [
    "BASE_FAMILIES",
    "FAMILIES",
    "OOD_FAMILIES",
    "PREFIX",
    "TRAIN_FAMILIES",
    "VERSION",
    "is_mini",
    "resolve",
    "write_mini",
]
