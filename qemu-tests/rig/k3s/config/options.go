package config

// Kind says how often an option may be given and what its values look like.
type Kind int

const (
	// Text is one value; the last one given counts.
	Text Kind = iota
	// List collects values; one value may hold several, divided by commas.
	List
	// Switch is true or false; without a value it is true.
	Switch
)

type option struct {
	kind        Kind
	env         string
	fallback    string
	short       string
	serverOnly  bool
	notHonoured bool
}

// honoured are the options that the stand-in acts on. Sources: the pages "k3s server" and "k3s agent" of K3s'
// documentation (docs.k3s.io/cli/server, docs.k3s.io/cli/agent).
var honoured = map[string]option{
	"config":                      {short: "c", env: "K3S_CONFIG_FILE", fallback: "/etc/rancher/k3s/config.yaml"},
	"data-dir":                    {short: "d", env: "K3S_DATA_DIR", fallback: "/var/lib/rancher/k3s"},
	"debug":                       {kind: Switch, env: "K3S_DEBUG"},
	"server":                      {short: "s", env: "K3S_URL"},
	"token":                       {short: "t", env: "K3S_TOKEN"},
	"token-file":                  {env: "K3S_TOKEN_FILE"},
	"node-name":                   {env: "K3S_NODE_NAME"},
	"node-ip":                     {kind: List, short: "i"},
	"node-label":                  {kind: List},
	"node-taint":                  {kind: List},
	"flannel-iface":               {},
	"pause-image":                 {fallback: "rancher/mirrored-pause:3.6"},
	"resolv-conf":                 {env: "K3S_RESOLV_CONF"},
	"kubelet-arg":                 {kind: List},
	"kube-proxy-arg":              {kind: List},
	"bind-address":                {serverOnly: true, fallback: "0.0.0.0"},
	"https-listen-port":           {serverOnly: true, fallback: "6443"},
	"advertise-address":           {serverOnly: true},
	"tls-san":                     {kind: List, serverOnly: true},
	"agent-token":                 {env: "K3S_AGENT_TOKEN", serverOnly: true},
	"agent-token-file":            {env: "K3S_AGENT_TOKEN_FILE", serverOnly: true},
	"cluster-cidr":                {kind: List, serverOnly: true, fallback: "10.42.0.0/16"},
	"service-cidr":                {kind: List, serverOnly: true, fallback: "10.43.0.0/16"},
	"cluster-dns":                 {kind: List, serverOnly: true},
	"cluster-domain":              {serverOnly: true, fallback: "cluster.local"},
	"flannel-backend":             {serverOnly: true, fallback: "vxlan"},
	"disable":                     {kind: List, serverOnly: true},
	"write-kubeconfig":            {short: "o", env: "K3S_KUBECONFIG_OUTPUT", serverOnly: true, fallback: "/etc/rancher/k3s/k3s.yaml"},
	"write-kubeconfig-mode":       {env: "K3S_KUBECONFIG_MODE", serverOnly: true, fallback: "0600"},
	"kube-apiserver-arg":          {kind: List, serverOnly: true},
	"kube-controller-manager-arg": {kind: List, serverOnly: true},
	"kube-scheduler-arg":          {kind: List, serverOnly: true},
}

// accepted are options that change nothing here, because the stand-in has not the part that they turn off.
var accepted = map[string]option{
	"disable-cloud-controller": {kind: Switch, serverOnly: true},
	"disable-helm-controller":  {kind: Switch, serverOnly: true},
	"disable-network-policy":   {kind: Switch, serverOnly: true},
	"disable-apiserver-lb":     {kind: Switch},
	"kine-tls":                 {kind: Switch, serverOnly: true},
}

// refused are options of K3s that the stand-in cannot honour. To ignore them would let a test pass that says nothing.
var refused = []string{
	"airgap-extra-registry", "alsologtostderr", "cluster-init", "cluster-reset", "cluster-reset-restore-path",
	"container-runtime-endpoint", "datastore-cafile", "datastore-certfile", "datastore-endpoint", "datastore-keyfile",
	"default-local-storage-path", "default-runtime", "disable-agent", "disable-apiserver",
	"disable-controller-manager", "disable-default-registry-endpoint", "disable-etcd", "disable-kube-proxy",
	"disable-scheduler", "docker", "egress-selector-mode", "embedded-registry", "enable-pprof", "etcd-arg",
	"etcd-disable-snapshots", "etcd-expose-metrics", "etcd-s3", "flannel-conf", "flannel-cni-conf",
	"flannel-external-ip", "flannel-ipv6-masq", "helm-job-image", "image-credential-provider-bin-dir",
	"image-credential-provider-config", "image-service-endpoint", "kube-cloud-controller-manager-arg",
	"lb-server-port", "log", "multi-cluster-cidr", "node-external-dns", "node-external-ip", "node-internal-dns",
	"nonroot-devices", "prefer-bundled-bin", "private-registry", "protect-kernel-defaults", "rootless",
	"secrets-encryption", "secrets-encryption-provider", "selinux", "service-node-port-range", "servicelb-namespace",
	"snapshotter", "supervisor-metrics", "system-default-registry", "tls-san-security", "v", "vmodule", "vpn-auth",
	"vpn-auth-file", "with-node-id", "write-kubeconfig-group",
}

// find looks an option up for a command. Options of the server alone are unknown to an agent.
func find(name, command string) (option, bool) {
	for _, table := range []map[string]option{honoured, accepted} {
		if found, ok := table[name]; ok {
			return found, !found.serverOnly || command == Server
		}
	}
	for _, known := range refused {
		if known == name {
			return option{notHonoured: true}, true
		}
	}
	return option{}, false
}

// longName gives the name of an option for its short form.
func longName(short string) string {
	for name, entry := range honoured {
		if entry.short == short {
			return name
		}
	}
	return short
}
