
# Nodes 1 to 3 with a pod each. At first all are as stock flannel makes them; nodes 1 and 2 come to agents, under traffic,
# and node 1 goes back to stock flannel.

cat /proc/version
for module in veth bridge br_netfilter ipip wireguard esp4 xfrm_user; do modprobe $module || fail "no module $module"; done
ip link set lo up
ip link add underlay type bridge
ip link set underlay up
for node in 1 2 3; do
    ip netns add node$node
    ip link add to$node type veth peer name eth0 netns node$node
    ip link set to$node master underlay up
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
    ip -n pod$node link add eth0 type veth peer name veth$node netns node$node
    ip -n node$node link set veth$node master cni0 up
    ip -n pod$node link set lo up
    ip -n pod$node addr add 10.244.$node.2/24 dev eth0
    ip -n pod$node addr add fd00:10:0:$node::2/64 dev eth0 nodad
    ip -n pod$node link set eth0 up
    ip -n pod$node route add default via 10.244.$node.1
    ip -n pod$node route add default via fd00:10:0:$node::1
    mkdir -p /tmp/bpf$node
    mount -t bpf bpf /tmp/bpf$node
done

echo "--- ipip"
nodes_of_ipip() {
    cat >/tmp/nodes.new <<NODES
network: { Network: 10.244.0.0/16, Backend: { Type: ipip, DirectRouting: $1 } }
nodes:
- { name: node1, publicIP: 192.168.77.1, subnet: 10.244.1.0/24 }
- { name: node2, publicIP: 192.168.77.2, subnet: 10.244.2.0/24 }
- { name: node3, publicIP: 192.168.77.3, subnet: 10.244.3.0/24 }
NODES
    mv /tmp/nodes.new /tmp/nodes.yaml
}
nodes_of_ipip false
for node in 1 2 3; do stock_ipip $node; done
each_reaches_each_v4 1452
# What an interface sends while it gets its clsact qdisc, the kernel drops: here they have one before.
for node in 1 2; do
    for device in eth0 cni0 veth$node flannel.ipip; do ip netns exec node$node tc qdisc add dev $device clsact; done
done
before=$(of_tunnel flannel.ipip)
loses_nothing 10.244.2.2 start 1
loses_nothing 10.244.2.2 start 2
[ "$(of_tunnel flannel.ipip)" = "$before" ] || fail "another device than stock flannel's: $before"
pod_mtu 1480
each_reaches_each_v4 1452
shows 'remote any local 192.168.77.1 ' ip -n node1 -d link show flannel.ipip || fail "another device than upstream's"
shows '10.244.3.0/24 via 192.168.77.3 dev flannel.ipip onlink' ip -n node1 route || fail "another route than upstream's"
healthy 1
# The fast path, to a node of ours and to the kernel's device; headers around what pod 1 sends are as the kernel's own.
ip netns exec node3 nft "add table ip seen; add chain ip seen outer { type filter hook prerouting priority -400; }; \
    add rule ip seen outer ip protocol 4 @nh,256,32 0x0af40102 counter; \
    add rule ip seen outer ip protocol 4 @nh,256,32 0x0af40102 ip ttl 63 ip frag-off & 0xe000 == 0x4000 counter"
for pod in 1 2 3; do ip netns exec pod$pod iperf3 --server --daemon; done
both="encap_pod deliver_pod"
for peer in 2 3; do
    tcp 1 "$both" 10.244.$peer.2
    tcp 1 "$both" 10.244.$peer.2 --reverse
    udp 1 encap_pod 1 10.244.$peer.2
    udp 1 deliver_pod $peer 10.244.1.2
done
tcp 2 "$both" 10.244.2.2
cat /tmp/fast
ip netns exec node3 nft list chain ip seen outer | sed -n 's/.*packets \([0-9]*\).*/\1/p' >/tmp/seen
[ "$(sort -u /tmp/seen | wc -l)" = 1 ] || fail "outer headers are not all as the kernel's: $(cat /tmp/seen)"
[ "$(head -n 1 /tmp/seen)" -gt 1000 ] || fail "node3 got few packets: $(cat /tmp/seen)"
looks 1 "explain 10.244.1.2 10.244.2.2 --proto=udp --sport=1" >/tmp/said 2>&1 ||
    fail "nothing is explained: $(cat /tmp/said)"
