package supervisor

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"k8s.io/client-go/kubernetes/fake"

	"nodezero.dev/rig/k3s/pki"
)

const kubelet = "/v1-k3s/client-kubelet.crt"

// requests are made one after the other: the first that a node makes settles its password.
var requests = []struct {
	what, method, path    string
	token, node, password string
	status                int
}{
	{"the CA needs no token", http.MethodGet, "/cacerts", "", "", "", http.StatusOK},
	{"the API server's paths are left to it", http.MethodGet, "/api", "", "", "", http.StatusTeapot},
	{"no token", http.MethodGet, "/v1-k3s/config", "", "", "", http.StatusUnauthorized},
	{"a wrong token", http.MethodGet, "/v1-k3s/config", "other", "", "", http.StatusUnauthorized},
	{"an agent with the server's token", http.MethodGet, "/v1-k3s/config", "for-servers", "", "", http.StatusUnauthorized},
	{"the agents' token", http.MethodGet, "/v1-k3s/config", "for-agents", "", "", http.StatusOK},
	{"no such path", http.MethodGet, "/v1-k3s/other", "for-agents", "", "", http.StatusNotFound},
	{"a node without a name", http.MethodPost, kubelet, "for-agents", "", "one", http.StatusBadRequest},
	{"a node without a token", http.MethodPost, kubelet, "", "worker-1", "one", http.StatusUnauthorized},
	{"a node", http.MethodPost, kubelet, "for-agents", "worker-1", "one", http.StatusOK},
	{"the same again", http.MethodPost, kubelet, "for-agents", "worker-1", "one", http.StatusOK},
	{"another machine", http.MethodPost, kubelet, "for-agents", "worker-1", "two", http.StatusForbidden},
}

func TestSupervisor(t *testing.T) {
	handler := newSupervisor(t).Wrap(http.HandlerFunc(func(response http.ResponseWriter, _ *http.Request) {
		response.WriteHeader(http.StatusTeapot)
	}))
	body, _, err := pki.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range requests {
		request := httptest.NewRequest(test.method, test.path, bytes.NewReader(body))
		request.Header.Set(HeaderName, test.node)
		request.Header.Set(HeaderPassword, test.password)
		if test.token != "" {
			request.SetBasicAuth("node", test.token)
		}
		recorder := httptest.NewRecorder()
		handler.ServeHTTP(recorder, request)
		if recorder.Code != test.status {
			t.Errorf("%s: the status is %d, expected %d", test.what, recorder.Code, test.status)
		}
		if test.path == kubelet && recorder.Code == http.StatusOK {
			checkNode(t, test.what, recorder.Body, "system:node:"+test.node)
		}
	}
}

func TestNoTokenAdmitsNobody(t *testing.T) {
	supervisor := newSupervisor(t)
	supervisor.ServerToken, supervisor.AgentToken = "", ""
	request := httptest.NewRequest(http.MethodGet, "/v1-k3s/config", nil)
	request.SetBasicAuth("node", "")
	recorder := httptest.NewRecorder()
	supervisor.Wrap(http.NotFoundHandler()).ServeHTTP(recorder, request)
	if recorder.Code != http.StatusUnauthorized {
		t.Errorf("the status is %d, expected %d", recorder.Code, http.StatusUnauthorized)
	}
}

func TestServersHaveATokenOfTheirOwn(t *testing.T) {
	handler := newSupervisor(t).Wrap(http.NotFoundHandler())
	for token, status := range map[string]int{"for-servers": http.StatusOK, "for-agents": http.StatusUnauthorized} {
		request := httptest.NewRequest(http.MethodGet, "/v1-k3s/config", nil)
		request.SetBasicAuth("server", token)
		recorder := httptest.NewRecorder()
		handler.ServeHTTP(recorder, request)
		if recorder.Code != status {
			t.Errorf("%s: the status is %d, expected %d", token, recorder.Code, status)
		}
	}
}

func checkNode(t *testing.T, what string, body io.Reader, name string) {
	t.Helper()
	content, err := io.ReadAll(body)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(content)
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	subject := certificate.Subject
	if subject.CommonName != name || len(subject.Organization) != 1 || subject.Organization[0] != "system:nodes" {
		t.Errorf("%s: the subject is %s, expected %s of system:nodes", what, subject, name)
	}
}

func newSupervisor(t *testing.T) *Supervisor {
	t.Helper()
	directory := t.TempDir()
	authorities := map[string]*pki.Authority{}
	for _, name := range []string{"server-ca", "client-ca"} {
		authority, err := pki.EnsureAuthority(directory, name)
		if err != nil {
			t.Fatal(err)
		}
		authorities[name] = authority
	}
	return &Supervisor{
		ServerToken: "for-servers", AgentToken: "for-agents", ServerCA: authorities["server-ca"],
		ClientCA: authorities["client-ca"], Client: fake.NewClientset(),
	}
}
