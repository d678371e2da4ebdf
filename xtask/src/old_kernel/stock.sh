
# What stock flannel makes of a node, by hand and in its order (pkg/backend of upstream): at its first start, and where
# another daemon has run. It takes what it finds as upstream does, and removes nothing that upstream would leave.

# A route as upstream's watch puts it: one that is there already stays, another one goes first.
stock_route() {
    case $(ip -n node$1 route show "$2") in
    "$2 via $3 dev $4 onlink"*) return ;;
    "$2 "*) ip -n node$1 route delete "$2" ;;
    esac
    ip -n node$1 route add "$2" via "$3" dev "$4" onlink
}
stock_ipip() {
    if ! ip -n node$1 link add flannel.ipip type ipip local 192.168.77.$1 2>/dev/null &&
        lacks "remote any local 192.168.77.$1 " ip -n node$1 -d link show flannel.ipip; then
        ip -n node$1 link delete flannel.ipip
        ip -n node$1 link add flannel.ipip type ipip local 192.168.77.$1
    fi
    ip -n node$1 link set flannel.ipip mtu 1480
    ip -n node$1 addr replace 10.244.$1.0/32 dev flannel.ipip
    ip -n node$1 link set flannel.ipip up
    for peer in 1 2 3; do
        [ $peer = $1 ] || stock_route $1 10.244.$peer.0/24 192.168.77.$peer flannel.ipip
    done
}

# Of wireguard a device that is there is never kept, and all peers are new.
stock_wireguard_device() {
    ip -n node$1 link delete "$2" 2>/dev/null
    ip -n node$1 link add "$2" mtu 1420 type wireguard
    ip netns exec node$1 wg set "$2" private-key /tmp/key$1 listen-port "$3"
    ip -n node$1 addr add "$4" dev "$2"
    ip -n node$1 link set "$2" up
    ip -n node$1 route add "$5" dev "$2" scope link
}
stock_wireguard() {
    stock_wireguard_device $1 flannel-wg 51820 10.244.$1.0/32 10.244.0.0/16
    stock_wireguard_device $1 flannel-wg-v6 51821 fd00:10:0:$1::/128 fd00:10::/32
    for peer in 1 2 3; do
        [ $peer != $1 ] || continue
        ip netns exec node$1 wg set flannel-wg peer "$(cat /tmp/public$peer)" preshared-key /tmp/secret \
            endpoint 192.168.77.$peer:51820 persistent-keepalive 25 allowed-ips 10.244.$peer.0/24
        ip netns exec node$1 wg set flannel-wg-v6 peer "$(cat /tmp/public$peer)" preshared-key /tmp/secret \
            endpoint "[2001:db8::$peer]:51821" persistent-keepalive 25 allowed-ips fd00:10:0:$peer::/64
    done
}

# Messages to charon, as its plugin vici reads them: swanctl takes no names of connections that have dots, as upstream's.
vici_byte() { printf "\\$(printf %03o "$1")"; }
vici_name() {
    vici_byte ${#1}
    printf %s "$1"
}
vici_text() {
    vici_byte $((${#1} / 256))
    vici_byte $((${#1} % 256))
    printf %s "$1"
}
vici_begin() {
    vici_byte 1
    vici_name "$1"
}
vici_end() { vici_byte 2; }
vici_value() {
    vici_byte 3
    vici_name "$1"
    vici_text "$2"
}
vici_list() {
    vici_byte 4
    vici_name "$1"
    vici_byte 5
    vici_text "$2"
    vici_byte 6
}
# The command $2 to the charon of node $1, with what is read.
vici_tell() {
    cat >/tmp/vici
    rm -f /tmp/told
    length=$((2 + ${#2} + $(wc -c </tmp/vici)))
    {
        vici_byte 0
        vici_byte 0
        vici_byte $((length / 256))
        vici_byte $((length % 256))
        vici_byte 0
        vici_name "$2"
        cat /tmp/vici
    } | in_node $1 socat -t 10 - UNIX-CONNECT:/run/charon.vici,shut-none >/tmp/told &
    patiently grep -q success /tmp/told
    grep -q yes /tmp/told || fail "charon refuses $2: $(tr -cd '[:print:]' </tmp/told)"
}
stock_key() {
    {
        vici_value type IKE
        vici_value data "$3"
        vici_list owners 192.168.77.$2
    } | vici_tell $1 load-shared
}
stock_policy() {
    ip -n node$1 xfrm policy update src 10.244.$2.0/24 dst 10.244.$3.0/24 dir $4 \
        tmpl src 192.168.77.$2 dst 192.168.77.$3 proto esp mode tunnel reqid 11
}
# Node $1, its one peer $2 and the secret. Where a charon runs, the one that is started ends at once, which upstream does
# not notice.
stock_ipsec() {
    in_node $1 /usr/lib/ipsec/charon >/tmp/charon$1 2>&1 &
    patiently in_node $1 swanctl --stats
    stock_key $1 $1 "$3"
    stock_policy $1 $1 $2 out
    stock_policy $1 $2 $1 in
    stock_policy $1 $2 $1 fwd
    stock_key $1 $2 "$3"
    {
        vici_begin 192.168.77.$1-10.244.$1.0/24-10.244.$2.0/24-192.168.77.$2
        vici_list local_addrs 192.168.77.$1
        vici_list remote_addrs 192.168.77.$2
        vici_list proposals aes256-sha256-modp4096
        vici_value version 2
        vici_value encap false
        vici_value keyingtries 0
        for end in local remote; do
            vici_begin $end
            vici_value auth psk
            vici_end
        done
        vici_begin children
        vici_begin 10.244.$1.0/24-10.244.$2.0/24
        vici_list local_ts 10.244.$1.0/24
        vici_list remote_ts 10.244.$2.0/24
        vici_list esp_proposals aes128gcm16-sha256-prfsha256-ecp256
        vici_value start_action start
        vici_value close_action trap
        vici_value dpd_action restart
        vici_value mode tunnel
        vici_value reqid 11
        vici_value rekey_time 1h
        vici_value policies no
        vici_end
        vici_end
        vici_end
    } | vici_tell $1 load-conn
}