grep -q 'ipip device' /tmp/said && grep -q 'leaves by eth0 for 192.168.77.2' /tmp/said ||
    fail "another way is explained: $(cat /tmp/said)"
looks 2 "explain 10.244.1.2 10.244.2.2 --proto=udp --sport=1 --ingress" >/tmp/said 2>&1
grep -q 'ipip device' /tmp/said && grep -q 'reaches the pod' /tmp/said ||
    fail "another way in is explained: $(cat /tmp/said)"
loses_nothing 10.244.2.2 kill_and_start
tcp 1 "$both" 10.244.3.2
# What a rule does to the kernel's own outer packets, the programs do not get round for long.
ip netns exec pod1 iperf3 --client 10.244.2.2 --time 20 --udp --bitrate 4M --length 1200 >/dev/null 2>&1 &
stream=$!
sleep 5
before=$(counted 1 encap_pod)
sleep 2
[ $(($(counted 1 encap_pod) - before)) -ge 100 ] || fail "no packets of a stream take the fast path"
ip netns exec node1 nft "add table ip guard; add chain ip guard out { type filter hook output priority 0; }; \
    add rule ip guard out ip protocol 4 ip daddr 192.168.77.2 drop"
sleep 6
before=$(counted 1 encap_pod)
sleep 2
[ "$(counted 1 encap_pod)" = "$before" ] || fail "packets get round a rule about the outer packet"
kill $stream
ip netns exec node1 nft delete table ip guard
tcp 1 "$both" 10.244.2.2
ip -n node1 route delete 10.244.2.0/24
patiently shows '10.244.2.0/24 via 192.168.77.2' ip -n node1 route
ip -n node1 addr delete 10.244.1.0/32 dev flannel.ipip
patiently shows 'inet 10.244.1.0/32' ip -n node1 addr show flannel.ipip
ip -n node1 link delete flannel.ipip
each_reaches_each_v4 1452
tcp 1 "$both" 10.244.2.2
grep -q restored /tmp/log1 || fail "nothing is said of what was restored"
sed -i /node3/d /tmp/nodes.yaml
patiently lacks 10.244.3.0/24 ip -n node1 route
nodes_of_ipip false
patiently shows 10.244.3.0/24 ip -n node1 route
before=$(of_tunnel flannel.ipip)
loses_nothing 10.244.2.2 back_to_stock stock_ipip 1
[ "$(of_tunnel flannel.ipip)" = "$before" ] || fail "stock flannel made another device: $before"
each_reaches_each_v4 1452
stop 2
: >/tmp/log1
nodes_of_ipip true
start 1
start 2
patiently shows '10.244.2.0/24 via 192.168.77.2 dev eth0 $' ip -n node1 route
reach 1 10.244.2.2 1452
tcp 1 "route_pod hand_pod" 10.244.2.2
ip -n node3 route replace 10.244.1.0/24 via 192.168.77.1 dev eth0
reach 1 10.244.3.2 1452
stop_all
for node in 1 2 3; do
    ip -n node$node link delete flannel.ipip
    ip -n node$node route flush proto boot via 192.168.77.1
    ip -n node$node route flush proto boot via 192.168.77.2
    ip -n node$node route flush proto boot via 192.168.77.3
done

echo "--- wireguard"
secret=$(wg genpsk)
echo "$secret" >/tmp/secret
for node in 1 2 3; do
    # As both daemons write them: without an end of the line.
    (umask 077 && printf %s "$(wg genkey)" >/tmp/key$node)
    wg pubkey </tmp/key$node >/tmp/public$node
