package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
	"sigs.k8s.io/yaml"

	"nodezero.dev/rig/k3s/kubeconfig"
	"nodezero.dev/rig/k3s/log"
	"nodezero.dev/rig/k3s/podnet"
	"nodezero.dev/rig/k3s/supervisor"
)

const kubeletHealth = "http://127.0.0.1:10248/healthz"

// startKubelet runs upstream's kubelet with the settings that K3s gives it.
func (a *Agent) startKubelet(ctx context.Context, settings *supervisor.Settings) error {
	directory := a.path("etc", "kubelet.conf.d")
	if err := os.MkdirAll(directory, 0o700); err != nil {
		return err
	}
	content, err := yaml.Marshal(a.kubeletConfig(settings))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(directory, "00-k3s-defaults.conf"), content, 0o600); err != nil {
		return err
	}
	args := []string{
		"--config-dir=" + directory,
		"--containerd=" + Socket,
		"--hostname-override=" + a.name,
		"--kubeconfig=" + a.path("kubelet.kubeconfig"),
		"--node-ip=" + strings.Join(a.addresses, ","),
		"--node-labels=" + strings.Join(a.options.List("node-label"), ","),
	}
	if taints := a.options.List("node-taint"); len(taints) > 0 {
		args = append(args, "--register-with-taints="+strings.Join(taints, ","))
	}
	command := kubelet.NewKubeletCommand(ctx)
	command.SetArgs(withExtra(args, a.options.List("kubelet-arg")))
	command.SilenceErrors, command.SilenceUsage = true, true
	go func() { a.report("kubelet", command.ExecuteContext(ctx)) }()
	return a.awaitKubelet(ctx)
}

func (a *Agent) kubeletConfig(settings *supervisor.Settings) map[string]any {
	driver := "cgroupfs"
	if a.systemd {
		driver = "systemd"
	}
	resolver := a.options.Text("resolv-conf")
	if resolver == "" {
		resolver = findResolver()
	}
	return map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1",
		"kind":       "KubeletConfiguration",
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": true},
			"x509":      map[string]any{"clientCAFile": a.path("client-ca.crt")},
		},
		"authorization":            map[string]any{"mode": "Webhook"},
		"cgroupDriver":             driver,
		"clusterDNS":               []string{settings.ClusterDNS},
		"clusterDomain":            settings.ClusterDomain,
		"containerRuntimeEndpoint": "unix://" + Socket,
		"evictionHard":             map[string]string{"imagefs.available": "5%", "nodefs.available": "5%"},
		"evictionMinimumReclaim":   map[string]string{"imagefs.available": "10%", "nodefs.available": "10%"},
		// Machines that build the project have the old control groups; those that it makes have not.
		"failCgroupV1":        false,
		"failSwapOn":          false,
		"healthzBindAddress":  "127.0.0.1",
		"resolvConf":          resolver,
		"serializeImagePulls": false,
		"staticPodPath":       a.path("pod-manifests"),
		"tlsCertFile":         a.path("serving-kubelet.crt"),
		"tlsPrivateKeyFile":   a.path("serving-kubelet.key"),
		"volumePluginDir":     "/var/lib/kubelet/volumeplugins",
	}
}

// awaitKubelet returns when the kubelet says that it is well.
func (a *Agent) awaitKubelet(ctx context.Context) error {
	client := &http.Client{Timeout: 2 * time.Second}
	for started := time.Now(); time.Since(started) < kubeletStart; {
		response, err := client.Get(kubeletHealth)
		if err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case err := <-a.Failed:
			return err
		default:
		}
		if err := pause(ctx, 500*time.Millisecond); err != nil {
			return err
		}
	}
	return fmt.Errorf("starting kubelet: %s does not answer after %s", kubeletHealth, kubeletStart)
}

// startProxy runs upstream's kube-proxy, over nftables where the program is there, and iptables otherwise.
func (a *Agent) startProxy(ctx context.Context, settings *supervisor.Settings) {
	mode := "iptables"
	if podnet.HasNftables() {
		mode = "nftables"
	}
	args := []string{
		"--cluster-cidr=" + settings.ClusterCIDR,
		"--conntrack-max-per-core=0",
		"--conntrack-tcp-timeout-close-wait=0s",
		"--conntrack-tcp-timeout-established=0s",
		"--healthz-bind-address=127.0.0.1:10256",
		"--hostname-override=" + a.name,
		"--kubeconfig=" + a.path("kubeproxy.kubeconfig"),
		"--proxy-mode=" + mode,
	}
	command := proxy.NewProxyCommand()
	command.SetArgs(withExtra(args, a.options.List("kube-proxy-arg")))
	command.SilenceErrors, command.SilenceUsage = true, true
	log.Info("Running kube-proxy with %s", mode)
	go func() { a.report("kube-proxy", command.ExecuteContext(ctx)) }()
}

func (a *Agent) report(component string, err error) {
	if err == nil {
		err = errors.New("it ended")
	}
	a.Failed <- fmt.Errorf("running %s: %w", component, err)
}

// writeKubeconfigs writes those of kubelet and kube-proxy.
func (a *Agent) writeKubeconfigs() error {
	for name, certificate := range map[string]string{"kubelet": "client-kubelet", "kubeproxy": "client-kube-proxy"} {
		access := kubeconfig.Access{
			Server:      a.apiServer(),
			Authority:   a.path("server-ca.crt"),
			Certificate: a.path(certificate + ".crt"),
			Key:         a.path(certificate + ".key"),
		}
		if err := kubeconfig.Write(a.path(name+".kubeconfig"), access); err != nil {
			return err
		}
	}
	return nil
}

// findResolver avoids a name server on the loopback device, which pods cannot reach.
func findResolver() string {
	const upstream = "/run/systemd/resolve/resolv.conf"
	if _, err := os.Stat(upstream); err == nil {
		return upstream
	}
	return "/etc/resolv.conf"
}

func withExtra(args, extra []string) []string {
	for _, argument := range extra {
		args = append(args, "--"+strings.TrimLeft(argument, "-"))
	}
	return args
}
