// Command k3s stands in for K3s in tests: K3s' documented contract outside, upstream Kubernetes inside. See README.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"

	"nodezero.dev/rig/k3s/agent"
	"nodezero.dev/rig/k3s/config"
	"nodezero.dev/rig/k3s/controlplane"
	"nodezero.dev/rig/k3s/log"
	"nodezero.dev/rig/k3s/manifests"
	"nodezero.dev/rig/k3s/nodes"
)

const (
	version      = kubernetesVersion + "+standin"
	stopPatience = 3 * time.Second
)

const usage = `NAME:
   k3s - a stand-in for K3s in tests, not K3s

USAGE:
   k3s [--version] COMMAND [OPTIONS]

COMMANDS:
   server   Run management server
   agent    Run node agent
   kubectl  Run kubectl
   ctr      Run containerd's ctr against the node's containerd
   token    generate: print a random password for a token
`

func main() {
	setVersion()
	if err := run(os.Args[1:]); err != nil {
		log.Fatal("%v", err)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		args = []string{"help"}
	}
	switch args[0] {
	case "--version", "-v", "version":
		fmt.Printf("k3s version %s (stand-in for tests)\ngo version %s\n", version, runtime.Version())
		return nil
	case "help", "--help", "-h":
		fmt.Print(usage)
		return nil
	case config.Server, config.Agent:
		options, err := config.Load(args[0], args[1:], os.Getenv)
		if err != nil {
			return err
		}
		return runNode(options)
	case "kubectl":
		return runKubectl()
	case "ctr":
		return agent.Ctr(args[1:])
	case "token":
		return printPassword(args[1:])
	default:
		return fmt.Errorf("no such command of this stand-in: %s", args[0])
	}
}

// runNode runs a server or an agent until it is told to stop, or a part of it fails.
func runNode(options *config.Config) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%s must be run as root", options.Command)
	}
	// Components tell systemd that they are ready, too. Only the whole is.
	socket := os.Getenv("NOTIFY_SOCKET")
	if err := os.Unsetenv("NOTIFY_SOCKET"); err != nil {
		return err
	}
	log.Info("Starting k3s %s %s", options.Command, version)
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	var err error
	if options.Command == config.Server {
		err = runServer(ctx, cancel, options, socket)
	} else {
		err = runAgent(ctx, cancel, options, socket)
	}
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func runServer(ctx context.Context, cancel func(), options *config.Config, socket string) error {
	plane, err := controlplane.Start(ctx, options)
	if err != nil {
		return err
	}
	defer plane.Stop(stopPatience)
	defer cancel()
	deployer, err := manifests.New(options.Path("server", "manifests"), plane.Admin)
	if err != nil {
		return err
	}
	go deployer.Run(ctx)
	go func() {
		if err := nodes.ForgetDeleted(ctx, plane.Admin); err != nil {
			plane.Failed <- err
		}
	}()
	node, err := agent.New(options, "https://127.0.0.1:"+options.Text("https-listen-port"), plane.AgentToken)
	if err != nil {
		return err
	}
	started := make(chan error, 1)
	go func() {
		err := node.Start(ctx)
		if err == nil {
			err = nodes.AwaitServer(ctx, plane.Admin, node.Name())
		}
		started <- err
	}()
	defer node.Stop()
	defer cancel()
	return serve(ctx, socket, started, plane.Failed, node.Failed)
}

func runAgent(ctx context.Context, cancel func(), options *config.Config, socket string) error {
	secret, err := options.Secret("token")
	if err != nil {
		return err
	}
	server := options.Text("server")
	if server == "" {
		return errors.New("--server is required")
	}
	node, err := agent.New(options, server, secret)
	if err != nil {
		return err
	}
	started := make(chan error, 1)
	go func() { started <- node.Start(ctx) }()
	defer node.Stop()
	defer cancel()
	return serve(ctx, socket, started, nil, node.Failed)
}

// serve reports that the node runs as soon as it does, and waits for the end.
func serve(ctx context.Context, socket string, started, planeFailed, nodeFailed <-chan error) error {
	for {
		select {
		case err := <-started:
			if err != nil {
				return err
			}
			started = nil
			log.Info("k3s is up and running")
			if err := notify(socket, "READY=1"); err != nil {
				log.Warn("telling systemd: %v", err)
			}
		case err := <-planeFailed:
			return failure(ctx, err)
		case err := <-nodeFailed:
			return failure(ctx, err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// failure tells the end of a component from the end of everything.
func failure(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// notify sends a state to systemd, see sd_notify(3).
func notify(socket, state string) error {
	if socket == "" {
		return nil
	}
	connection, err := net.Dial("unixgram", socket)
	if err != nil {
		return err
	}
	defer connection.Close()
	_, err = connection.Write([]byte(state))
	return err
}

// runKubectl is upstream's kubectl, with the operator's kubeconfig of a server unless another one is named.
func runKubectl() error {
	const operators = "/etc/rancher/k3s/k3s.yaml"
	if _, err := os.Stat(operators); err == nil && os.Getenv("KUBECONFIG") == "" {
		if err := os.Setenv("KUBECONFIG", operators); err != nil {
			return err
		}
	}
	os.Args = append([]string{"kubectl"}, os.Args[2:]...)
	command := kubectl.NewDefaultKubectlCommand()
	command.SilenceErrors = true
	return command.Execute()
}
