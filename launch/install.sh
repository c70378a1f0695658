#!/usr/bin/env bash
# Install the package on this host, from the files beside this folder; quick when nothing changed.
#
# DRWR_PYTHON       the interpreter of a new environment (python3; 3.11 or newer, the same minor version on all hosts)
# DRWR_EXTRAS       extras to install, for example cloud,tune (none)
# DRWR_PIP_OPTIONS  more options for pip; without the internet: "--no-index --find-links /shared/wheels"
set -euo pipefail
. "$(dirname "$0")/env.sh"

fail() { echo "install: $*" >&2; exit 1; }

shm=$(df -k --output=avail /dev/shm 2>/dev/null | tail -1 | tr -d ' ')
[ "${shm:-0}" -ge 524288 ] || fail "/dev/shm has ${shm:-no} KiB left, at least 512 MiB are needed:" \
  "mount -o remount,size=4g /dev/shm, or docker run --shm-size=4g"

if [ ! -x "$DRWR_VENV/bin/python" ]; then
  python=${DRWR_PYTHON:-python3}
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$python on $(hostname) is missing or older than 3.11; set DRWR_PYTHON"
  "$python" -m venv "$DRWR_VENV" || fail "no virtual environment at $DRWR_VENV (Debian: apt install python3-venv)"
fi

wanted=$(cat "$DRWR_HOME/pyproject.toml" "$DRWR_HOME/constraints.txt" | sha256sum)" ${DRWR_EXTRAS:-} $DRWR_HOME"
stamp="$DRWR_VENV/.drwr-installed"
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  pip=("$DRWR_VENV/bin/python" -m pip install --quiet --disable-pip-version-check -c "$DRWR_HOME/constraints.txt")
  # shellcheck disable=SC2206  # several options in one variable
  pip+=(${DRWR_PIP_OPTIONS:-})
  # torch comes first and pinned, so that nothing else can pull another build of it.
  "${pip[@]}" "$(grep '^torch==' "$DRWR_HOME/constraints.txt")"
  "${pip[@]}" -e "$DRWR_HOME${DRWR_EXTRAS:+[$DRWR_EXTRAS]}"
  echo "$wanted" > "$stamp"
fi

line=". \"$DRWR_HOME/launch/env.sh\""
grep -qxF "$line" ~/.bashrc 2>/dev/null || echo "$line" >> ~/.bashrc
if [ -f ~/.ray/auth_token ]; then chmod 600 ~/.ray/auth_token; fi
"$DRWR_VENV/bin/python" -c 'import drwr_dist, ray, torch
print(f"installed: drwr_dist {drwr_dist.__version__}, torch {torch.__version__}, ray {ray.__version__}")'
