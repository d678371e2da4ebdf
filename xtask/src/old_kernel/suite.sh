
# Two nodes in network namespaces with an agent and a pod each. Each thing is tried by itself, and a line says how it works:
# RESULT, what, how. The kernel may lack what it takes; then the line says what carries packets instead.
mode=flow
# The pod that traffic begins at.
from=pod1

result() {
    printf 'RESULT\t%s\t%s\n' "$1" "$2"
}
about() {
    tail -n 40 /tmp/log$1
}
start() {
    node=$1
    shift
    rm -f /tmp/subnet$node.env
    : >/tmp/log$node
    enter="ip netns exec node$node"
    [ -z "$private" ] || enter="nsenter -m/tmp/mounts$node -n/run/netns/node$node"
    WIREGUARD_KEY_FILE=/tmp/key$node $enter flannel-agent \
        --lease-file=/tmp/nodes.yaml --iface=eth0 --ip-masq --fast-path=$mode --flow-refresh=3 \
        --subnet-file=/tmp/subnet$node.env --bpffs=/tmp/bpf$node "$@" >>/tmp/log$node 2>&1 &
    echo $! >/tmp/pid$node
}
stop() {
    for node in 1 2; do
        kill "$(cat /tmp/pid$node)"
        wait "$(cat /tmp/pid$node)"
    done
}
# Within half a minute, or another time, or not at all.
soon() {
    tries=0
    until "$@" >/tmp/said 2>&1; do
        tries=$((tries + 1))
        [ $tries -lt ${patience:-60} ] || return 1
        sleep 0.5
    done
}
started() {
    start 1 "$@"
    start 2 "$@"
    # Programs are verified for each, which takes an emulator on a busy machine a minute.
    patience=600
    soon test -e /tmp/subnet1.env && soon test -e /tmp/subnet2.env
    running=$?
    patience=60
    return $running
}
reach() {
    soon ip netns exec pod1 ping -c 1 -W 1 "$1"
}
# How many packets node1's programs gave each reason: a line for each.
reasons() {
    flannel-agent bpf counters --bpffs /tmp/bpf1 -o json 2>/dev/null | tr '{' '\n' |
        sed -n 's/.*"packets":\([0-9]*\).*"reason":"\([a-z0-9_]*\)".*/\2 \1/p'
}
# What was counted since, of the reasons that match, or do not: how many packets, and the reason of most.
counted_since() {
    reasons >/tmp/after
    awk -v matching="$2" -v fast="$fast" '
        NR == FNR { before[$1] += $2; next }
        { after[$1] += $2 }
        END {
            for (reason in after) {
                packets = after[reason] - before[reason]
                if ((reason ~ fast) != (matching == "fast")) continue
                sum += packets
                if (packets > most) { most = packets; name = reason }
            }
            print sum + 0, name
        }' "$1" /tmp/after
}
fast='^(encap_pod|encap_overlay|encap_device|deliver_pod|route_pod|hand_pod|switch_pod)$'
# How bytes travel, by whichever of the words of iperf3 follow: "fast", or by the kernel and why, as the programs have it.
path_to() {
    what=$1
    shift
    # What takes the fast path at all takes it once the agent has seen to it, which is late on a busy machine.
    for seconds in 2 8; do
        reasons >/tmp/before
        if ! soon ip netns exec $from iperf3 --client "$@" --time $seconds; then
            result "$what" "no: $(tail -n 1 /tmp/said)"
            return 1
        fi
        speed=$(sed -n 's/.* \([0-9.]* [MGK]bits\/sec\) .*receiver.*/\1/p' /tmp/said | tail -n 1)
        taken=$(counted_since /tmp/before fast)
        left=$(counted_since /tmp/before other)
        how="kernel path"
        if [ "${taken%% *}" -ge 100 ]; then
            how=fast
        elif [ "${left%% *}" -ge 100 ]; then
            how="kernel path: \`${left#* }\`"
        fi
        echo "$what: $how, $speed, by programs: $taken, left to the kernel: $left"
        [ "${left%% *}" -ge 100 ] && [ "$how" != fast ] || break
    done
    result "$what" "$how"
}
nodes_of() {
    cat >/tmp/nodes.new <<NODES
network: { Network: 10.244.0.0/16, EnableNFTables: ${nftables:-false}, EnableIPv6: $2, IPv6Network: "fd00:10::/32", Backend: { $1 } }
nodes:
NODES
    for node in 1 2; do
        cat >>/tmp/nodes.new <<NODES
- name: node$node
  publicIP: 192.168.77.$node
  subnet: 10.244.$node.0/24
NODES
        [ "$2" = false ] || cat >>/tmp/nodes.new <<NODES
  publicIPv6: "2001:db8::$node"
  ipv6Subnet: "fd00:10:0:$node::/64"
NODES
        [ -z "$3" ] || echo "  backendData: { PublicKey: \"$(cat /tmp/public$node)\" }" >>/tmp/nodes.new
    done
    mv /tmp/nodes.new /tmp/nodes.yaml
}
# What the agent of node1 is asked.
looks() {
    ip netns exec node1 flannel-agent "$@" --subnet-file=/tmp/subnet1.env --bpffs=/tmp/bpf1
}
# What the agent of node1 last complained of, without the fields.
why() {
    sed -n 's/.*\(ERROR\|WARN\) //p' /tmp/log1 | tail -n 1 | sed 's/ [a-z_]*=.*//'
}
# A backend that only carries: a ping, one as large as the pods' MTU, and TCP.
carries() {
    kind=$1
    shift
    if ! started "$@" || ! reach 10.244.2.2; then
        result "$kind" "no: $(why)"
        stop
        return
    fi
    if soon ip netns exec pod1 ping -c 1 -W 1 -M "do" -s 1372 10.244.2.2; then
        path_to "$kind" 10.244.2.2
    else
        result "$kind" "no: a packet of 1400 bytes does not arrive"
    fi
    stop
}

