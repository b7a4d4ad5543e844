package pki

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
)

func TestAuthorityIsKept(t *testing.T) {
	directory := t.TempDir()
	first := ensure(t, directory)
	if second := ensure(t, directory); string(first.Bundle) != string(second.Bundle) {
		t.Error("an authority that lies there was made anew")
	}
	if err := os.Remove(filepath.Join(directory, "server-ca.key")); err != nil {
		t.Fatal(err)
	}
	if _, err := EnsureAuthority(directory, "server-ca"); err == nil {
		t.Error("an authority without its key was taken")
	}
}

func TestSignRequest(t *testing.T) {
	authority := ensure(t, t.TempDir())
	request, _, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	subjects := []struct {
		what    string
		subject Subject
		usage   x509.ExtKeyUsage
	}{
		{"a client", Subject{Name: "system:node:a", Organization: "system:nodes"}, x509.ExtKeyUsageClientAuth},
		{"a server", Subject{Name: "a", Hosts: []string{"a", "192.0.2.1"}}, x509.ExtKeyUsageServerAuth},
	}
	for _, test := range subjects {
		signed, err := authority.SignRequest(request, test.subject)
		if err != nil {
			t.Fatalf("%s: %v", test.what, err)
		}
		block, _ := pem.Decode(signed)
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatalf("%s: %v", test.what, err)
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(authority.Bundle)
		options := x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{test.usage}}
		if _, err := certificate.Verify(options); err != nil {
			t.Errorf("%s: %v", test.what, err)
		}
		if certificate.Subject.CommonName != test.subject.Name {
			t.Errorf("%s: the name is %s, expected %s", test.what, certificate.Subject.CommonName, test.subject.Name)
		}
		for _, host := range test.subject.Hosts {
			if err := certificate.VerifyHostname(host); err != nil {
				t.Errorf("%s: %v", test.what, err)
			}
		}
	}
	block, _ := pem.Decode(request)
	block.Bytes[len(block.Bytes)-1] ^= 1
	if _, err := authority.SignRequest(block.Bytes, Subject{Name: "a"}); err == nil {
		t.Error("a request with a broken signature was signed")
	}
}

func ensure(t *testing.T, directory string) *Authority {
	t.Helper()
	authority, err := EnsureAuthority(directory, "server-ca")
	if err != nil {
		t.Fatal(err)
	}
	return authority
}
