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

# Parts of the lock file: pip takes hashes from files only, and no file of a package whose hash is not there.
locked() { pip install --quiet --no-deps "$@"; }
for part in torch deepspeed; do grep "^$part==" requirements/cpu.lock >.venv/$part.txt; done
grep -v '^torch==\|^deepspeed==' requirements/cpu.lock >.venv/rest.txt

torch=$(cut -d ' ' -f 1 .venv/torch.txt)
echo "1/3  $torch"
checked=--require-hashes
if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
    echo "     not checked: the lock file has the hash of the CPU build for Python 3.11 only"
    checked=--no-deps
    echo "$torch" >.venv/torch.txt
fi
# Some machines have CPU wheels of torch at hand; elsewhere PyTorch's own index has them.
locked $checked -r .venv/torch.txt 2>/dev/null ||
    locked $checked --extra-index-url https://download.pytorch.org/whl/cpu -r .venv/torch.txt ||
    fail "cannot install $torch: neither your package index nor PyTorch's CPU index has it, with its hash."
echo "2/3  $(grep -c '==' requirements/cpu.lock) locked packages"
locked --require-hashes -r .venv/rest.txt
# DeepSpeed is built from source and looks for the torch it will run with.
locked --require-hashes --no-build-isolation -r .venv/deepspeed.txt
echo "3/3  hpt_ray itself"
pip install --quiet --no-deps --no-build-isolation --editable .
.venv/bin/python -c 'import torch; assert torch.version.cuda is None, "a CUDA build of torch was installed"'
echo "Done. Run .venv/bin/python -m hpt_ray.main --help, or activate with: . .venv/bin/activate"
