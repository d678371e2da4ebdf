
# Two nodes in network namespaces with an agent and a pod each. The machine's argument says by which path packets are to
# travel.
path=$(sed -n 's/.*flannel_path=\([a-z]*\).*/\1/p' /proc/cmdline)

about() {
    cat /tmp/log$1
}
start() {
    ip netns exec node$1 flannel-agent --lease-file=/tmp/nodes.yaml --iface=eth0 --ip-masq --fast-path=flow \
        --subnet-file=/tmp/subnet$1.env --bpffs=/tmp/bpf$1 >>/tmp/log$1 2>&1 &
}
counted() {
    flannel-agent bpf counters --bpffs /tmp/bpf$1 -o json | tr '{' '\n' |
        sed -n "s/.*\"packets\":\([0-9]*\).*\"reason\":\"$2\".*/\1/p"
}

cat /proc/version
for module in veth bridge br_netfilter; do modprobe $module || fail "no module $module"; done
ip link set lo up
cat >/tmp/nodes.yaml <<'NODES'
network:
  Network: 10.244.0.0/16
  Backend: { Type: vxlan }
nodes:
- { name: node1, publicIP: 192.168.77.1, subnet: 10.244.1.0/24 }
- { name: node2, publicIP: 192.168.77.2, subnet: 10.244.2.0/24 }
NODES
ip netns add node1
ip netns add node2
ip link add eth0 netns node1 type veth peer name eth0 netns node2
for node in 1 2; do
    ip -n node$node link set lo up
    ip -n node$node addr add 192.168.77.$node/24 dev eth0
    ip -n node$node link set eth0 up
    ip netns exec node$node sysctl -qw net.ipv4.ip_forward=1
    ip -n node$node link add cni0 type bridge
    ip -n node$node addr add 10.244.$node.1/24 dev cni0
    ip -n node$node link set cni0 up
    ip netns add pod$node
    ip -n pod$node link add eth0 mtu 1450 type veth peer name veth$node netns node$node
    ip -n node$node link set veth$node mtu 1450 master cni0 up
    ip -n pod$node link set lo up
    ip -n pod$node addr add 10.244.$node.2/24 dev eth0
    ip -n pod$node link set eth0 up
    ip -n pod$node route add default via 10.244.$node.1
    mkdir -p /tmp/bpf$node
    mount -t bpf bpf /tmp/bpf$node
done
start 1
first=$!
start 2
patiently test -e /tmp/subnet1.env
patiently test -e /tmp/subnet2.env
patiently ip netns exec pod1 ping -c 1 -W 1 10.244.2.2
ip netns exec pod2 iperf3 --server --daemon
patiently ip netns exec pod1 iperf3 --client 10.244.2.2 --time 2
tail -n 4 /tmp/said

if [ "$path" = kernel ]; then
    grep -q 'fast_path="off"' /tmp/log1 || fail "the agent does not say that the kernel moves every packet"
    grep 'WARN' /tmp/log1
    finish PASSED
fi

grep -q 'attached_by="clsact"' /tmp/log1 || fail "the programs are not attached by clsact"
pushed=$(counted 1 encap_pod)
popped=$(counted 2 deliver_pod)
echo "node1 pushed ${pushed:=0} packets, node2 delivered ${popped:=0}"
[ "$pushed" -gt 100 ] && [ "$popped" -gt 100 ] || fail "no packets took the fast path"

# Killed and started again under traffic.
ip netns exec pod1 ping -c 60 -i 0.1 10.244.2.2 >/tmp/pings &
pings=$!
sleep 1
kill -9 $first
sleep 1
start 1
wait $pings
grep 'packets transmitted' /tmp/pings
grep -q ' 0% packet loss' /tmp/pings || fail "packets were lost over a restart"
patiently ip netns exec pod1 iperf3 --client 10.244.2.2 --time 1
[ "$(counted 1 encap_pod)" -gt "$pushed" ] || fail "no packets took the fast path after a restart"

# Rules of the legacy ebtables, which only older kernels have as modules: what pods on the bridge send meets each.
kernel_path() {
    before=$(counted 1 encap_pod)
    ip netns exec pod1 iperf3 --client 10.244.2.2 --time 1 && [ "$(counted 1 encap_pod)" = "$before" ]
}
ip netns exec node1 ebtables-legacy -t filter -A FORWARD -p 0x806 -j ACCEPT || fail "ebtables-legacy"
patiently grep -q 'hook=ebtables-legacy table filter' /tmp/log1
patiently kernel_path
ip netns exec node1 ebtables-legacy -t filter -F
patiently grep -q 'the hook is gone.*hook=ebtables-legacy table filter' /tmp/log1
pushed=$(counted 1 encap_pod)
patiently ip netns exec pod1 iperf3 --client 10.244.2.2 --time 1
[ "$(counted 1 encap_pod)" -gt "$pushed" ] || fail "no packets took the fast path without rules of ebtables"

# A table of connections that is full: how large it is, only the first namespace may say. Entries of a flow that runs are not
# given up for new ones.
room=$(sysctl -n net.netfilter.nf_conntrack_max)
ip netns exec pod1 iperf3 --client 10.244.2.2 --time 60 --bitrate 1M >/dev/null 2>&1 &
flow=$!
patiently ip netns exec pod1 ping -c 1 -W 1 10.244.2.2
sysctl -qw net.netfilter.nf_conntrack_max=1
refused() {
    ! ip netns exec pod1 ping -c 1 -W 1 10.244.2.2
}
patiently refused
for command in check status; do
    ip netns exec node1 flannel-agent $command -o json --subnet-file=/tmp/subnet1.env --bpffs=/tmp/bpf1 >/tmp/full
    [ $? = 1 ] && grep -q '"[0-9]* of 1 entries: new connections are dropped' /tmp/full &&
        grep -q '"raise net.netfilter.nf_conntrack_max' /tmp/full || fail "$command of a full table: $(cat /tmp/full)"
done
echo "check and status name a table of connections that is full"
kill $flow
sysctl -qw net.netfilter.nf_conntrack_max=$room
patiently ip netns exec pod1 ping -c 1 -W 1 10.244.2.2

ip netns exec node1 tc filter show dev veth1 ingress
ip netns exec node1 flannel-agent bpf unload --bpffs /tmp/bpf1 || fail "bpf unload"
finish PASSED
