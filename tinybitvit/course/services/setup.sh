#!/usr/bin/env bash
# Gradescope runs this once, when it builds the image: a Python with what the library needs, beside this file.
set -euo pipefail
cd "$(dirname "$0")"
for python in python3.14 python3.13 python3.12 python3.11 python3; do
    if command -v "$python" >/dev/null && "$python" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))'; then
        break
    fi
    python=
done
if [ -z "$python" ]; then
    apt-get update
    apt-get install -y python3.12-venv || apt-get install -y python3.11-venv
    python=$(command -v python3.12 || command -v python3.11)
fi
"$python" -m venv venv
venv/bin/python -m pip install --quiet -r requirements.txt
