#!/usr/bin/env bash
# Debian's Slurm and munge, for make test-slurm; their services stay off. Without root the tests say why they skip.
set -eu
command -v slurmctld >/dev/null && command -v munged >/dev/null && exit 0
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || { echo "slurm is not installed, and only root on Debian can do that here"; exit 0; }
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
apt-get install -y -q --no-install-recommends slurm-wlm munge || {
    apt-get update -q
    apt-get install -y -q --no-install-recommends slurm-wlm munge
}
