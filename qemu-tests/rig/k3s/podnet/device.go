package podnet

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"nodezero.dev/rig/k3s/log"
)

const (
	deviceName = "flannel.1"
	vni        = 1
	port       = 8472
	// overhead of VXLAN over IPv4: outer Ethernet, IP, UDP and VXLAN headers.
	overhead = 50
)

// PrepareKernel loads modules and turns forwarding on. A module that cannot be loaded may be built in: what is missing
// shows where it is used.
func PrepareKernel() error {
	for _, module := range []string{"overlay", "nf_conntrack", "br_netfilter", "vxlan"} {
		if output, err := exec.Command("modprobe", module).CombinedOutput(); err != nil {
			log.Warn("Failed to load kernel module %s with modprobe: %s", module, strings.TrimSpace(string(output)))
		}
	}
	settings := map[string]string{
		"/proc/sys/net/ipv4/ip_forward":                "1",
		"/proc/sys/net/ipv4/conf/all/forwarding":       "1",
		"/proc/sys/net/bridge/bridge-nf-call-iptables": "1",
	}
	for path, value := range settings {
		if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
			log.Warn("Failed to set sysctl %s: %v", path, err)
		}
	}
	return nil
}

// HasNftables says whether rules are written with nft, or with iptables.
func HasNftables() bool {
	_, err := exec.LookPath("nft")
	return err == nil
}

// ensureDevice makes the VXLAN device, or takes the one of the last start if it is the same, and gives the greatest
// packet that pods may send.
func (n *Network) ensureDevice(ctx context.Context, pods *net.IPNet) (int, error) {
	under, err := n.awaitInterface(ctx)
	if err != nil {
		return 0, err
	}
	mtu := under.Attrs().MTU - overhead
	wanted := &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: deviceName, MTU: mtu, HardwareAddr: hardwareAddress(n.Address)},
		VxlanId:   vni, VtepDevIndex: under.Attrs().Index, SrcAddr: n.Address, Port: port, Learning: false,
	}
	if found, err := netlink.LinkByName(deviceName); err == nil && !sameDevice(found, wanted) {
		if err := netlink.LinkDel(found); err != nil {
			return 0, fmt.Errorf("removing %s: %w", deviceName, err)
		}
	}
	if err := netlink.LinkAdd(wanted); err != nil && err != syscall.EEXIST {
		return 0, fmt.Errorf("making %s: %w", deviceName, err)
	}
	link, err := netlink.LinkByName(deviceName)
	if err != nil {
		return 0, err
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: pods.IP, Mask: net.CIDRMask(32, 32)}}
	if err := netlink.AddrReplace(link, address); err != nil {
		return 0, fmt.Errorf("addressing %s: %w", deviceName, err)
	}
	return mtu, netlink.LinkSetUp(link)
}

func (n *Network) awaitInterface(ctx context.Context) (netlink.Link, error) {
	for started := time.Now(); ; {
		link, err := n.findInterface()
		if err == nil {
			return link, nil
		}
		if time.Since(started) > interfacePatience {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

func (n *Network) findInterface() (netlink.Link, error) {
	if n.Interface != "" {
		link, err := netlink.LinkByName(n.Interface)
		if err != nil {
			return nil, fmt.Errorf("%w %s: %w", errNoInterface, n.Interface, err)
		}
		return link, nil
	}
	addresses, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, err
	}
	for _, address := range addresses {
		if address.IP.Equal(n.Address) {
			return netlink.LinkByIndex(address.LinkIndex)
		}
	}
	return nil, fmt.Errorf("%w with the address %s", errNoInterface, n.Address)
}

func sameDevice(found netlink.Link, wanted *netlink.Vxlan) bool {
	device, ok := found.(*netlink.Vxlan)
	return ok && device.VxlanId == wanted.VxlanId && device.VtepDevIndex == wanted.VtepDevIndex &&
		device.Port == wanted.Port && device.SrcAddr.Equal(wanted.SrcAddr) && device.MTU == wanted.MTU &&
		device.HardwareAddr.String() == wanted.HardwareAddr.String()
}

// syncPeers brings routes, neighbours and forwarding entries in line with the peers, and drops those of nodes that went.
func syncPeers(peers []peer) error {
	link, err := netlink.LinkByName(deviceName)
	if err != nil {
		return err
	}
	wanted := map[string]bool{}
	for _, peer := range peers {
		wanted[peer.pods.String()] = true
		if err := addPeer(link, peer); err != nil {
			return fmt.Errorf("adding %s of %s: %w", peer.pods, peer.address, err)
		}
	}
	routes, err := netlink.RouteList(link, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	for _, route := range routes {
		if route.Gw != nil && route.Dst != nil && !wanted[route.Dst.String()] {
			if err := netlink.RouteDel(&route); err != nil {
				return fmt.Errorf("removing the route to %s: %w", route.Dst, err)
			}
		}
	}
	return nil
}

func addPeer(link netlink.Link, peer peer) error {
	index, mac := link.Attrs().Index, hardwareAddress(peer.address)
	forwarding := &netlink.Neigh{
		LinkIndex: index, Family: syscall.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF,
		IP: peer.address, HardwareAddr: mac,
	}
	if err := netlink.NeighSet(forwarding); err != nil {
		return err
	}
	neighbour := &netlink.Neigh{
		LinkIndex: index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT, IP: peer.pods.IP, HardwareAddr: mac,
	}
	if err := netlink.NeighSet(neighbour); err != nil {
		return err
	}
	return netlink.RouteReplace(&netlink.Route{
		LinkIndex: index, Dst: peer.pods, Gw: peer.pods.IP, Flags: int(netlink.FLAG_ONLINK),
	})
}

// hardwareAddress derives a locally administered address from a node's IPv4 address, so that nobody needs to tell.
func hardwareAddress(address net.IP) net.HardwareAddr {
	return append(net.HardwareAddr{0x02, 0x4b}, address.To4()...)
}

// ensureMasquerade has what pods send out of the cluster leave under the node's address.
func ensureMasquerade(pods string) error {
	if HasNftables() {
		rules := fmt.Sprintf(`table ip k3s-standin
delete table ip k3s-standin
table ip k3s-standin {
	chain postrouting {
		type nat hook postrouting priority srcnat;
		ip saddr %[1]s ip daddr != { %[1]s, 224.0.0.0/4 } masquerade
	}
}
`, pods)
		command := exec.Command("nft", "-f", "-")
		command.Stdin = strings.NewReader(rules)
		return explain(command)
	}
	rule := []string{"POSTROUTING", "-s", pods, "!", "-d", pods, "-j", "MASQUERADE"}
	if exec.Command("iptables", append([]string{"-t", "nat", "-C"}, rule...)...).Run() == nil {
		return nil
	}
	return explain(exec.Command("iptables", append([]string{"-t", "nat", "-A"}, rule...)...))
}

func explain(command *exec.Cmd) error {
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("running %s: %w: %s", strings.Join(command.Args, " "), err, strings.TrimSpace(string(output)))
	}
	return nil
}
