#!/bin/sh
# Installs the Dovecots that dovepush's tests, benchmarks and demo run against.
#
#   install.sh [2.3] [2.4]        default: both
#   install.sh any                one of them, the quickest to have
#
# The host's own package serves where it is the wanted version; the other
# version goes into a directory tree of its own, made by debootstrap below
# $DOVEPUSH_DOVECOT_ROOTS (default /var/cache/dovepush). No system-wide Dovecot
# is started or reconfigured. What is there already is left alone.
set -eu
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
LC_ALL=C
export PATH LC_ALL

roots=${DOVEPUSH_DOVECOT_ROOTS:-/var/cache/dovepush}
policy=/usr/sbin/policy-rc.d
policy_ours=no
partial=

say() { printf '%s\n' "$*"; }
die() {
	printf 'install.sh: %s\n' "$*" >&2
	exit 1
}

suite_of() {
	case $1 in
	2.3) echo bookworm ;;
	2.4) echo trixie ;;
	*) die "unknown Dovecot version \"$1\" (known: 2.3, 2.4)" ;;
	esac
}

# usable ROOT: ROOT holds a Dovecot that speaks IMAP and LMTP.
usable() {
	[ -x "$1/usr/sbin/dovecot" ] && [ -x "$1/usr/lib/dovecot/imap" ] && [ -x "$1/usr/lib/dovecot/lmtp" ]
}

# host_version prints "2.3", "2.4", ... or nothing where the host has none.
host_version() {
	dovecot --version 2>/dev/null | sed -n 's/^\([0-9]*\.[0-9]*\).*/\1/p'
}

host_has() { [ "$(host_version)" = "$1" ] && usable ""; }

candidate_version() {
	apt-cache policy dovecot-imapd 2>/dev/null |
		sed -n 's/^  Candidate: \([0-9]*:\)\{0,1\}\([0-9]*\.[0-9]*\).*/\2/p'
}

# is_there VERSION says where it is; fails where it is not.
is_there() {
	if host_has "$1"; then
		say "Dovecot $1: already there, the host's own ($(command -v dovecot))"
	elif usable "$roots/$(suite_of "$1")"; then
		say "Dovecot $1: already there, in $roots/$(suite_of "$1")"
	else
		return 1
	fi
}

# drop_tree DIR removes an unfinished tree, never what is mounted in it.
drop_tree() {
	[ -d "$1" ] || return 0
	for m in proc/sys/fs/binfmt_misc proc sys dev/pts dev/shm dev run; do
		if mountpoint -q "$1/$m" 2>/dev/null; then umount "$1/$m" || umount -l "$1/$m"; fi
	done
	rm -rf --one-file-system -- "$1"
}

cleanup() {
	if [ "$policy_ours" = yes ]; then rm -f "$policy"; fi
	if [ -n "$partial" ]; then drop_tree "$partial"; fi
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

apt_get_install() {
	DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" </dev/null
}

# apt_install installs packages. Lists that are some weeks old name versions
# that the archive has no more (404): then they are fetched anew, once.
apt_install() {
	apt_get_install "$@" && return
	say "apt could not install $*: once more with new package lists"
	apt-get update -q
	apt_get_install "$@"
}

refresh_lists() {
	# shellcheck disable=SC2016 # apt's own $(...)
	if [ -z "$(apt-get indextargets --format '$(FILENAME)' 'Identifier: Packages' 2>/dev/null | while read -r f; do
		if [ -e "$f" ]; then echo "$f"; fi
	done)" ]; then
		say "apt's package lists are empty: apt-get update"
		apt-get update -q
	fi
}

# from_apt installs the host's packages without starting a system Dovecot.
from_apt() {
	say "Dovecot $1: installing the packages dovecot-imapd and dovecot-lmtpd on this host (about half a minute); no service is started"
	new=yes
	if dpkg-query -W -f '${db:Status-Status}' dovecot-core 2>/dev/null | grep -qx installed; then new=no; fi
	if [ "$new" = yes ] && [ ! -e "$policy" ]; then
		policy_ours=yes
		printf '#!/bin/sh\n# Temporary: keeps a newly installed Dovecot from being started.\nexit 101\n' >"$policy"
		chmod 755 "$policy"
	fi
	apt_install dovecot-imapd dovecot-lmtpd
	if [ "$policy_ours" = yes ]; then
		rm -f "$policy"
		policy_ours=no
	fi
	if [ "$new" = yes ] && [ -d /run/systemd/system ]; then
		systemctl disable --now dovecot.service dovecot.socket >/dev/null 2>&1 || :
	fi
}

# mirror prints the address from which the host's apt takes Debian itself, or
# nothing: debootstrap then uses its own default.
mirror() {
	# shellcheck disable=SC1091
	codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	# shellcheck disable=SC2016 # apt's own $(...)
	apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(COMPONENT) $(REPO_URI)' 'Identifier: Packages' 2>/dev/null |
		awk -v c="$codename" '$1 == "Debian" && $2 == c && $3 == "main" && $4 ~ /^(https?|file):/ { print $4; exit }'
}

# apt_proxy prints the proxy that apt is told to use, if any.
apt_proxy() {
	eval "$(apt-config shell p Acquire::http::Proxy 2>/dev/null)"
	case ${p:-} in '' | DIRECT) ;; *) echo "$p" ;; esac
}