done
nodes_of_wireguard() {
    cat >/tmp/nodes.new <<NODES
network:
  Network: 10.244.0.0/16
  EnableIPv6: true
  IPv6Network: fd00:10::/32
  Backend: { Type: wireguard, Mode: $1, PSK: "$secret", PersistentKeepaliveInterval: 25 }
nodes:
NODES
    for node in 1 2 3; do
        cat >>/tmp/nodes.new <<NODES
- name: node$node
  publicIP: 192.168.77.$node
  publicIPv6: 2001:db8::$node
  subnet: 10.244.$node.0/24
  ipv6Subnet: fd00:10:0:$node::/64
  backendData: { PublicKey: "$(cat /tmp/public$node)", Port: 51820 }
  backendV6Data: { PublicKey: "$(cat /tmp/public$node)", Port: $2 }
NODES
    done
    mv /tmp/nodes.new /tmp/nodes.yaml
}
nodes_of_wireguard separate 51821
stock_wireguard 1
stock_wireguard 3
start 2
each_reaches_each_v4 1392
each_reaches_each_v6 1372
before=$(of_tunnel flannel-wg flannel-wg-v6)
loses_nothing 10.244.2.2 start 1
[ "$(of_tunnel flannel-wg flannel-wg-v6)" = "$before" ] || fail "other devices than stock flannel's: $before"
pod_mtu 1420
each_reaches_each_v4 1392
each_reaches_each_v6 1372
shows '10.244.0.0/16 dev flannel-wg scope link' ip -n node1 route || fail "another route than upstream's"
shows 'inet6 fd00:10:0:1::/128' ip -n node1 addr show flannel-wg-v6 || fail "no address"
lacks "$secret" cat /tmp/log1 || fail "the secret is in the log"
healthy 1
looks 1 "peers -o json" >/tmp/said
grep -q '"way":"wireguard".*"heard_seconds_ago":[0-9].*"sent":{"packets":null,"bytes":[1-9]' /tmp/said ||
    fail "what was exchanged is not shown: $(cat /tmp/said)"
loses_nothing 10.244.2.2 kill_and_start
ip netns exec node1 wg set flannel-wg peer "$(cat /tmp/public2)" remove
reach 1 10.244.2.2 1392
ip netns exec node1 wg set flannel-wg listen-port 7777
patiently shows 'listening port: 51820' ip netns exec node1 wg show flannel-wg
ip -n node1 route delete 10.244.0.0/16
patiently shows '10.244.0.0/16 dev flannel-wg' ip -n node1 route
ip -n node1 link delete flannel-wg
each_reaches_each_v4 1392
grep -q restored /tmp/log1 || fail "nothing is said of what was restored"
# Another key of a node, as after a loss of its file: who had its subnets before is no peer any more.
wg genkey >/tmp/key.new
wg pubkey </tmp/key.new >/tmp/public.new
before=$(cat /tmp/public3)
sed -i "s|$before|$(cat /tmp/public.new)|" /tmp/nodes.yaml
patiently lacks "$before" ip netns exec node1 wg show all
patiently shows "$(cat /tmp/public.new)" ip netns exec node1 wg show flannel-wg-v6
# Stock flannel makes its devices anew, whoever made those there are: packets are lost as by a restart of it.
meanwhile 10.244.2.2 back_to_stock stock_wireguard 1
reach 1 10.244.2.2 1392
reach 2 fd00:10:0:1::2 1372
stop 2
nodes_of_wireguard ipv4 51820
start 1
start 2
patiently lacks flannel-wg-v6 ip -n node1 link
reach 1 10.244.2.2 1392
reach 1 fd00:10:0:2::2 1372
shows "allowed ips: .*10.244.2.0/24.*fd00:10:0:2::/64\|allowed ips: .*fd00:10:0:2::/64.*10.244.2.0/24" \
    ip netns exec node1 wg show flannel-wg || fail "one device does not carry both families"
stop_all
for node in 1 2; do ip -n node$node link delete flannel-wg; done

echo "--- ipsec"
cat >/tmp/nodes.yaml <<NODES
network:
  Network: 10.244.0.0/16
  Backend: { Type: ipsec, PSK: "$secret$secret$secret" }
