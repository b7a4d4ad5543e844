// Package podnet is the pod network of K3s' default backend: a VXLAN device over one interface, a route to each other
// node's pods, and a bridge for the node's own.
//
// Specification: docs.k3s.io/networking/basic-network-options ("Flannel Options"): device flannel.1, VNI 1, UDP port
// 8472. Left out: all other backends, IPv6, network policies. Unlike flannel, nothing is written to Nodes: the address
// of a device follows from the node's.
package podnet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"

	"nodezero.dev/rig/k3s/log"
)

const (
	interfacePatience = time.Minute
	resync            = time.Minute
)

// Network is one node's part of it.
type Network struct {
	// Node is the node's name, Address its own address on Interface. Without an interface, the one with the address
	// is taken.
	Node      string
	Address   net.IP
	Interface string
	// ClusterCIDR holds the pods of all nodes.
	ClusterCIDR string
	// Kubeconfig allows to watch Nodes.
	Kubeconfig string
	// Directory is where containerd reads CNI configurations.
	Directory string
}

// peer is another node and its pods.
type peer struct {
	address net.IP
	pods    *net.IPNet
}

// Run sets the network up when the node has got its range of addresses, and follows other nodes until the context ends.
func (n *Network) Run(ctx context.Context) error {
	restConfig, err := clientcmd.BuildConfigFromFlags("", n.Kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(restConfig)
	if err != nil {
		return err
	}
	changed := make(chan struct{}, 1)
	notify := func(any) {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	nodes := informers.NewSharedInformerFactory(client, 0).Core().V1().Nodes().Informer()
	_, err = nodes.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: notify, DeleteFunc: notify, UpdateFunc: func(before, after any) {
			if !same(before.(*corev1.Node), after.(*corev1.Node)) {
				notify(after)
			}
		},
	})
	if err != nil {
		return err
	}
	go nodes.RunWithContext(ctx)
	return n.follow(ctx, nodes.GetStore(), changed)
}

// follow applies what the Nodes say, on each change and every minute: routes may get lost with their interface.
func (n *Network) follow(ctx context.Context, store cache.Store, changed <-chan struct{}) error {
	var own *net.IPNet
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-time.After(resync):
		}
		pods, peers := n.read(store.List())
		if pods == nil {
			continue
		}
		mtu, err := n.ensureDevice(ctx, pods)
		if err != nil {
			return err
		}
		if err := syncPeers(peers); err != nil {
			log.Error("flannel: %v", err)
		}
		if own != nil && own.String() == pods.String() {
			continue
		}
		if err := ensureMasquerade(n.ClusterCIDR); err != nil {
			return err
		}
		if err := n.writeConfig(pods, mtu); err != nil {
			return err
		}
		own = pods
		log.Info("flannel: the pods of this node are %s", pods)
	}
}

// read gives the node's own range and its peers, as far as they are known.
func (n *Network) read(nodes []any) (*net.IPNet, []peer) {
	var own *net.IPNet
	var peers []peer
	for _, object := range nodes {
		node := object.(*corev1.Node)
		_, pods, err := net.ParseCIDR(node.Spec.PodCIDR)
		if err != nil {
			continue
		}
		if node.Name == n.Node {
			own = pods
		} else if address := internalAddress(node); address != nil {
			peers = append(peers, peer{address: address, pods: pods})
		}
	}
	return own, peers
}

func internalAddress(node *corev1.Node) net.IP {
	for _, address := range node.Status.Addresses {
		if ip := net.ParseIP(address.Address).To4(); address.Type == corev1.NodeInternalIP && ip != nil {
			return ip
		}
	}
	return nil
}

func same(before, after *corev1.Node) bool {
	return before.Spec.PodCIDR == after.Spec.PodCIDR && internalAddress(before).Equal(internalAddress(after))
}

// writeConfig tells containerd of the network. With it, the node becomes ready.
func (n *Network) writeConfig(pods *net.IPNet, mtu int) error {
	plugins := []map[string]any{{
		"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true, "mtu": mtu,
		"ipam": map[string]any{
			"type":   "host-local",
			"ranges": [][]map[string]string{{{"subnet": pods.String()}}},
		},
	}, {
		"type": "portmap", "capabilities": map[string]bool{"portMappings": true},
	}}
	content, err := json.MarshalIndent(map[string]any{
		"cniVersion": "1.0.0", "name": "cbr0", "plugins": plugins,
	}, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(n.Directory, "10-flannel.conflist")
	if err := os.WriteFile(path+".new", append(content, '\n'), 0o600); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

var errNoInterface = errors.New("failed to find the interface")
