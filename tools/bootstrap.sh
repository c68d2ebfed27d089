#!/bin/sh
# Finds a Python that can run Interlock and hands over to bootstrap.py. POSIX sh: it runs before anything is installed.
set -eu
cd "$(dirname "$0")/.."

# The usual case first: everything is in place, and the environment's own Python says so.
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ] && .venv/bin/python -E -s -S tools/bootstrap.py ready 2>/dev/null; then
    exit 0
fi

# An activated .venv must not be the base of the .venv that may have to be rebuilt.
PATH=$(printf %s "$PATH" | tr : '\n' | grep -vxF "$PWD/.venv/bin" | paste -sd: -)

fits() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' >/dev/null 2>&1
}
version() {
    "$1" -c 'import sys; print("Python %d.%d.%d" % sys.version_info[:3])' 2>/dev/null || echo "not a working Python"
}

if [ -n "${PYTHON:-}" ]; then
    if fits "$PYTHON"; then exec "$PYTHON" -E -s tools/bootstrap.py "$@"; fi
    echo "setup: PYTHON=$PYTHON is $(version "$PYTHON"), but Interlock needs 3.11 to 3.14; name another one or leave PYTHON out." >&2
    exit 1
fi
# The environment's own Python first: bootstrap.py takes the interpreter beneath it, so an update keeps what PYTHON= chose.
for candidate in .venv/bin/python python3.14 python3.13 python3.12 python3.11 python3; do
    if command -v "$candidate" >/dev/null 2>&1 && fits "$candidate"; then
        exec "$candidate" -E -s tools/bootstrap.py "$@"
    fi
done
if command -v python3 >/dev/null 2>&1; then found="python3 is $(version python3)"; else found="there is no python3"; fi
echo "setup: Interlock needs Python 3.11 to 3.14, and $found; install one (Debian, Ubuntu: apt-get install python3 python3-venv)" \
    "or name it: make setup PYTHON=/path/to/python3.12" >&2
exit 1
