#!/bin/sh
# Installs Debian packages that tests and benches start, where it may; otherwise says what to install.
#
#     deploy/tools.sh PROGRAM...        (each program is in the package of its name)
set -eu
for program in "$@"; do
    # Debian keeps servers where only root looks.
    PATH="$PATH:/usr/sbin:/sbin"
    if command -v "$program" > /dev/null; then
        continue
    fi
    if [ "$(id -u)" = 0 ]; then
        as_root=""
    elif command -v sudo > /dev/null && sudo -n true 2> /dev/null; then
        as_root="sudo"
    else
        as_root="no"
    fi
    if [ "$as_root" != no ] && command -v apt-get > /dev/null; then
        echo "installing $program"
        if ! $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$program" > /dev/null 2>&1; then
            $as_root apt-get update -qq
            $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$program" > /dev/null
        fi
    fi
    if ! command -v "$program" > /dev/null; then
        echo "$program is missing, and cannot be installed from here: install it (Debian: apt-get install $program)" >&2
        exit 1
    fi
done
