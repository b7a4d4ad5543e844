package controlplane

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"nodezero.dev/rig/k3s/config"
	"nodezero.dev/rig/k3s/kubeconfig"
	"nodezero.dev/rig/k3s/pki"
	"nodezero.dev/rig/k3s/supervisor"
	"nodezero.dev/rig/k3s/token"
)

// files is what lies in the server's directory, and what it says.
type files struct {
	directory, port, advertise string
	token, password            string
	// Those of servers where agents have no others.
	agentToken, agentPassword string
	serverCA, clientCA        *pki.Authority
	settings                  supervisor.Settings
}

// prepareFiles makes what is missing: authorities, certificates, kubeconfigs of the components, tokens.
func prepareFiles(options *config.Config) (*files, error) {
	f := &files{directory: options.Path("server"), port: options.Text("https-listen-port")}
	for _, directory := range []string{"tls", "cred", "manifests"} {
		if err := os.MkdirAll(f.path(directory), 0o700); err != nil {
			return nil, err
		}
	}
	service, err := f.readSettings(options)
	if err != nil {
		return nil, err
	}
	if f.advertise, err = advertiseAddress(options); err != nil {
		return nil, err
	}
	if err := f.issueCertificates(options, service); err != nil {
		return nil, err
	}
	for _, component := range []string{"admin", "controller", "scheduler"} {
		access := f.kubeconfig("client-" + component)
		if err := kubeconfig.Write(f.path("cred", component+".kubeconfig"), access); err != nil {
			return nil, err
		}
	}
	return f, f.prepareTokens(options)
}

func (f *files) path(elements ...string) string {
	return filepath.Join(append([]string{f.directory}, elements...)...)
}

func (f *files) kubeconfig(name string) kubeconfig.Access {
	return kubeconfig.Access{
		Server:      "https://127.0.0.1:" + f.port,
		Authority:   f.path("tls", "server-ca.crt"),
		Certificate: f.path("tls", name+".crt"),
		Key:         f.path("tls", name+".key"),
	}
}

// readSettings gives the first address of the service network, which is the API server's own.
func (f *files) readSettings(options *config.Config) (net.IP, error) {
	service, err := addressIn(options.First("service-cidr"), 1)
	if err != nil {
		return nil, fmt.Errorf("reading service-cidr: %w", err)
	}
	dns := options.First("cluster-dns")
	if dns == "" {
		tenth, err := addressIn(options.First("service-cidr"), 10)
		if err != nil {
			return nil, fmt.Errorf("reading service-cidr: %w", err)
		}
		dns = tenth.String()
	}
	f.settings = supervisor.Settings{
		ClusterCIDR:    options.First("cluster-cidr"),
		ServiceCIDR:    options.First("service-cidr"),
		ClusterDNS:     dns,
		ClusterDomain:  options.Text("cluster-domain"),
		FlannelBackend: options.Text("flannel-backend"),
	}
	return service, nil
}

func (f *files) issueCertificates(options *config.Config, service net.IP) error {
	tls := f.path("tls")
	var err error
	if f.serverCA, err = pki.EnsureAuthority(tls, "server-ca"); err != nil {
		return err
	}
	if f.clientCA, err = pki.EnsureAuthority(tls, "client-ca"); err != nil {
		return err
	}
	requestHeaderCA, err := pki.EnsureAuthority(tls, "request-header-ca")
	if err != nil {
		return err
	}
	if err := pki.EnsureKey(f.path("tls", "service.key")); err != nil {
		return fmt.Errorf("making service.key: %w", err)
	}
	name, err := NodeName(options)
	if err != nil {
		return err
	}
	serving := hosts(options, service, append(options.List("node-ip"), name, f.advertise)...)
	leaves := []struct {
		authority *pki.Authority
		path      string
		subject   pki.Subject
	}{
		{f.serverCA, "serving-kube-apiserver", serving},
		{f.clientCA, "client-admin", pki.Subject{Name: "system:admin", Organization: "system:masters"}},
		{f.clientCA, "client-kube-apiserver", pki.Subject{Name: "system:apiserver", Organization: "system:masters"}},
		{f.clientCA, "client-controller", pki.Subject{Name: "system:kube-controller-manager"}},
		{f.clientCA, "client-scheduler", pki.Subject{Name: "system:kube-scheduler"}},
		{requestHeaderCA, "client-auth-proxy", pki.Subject{Name: "system:auth-proxy"}},
	}
	for _, leaf := range leaves {
		if err := leaf.authority.Issue(filepath.Join(tls, leaf.path), leaf.subject); err != nil {
			return err
		}
	}
	return nil
}

