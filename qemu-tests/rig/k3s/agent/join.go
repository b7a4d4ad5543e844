package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"nodezero.dev/rig/k3s/log"
	"nodezero.dev/rig/k3s/nodepassword"
	"nodezero.dev/rig/k3s/pki"
	"nodezero.dev/rig/k3s/supervisor"
	"nodezero.dev/rig/k3s/token"
)

const (
	// An emulated server under load takes its time to hash a password.
	joinTimeout  = time.Minute
	joinInterval = 5 * time.Second
	answerLimit  = 1 << 20
)

// server is one that a node talks to before it has certificates.
type server struct {
	url      string
	token    token.Token
	bundle   []byte
	client   *http.Client
	identity http.Header
}

// join verifies the server and fetches what makes a node of this machine: authorities, certificates, settings. It tries
// until it succeeds: a server may come later, and a node may be admitted anew.
func (a *Agent) join(ctx context.Context) (*supervisor.Settings, error) {
	parsed, err := token.Parse(a.Token)
	if err != nil {
		return nil, fmt.Errorf("reading token: %w", err)
	}
	password, err := nodepassword.Own(nodepassword.Path)
	if err != nil {
		return nil, err
	}
	s := &server{url: a.Server, token: parsed, identity: http.Header{}}
	s.identity.Set(supervisor.HeaderName, a.name)
	s.identity.Set(supervisor.HeaderPassword, password)
	s.identity.Set(supervisor.HeaderAddress, strings.Join(a.addresses, ","))
	for {
		err := s.verify(ctx)
		if err == nil {
			break
		}
		log.Error("Failed to validate connection to cluster at %s: %v", s.url, err)
		if err := pause(ctx, joinInterval); err != nil {
			return nil, err
		}
	}
	for {
		settings, err := s.fetch(ctx, a.directory)
		if err == nil {
			return settings, nil
		}
		log.Info("Waiting to retrieve agent configuration; server is not ready: %v", err)
		if err := pause(ctx, joinInterval); err != nil {
			return nil, err
		}
	}
}

// verify takes the server's CA bundle on trust, holds it against the token's hash, and then the server against the
// bundle. Nothing secret is sent before that.
func (s *server) verify(ctx context.Context) error {
	s.client = newClient(&tls.Config{InsecureSkipVerify: true})
	bundle, err := s.call(ctx, http.MethodGet, "/cacerts", nil)
	if err != nil {
		return fmt.Errorf("failed to get CA certs: %w", err)
	}
	if err := s.token.VerifyCA(bundle); err != nil {
		return err
	}
	if s.token.Hash == "" {
		log.Warn("Cluster CA certificate is not trusted by the host CA bundle, but the token does not include a CA " +
			"hash. Use the full token from the server's node-token file to enable Cluster CA validation.")
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(bundle)
	s.client = newClient(&tls.Config{RootCAs: pool})
	if _, err := s.call(ctx, http.MethodGet, "/cacerts", nil); err != nil {
		return fmt.Errorf("CA cert validation failed: %w", err)
	}
	s.bundle = bundle
	return nil
}

// fetch writes the node's files. The settings come first: they tell a wrong token from a wrong node password.
func (s *server) fetch(ctx context.Context, directory string) (*supervisor.Settings, error) {
	body, err := s.call(ctx, http.MethodGet, "/v1-k3s/config", nil)
	if err != nil {
		return nil, err
	}
	var settings supervisor.Settings
	if err := json.Unmarshal(body, &settings); err != nil {
		return nil, fmt.Errorf("reading /v1-k3s/config: %w", err)
	}
	clientCA, err := s.call(ctx, http.MethodGet, "/v1-k3s/client-ca.crt", nil)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(directory, "server-ca.crt"), s.bundle, 0o644); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(directory, "client-ca.crt"), clientCA, 0o644); err != nil {
		return nil, err
	}
	for _, name := range []string{"client-kubelet", "serving-kubelet", "client-kube-proxy"} {
		if err := s.enrol(ctx, directory, name); err != nil {
			return nil, err
		}
	}
	return &settings, nil
}

// enrol has a new key certified.
func (s *server) enrol(ctx context.Context, directory, name string) error {
	request, key, err := pki.NewRequest()
	if err != nil {
		return err
	}
	certificate, err := s.call(ctx, http.MethodPost, "/v1-k3s/"+name+".crt", request)
	if err != nil {
		return err
	}
	path := filepath.Join(directory, name)
	if err := os.WriteFile(path+".key", key, 0o600); err != nil {
		return err
	}
	return os.WriteFile(path+".crt", certificate, 0o644)
}

var errNodePassword = errors.New(nodepassword.Rejected())

// call sends the token and the node's identity only to a server that was verified.
func (s *server) call(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, s.url+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if s.bundle != nil {
		request.Header = s.identity.Clone()
		request.SetBasicAuth("node", s.token.Password)
	}
	response, err := s.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, answerLimit))
	switch {
	case err != nil:
		return nil, err
	case response.StatusCode == http.StatusForbidden:
		return nil, errNodePassword
	case response.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s: %s", request.URL, response.Status)
	}
	return answer, nil
}

func newClient(config *tls.Config) *http.Client {
	return &http.Client{
		Timeout:   joinTimeout,
		Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true},
	}
}

// pause waits, or gives the context's error.
func pause(ctx context.Context, duration time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(duration):
		return nil
	}
}