cat /proc/version
for module in veth bridge br_netfilter; do modprobe $module || fail "no module $module"; done
for module in nf_tables nft_chain_nat nft_ct nft_compat ipip wireguard esp4 xfrm_user tun; do modprobe $module; done
mknod /dev/net/tun c 10 200 2>/dev/null
mkdir -p /tmp/private
mount -t tmpfs tmpfs /tmp/private
mount --make-private /tmp/private
ip link set lo up
ip netns add node1
ip netns add node2
ip link add eth0 netns node1 type veth peer name eth0 netns node2
for node in 1 2; do
    ip -n node$node link set lo up
    ip -n node$node addr add 192.168.77.$node/24 dev eth0
    ip -n node$node addr add 2001:db8::$node/64 dev eth0 nodad
    ip -n node$node link set eth0 up
    ip netns exec node$node sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
    ip -n node$node link add cni0 type bridge
    ip -n node$node addr add 10.244.$node.1/24 dev cni0
    ip -n node$node addr add fd00:10:0:$node::1/64 dev cni0 nodad
    ip -n node$node link set cni0 up
    ip netns add pod$node
    ip -n pod$node link add eth0 mtu 1400 type veth peer name veth$node netns node$node
    ip -n node$node link set veth$node mtu 1400 master cni0 up
    ip -n pod$node link set lo up
    ip -n pod$node addr add 10.244.$node.2/24 dev eth0
    ip -n pod$node addr add fd00:10:0:$node::2/64 dev eth0 nodad
    ip -n pod$node link set eth0 up
    ip -n pod$node route add default via 10.244.$node.1
    ip -n pod$node route add default via fd00:10:0:$node::1
    mkdir -p /tmp/bpf$node
    mount -t bpf bpf /tmp/bpf$node
    (umask 077 && wg genkey >/tmp/key$node)
    wg pubkey </tmp/key$node >/tmp/public$node
    # A /run of its own for each node's IKE daemon, where agents start when `private` is set.
    touch /tmp/private/mounts$node
    ln -s /tmp/private/mounts$node /tmp/mounts$node
    unshare --mount=/tmp/private/mounts$node sh -c 'mount -t tmpfs tmpfs /run'
done
ip netns exec pod2 iperf3 --server --daemon
result kernel "$(sed -n 's/Linux version \([^ ]*\) .*/\1/p' /proc/version)"

