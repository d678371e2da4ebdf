
# What is done with nodes and their pods: agents start and end, pods reach each other, packets are counted.

about() {
    tail -n 60 /tmp/log$1
    ip -n node$1 -d address
    ip -n node$1 route
    ip -n node$1 -6 route
    ip netns exec node$1 wg show
    flannel-agent bpf counters --bpffs /tmp/bpf$1
}
shows() {
    what=$1
    shift
    "$@" 2>&1 | grep -q -- "$what"
}
lacks() {
    what=$1
    shift
    ! "$@" 2>&1 | grep -q -- "$what"
}
start() {
    WIREGUARD_KEY_FILE=/tmp/key$1 ip netns exec node$1 flannel-agent --lease-file=/tmp/nodes.yaml --iface=eth0 \
        --ip-masq --flow-refresh=3 --subnet-file=/tmp/subnet$1.env --bpffs=/tmp/bpf$1 >>/tmp/log$1 2>&1 &
    echo $! >/tmp/pid$1
    # Programs are verified first, which takes an emulator on a busy machine a minute.
    patience=600
    patiently test -e /tmp/subnet$1.env
    patience=150
}
stop() {
    kill "$(cat /tmp/pid$1)"
    wait "$(cat /tmp/pid$1)"
    rm /tmp/subnet$1.env
}
stop_all() {
    stop 1
    stop 2
    : >/tmp/log1
    : >/tmp/log2
}
reach() {
    patiently ip netns exec pod$1 ping -c 1 -W 1 "$2"
    # As large as the pods' interfaces, whole.
    patiently ip netns exec pod$1 ping -c 1 -W 1 -M "do" -s "$3" "$2"
}
each_reaches_each_v4() {
    reach 1 10.244.2.2 "$1"
    reach 2 10.244.1.2 "$1"
    reach 1 10.244.3.2 "$1"
    reach 3 10.244.2.2 "$1"
    # From the node itself, whose address is that of the device.
    patiently ip netns exec node1 ping -c 1 -W 1 10.244.3.2
}
each_reaches_each_v6() {
    reach 1 fd00:10:0:2::2 "$1"
    reach 2 fd00:10:0:3::2 "$1"
    reach 3 fd00:10:0:1::2 "$1"
}
# Of a node where all is well nobody says otherwise, and each peer answers through the tunnel.
looks() {
    ip netns exec node$1 flannel-agent $2 --subnet-file=/tmp/subnet$1.env --bpffs=/tmp/bpf$1
}
healthy() {
    for words in status peers "check --all"; do
        patiently looks $1 "$words"
    done
    grep -q ': 0 errors, 0 warnings' /tmp/said || fail "a false alarm: $(cat /tmp/said)"
    grep -q 'answers in' /tmp/said && grep -q 'pass whole' /tmp/said || fail "no answers: $(cat /tmp/said)"
    tail -n 1 /tmp/said
}
# Pings of pod 1 to $1 for as long as the words that follow take to be done: how many are lost.
meanwhile() {
    to=$1
    shift
    ip netns exec pod1 ping -i 0.1 "$to" >/tmp/pings &
    pings=$!
    sleep 1
    "$@"
    sleep 1
    kill -INT $pings
    wait $pings
    # What was sent last may be on its way.
    sed -n 's/.*icmp_seq=\([0-9]*\) .*/\1/p' /tmp/pings | awk '{ got += 1; last = $1 } END { print got + 0, last - got }' >/tmp/lost
    read -r got lost </tmp/lost
    echo "$got packets came and $lost were lost: $*"
}
loses_nothing() {
    meanwhile "$@"
    [ "$got" -ge 10 ] && [ "$lost" = 0 ] || fail "packets were lost: $(cat /tmp/pings)"
}
kill_and_start() {
    kill -9 "$(cat /tmp/pid1)"
    rm /tmp/subnet1.env
    sleep 1
    start 1
}
# What outlives the daemon that made it: devices by their numbers, addresses, routes.
of_tunnel() {
    for device; do
        ip -n node1 address show dev $device
        ip -n node1 route show dev $device
        ip -n node1 -6 route show dev $device
    done
}
# Ends the agent of node 1 as the page says, and does what stock flannel does then: the words that follow.
back_to_stock() {
    stop 1
    "$@"
    ip netns exec node1 flannel-agent bpf unload --bpffs /tmp/bpf1 || fail "the programs stay"
}
counted() {
    packets=$(flannel-agent bpf counters --bpffs /tmp/bpf$1 -o json | tr '{' '\n' |
        sed -n "s/.*\"packets\":\([0-9]*\).*\"reason\":\"$2\".*/\1/p")
    echo "${packets:-0}"
}
# Whether the words that follow make the programs of node $1 count 20 packets for each of the reasons $2.
raises() {
    node=$1 reasons=$2
    shift 2
    for reason in $reasons; do counted $node $reason; done >/tmp/before
    "$@" || return 1
    for reason in $reasons; do counted $node $reason; done >/tmp/after
    taken=$(awk 'NR == FNR { before[FNR] = $1; next } { print $1 - before[FNR] }' /tmp/before /tmp/after)
    echo "node$node, $reasons:" $taken "by $*" >>/tmp/fast
    for packets in $taken; do [ "$packets" -ge 20 ] || return 1; done
}
tcp() {
    patiently raises "$1" "$2" ip netns exec pod1 iperf3 --client "$3" --time 2 $4
}
# Datagrams as large as the pods' interfaces, from pod $3.
udp() {
    patiently raises "$1" "$2" ip netns exec pod$3 iperf3 --client "$4" --time 2 --udp --bitrate 4M --length 1452
}
pod_mtu() {
    for node in 1 2 3; do
        ip -n node$node link set veth$node mtu "$1"
        ip -n pod$node link set eth0 mtu "$1"
    done
    patiently grep -q "FLANNEL_MTU=$1" /tmp/subnet2.env
}
