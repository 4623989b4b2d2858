#!/bin/sh
# The image's entry point: the first word of the command says which process this container is.
#
#   serve                the balancer, when nothing is said
#   health, …            lb-health and every other program lb-WORD that is installed
#   status, config, …    a command of `lb`
#   healthcheck          the image's HEALTHCHECK
#
# Everything is exec'ed: the process itself is PID 1 and gets the signals.
set -eu

[ $# -gt 0 ] || set -- serve

case $1 in
healthcheck)
    # Only the balancer can be asked whether it is ready. The others end themselves when they cannot work.
    case $(tr '\0' ' ' </proc/1/cmdline) in
    *bin/lb-health* | *lb-entrypoint\ health*) exit 0 ;;
    esac
    ;;
lb | lb-*)
    exec "$@" # who wrote the whole name
    ;;
esac

if command -v "lb-$1" >/dev/null; then
    program=lb-$1
    shift
    exec "$program" "$@"
fi
exec lb "$@"
