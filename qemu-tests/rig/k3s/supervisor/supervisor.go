// Package supervisor is what a K3s server serves beside the Kubernetes API, on the same port: the CA bundle, and to
// nodes that know the token, their certificates and the cluster's settings.
//
// Specification: docs.k3s.io/cli/token ("TLS Bootstrapping") for /cacerts; the paths below /v1-k3s bear K3s' names, but
// what they carry is an agreement of the stand-in's server with its own agent.
package supervisor

import (
	"crypto/subtle"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"

	"nodezero.dev/rig/k3s/log"
	"nodezero.dev/rig/k3s/nodepassword"
	"nodezero.dev/rig/k3s/pki"
)

// Headers by which a node says who it is.
const (
	HeaderName     = "k3s-Node-Name"
	HeaderPassword = "k3s-Node-Password"
	HeaderAddress  = "k3s-Node-IP"
)

const requestLimit = 64 << 10

// Settings are what a node must know of the cluster.
type Settings struct {
	ClusterCIDR    string `json:"clusterCIDR"`
	ServiceCIDR    string `json:"serviceCIDR"`
	ClusterDNS     string `json:"clusterDNS"`
	ClusterDomain  string `json:"clusterDomain"`
	FlannelBackend string `json:"flannelBackend"`
}

// Supervisor answers nodes.
type Supervisor struct {
	// ServerToken and AgentToken are the passwords of the users "server" and "node". An agent always comes as "node",
	// so the token of servers admits it only where that is the token of agents, too.
	ServerToken, AgentToken string
	ServerCA, ClientCA      *pki.Authority
	Settings                Settings
	Client                  kubernetes.Interface
}

// Wrap answers the supervisor's paths, and leaves all others to the API server.
func (s *Supervisor) Wrap(next http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /cacerts", s.serveFile(s.ServerCA.Bundle))
	mux.HandleFunc("GET /ping", s.serveFile([]byte("pong")))
	mux.HandleFunc("GET /v1-k3s/server-ca.crt", s.admit(s.serveFile(s.ServerCA.Bundle)))
	mux.HandleFunc("GET /v1-k3s/client-ca.crt", s.admit(s.serveFile(s.ClientCA.Bundle)))
	mux.HandleFunc("GET /v1-k3s/config", s.admit(s.serveSettings))
	mux.HandleFunc("POST /v1-k3s/client-kubelet.crt", s.admit(s.admitNode(s.signClient)))
	mux.HandleFunc("POST /v1-k3s/serving-kubelet.crt", s.admit(s.admitNode(s.signServing)))
	mux.HandleFunc("POST /v1-k3s/client-kube-proxy.crt", s.admit(s.signProxy))
	mux.HandleFunc("/v1-k3s/", s.admit(http.NotFound))
	return http.HandlerFunc(func(response http.ResponseWriter, request *http.Request) {
		path := request.URL.Path
		if path == "/cacerts" || path == "/ping" || strings.HasPrefix(path, "/v1-k3s/") {
			mux.ServeHTTP(response, request)
			return
		}
		next.ServeHTTP(response, request)
	})
}

func (s *Supervisor) serveFile(content []byte) http.HandlerFunc {
	return func(response http.ResponseWriter, _ *http.Request) {
		response.Header().Set("Content-Type", "text/plain")
		_, _ = response.Write(content)
	}
}

func (s *Supervisor) serveSettings(response http.ResponseWriter, _ *http.Request) {
	response.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(response).Encode(s.Settings)
}

// admit lets only those pass who know a token.
func (s *Supervisor) admit(next http.HandlerFunc) http.HandlerFunc {
	return func(response http.ResponseWriter, request *http.Request) {
		user, password, _ := request.BasicAuth()
		if !matches(password, map[string]string{"server": s.ServerToken, "node": s.AgentToken}[user]) {
			http.Error(response, "unauthorized", http.StatusUnauthorized)
			return
		}
		next(response, request)
	}
}

func matches(given, want string) bool {
	return want != "" && subtle.ConstantTimeCompare([]byte(given), []byte(want)) == 1
}

// admitNode lets only the node pass that the cluster knows by this name, or a new one.
func (s *Supervisor) admitNode(next http.HandlerFunc) http.HandlerFunc {
	return func(response http.ResponseWriter, request *http.Request) {
		name, password := request.Header.Get(HeaderName), request.Header.Get(HeaderPassword)
		if name == "" || password == "" {
			http.Error(response, "node name or password not set", http.StatusBadRequest)
			return
		}
		err := nodepassword.Ensure(request.Context(), s.Client, name, password)
		switch {
		case nodepassword.IsMismatch(err):
			log.Error("unable to verify password for node '%s': %v", name, err)
			http.Error(response, err.Error(), http.StatusForbidden)
		case err != nil:
			log.Info("node '%s' has to wait: %v", name, err)
			response.Header().Set("Retry-After", (2 * time.Second).String())
			http.Error(response, err.Error(), http.StatusServiceUnavailable)
		default:
			next(response, request)
		}
	}
}

func (s *Supervisor) signClient(response http.ResponseWriter, request *http.Request) {
	name := "system:node:" + request.Header.Get(HeaderName)
	sign(response, request, s.ClientCA, pki.Subject{Name: name, Organization: "system:nodes"})
}

func (s *Supervisor) signServing(response http.ResponseWriter, request *http.Request) {
	name := request.Header.Get(HeaderName)
	hosts := []string{name, "localhost", "127.0.0.1"}
	if address := request.Header.Get(HeaderAddress); address != "" {
		hosts = append(hosts, strings.Split(address, ",")...)
	}
	sign(response, request, s.ServerCA, pki.Subject{Name: name, Hosts: hosts})
}

func (s *Supervisor) signProxy(response http.ResponseWriter, request *http.Request) {
	sign(response, request, s.ClientCA, pki.Subject{Name: "system:kube-proxy"})
}

func sign(response http.ResponseWriter, request *http.Request, authority *pki.Authority, subject pki.Subject) {
	body, err := io.ReadAll(io.LimitReader(request.Body, requestLimit))
	if err != nil {
		http.Error(response, err.Error(), http.StatusBadRequest)
		return
	}
	certificate, err := authority.SignRequest(body, subject)
	if err != nil {
		http.Error(response, err.Error(), http.StatusBadRequest)
		return
	}
	_, _ = response.Write(certificate)
}
