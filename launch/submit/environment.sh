# shellcheck shell=bash
# The environment of every rank on a cluster. node.sh reads it on every node, under Slurm as under
# Kubernetes; nothing is set anywhere else. What is set already stays as it is.
#
# INTERFACE, if it is set, is the network interface over which the nodes reach each other (eth0).

# Queues from the host to the GPU. With one, a kernel waits behind a collective that it does not
# depend on, and nothing is hidden: in Megatron-LM (PR 6429) overlap gained 3.7 % with 1 and 7.8 %
# with 32.
export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-32}"

# Load all kernels when CUDA starts. CUDA's default, LAZY, loads a kernel when it is first launched,
# and may wait for the device to be idle to do so. A posted NCCL receive keeps the device busy until
# its message comes, which may be waiting for that very kernel on another rank: a deadlock.
export CUDA_MODULE_LOADING="${CUDA_MODULE_LOADING:-EAGER}"

# NCCL says in one line what has failed, and nothing else. Its manual asks to keep other debugging
# and tuning variables out of scripts: a forced algorithm, protocol or number of channels outlives
# its reason. Set them in /etc/nccl.conf if your cluster's vendor says so.
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"

# Which network finds the peers. NCCL and gloo each choose an interface by themselves, NCCL any that
# is up, gloo the one that the host's name resolves to, and either may choose one that leads
# nowhere: a bridge of containers, or one for administration. InfiniBand is found without it.
if [ -n "${INTERFACE:-}" ]; then
  export NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-$INTERFACE}"
  export GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-$INTERFACE}"
fi

# Let rank 0 serve the store of the ranks, at a new port at each start. Shared with torchrun's, which
# is torch's default, it is announced once: a node whose torchrun is started again later waits for
# that in vain (torch 2.14).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE="${TORCH_DISABLE_SHARE_RDZV_TCP_STORE:-1}"

# Seconds that ranks have after SIGTERM to end their step and save; Slurm and Kubernetes give node.sh
# 180. torchrun's own 30 are too few for a large model. The ranks read this too.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-150}"

# Where a rank goes, torch's C++ side of all others warns, with a stack of its own; the ranks
# themselves say who is missing.
export TORCH_CPP_LOG_LEVEL="${TORCH_CPP_LOG_LEVEL:-ERROR}"

# Threads of a rank on the CPU: the node's cores shared out. torchrun would set 1.
threads=$(($(nproc) / PROCESSES))
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}"

# Each connection is an open file, as are the checkpoint's and the data's: as many as are allowed.
ulimit -n "$(ulimit -Hn)"
