#!/usr/bin/env bash
# Ray on this host without the cluster launcher:
#
#   launch/start.sh head               the head: no training work runs on it
#   launch/start.sh worker HEAD_IP     a worker; options after that go to `ray start`, for example --num-gpus=4
#   launch/start.sh stop               stop Ray on this host
#
# The package is installed beforehand (make install, or launch/install.sh), and ~/.ray/auth_token is the same file on
# all hosts. DRWR_NODE_IP and DRWR_INTERFACE choose the network where a host has several.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
export DRWR_HOME="${DRWR_HOME:-$here}"
role=${1:-}
if [ "$role" = worker ]; then export RAY_HEAD_IP="${2:?usage: launch/start.sh worker HEAD_IP}"; fi
. "$here/launch/env.sh"

need_token() {
  [ -s "${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}" ] || [ -n "${RAY_AUTH_TOKEN:-}" ] && return
  echo "start: no token in ~/.ray/auth_token; copy it from the head (its mode is 600)" >&2
  exit 1
}

# Ray would try for most of a minute, and end with a traceback.
greet_head() {
  if ! timeout 10 bash -c "exec 3<> /dev/tcp/$RAY_HEAD_IP/6379" 2>/dev/null; then
    echo "start: nothing answers at $RAY_HEAD_IP:6379; start the head first, or open the port" >&2
    exit 1
  fi
  local token answer
  token=${RAY_AUTH_TOKEN:-$(cat "${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}")}
  answer=$(TOKEN=$token timeout 10 bash -c "exec 3<> /dev/tcp/$RAY_HEAD_IP/8265 &&
    printf 'GET /api/version HTTP/1.0\r\nAuthorization: Bearer %s\r\n\r\n' \"\$TOKEN\" >&3 && head -n 1 <&3" 2>/dev/null) || true
  case "$answer" in
    *" 401 "* | *" 403 "*)
      echo "start: the head refuses this host's token; copy ~/.ray/auth_token from the head" >&2
      exit 1
      ;;
  esac
}

case "$role" in
  head)
    shift
    free_ports 6379 8265 52365
    ray get-auth-token --generate > /dev/null
    chmod 600 ~/.ray/auth_token 2>/dev/null || true
    ray start --head --port=6379 --node-ip-address="$DRWR_NODE_IP" --num-cpus=0 --num-gpus=0 \
      --object-store-memory="$DRWR_OBJECT_STORE" --dashboard-host="$DRWR_NODE_IP" --disable-usage-stats "$@"
    echo "workers: copy ~/.ray/auth_token there, then launch/start.sh worker $DRWR_NODE_IP"
    ;;
  worker)
    shift 2
    need_token
    greet_head
    ray start --address="$RAY_HEAD_IP:6379" --node-ip-address="$DRWR_NODE_IP" \
      --object-store-memory="$DRWR_OBJECT_STORE" --disable-usage-stats $DRWR_RAY_OPTIONS "$@"
    ;;
  stop) ray stop ;;
  *)
    sed -n '2,6p' "$0" | cut -c3- >&2
    exit 2
    ;;
esac
