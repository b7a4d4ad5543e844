// Package controlplane runs what makes a K3s server of a node: etcd, API server, scheduler and controller manager, all
// upstream's, in this process, and K3s' supervisor in front of the API server.
//
// Specification: docs.k3s.io/architecture, docs.k3s.io/cli/server. Left out: more than one server, other datastores,
// the cloud controller, the tunnel to agents.
package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"nodezero.dev/rig/k3s/config"
	"nodezero.dev/rig/k3s/kubeconfig"
	"nodezero.dev/rig/k3s/log"
	"nodezero.dev/rig/k3s/pki"
	"nodezero.dev/rig/k3s/supervisor"
)

// ControlPlane is a running one.
type ControlPlane struct {
	// Admin may do everything.
	Admin *rest.Config
	// AgentToken is the full token with which agents join.
	AgentToken string
	// Failed tells of the first component that ended.
	Failed chan error

	options  *config.Config
	files    *files
	etcd     *embed.Etcd
	apiEnded chan struct{}
}

// Start brings the control plane up and returns when the API server is ready.
func Start(ctx context.Context, options *config.Config) (*ControlPlane, error) {
	if server := options.Text("server"); server != "" {
		return nil, fmt.Errorf("joining the server %s: this stand-in honours one server alone", server)
	}
	if backend := options.Text("flannel-backend"); backend != "vxlan" && backend != "none" {
		return nil, fmt.Errorf("flannel-backend is %q: this stand-in honours vxlan and none", backend)
	}
	files, err := prepareFiles(options)
	if err != nil {
		return nil, err
	}
	plane := &ControlPlane{
		AgentToken: files.agentToken, Failed: make(chan error, 4), options: options, files: files,
		apiEnded: make(chan struct{}),
	}
	etcd, endpoint, err := startEtcd(ctx, options)
	if err != nil {
		return nil, err
	}
	plane.etcd = etcd
	plane.Admin, err = clientcmd.BuildConfigFromFlags("", files.path("cred", "admin.kubeconfig"))
	if err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(plane.Admin)
	if err != nil {
		return nil, err
	}
	front := files.supervisor(client)
	go func() {
		defer close(plane.apiEnded)
		plane.report("kube-apiserver", runAPIServer(ctx, plane.apiServerArgs(endpoint), front.Wrap))
	}()
	if err := plane.awaitAPIServer(ctx, client); err != nil {
		return nil, err
	}
	go func() { plane.report("kube-scheduler", runScheduler(ctx, plane.schedulerArgs())) }()
	go func() {
		plane.report("kube-controller-manager", runControllerManager(ctx, plane.controllerManagerArgs()))
	}()
	return plane, plane.writeKubeconfig()
}

// Stop waits until the API server has ended, which it does with the context of Start, and closes the datastore.
func (p *ControlPlane) Stop(patience time.Duration) {
	select {
	case <-p.apiEnded:
	case <-time.After(patience):
	}
	// Close would wait for clients to let go of their watches; the process ends with this.
	p.etcd.Server.Stop()
}

func (p *ControlPlane) report(component string, err error) {
	if err == nil {
		err = errors.New("it ended")
	}
	p.Failed <- fmt.Errorf("running %s: %w", component, err)
}

