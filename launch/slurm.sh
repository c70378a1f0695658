#!/usr/bin/env bash
# A training on the nodes of a Slurm allocation, from the repository's root (a folder that all nodes see):
#
#   sbatch --nodes=4 --gpus-per-node=8 launch/slurm.sh config=configs/cluster.yaml data=/shared/data \
#       storage=/shared/runs name=first workers=32
#
# Another verb: DRWR_VERB=tune sbatch …   The environment is .venv there (make install), or DRWR_VENV.
#SBATCH --job-name=drwr
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --signal=B:TERM@120
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
export DRWR_HOME=$PWD
export DRWR_VENV="${DRWR_VENV:-$PWD/.venv}"
python=$DRWR_VENV/bin/python

# A token for this job alone; it reaches the nodes in the environment of the steps.
RAY_AUTH_TOKEN=$("$python" -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
step=(srun --overlap --ntasks-per-node=1 --kill-on-bad-exit=0)
address=$("${step[@]}" --nodes=1 --ntasks=1 -w "$head" hostname -I | cut -d' ' -f1)
here=(--num-cpus="${SLURM_CPUS_ON_NODE:-1}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --block)

# The head trains too: the nodes of an allocation are all alike. --block: Slurm ends what outlives its step.
(. launch/env.sh && free_ports 6379 8265 52365) # this script runs on the first node, which is the head
DRWR_NODE_IP=$address "${step[@]}" --nodes=1 --ntasks=1 -w "$head" launch/start.sh head "${here[@]}" &
ray=$!
until (exec 3<> "/dev/tcp/$address/6379") 2> /dev/null; do
  kill -0 "$ray" 2> /dev/null || { echo "slurm: Ray did not start on $head; the lines above say why" >&2; exit 1; }
  sleep 1
done
if [ "${#nodes[@]}" -gt 1 ]; then
  others=$((${#nodes[@]} - 1))
  "${step[@]}" --nodes="$others" --ntasks="$others" --exclude="$head" launch/start.sh worker "$address" "${here[@]}" &
fi

# The driver runs here, on the first node, and not in a step: srun would kill a step that is told TERM. Before the time
# limit Slurm sends TERM; passed on, a checkpoint is saved, and the same sbatch continues from it.
RAY_ADDRESS="$address:6379" "$python" -m "drwr_dist.${DRWR_VERB:-train}" "$@" &
work=$!
trap 'kill -TERM "$work"' TERM
code=0
wait "$work" || code=$?
while kill -0 "$work" 2> /dev/null; do code=0; wait "$work" || code=$?; done # a signal ends a wait early
exit "$code"