// prepareTokens takes the token that was asked for, or the one of the last start, or makes one.
func (f *files) prepareTokens(options *config.Config) error {
	wanted, err := options.Secret("token")
	if err != nil {
		return err
	}
	kept, err := os.ReadFile(f.path("token"))
	if err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("reading token: %w", err)
	}
	if wanted == "" {
		wanted = strings.TrimSpace(string(kept))
	}
	if wanted == "" {
		random := make([]byte, 16)
		if _, err := rand.Read(random); err != nil {
			return err
		}
		wanted = hex.EncodeToString(random)
	}
	parsed, err := token.Parse(wanted)
	if err != nil {
		return fmt.Errorf("reading token: %w", err)
	}
	if err := parsed.VerifyCA(f.serverCA.Bundle); err != nil {
		return err
	}
	f.password = parsed.Password
	if f.token, err = token.Format(f.serverCA.Bundle, "server", f.password); err != nil {
		return err
	}
	if err := os.WriteFile(f.path("token"), []byte(f.token+"\n"), 0o600); err != nil {
		return err
	}
	if err := f.linkToken("node-token"); err != nil {
		return err
	}
	return f.prepareAgentToken(options)
}

// linkToken gives the server's token another name.
func (f *files) linkToken(name string) error {
	if err := os.Remove(f.path(name)); err != nil && !os.IsNotExist(err) {
		return err
	}
	return os.Symlink(f.path("token"), f.path(name))
}

func (f *files) prepareAgentToken(options *config.Config) error {
	wanted, err := options.Secret("agent-token")
	if err != nil {
		return err
	}
	if wanted == "" {
		f.agentToken, f.agentPassword = f.token, f.password
		return f.linkToken("agent-token")
	}
	parsed, err := token.Parse(wanted)
	if err != nil {
		return fmt.Errorf("reading agent-token: %w", err)
	}
	f.agentPassword = parsed.Password
	if f.agentToken, err = token.Format(f.serverCA.Bundle, "node", f.agentPassword); err != nil {
		return err
	}
	// What is written there must not become the server's token.
	if err := os.Remove(f.path("agent-token")); err != nil && !os.IsNotExist(err) {
		return err
	}
	return os.WriteFile(f.path("agent-token"), []byte(f.agentToken+"\n"), 0o600)
}

// NodeName is the name that was asked for, or the host's.
func NodeName(options *config.Config) (string, error) {
	if name := options.Text("node-name"); name != "" {
		return strings.ToLower(name), nil
	}
	name, err := os.Hostname()
	return strings.ToLower(name), err
}

// advertiseAddress is the address at which other nodes find the API server.
func advertiseAddress(options *config.Config) (string, error) {
	for _, address := range []string{options.Text("advertise-address"), options.First("node-ip")} {
		if address != "" {
			if net.ParseIP(address) == nil {
				return "", fmt.Errorf("reading advertise-address: %q is no IP address", address)
			}
			return address, nil
		}
	}
	return DefaultAddress()
}

// DefaultAddress is the address from which this machine would call others. Nothing is sent to find it.
func DefaultAddress() (string, error) {
	connection, err := net.Dial("udp4", "192.0.2.1:9")
	if err != nil {
		return "", fmt.Errorf("finding the address of this node: %w", err)
	}
	defer connection.Close()
	return connection.LocalAddr().(*net.UDPAddr).IP.String(), nil
}

func addressIn(network string, index byte) (net.IP, error) {
	_, parsed, err := net.ParseCIDR(network)
	if err != nil {
		return nil, err
	}
	address := append(net.IP{}, parsed.IP...)
	address[len(address)-1] += index
	return address, nil
}
