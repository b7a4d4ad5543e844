// Package agent makes a node of this machine: it joins the cluster, runs containerd as a child, kubelet and kube-proxy
// in this process, and sets the pod network up.
//
// Specification: docs.k3s.io/cli/agent, docs.k3s.io/architecture, docs.k3s.io/installation/airgap ("Manually Deploy
// Images"). Left out: the tunnel to the server (the API server calls the kubelet directly), private registries.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"nodezero.dev/rig/k3s/config"
	"nodezero.dev/rig/k3s/controlplane"
	"nodezero.dev/rig/k3s/log"
	"nodezero.dev/rig/k3s/podnet"
)

const (
	kubeletStart = 10 * time.Minute
	stopPatience = 10 * time.Second
	// balancer is where components of an agent find the API server, as in K3s.
	balancer = "127.0.0.1:6444"
)

// Agent is one node.
type Agent struct {
	// Server is the URL of a server, Token what admits to it.
	Server, Token string
	// Failed tells of the first component that ended.
	Failed chan error

	options         *config.Config
	name            string
	addresses       []string
	directory       string
	systemd         bool
	containerdEnded chan struct{}
}

// New prepares the agent of a cluster.
func New(options *config.Config, server, secret string) (*Agent, error) {
	parsed, err := url.Parse(server)
	if err != nil || parsed.Scheme != "https" {
		return nil, fmt.Errorf("only https:// URLs are supported, invalid scheme: %s", server)
	}
	if secret == "" {
		return nil, errors.New("--token is required")
	}
	a := &Agent{
		Server: strings.TrimRight(server, "/"), Token: secret, Failed: make(chan error, 4), options: options,
		directory: options.Path("agent"), containerdEnded: make(chan struct{}), systemd: underSystemd(),
	}
	if a.name, err = controlplane.NodeName(options); err != nil {
		return nil, err
	}
	if a.addresses = options.List("node-ip"); len(a.addresses) == 0 {
		address, err := controlplane.DefaultAddress()
		if err != nil {
			return nil, err
		}
		a.addresses = []string{address}
	}
	for _, address := range a.addresses {
		if net.ParseIP(address) == nil {
			return nil, fmt.Errorf("reading node-ip: %q is no IP address", address)
		}
	}
	return a, nil
}

// Start joins the cluster and returns when the kubelet runs. The pod network follows by itself, as it does in K3s.
func (a *Agent) Start(ctx context.Context) error {
	for _, directory := range []string{a.directory, a.path("pod-manifests"), a.path("images")} {
		if err := os.MkdirAll(directory, 0o700); err != nil {
			return err
		}
	}
	if err := podnet.PrepareKernel(); err != nil {
		return err
	}
	runtimeReady := make(chan error, 1)
	go func() {
		err := a.startContainerd(ctx)
		if err == nil {
			a.importImages(ctx)
		}
		runtimeReady <- err
	}()
	settings, err := a.join(ctx)
	if err != nil {
		return err
	}
	if a.options.Command == config.Agent {
		if err := a.balance(ctx); err != nil {
			return err
		}
	}
	if err := a.writeKubeconfigs(); err != nil {
		return err
	}
	if err := <-runtimeReady; err != nil {
		return err
	}
	network := &podnet.Network{
		Node: a.name, Address: net.ParseIP(a.addresses[0]), Interface: a.options.Text("flannel-iface"),
		ClusterCIDR: settings.ClusterCIDR, Kubeconfig: a.path("kubeproxy.kubeconfig"),
		Directory: a.networkDirectory(),
	}
	if settings.FlannelBackend != "none" {
		go func() { a.report("flannel", network.Run(ctx)) }()
	}
	a.startProxy(ctx, settings)
	return a.startKubelet(ctx, settings)
}

// Stop waits until containerd has ended, which it does with the context of Start.
func (a *Agent) Stop() {
	select {
	case <-a.containerdEnded:
	case <-time.After(stopPatience):
	}
}

// Name is the node's name.
func (a *Agent) Name() string { return a.name }

func (a *Agent) path(elements ...string) string {
	return filepath.Join(append([]string{a.directory}, elements...)...)
}

func (a *Agent) networkDirectory() string { return a.path("etc", "cni", "net.d") }

func (a *Agent) apiServer() string {
	if a.options.Command == config.Agent {
		return "https://" + balancer
	}
	return a.Server
}

// balance forwards the local port of K3s' client load balancer. It has one server to choose from.
func (a *Agent) balance(ctx context.Context) error {
	parsed, err := url.Parse(a.Server)
	if err != nil {
		return err
	}
	target := parsed.Host
	if parsed.Port() == "" {
		target = net.JoinHostPort(parsed.Hostname(), "443")
	}
	listener, err := net.Listen("tcp", balancer)
	if err != nil {
		return err
	}
	log.Info("Running load balancer k3s-agent-load-balancer %s -> [%s]", balancer, target)
	context.AfterFunc(ctx, func() { listener.Close() })
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go forward(connection, target)
		}
	}()
	return nil
}

func forward(connection net.Conn, target string) {
	defer connection.Close()
	server, err := net.DialTimeout("tcp", target, joinTimeout)
	if err != nil {
		return
	}
	defer server.Close()
	done := make(chan struct{}, 2)
	stream := func(to, from net.Conn) {
		_, _ = io.Copy(to, from)
		done <- struct{}{}
	}
	go stream(server, connection)
	go stream(connection, server)
	// Half-open connections do not occur in TLS; the first end is the end.
	<-done
}

// underSystemd says whether systemd manages the control groups: it started us, and there is one hierarchy.
func underSystemd() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	_, systemd := os.LookupEnv("INVOCATION_ID")
	return err == nil && systemd
}

// Ctr runs Debian's ctr against our containerd.
func Ctr(args []string) error {
	command := exec.Command("ctr", append([]string{"--address", Socket, "--namespace", "k8s.io"}, args...)...)
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	return command.Run()
}