ip netns add pod3
ip -n pod3 link add eth0 mtu 1400 type veth peer name veth3 netns node1
ip -n node1 link set veth3 mtu 1400 master cni0 up
ip -n pod3 addr add 10.244.1.3/24 dev eth0
ip -n pod3 link set eth0 up
ip netns exec pod3 iperf3 --server --daemon
# As Kubernetes asks for it.
ip netns exec node1 sysctl -qw net.bridge.bridge-nf-call-iptables=1

nodes_of 'Type: vxlan' true
started || fail "no agent starts with vxlan"
reach 10.244.2.2 || fail "the pods do not reach each other"
status=$(looks status -o json | tr -d '\n')
told() {
    echo "$status" | sed -n "s/.*\"fast_path\":{[^}]*\"$1\":\"\([^\"]*\)\".*/\1/p"
}
attached=$(told attached_by)
result attached "${attached:-no programs: $(told limit)}"
path_to "vxlan, IPv4" 10.244.2.2
reach fd00:10:0:2::2
path_to "vxlan, IPv6" fd00:10:0:2::2
path_to "vxlan, UDP" 10.244.2.2 --udp --bitrate 4M --length 1200
path_to "pods of one node" 10.244.1.3

# A pod behind a netkit. One that is asked for without a word of its mode is in L3: each end is routed to by itself.
ip netns add pod4
if ip -n node1 link add nk1 mtu 1400 type netkit 2>/tmp/said; then
    ip -n node1 link set nk0 netns pod4 name eth0
    ip -n node1 link set nk1 up
    ip -n node1 route add 10.244.1.4 dev nk1
    ip -n node1 route add fd00:10:0:1::4 dev nk1
    ip -n pod4 link set eth0 mtu 1400 up
    ip -n pod4 addr add 10.244.1.4 dev eth0
    ip -n pod4 addr add fd00:10:0:1::4 dev eth0 nodad
    ip -n pod4 route add default dev eth0
    ip -n pod4 route add ::/0 dev eth0
    from=pod4
    path_to "netkit, L3" 10.244.2.2
    path_to "netkit, L3, IPv6" fd00:10:0:2::2
    from=pod1
else
    result "netkit, L3" "no: $(cat /tmp/said)"
    result "netkit, L3, IPv6" "no: $(cat /tmp/said)"
fi

# A pod as the CNI plugin makes it with the delegate netkit, on the bridge of the others; by a veth where there is none.
cni() {
    export CNI_COMMAND="$1" CNI_CONTAINERID=pod5 CNI_NETNS=/run/netns/pod5 CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin
    ip netns exec node1 /opt/cni/bin/flannel
}
conf='"name": "cbr0", "cniVersion": "0.4.0", "subnetFile": "/tmp/subnet1.env", "dataDir": "/tmp/cni",
    "ipam": { "dataDir": "/tmp/given" }, "delegate": { "type": "netkit", "hairpinMode": true, "isDefaultGateway": true }'
if [ -x /opt/cni/bin/flannel ]; then
    ip netns add pod5
    # The addresses of the others are not to be given away.
    mkdir -p /tmp/given/cbr0
    printf 10.244.1.9 >/tmp/given/cbr0/last_reserved_ip.0
    printf fd00:10:0:1::9 >/tmp/given/cbr0/last_reserved_ip.1
    kind=veth
    if ! echo "{ $conf }" | cni ADD >/tmp/added 2>/tmp/said; then
        result "delegate netkit" "no: $(tr '\n' ' ' </tmp/added) $(cat /tmp/said)"
    else
        if ip -n pod5 -d link show eth0 | grep -q netkit; then kind=netkit; else grep -q 'no netkit' /tmp/said || kind="no word of it"; fi
        if [ $kind = netkit ]; then
            from=pod5
            path_to "netkit, L2" 10.244.2.2
            path_to "netkit, L2, IPv6" fd00:10:0:2::2
            path_to "netkit, L2, pods of one node" 10.244.1.3
            from=pod1
        fi
        echo "{ $conf, \"prevResult\": $(cat /tmp/added) }" | cni CHECK >/tmp/said 2>&1 || kind="CHECK: $(cat /tmp/said)"
        echo "{ $conf }" | cni DEL >/tmp/said 2>&1 || kind="DEL: $(cat /tmp/said)"
        ! ip -n pod5 link show eth0 2>/dev/null || kind="no: its interface is left"
        ! test -e /tmp/given/cbr0/10.244.1.10 || kind="no: its address is not free"
        result "delegate netkit" "$kind"
    fi
