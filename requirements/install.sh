#!/bin/sh
# Sets up .venv with the locked CPU installation. Called by `make install`; safe to call again.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

fail() { echo "error: $1" >&2; exit 2; }
command -v "$python" >/dev/null || fail "no $python here. Install Python 3.11 or newer, or set PYTHON=/path/to/it."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$python is $("$python" --version 2>&1). hpt_ray needs 3.11 or newer: set PYTHON=/path/to/it."
command -v c++ >/dev/null || fail "no C++ compiler here. Install one, e.g. the package g++ or build-essential."

echo "Setting up .venv ($("$python" --version)); this takes a few minutes and about 4 GB, once."
"$python" -m venv .venv
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }

torch=$(grep '^torch==' requirements/cpu.lock)
echo "1/3  $torch"
# Some machines have CPU wheels of torch at hand; elsewhere PyTorch's own index has them.
pip install --quiet --no-deps "$torch" 2>/dev/null ||
    pip install --quiet --no-deps --extra-index-url https://download.pytorch.org/whl/cpu "$torch" ||
    fail "cannot install $torch: neither your package index nor PyTorch's CPU index has it."
echo "2/3  $(grep -c '==' requirements/cpu.lock) locked packages"
# DeepSpeed is built from source and looks for the torch it will run with.
grep -v '^torch==\|^deepspeed==' requirements/cpu.lock >.venv/rest.txt
pip install --quiet --no-deps -r .venv/rest.txt
pip install --quiet --no-deps --no-build-isolation "$(grep '^deepspeed==' requirements/cpu.lock)"
echo "3/3  hpt_ray itself"
pip install --quiet --no-deps --no-build-isolation --editable .
.venv/bin/python -c 'import torch; assert torch.version.cuda is None, "a CUDA build of torch was installed"'
echo "Done. Run .venv/bin/python -m hpt_ray.main --help, or activate with: . .venv/bin/activate"
