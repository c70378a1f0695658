# The environment of every Ray process on a host. Sourced by login shells, the start commands and launch/start.sh.
# What differs on one host alone goes into ~/.drwr_host.sh there (see launch/README.md): it is read first.

if [ -r "$HOME/.drwr_host.sh" ]; then . "$HOME/.drwr_host.sh"; fi

export DRWR_HOME="${DRWR_HOME:-$HOME/drwr-dist}"
export DRWR_VENV="${DRWR_VENV:-$DRWR_HOME/.venv}"
case ":$PATH:" in
  *":$DRWR_VENV/bin:"*) ;;
  *) export PATH="$DRWR_VENV/bin:$PATH" ;;
esac

# Nobody joins, submits or reads without the token in ~/.ray/auth_token.
export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}"
export RAY_USAGE_STATS_ENABLED="${RAY_USAGE_STATS_ENABLED:-0}"

# `ray job stop` kills after so many seconds; Ray's 3 are too few to save a checkpoint and give the workers back.
export RAY_JOB_STOP_WAIT_TIME_S="${RAY_JOB_STOP_WAIT_TIME_S:-120}"

# The address that the other hosts reach this one by: given, or the one that this ssh session came in on, or the one
# that leads to the head, or the first one.
if [ -z "${DRWR_NODE_IP:-}" ]; then
  DRWR_NODE_IP=$(echo "${SSH_CONNECTION:-}" | cut -d' ' -f3)
  if [ -z "$DRWR_NODE_IP" ] && [ -n "${RAY_HEAD_IP:-}" ]; then
    DRWR_NODE_IP=$(ip -o route get "$RAY_HEAD_IP" 2>/dev/null | sed -n 's/.* src \([^ ]*\).*/\1/p')
  fi
  if [ -z "$DRWR_NODE_IP" ]; then DRWR_NODE_IP=$(hostname -I 2>/dev/null | cut -d' ' -f1); fi
fi
export DRWR_NODE_IP

# The gradients take the same network interface.
if [ -z "${DRWR_INTERFACE:-}" ]; then
  DRWR_INTERFACE=$(ip -o address 2>/dev/null | awk -v ip="$DRWR_NODE_IP" 'index($4, ip "/") == 1 {print $2; exit}')
fi
if [ -n "$DRWR_INTERFACE" ]; then
  export DRWR_INTERFACE GLOO_SOCKET_IFNAME="$DRWR_INTERFACE" NCCL_SOCKET_IFNAME="$DRWR_INTERFACE"
fi

# No tensor goes through Ray's object store, so it stays small and leaves /dev/shm to the loader processes.
export DRWR_OBJECT_STORE="${DRWR_OBJECT_STORE:-268435456}"
# More options for `ray start` on workers, for example "--num-cpus=8" on a host that does other work too.
export DRWR_RAY_OPTIONS="${DRWR_RAY_OPTIONS:-}"
ulimit -n 65536 2>/dev/null || true

# free_ports PORT…: fails with one line where something listens at one of them. Ray would start without its dashboard
# all the same, or end after most of a minute with a traceback.
free_ports() {
  for port in "$@"; do
    if grep -qsE ":$(printf %04X "$port") [0-9A-F]+:0000 0A" /proc/net/tcp /proc/net/tcp6; then
      echo "port $port of $(hostname) is taken by another program: stop it ('ss -ltnp' names it)" >&2
      return 1
    fi
  done
}