from_debootstrap() {
	suite=$(suite_of "$1")
	say "Dovecot $1: installing Debian $suite with it into $roots/$suite (about 300 MB, one to three minutes)"
	command -v debootstrap >/dev/null || apt_install debootstrap
	proxy=$(apt_proxy)
	if [ -n "$proxy" ] && [ -z "${http_proxy:-}" ]; then
		http_proxy=$proxy
		export http_proxy
	fi
	log=$roots/$suite.log
	partial=$roots/.$suite.partial
	drop_tree "$partial"
	# shellcheck disable=SC2046 # no mirror: no argument
	if ! debootstrap --variant=minbase --include=dovecot-imapd,dovecot-lmtpd \
		"$suite" "$partial" $(mirror) >"$log" 2>&1 </dev/null; then
		tail -n 15 "$log" >&2
		die "debootstrap of $suite failed; its words are above and in $log"
	fi
	chroot "$partial" apt-get clean
	rm -rf "$partial"/var/lib/apt/lists/*
	usable "$partial" || die "debootstrap of $suite brought no usable Dovecot; see $log"
	drop_tree "$roots/$suite"
	mv -T "$partial" "$roots/$suite"
	partial=
	rm -f "$log"
	say "Dovecot $1: installed, $(chroot "$roots/$suite" dovecot --version) in $roots/$suite"
}

install() {
	if is_there "$1"; then return; fi
	refresh_lists
	if { [ -z "$(host_version)" ] && [ "$(candidate_version)" = "$1" ]; } || [ "$(host_version)" = "$1" ]; then
		from_apt "$1"
		host_has "$1" || die "the packages are installed, but dovecot --version does not say $1"
		say "Dovecot $1: installed, the host's own ($(command -v dovecot))"
	else
		from_debootstrap "$1"
	fi
}

case ${1:-} in
-h | --help)
	say "usage: install.sh [2.3] [2.4] | any    installs the Dovecots for tests and the demo (default: both)"
	exit 0
	;;
esac
[ $# -gt 0 ] || set -- 2.3 2.4
if [ "$*" = any ]; then
	# What is there, else what the host's own packages bring.
	if is_there 2.3 || is_there 2.4; then exit 0; fi
	if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then refresh_lists; fi
	case $(candidate_version) in
	2.4) set -- 2.4 ;;
	*) set -- 2.3 ;;
	esac
fi
case $roots in /*) ;; *) die "DOVEPUSH_DOVECOT_ROOTS must be an absolute path, not \"$roots\"" ;; esac

missing=
for v in "$@"; do
	suite_of "$v" >/dev/null
	is_there "$v" || missing="$missing $v"
done
[ -n "$missing" ] || exit 0

command -v apt-get >/dev/null || die "Dovecot$missing missing, and this is no Debian (no apt-get): install it by hand, or run the tests on Debian bookworm or trixie"
if [ "$(id -u)" != 0 ]; then
	command -v sudo >/dev/null || die "Dovecot$missing missing: run this as root, or install sudo"
	say "Dovecot$missing missing: asking sudo for root"
	# shellcheck disable=SC2086 # a list of versions
	exec sudo -- env DOVEPUSH_DOVECOT_ROOTS="$roots" sh "$0" $missing
fi

mkdir -p "$roots"
chmod 755 "$roots"
# One at a time: a second run waits, then finds everything there.
exec 9>"$roots/.lock"
flock 9
for v in $missing; do install "$v" 9>&-; done