nodes:
- { name: node1, publicIP: 192.168.77.1, subnet: 10.244.1.0/24 }
- { name: node2, publicIP: 192.168.77.2, subnet: 10.244.2.0/24 }
NODES
# Each has a charon of its own, and so a /run of its own.
in_node() {
    node=$1
    shift
    nsenter -m/tmp/mounts$node -n/run/netns/node$node "$@"
}
start() {
    nsenter -m/tmp/mounts$1 -n/run/netns/node$1 flannel-agent --lease-file=/tmp/nodes.yaml --iface=eth0 --ip-masq --subnet-file=/tmp/subnet$1.env \
        --bpffs=/tmp/bpf$1 >>/tmp/log$1 2>&1 &
    echo $! >/tmp/pid$1
    patiently test -e /tmp/subnet$1.env
}
mkdir -p /tmp/private
mount -t tmpfs tmpfs /tmp/private
mount --make-private /tmp/private
for node in 1 2; do
    touch /tmp/private/mounts$node
    ln -s /tmp/private/mounts$node /tmp/mounts$node
    unshare --mount=/tmp/private/mounts$node sh -c 'mount -t tmpfs tmpfs /run'
    ip -n node$node route add default via 192.168.77.$((3 - node))
    # What comes from the other node is counted.
    ip netns exec node$node nft "add table ip seen; add chain ip seen in { type filter hook input priority 0; }; \
        add rule ip seen in ip protocol esp counter"
done
esp() {
    ip netns exec node$1 nft list chain ip seen in | sed -n 's/.*packets \([0-9]*\).*/\1/p'
}
# Stock flannel's charon ends with it.
from_stock_ipsec() {
    kill "$(in_node 1 cat /run/charon.pid)"
    start 1
    reach 1 10.244.2.2 1395
}
start 2
pod_mtu 1423
stock_ipsec 1 2 "$secret$secret$secret"
reach 1 10.244.2.2 1395
meanwhile 10.244.2.2 from_stock_ipsec
grep -q FLANNEL_MTU=1423 /tmp/subnet1.env || fail "another MTU: $(cat /tmp/subnet1.env)"
reach 2 10.244.1.2 1395
seen=$(esp 2)
[ "${seen:-0}" -gt 3 ] || fail "$seen packets of ESP were seen"
healthy 1
shows 'dir fwd' ip -n node1 xfrm policy || fail "no policy"
lacks "$secret" cat /tmp/log1 || fail "the secret is in the log"
# Without its policies no packet of a pod is encrypted, or is taken.
ip -n node1 xfrm policy flush
patiently shows 'dst 10.244.2.0/24' ip -n node1 xfrm policy
reach 1 10.244.2.2 1395
# Keys are negotiated anew under traffic. Each end has begun one association, and a packet may be lost between them.
spis=$(ip -n node1 xfrm state | sed -n 's/.*spi \(0x[0-9a-f]*\).*/\1/p' | sort | tr '\n' ' ')
ip netns exec pod1 ping -c 60 -i 0.1 10.244.2.2 >/tmp/pings &
pings=$!
in_node 1 swanctl --rekey --child 10.244.1.0/24-10.244.2.0/24 || fail "no rekey"
wait $pings
received=$(sed -n 's/.* \([0-9]*\) received.*/\1/p' /tmp/pings)
echo "$received of 60 packets were received over a rekey"
[ "$received" -ge 54 ] || fail "packets were lost over a rekey: $(cat /tmp/pings)"
[ "$(ip -n node1 xfrm state | sed -n 's/.*spi \(0x[0-9a-f]*\).*/\1/p' | sort | tr '\n' ' ')" != "$spis" ] ||
    fail "the keys are the same"
loses_nothing 10.244.2.2 kill_and_start
# Stock flannel that comes to a charon starts another one, and then neither listens. The agent says what to do, and so does
# the page of the way back.
in_node 1 /usr/lib/ipsec/charon >/dev/null 2>&1
patiently grep -q "stop it (kill $(in_node 1 cat /run/charon.pid))" /tmp/log1
back_to_stock_ipsec() {
    stop 1
    kill "$(in_node 1 cat /run/charon.pid)"
    patiently in_node 1 test ! -e /run/charon.pid
    stock_ipsec 1 2 "$secret$secret$secret"
    reach 1 10.244.2.2 1395
}
meanwhile 10.244.2.2 back_to_stock_ipsec
reach 2 10.244.1.2 1395
sed -i /node1/d /tmp/nodes.yaml
patiently lacks 'dst 10.244.1.0/24' ip -n node2 xfrm policy
patiently lacks 10.244.1.0/24 in_node 2 swanctl --list-conns
finish PASSED
