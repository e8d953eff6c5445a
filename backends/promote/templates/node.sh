# shellcheck shell=bash
# What every script of a node does first: settings, software, network. Sourced, with BUNDLE set.
# shellcheck source=/dev/null
source "$BUNDLE/settings.env"
refuse() { echo "firstorder: $1" >&2; exit 2; }

if [ -n "$MODULES" ]; then
    read -ra wanted <<<"$MODULES"
    module load "${wanted[@]}"
fi
if [ -n "$ENVIRONMENT" ]; then
    [ -f "$ENVIRONMENT/bin/activate" ] || refuse "ENVIRONMENT = $ENVIRONMENT is no virtual environment; run install.sh, or set it empty"
    # shellcheck source=/dev/null
    source "$ENVIRONMENT/bin/activate"
fi

export NCCL_DEBUG
[ -z "$NCCL_IB_HCA" ] || export NCCL_IB_HCA
[ -z "$INTERFACE" ] || export NCCL_SOCKET_IFNAME="$INTERFACE" GLOO_SOCKET_IFNAME="$INTERFACE"

reachable() { # reachable NAME ADDRESS: refuse what another node would take for itself
    case $2 in
        127.* | localhost* | ::1 | "") refuse "$1 = '$2' means another machine on every node; set the name or address by which others reach it" ;;
    esac
}