func (p *ControlPlane) awaitAPIServer(ctx context.Context, client kubernetes.Interface) error {
	started := time.Now()
	for announced := started; ; {
		answer, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		if err == nil && string(answer) == "ok" {
			log.Info("kube-apiserver is ready after %s", time.Since(started).Round(time.Second))
			return nil
		}
		if time.Since(announced) > 20*time.Second {
			log.Info("Waiting for API server to become available: %v", err)
			announced = time.Now()
		}
		select {
		case err := <-p.Failed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// writeKubeconfig writes the operator's kubeconfig, with everything that it needs in it.
func (p *ControlPlane) writeKubeconfig() error {
	mode, err := strconv.ParseUint(p.options.Text("write-kubeconfig-mode"), 8, 12)
	if err != nil {
		return fmt.Errorf("reading write-kubeconfig-mode: %w", err)
	}
	path := p.options.Text("write-kubeconfig")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := kubeconfig.WriteEmbedded(path, p.files.kubeconfig("client-admin"), os.FileMode(mode)); err != nil {
		return err
	}
	log.Info("Wrote kubeconfig %s", path)
	return nil
}

func (p *ControlPlane) apiServerArgs(etcd string) []string {
	tls := func(name string) string { return p.files.path("tls", name) }
	args := []string{
		"--advertise-address=" + p.files.advertise,
		"--allow-privileged=true",
		"--anonymous-auth=true",
		"--api-audiences=https://kubernetes.default.svc." + p.options.Text("cluster-domain") + ",k3s",
		"--authorization-mode=Node,RBAC",
		"--bind-address=" + p.options.Text("bind-address"),
		"--client-ca-file=" + tls("client-ca.crt"),
		"--enable-admission-plugins=NodeRestriction",
		"--enable-aggregator-routing=true",
		"--enable-bootstrap-token-auth=true",
		"--etcd-servers=" + etcd,
		"--kubelet-certificate-authority=" + tls("server-ca.crt"),
		"--kubelet-client-certificate=" + tls("client-kube-apiserver.crt"),
		"--kubelet-client-key=" + tls("client-kube-apiserver.key"),
		"--kubelet-preferred-address-types=InternalIP,ExternalIP,Hostname",
		"--profiling=false",
		"--proxy-client-cert-file=" + tls("client-auth-proxy.crt"),
		"--proxy-client-key-file=" + tls("client-auth-proxy.key"),
		"--requestheader-allowed-names=system:auth-proxy",
		"--requestheader-client-ca-file=" + tls("request-header-ca.crt"),
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User",
		"--secure-port=" + p.options.Text("https-listen-port"),
		"--service-account-issuer=https://kubernetes.default.svc." + p.options.Text("cluster-domain"),
		"--service-account-key-file=" + tls("service.key"),
		"--service-account-signing-key-file=" + tls("service.key"),
		"--service-cluster-ip-range=" + strings.Join(p.options.List("service-cidr"), ","),
		"--storage-backend=etcd3",
		"--tls-cert-file=" + tls("serving-kube-apiserver.crt"),
		"--tls-private-key-file=" + tls("serving-kube-apiserver.key"),
	}
	return withExtra(args, p.options.List("kube-apiserver-arg"))
}

func (p *ControlPlane) schedulerArgs() []string {
	args := []string{
		"--kubeconfig=" + p.files.path("cred", "scheduler.kubeconfig"),
		"--leader-elect=false",
		"--profiling=false",
		"--secure-port=0",
	}
	return withExtra(args, p.options.List("kube-scheduler-arg"))
}

func (p *ControlPlane) controllerManagerArgs() []string {
	tls := func(name string) string { return p.files.path("tls", name) }
	args := []string{
		"--allocate-node-cidrs=true",
		"--cluster-cidr=" + strings.Join(p.options.List("cluster-cidr"), ","),
		"--cluster-signing-cert-file=" + tls("client-ca.crt"),
		"--cluster-signing-key-file=" + tls("client-ca.key"),
		"--controllers=*,tokencleaner",
		"--flex-volume-plugin-dir=/var/lib/kubelet/volumeplugins",
		"--kubeconfig=" + p.files.path("cred", "controller.kubeconfig"),
		"--leader-elect=false",
		"--profiling=false",
		"--root-ca-file=" + tls("server-ca.crt"),
		"--secure-port=0",
		"--service-account-private-key-file=" + tls("service.key"),
		"--service-cluster-ip-range=" + strings.Join(p.options.List("service-cidr"), ","),
		"--use-service-account-credentials=true",
	}
	return withExtra(args, p.options.List("kube-controller-manager-arg"))
}

// supervisor gathers what the supervisor needs to know.
func (f *files) supervisor(client kubernetes.Interface) *supervisor.Supervisor {
	return &supervisor.Supervisor{
		ServerToken: f.password, AgentToken: f.agentPassword, ServerCA: f.serverCA, ClientCA: f.clientCA,
		Settings: f.settings, Client: client,
	}
}

// hosts are the names and addresses under which the API server may be called.
func hosts(options *config.Config, service net.IP, own ...string) pki.Subject {
	names := []string{
		"kubernetes", "kubernetes.default", "kubernetes.default.svc",
		"kubernetes.default.svc." + options.Text("cluster-domain"), "localhost", "127.0.0.1", "::1", service.String(),
	}
	for _, name := range append(own, options.List("tls-san")...) {
		if name != "" {
			names = append(names, name)
		}
	}
	return pki.Subject{Name: "kube-apiserver", Hosts: names}
}
