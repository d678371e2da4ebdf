#!/bin/sh
# Turns what flanneld wrote about this node's subnet into options of the docker daemon, as a file that
# both `sh` and systemd's EnvironmentFile= read alike.
#
# Variables that begin with the prefix below are found by their names.
# shellcheck disable=SC2034

prefix=DOCKER_OPT_

fail() {
	printf '%s\n' "$1" >&2
	exit 1
}

usage() {
	fail "Usage: $0 [-i] [-c] [-m] [-k KEY] [-f SUBNET-FILE] [-d DOCKER-FILE]

Writes the docker daemon's options for the subnet that flanneld has leased.
Without -i and -c it writes both forms.

  -f FILE  what flanneld wrote (default: /run/flannel/subnet.env)
  -d FILE  what to write (default: /run/docker_opts.env)
  -i       one variable per option: ${prefix}BIP, ${prefix}IPMASQ, ${prefix}MTU
  -c       one variable with all options
  -k KEY   name of that variable (default: DOCKER_OPTS); what it holds in the
           environment stays in front
  -m       leave --ip-masq out
  -h, -?   this text"
}

# The text between double quotes that stands for $1.
quoted() {
	# The dot keeps the substitution from eating newlines at the end.
	escaped=$(printf '%s.' "$1" | sed 's/[\\"$`]/\\&/g')
	printf '%s' "${escaped%.}"
}

# Whether $1 is a whole number of at most $2, without leading zeros, which arithmetic would take for octal.
is_number() {
	case $1 in
	'' | *[!0-9]* | 0[0-9]* | ??????*) return 1 ;;
	esac
	[ "$1" -le "$2" ]
}

# Prints the network of an IPv4 address with prefix length; fails if $1 is none.
network_of() {
	case $1 in
	*.*.*.*/*) ;;
	*) return 1 ;;
	esac
	length=${1#*/}
	is_number "$length" 32 && [ "$length" -gt 0 ] || return 1
	address=0
	rest=${1%%/*}.
	for _ in 1 2 3 4; do
		is_number "${rest%%.*}" 255 || return 1
		address=$((address << 8 | ${rest%%.*}))
		rest=${rest#*.}
	done
	[ -z "$rest" ] || return 1
	network=$((address >> (32 - length) << (32 - length)))
	printf '%d.%d.%d.%d/%d\n' $((network >> 24 & 255)) $((network >> 16 & 255)) \
		$((network >> 8 & 255)) $((network & 255)) "$length"
}

subnet_file=/run/flannel/subnet.env
docker_file=/run/docker_opts.env
key=DOCKER_OPTS
individual=false
combined=false
with_ip_masq=true

while getopts 'f:d:k:icmh' option; do
	case $option in
	f) subnet_file=$OPTARG ;;
	d) docker_file=$OPTARG ;;
	k) key=$OPTARG ;;
	i) individual=true ;;
	c) combined=true ;;
	m) with_ip_masq=false ;;
	*) usage ;;
	esac
done

if [ $individual = false ] && [ $combined = false ]; then
	individual=true
	combined=true
fi

case $key in
'' | [0-9]* | *[!A-Za-z0-9_]*) fail "Invalid value of -k: '$key' cannot be the name of a variable" ;;
esac

# Without the file, what the environment says counts.
if [ -f "$subnet_file" ]; then
	[ -r "$subnet_file" ] || fail "Cannot read $subnet_file"
	# A name without a slash would be looked for on PATH.
	case $subnet_file in
	*/*) ;;
	*) subnet_file=./$subnet_file ;;
	esac
	# shellcheck source=/dev/null
	. "$subnet_file"
fi

network=
if [ -n "$FLANNEL_SUBNET" ]; then
	network=$(network_of "$FLANNEL_SUBNET") ||
		fail "Invalid value of FLANNEL_SUBNET: $FLANNEL_SUBNET; it is to be like 10.1.74.1/24"
	DOCKER_OPT_BIP=--bip=$FLANNEL_SUBNET
fi

if [ -n "$FLANNEL_MTU" ]; then
	is_number "$FLANNEL_MTU" 65535 ||
		fail "Invalid value of FLANNEL_MTU: $FLANNEL_MTU; it is to be a number of bytes"
	DOCKER_OPT_MTU=--mtu=$FLANNEL_MTU
fi

# One of the two masquerades, not both.
if [ $with_ip_masq = true ]; then
	case $FLANNEL_IPMASQ in
	'') ;;
	true) DOCKER_OPT_IPMASQ=--ip-masq=false ;;
	false) DOCKER_OPT_IPMASQ=--ip-masq=true ;;
	*) fail "Invalid value of FLANNEL_IPMASQ: $FLANNEL_IPMASQ" ;;
	esac
fi

eval "options=\${$key-}"
options=${options:+$options }

# Options of the administrator's own may come with the environment or the subnet file.
lines=
for name in $(set | sed -n "s/^\(${prefix}[A-Za-z0-9_]*\)=.*/\1/p" | LC_ALL=C sort -u); do
	# A line of some multi-line value may look like an assignment.
	eval "[ \"\${$name+set}\" ]" || continue
	value=
	eval "value=\$$name"
	if [ $individual = true ]; then
		lines="$lines$name=\"$(quoted "$value")\"
"
	fi
	options="$options $value"
done
if [ $combined = true ]; then
	lines="$lines$key=\"$(quoted "$options")\"
"
fi

printf '%s' "$lines" >"$docker_file" || fail "Cannot write $docker_file"

# LastMessage only now, as ever: who starts docker in spite of it finds the options.
if [ -n "$network" ]; then
	routes=$(ip -4 route show exact "$network" | grep 'via ')
	[ -z "$routes" ] || fail "Your routing table already contains the subnet: $routes"
fi