fi

# As large as the pods' interfaces, whole; and a larger one is told so.
if soon ip netns exec pod1 ping -c 1 -W 1 -M "do" -s 1372 10.244.2.2 &&
    ! ip netns exec pod1 ping -c 1 -W 1 -M "do" -s 1373 10.244.2.2 >/dev/null 2>&1; then
    result MTU yes
else
    result MTU no
fi

# A Service, as kube-proxy has it: translated on the pod's node.
ip netns exec node1 nft -f - <<'RULES'
table ip service {
    chain prerouting {
        type nat hook prerouting priority dstnat;
        ip daddr 10.96.0.1 tcp dport 80 dnat to 10.244.2.2:5201
    }
}
RULES
path_to Service 10.96.0.1 --port 80
ip netns exec node1 nft delete table ip service

# Of a flow that runs, a rule of somebody else's lets nothing pass once one of its packets takes the kernel path again.
ip netns exec pod1 iperf3 --client 10.244.2.2 --time 12 --interval 1 >/tmp/flow 2>&1 &
flow=$!
sleep 4
ip netns exec node2 nft -f - <<'RULES'
table ip guard {
    chain forward {
        type filter hook forward priority 0;
        ip daddr 10.244.2.2 drop
    }
}
RULES
sleep 9
kill $flow 2>/dev/null
wait $flow 2>/dev/null
last=$(sed -n 's/.* \([0-9.]*\) [MGK]*bits\/sec.*/\1/p' /tmp/flow | sed -n '11p')
first=$(sed -n 's/.* \([0-9.]*\) [MGK]*bits\/sec.*/\1/p' /tmp/flow | sed -n '2p')
if [ "$last" = 0.00 ] && [ "$first" != 0.00 ]; then result policy yes; else result policy "no: $first before, $last after"; fi
ip netns exec node2 nft delete table ip guard

# Killed and started again under traffic.
reach 10.244.2.2
ip netns exec pod1 ping -c 60 -i 0.1 10.244.2.2 >/tmp/pings &
pings=$!
sleep 1
kill -9 "$(cat /tmp/pid1)"
sleep 1
start 1
wait $pings
lost=$(sed -n 's/.* \([0-9]*\) received.*/\1/p' /tmp/pings)
result restart "$((60 - lost)) of 60 packets lost"

ip -n node1 route delete 10.244.2.0/24
ip -n node1 link delete flannel.1
if reach 10.244.2.2; then result repair yes; else result repair no; fi
stop

nodes_of 'Type: vxlan' false
for mode in all overlay off; do
    carries "vxlan, --fast-path=$mode"
done
mode=flow
nftables=true
nodes_of 'Type: vxlan' false
carries "vxlan, nftables"
nftables=false
nodes_of 'Type: vxlan' false
for kind in native generic; do
    if started --xdp=$kind && reach 10.244.2.2 && ! ip -n node1 link show eth0 | grep -q xdp; then
        result "vxlan, --xdp=$kind" "no XDP: $(why)"
        stop
    else
        stop
        carries "vxlan, --xdp=$kind" --xdp=$kind
    fi
done
nodes_of 'Type: vxlan, DirectRouting: true' false
carries "vxlan, DirectRouting"
nodes_of 'Type: host-gw' false
carries host-gw
nodes_of 'Type: udp' false
carries udp
nodes_of 'Type: ipip' false
carries ipip
nodes_of 'Type: wireguard' false keys
carries wireguard
for node in 1 2; do
    ip -n node$node route add default via 192.168.77.$((3 - node))
done
secret=0123456789abcdef0123456789abcdef
private=yes
nodes_of "Type: ipsec, PSK: \"$secret$secret$secret\"" false
carries ipsec
finish PASSED
