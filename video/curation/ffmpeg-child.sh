#!/bin/sh
# Runs ffmpeg, or ffprobe after --probe, as a child that ends with its parent: even a parent that is killed by SIGKILL
# leaves none behind. An input that makes it take memory without end fails at 4 GiB of address space.
ulimit -c 0 2>/dev/null
ulimit -v 4194304 2>/dev/null
program=ffmpeg
if [ "$1" = --probe ]; then
  program=ffprobe
  shift
fi
# Linux alone can do this; elsewhere an orphan runs on until its file is done.
if command -v setpriv >/dev/null 2>&1; then
  exec setpriv --pdeathsig KILL "$program" "$@"
fi
exec "$program" "$@"
